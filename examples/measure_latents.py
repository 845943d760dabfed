"""Measure how the pictures of a latent model join their known pixels.

    python examples/measure_latents.py runs/latent/model runs/emoji/held_out

The script compares what is in the hole when a picture is encoded, and how a decoded picture is put into the
hole. For each mask it prints the jump of neighbouring pixels across the rim over that of the true pictures
(1 means no seam), the error of the 3 pixels next to the rim, and the energy score of the hole.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import repaint_jax as rp
from repaint_jax import masks
from repaint_jax.evaluation.metrics import energy_score
from repaint_jax.models.latents import LatentSpace
from repaint_jax.pictures.blending import blend, continued
from repaint_jax.pictures.datasets import read_images
from repaint_jax.pictures.images import uint8_to_array

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", type=Path, help="folder of a latent model")
parser.add_argument("data", type=Path, help="folder of pictures that the model was not trained on")
parser.add_argument("--num-images", type=int, default=32)
parser.add_argument("--num-samples", type=int, default=4)
parser.add_argument("--model-calls", type=int, default=64)

RING = 3  # pixels
AGAIN = "first results, after a quarter of the calls"

# What is in the hole when it is encoded.
BEFORE: dict[str, Callable[..., jax.Array]] = {
    "grey": lambda images, mask: jnp.where(mask == 1, images, 0),
    "continued": continued,
}
# How a decoded picture is put into the hole.
AFTER: dict[str, Callable[..., jax.Array]] = {
    "pasted": lambda decoded, images, mask: jnp.where(mask == 1, images, decoded),
    **{
        f"blended, {reach} px": lambda decoded, images, mask, reach=reach: blend(
            decoded, images, mask, reach
        )
        for reach in (1, 2, 4, 8)
    },
}


def jumps(images: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean absolute difference of neighbours of which one is known, [..., H, W, C]."""
    known = mask[..., 0] == 1
    across, down = known[:, 1:] != known[:, :-1], known[1:] != known[:-1]
    horizontal = np.abs(np.diff(images, axis=-2))[..., across, :]
    vertical = np.abs(np.diff(images, axis=-3))[..., down, :]
    return float(np.concatenate([horizontal.ravel(), vertical.ravel()]).mean())


def ring(mask: np.ndarray) -> np.ndarray:
    """Return which pixels of the hole are within RING pixels of a known one."""
    side = 2 * RING + 1
    near = jax.lax.reduce_window(mask, -jnp.inf, jax.lax.max, (side, side, 1), (1, 1, 1), "SAME")
    return np.asarray((near == 1) & (mask == 0))[..., 0]


def rows(
    name: str, pipe: rp.RePaintPipeline, images: jax.Array, options: argparse.Namespace
) -> Iterator[str]:
    space = pipe.latents
    assert isinstance(space, LatentSpace)
    height, width, _ = pipe.image_shape
    mask = np.asarray(masks.by_name(name, height, width, jax.random.key(3)))
    repeated = jnp.repeat(images, options.num_samples, axis=0)
    holes = jnp.broadcast_to(mask[None], (*repeated.shape[:-1], 1))
    state = pipe.set_timesteps(num_model_calls=options.model_calls)
    keys = jax.random.split(jax.random.key(0), len(repeated))
    latent_mask = masks.downsample(holes, space.factor)
    for before in (*BEFORE, AGAIN):
        known = space.encode(BEFORE.get(before, continued)(repeated, holes))
        if before == AGAIN:
            first, state = (
                pipe.set_timesteps(num_model_calls=calls)
                for calls in (options.model_calls // 4, options.model_calls - options.model_calls // 4)
            )
            latents = rp.inpaint(first, pipe.model_fn, pipe.params, known, latent_mask, keys)
            known = space.encode(space.fill(latents, repeated, holes))
        latents = rp.inpaint(state, pipe.model_fn, pipe.params, known, latent_mask, keys)
        for after, join in AFTER.items():
            results = np.asarray(join(space.decode(latents), repeated, holes))
            samples = results.reshape(len(images), options.num_samples, *pipe.image_shape)
            jump = jumps(samples, mask) / jumps(np.asarray(images), mask)
            error = np.abs(samples - np.asarray(images)[:, None])[:, :, ring(mask)].mean()
            scores = [
                energy_score(of_one, np.asarray(truth), mask)
                for of_one, truth in zip(samples, images, strict=True)
            ]
            yield f"| {name} | {before} | {after} | {jump:.3f} | {error:.4f} | {np.mean(scores):.4f} |"


def main() -> None:
    options = parser.parse_args()
    pipe = rp.RePaintPipeline.from_pretrained(options.model)
    pixels = read_images(options.data, pipe.image_shape[0], grey=False)
    chosen = np.linspace(0, len(pixels) - 1, options.num_images).astype(int)
    images = jnp.asarray(uint8_to_array(pixels[chosen]))
    print("| mask | in the hole | decoded | jump over the true | error at the rim | energy score |")
    print("|---|---|---|---|---|---|")
    for name in ("half", "wide", "expand"):
        for row in rows(name, pipe, images, options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
