"""Compare inpaintings of held-out Fashion-MNIST images with images of the training set.

    python examples/evaluate_fashion_mnist.py /usr/share/datasets/fashion-mnist -o runs/evaluation

This evaluates settings as `repaint-jax evaluate` does, and adds two rows to the tables:

- `nearest`: those of the 60,000 training images that are nearest on the known pixels.
- `mean`: the mean of the training images.

To use two CPU cores, run two processes with different settings or masks:
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python ...`.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

import repaint_jax as rp
from repaint_jax.evaluation.evaluate import (
    Images,
    MaskedBatch,
    draw,
    evaluate,
    images_of_settings,
    masked_batches,
    score,
)
from repaint_jax.evaluation.score_tables import read_scores, write_tables
from repaint_jax.pictures.datasets import TEST_IDX_NAME, TRAIN_IDX_NAME, read_idx_images
from repaint_jax.pictures.images import uint8_to_array

MASKS = ("half", "wide", "expand", "alternating_lines")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with Fashion-MNIST's idx.gz files")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["paper", "64"])
    parser.add_argument("--masks", nargs="+", choices=rp.masks.NAMES, default=MASKS)
    parser.add_argument(
        "--num-images",
        type=int,
        nargs="+",
        default=[64],
        help="for all, or for each setting and the two rows",
    )
    parser.add_argument("--num-samples", type=int, default=8, help="number of samples per image")
    parser.add_argument(
        "--scores", type=Path, help="scores.csv of an earlier run, whose scores are not computed again"
    )
    options = parser.parse_args()
    names = [*options.settings, "nearest", "mean"]
    try:
        counts = images_of_settings(names, options.num_images)
    except ValueError as error:
        parser.error(str(error))

    train = uint8_to_array(read_idx_images(options.data / TRAIN_IDX_NAME))
    test = uint8_to_array(read_idx_images(options.data / TEST_IDX_NAME))
    rows = evaluate(
        rp.RePaintPipeline.from_pretrained("bundled"),
        test,
        options.masks,
        {name: counts[name] for name in options.settings},
        options.output,
        num_samples=options.num_samples,
        known=read_scores(options.scores) if options.scores else (),
    )
    for name, make in (
        ("nearest", partial(nearest, train, options.num_samples)),
        ("mean", partial(mean_image, train)),
    ):
        for batch in masked_batches(test[: counts[name]], options.masks, seed=0):
            samples = make(batch)
            rows += score(name, batch, samples)
            if batch.start == 0:
                draw(name, batch, samples, options.output)
    print(write_tables(options.output, rows))


def mean_image(train: Images, batch: MaskedBatch) -> Images:
    return np.broadcast_to(train.mean(0), (len(batch.images), 2, *train.shape[1:]))


def nearest(train: Images, count: int, batch: MaskedBatch) -> Images:
    """Return the training images that are nearest to each image on its known pixels."""

    def of_image(image: Images, mask: Images) -> Images:
        known = np.broadcast_to(mask, image.shape) == 1
        distances = np.square(train[:, known] - image[known]).sum(1)
        return train[np.argsort(distances)[:count]]

    return np.stack(list(map(of_image, batch.images, batch.masks)))


if __name__ == "__main__":
    main()
