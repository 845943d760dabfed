"""Inpaint with your own NNX module, which is built around a trained network.

    python examples/03_own_model_nnx.py -o runs/03_own_model_nnx.png

The module averages a network's predictions for a sample and for its mirror image, so its results prefer
neither left nor right. `nnx_model_fn` makes the function and the params that `inpaint` takes.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

import repaint_jax as rp
from repaint_jax.models.pretrained import bundled_folder, load_pretrained
from repaint_jax.pictures.images import image_to_array
from repaint_jax.pictures.plots import inpainting_grid

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/03_own_model_nnx.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)


class WithoutASide(nnx.Module):
    """Averages over mirror images. Any module with `__call__(sample [B, H, W, C], timestep)` works."""

    def __init__(self, network: nnx.Module):
        self.network = network

    def __call__(self, sample: jax.Array, timestep: jax.Array) -> jax.Array:
        mirrored = self.network(sample[:, :, ::-1], timestep)[:, :, ::-1]
        return (self.network(sample, timestep) + mirrored) / 2


# Load a trained network, which is an NNX module, and its scheduler's settings. The prediction type is noise
# ("epsilon"), the clean image ("sample") or v ("v_prediction"). It must match the training of your network.
network, config, _ = load_pretrained("bundled")
print(f"betas: {config.beta_schedule}; it predicts: {config.prediction_type}")
model_fn, params = rp.nnx_model_fn(WithoutASide(network))

names = ["1_bag", "3_dress", "6_pullover"]
shape = (28, 28, 1)
images = np.stack(
    [image_to_array(Image.open(bundled_folder() / "images" / f"{n}.png"), shape) for n in names]
)
mask = np.ones((1, 28, 28, 1), np.float32)
mask[:, 10:] = 0  # one mask for all images

state = rp.set_timesteps_for_budget(rp.create_state(config), 64)
samples = []
for number in range(3):
    keys = jax.random.split(jax.random.key(number), len(images))
    samples.append(rp.inpaint(state, model_fn, params, images, mask, keys))
masks = np.repeat(mask, len(images), axis=0)
inpainting_grid(images, masks, np.stack(samples, axis=1), [name[2:] for name in names]).save(output)
print(f"wrote {output}")
