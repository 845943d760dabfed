"""Compare inpainted held-out Fashion-MNIST images with what the training set alone could offer.

    python examples/evaluate_fashion_mnist.py /usr/share/datasets/fashion-mnist --cache runs/evaluation

prints Markdown tables: energy score (lower is better, with its standard error), RMSE of the samples' mean
and diversity over the inpainted pixels, for the masks Half and Wide, of

- RePaint with the model, 8 samples an image;
- the 8 training images that are nearest on the known pixels, of all 60,000;
- the mean of the training images.

Finished batches are kept in --cache; the same command again goes on where it was stopped. Two CPU cores
are best used by two processes: run it with `--masks Half` and with `--masks Wide` side by side, each on a
core of its own (`taskset -c 0`, `taskset -c 1`), and then without the option for the whole table.
"""

import argparse
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import repaint_jax as rp
from repaint_jax.datasets import IDX_NAME, read_idx_images
from repaint_jax.images import uint8_to_array
from repaint_jax.metrics import diversity, energy_score, rmse_of_mean
from repaint_jax.plots import inpainting_grid

TEST_NAME = "t10k-images-idx3-ubyte.gz"
MASKS = ("Half", "Wide")
IMAGES_PER_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with Fashion-MNIST's idx.gz files")
    parser.add_argument("--cache", type=Path, required=True, help="folder for finished batches")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=MASKS)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--jump-length", type=int, default=10)
    parser.add_argument("--jump-n-sample", type=int, default=10)
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--model-calls", type=int, help="a call budget, instead of the four above")
    options = parser.parse_args()

    train = uint8_to_array(read_idx_images(options.data / IDX_NAME))
    test = uint8_to_array(read_idx_images(options.data / TEST_NAME))[: options.num_images]
    pipe = rp.RePaintPipeline.from_pretrained(options.model)
    height, width, _ = pipe.image_shape
    wide_keys = jax.random.split(jax.random.key(0), len(test))
    masks = {
        "Half": np.stack([rp.masks.half(height, width)] * len(test)),
        "Wide": np.stack([rp.masks.wide(height, width, key) for key in wide_keys]),
    }
    rows, differences = [], []
    for name in options.masks:
        mask = masks[name]
        candidates = {
            "RePaint": repaint_samples(options, pipe, test, mask, options.cache / name.lower()),
            f"{options.num_samples} nearest training images": np.stack(
                [nearest(train, image, m, options.num_samples) for image, m in zip(test, mask, strict=True)]
            ),
            "mean training image": np.broadcast_to(train.mean(0), (len(test), 2, *test.shape[1:])),
        }
        scores_of = {}
        for method, samples in candidates.items():
            scores = scores_of[method] = [
                energy_score(*one) for one in zip(samples, test, mask, strict=True)
            ]
            error = standard_error(scores)
            rmse = np.mean([rmse_of_mean(*one) for one in zip(samples, test, mask, strict=True)])
            spread = np.mean([diversity(*one) for one in zip(samples, mask, strict=True)])
            rows.append(
                f"| {name} | {method} | {np.mean(scores):.2f} ± {error:.2f} | {rmse:.3f} | {spread:.2f} |"
            )
        repaint, neighbours, _ = map(np.array, scores_of.values())
        difference = repaint - neighbours
        differences.append(f"{name}: {difference.mean():+.2f} ± {standard_error(difference):.2f}")
        grid = inpainting_grid(test[:8], mask[:8], candidates["RePaint"][:8])
        grid.save(options.cache / f"{name.lower()}.png")
    print("| mask | samples | energy score | RMSE of mean | diversity |\n|---|---|---|---|---|")
    print("\n".join(rows))
    print("\nenergy score of RePaint minus that of the nearest training images, image by image:")
    print("\n".join(differences))


def standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def repaint_samples(
    options: argparse.Namespace,
    pipe: rp.RePaintPipeline,
    images: NDArray[np.float32],
    masks: NDArray[np.float32],
    cache: Path,
) -> NDArray[np.float32]:  # [N, num_samples, H, W, C]
    """Inpaint batch by batch; an image's samples depend on its number, the model and the settings alone."""
    if options.model_calls is None:
        schedule = {
            "num_inference_steps": options.steps,
            "jump_length": options.jump_length,
            "jump_n_sample": options.jump_n_sample,
            "eta": options.eta,
        }
    else:
        schedule = {"num_model_calls": options.model_calls}
    weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(pipe.params))
    tag = "_".join(map(str, (*schedule.values(), options.num_samples, zlib.crc32(weights))))
    cache.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(0), len(images))
    batches = []
    for start in tqdm(range(0, len(images), IMAGES_PER_BATCH), desc=cache.name, unit="batch"):
        path = cache / f"{tag}_{start:05d}.npy.gz"
        chosen = slice(start, start + IMAGES_PER_BATCH)
        if not path.exists():
            samples = pipe(
                images[chosen],
                masks[chosen],
                **schedule,
                key=keys[chosen],
                num_samples=options.num_samples,
                output_type="jax",
            ).images
            unfinished = path.with_suffix(".unfinished")
            with gzip.open(unfinished, "wb") as file:
                np.save(file, np.asarray(samples, np.float16))
            unfinished.replace(path)
        with gzip.open(path) as file:
            batches.append(np.load(file).astype(np.float32))
    return np.concatenate(batches).reshape(len(images), -1, *images.shape[1:])


def nearest(
    train: NDArray[np.float32],
    image: NDArray[np.float32],
    mask: NDArray[np.float32],
    count: int,
) -> NDArray[np.float32]:  # [count, H, W, C]
    """Training images nearest to the image on its known pixels."""
    known = np.broadcast_to(mask, image.shape) == 1
    distances = np.square(train[:, known] - image[known]).sum(1)
    return train[np.argsort(distances)[:count]]


if __name__ == "__main__":
    main()
