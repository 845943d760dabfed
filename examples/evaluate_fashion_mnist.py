"""Compare inpaintings of held-out Fashion-MNIST images: RePaint, call budgets, the training set itself.

    python examples/evaluate_fashion_mnist.py /usr/share/datasets/fashion-mnist --cache runs/evaluation

prints two Markdown tables with a row for each sampler and a column for each mask. The first has the energy
score over the inpainted pixels, lower is better, with its standard error, and its relative difference to
that of the first sampler on the images that both have, with the 95 % interval of a bootstrap over images.
The second has the RMSE of the samples' mean, and their diversity. Samplers are

- `250/10/10`: RePaint with T = 250, jump_length = jump_n_sample = 10, eta = 1, the paper's setting;
- `250/1/1`: the same without resampling;
- `diffusers`: 250/10/10 with the other defaults of diffusers, eta = 0 and its undo step;
- `64`: a budget of that many model calls;
- `nearest`: the training images that are nearest on the known pixels, of all 60,000;
- `mean`: the mean of the training images.

Finished batches are kept in --cache: the same command goes on where it was stopped, and a larger one
computes only what is new. Two CPU cores are best used by two processes, with other samplers or masks each:
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python ...`.
"""

import argparse
import csv
import dataclasses
import gzip
import zlib
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import repaint_jax as rp
from repaint_jax.datasets import IDX_NAME, read_idx_images
from repaint_jax.images import uint8_to_array
from repaint_jax.metrics import diversity, energy_score, rmse_of_mean
from repaint_jax.plots import inpainting_grid

TEST_NAME = "t10k-images-idx3-ubyte.gz"
MASKS = ("Half", "Wide", "Expand", "Alternating lines")
SAMPLERS = ("250/10/10", "diffusers", "250/1/1", "32", "64", "nearest", "mean")
IMAGES_PER_BATCH = 4
NUM_RESAMPLES = 10_000  # of the bootstrap

Images = NDArray[np.float32]
# Of a batch: the mask's name, the first image's number, images, masks -> samples [N, num_samples, H, W, C].
Draw = Callable[[str, int, Images, Images], Images]


class Scores(NamedTuple):
    """Every field is [N], a number for each image."""

    energy_score: NDArray[np.float64]
    rmse: NDArray[np.float64]
    diversity: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with Fashion-MNIST's idx.gz files")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder for finished batches and pictures"
    )
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=MASKS)
    parser.add_argument(
        "--num-images", type=int, nargs="+", default=[64], help="of all, or of each sampler"
    )
    parser.add_argument("--num-samples", type=int, default=8, help="of an image")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--scores", type=Path, help="CSV file for the energy scores of all images")
    options = parser.parse_args()
    counts = options.num_images
    if len(counts) == 1:
        counts *= len(options.samplers)
    if len(counts) != len(options.samplers):
        parser.error(f"--num-images has {len(counts)} numbers, expected 1 or {len(options.samplers)}")

    train = uint8_to_array(read_idx_images(options.data / IDX_NAME))
    test = uint8_to_array(read_idx_images(options.data / TEST_NAME))[: max(counts)]
    masks = {name: masks_of(name, test) for name in options.masks}
    pipe = rp.RePaintPipeline.from_pretrained(options.model)
    results = {}
    for sampler, count in zip(options.samplers, counts, strict=True):
        if sampler == "mean":
            draw = partial(mean_image, train)
        elif sampler == "nearest":
            draw = partial(nearest, train, options.num_samples)
        else:
            draw = partial(inpaintings, pipe, sampler, options.num_samples, options.cache)
        results[sampler] = evaluate(draw, sampler, test[:count], masks, options.cache)
    print_tables(results)
    if options.scores:
        write_scores(options.scores, results)


def masks_of(name: str, images: Images) -> Images:  # [N, H, W, 1]
    make = partial(rp.masks.by_name, name.lower().replace(" ", "_"), *images.shape[1:3])
    return np.stack([make(key) for key in numbered_keys(0, len(images))])


def numbered_keys(start: int, count: int) -> jax.Array:
    """Keys of images that depend on nothing but their numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), start + jnp.arange(count))


def evaluate(
    draw: Draw, sampler: str, images: Images, masks: dict[str, Images], pictures: Path
) -> dict[str, Scores]:
    """Score a sampler, batch by batch under all masks, and draw its first images."""
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in masks}
    for start in tqdm(range(0, len(images), IMAGES_PER_BATCH), desc=sampler, unit="batch"):
        originals = images[start : start + IMAGES_PER_BATCH]
        for name in masks:
            holes = masks[name][start : start + len(originals)]
            samples = draw(name, start, originals, holes)
            scores[name] += [
                (energy_score(*one), rmse_of_mean(*one), diversity(one[0], one[2]))
                for one in zip(samples, originals, holes, strict=True)
            ]
            if start == 0:
                pictures.mkdir(parents=True, exist_ok=True)
                grid = inpainting_grid(originals, holes, samples)
                grid.save(pictures / f"{name} {file_name(sampler)}.png")
    return {name: Scores(*np.array(of_mask).T) for name, of_mask in scores.items()}


# Samplers


def mean_image(train: Images, name: str, start: int, originals: Images, holes: Images) -> Images:
    return np.broadcast_to(train.mean(0), (len(originals), 2, *train.shape[1:]))


def nearest(train: Images, count: int, name: str, start: int, originals: Images, holes: Images) -> Images:
    """Training images nearest to the images on their known pixels."""

    def of_image(image: Images, hole: Images) -> Images:
        known = np.broadcast_to(hole, image.shape) == 1
        distances = np.square(train[:, known] - image[known]).sum(1)
        return train[np.argsort(distances)[:count]]

    return np.stack(list(map(of_image, originals, holes)))


def inpaintings(
    pipe: rp.RePaintPipeline,
    sampler: str,
    num_samples: int,
    cache: Path,
    name: str,
    start: int,
    originals: Images,
    holes: Images,
) -> Images:
    """Inpaint a batch, or read it, as a function of image, number, mask, model and schedule."""
    schedule: dict[str, Any]
    if sampler == "diffusers":
        config = dataclasses.replace(pipe.state.config, undo="diffusers")
        pipe = dataclasses.replace(pipe, state=rp.create_state(config))
        schedule = {"eta": 0.0}
    elif "/" in sampler:
        steps, jump_length, jump_n_sample = map(int, sampler.split("/"))
        schedule = {
            "num_inference_steps": steps,
            "jump_length": jump_length,
            "jump_n_sample": jump_n_sample,
            "eta": 1.0,
        }
    else:
        schedule = {"num_model_calls": int(sampler)}
    leaves = jax.tree.leaves((pipe.params, pipe.set_timesteps(**schedule).schedule))
    made_of = zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    path = cache / name / f"{file_name(sampler)}_{num_samples}_{made_of}_{start:05d}.npy.gz"
    if not path.exists():
        keys = numbered_keys(start, len(originals))
        samples = pipe(
            originals, holes, **schedule, key=keys, num_samples=num_samples, output_type="jax"
        ).images
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with gzip.open(unfinished, "wb") as file:
            np.save(file, np.asarray(samples, np.float16))
        unfinished.replace(path)
    with gzip.open(path) as file:
        return np.load(file).astype(np.float32).reshape(len(originals), -1, *originals.shape[1:])


def file_name(sampler: str) -> str:
    return sampler.replace("/", "-")


# Tables


def print_tables(results: dict[str, dict[str, Scores]]) -> None:
    reference, *_ = results
    masks = list(results[reference])
    head = f"| sampler | images | {' | '.join(masks)} |\n|---|---|{'---|' * len(masks)}"
    print(f"energy score, and its difference to {reference}\n\n{head}")
    for sampler, of_mask in results.items():
        cells = [
            energy_score_cell(scores, None if sampler == reference else results[reference][name])
            for name, scores in of_mask.items()
        ]
        print(f"| {sampler} | {len(of_mask[masks[0]].rmse)} | {' | '.join(cells)} |")
    print(f"\nRMSE of the samples' mean / diversity\n\n{head}")
    for sampler, of_mask in results.items():
        cells = [f"{s.rmse.mean():.3f} / {s.diversity.mean():.2f}" for s in of_mask.values()]
        print(f"| {sampler} | {len(of_mask[masks[0]].rmse)} | {' | '.join(cells)} |")


def energy_score_cell(scores: Scores, reference: Scores | None) -> str:
    own = scores.energy_score
    cell = f"{own.mean():.2f} ± {own.std(ddof=1) / len(own) ** 0.5:.2f}"
    if reference is None:
        return cell
    common = min(len(own), len(reference.energy_score))
    pairs = np.stack([own[:common], reference.energy_score[:common]])
    chosen = np.random.default_rng(0).integers(common, size=(NUM_RESAMPLES, common))
    own_means, reference_means = pairs[:, chosen].mean(-1)
    low, high = np.percentile(own_means / reference_means, [2.5, 97.5])
    ratio = pairs[0].mean() / pairs[1].mean()
    return f"{cell}, {percent(ratio)} [{percent(low)}, {percent(high)}]"


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def write_scores(path: Path, results: dict[str, dict[str, Scores]]) -> None:
    """A row for each mask and image, a column for each sampler."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mask", "image", *results])
        for name in next(iter(results.values())):
            columns = [of_mask[name].energy_score.round(3) for of_mask in results.values()]
            for number, row in enumerate(zip_longest(*columns, fillvalue="")):
                writer.writerow([name, number, *row])


if __name__ == "__main__":
    main()
