"""A prior of images: a mixture of 60 low-rank Gaussians, fitted to Fashion-MNIST.

Clusters of k-means start it, and a few steps of the EM algorithm for mixtures of probabilistic PCA (Tipping
and Bishop 1999) with a white variance that stays .01 refine it. The fit takes a minute and is kept in a file.

Debian's package `dataset-fashion-mnist` has the images.
"""

from functools import cache
from pathlib import Path

import numpy as np

from priors.low_rank import LowRankMixture
from repaint_jax.pictures.datasets import TRAIN_IDX_NAME, read_idx_images
from repaint_jax.pictures.images import uint8_to_array

DATA = Path("/usr/share/datasets/fashion-mnist")
FITTED = Path(__file__).parents[2] / "build" / "exactness" / "fashion_prior.npz"
COMPONENTS, RANK, WHITE = 60, 16, 0.01
IMAGES = 20_000


@cache
def fashion_prior() -> LowRankMixture:
    """Return the fitted prior, over images in [-1, 1]."""
    if not FITTED.exists():
        if not DATA.exists():
            raise SystemExit(f"{DATA} does not exist, expected Debian's package dataset-fashion-mnist")
        images = uint8_to_array(read_idx_images(DATA / TRAIN_IDX_NAME)[:IMAGES]).reshape(IMAGES, -1)
        FITTED.parent.mkdir(parents=True, exist_ok=True)
        np.savez(FITTED, **fit(images.astype(np.float64))._asdict())
    with np.load(FITTED) as arrays:
        return LowRankMixture(**arrays)


def fit(
    images: np.ndarray, components: int = COMPONENTS, rank: int = RANK, steps: int = 3
) -> LowRankMixture:
    """Fit the mixture to images [n, d]."""
    shares = np.eye(components)[clusters(images, components)]
    for _ in range(steps):
        prior = maximise(images, shares, rank)
        shares = np.asarray(prior.responsibilities(1.0, 0.0, images))
    return maximise(images, shares, rank)


def clusters(images: np.ndarray, components: int, rounds: int = 12) -> np.ndarray:
    """Return the cluster of each image by k-means, from random images."""
    centres = images[np.random.default_rng(0).choice(len(images), components, replace=False)]
    for _ in range(rounds):
        nearest = ((centres**2).sum(1) - 2 * images @ centres.T).argmin(1)
        centres = np.array(
            [images[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(components)]
        )
    return nearest


def maximise(images: np.ndarray, shares: np.ndarray, rank: int) -> LowRankMixture:
    """Return weights, means and leading directions of the components, given shares [n, K]."""
    means, factors, variances = [], [], []
    for share in shares.T:
        near = share > 1e-3
        weights = share[near] / share[near].sum()
        means.append(weights @ images[near])
        rows = np.sqrt(weights)[:, None] * (images[near] - means[-1])
        _, singular, directions = np.linalg.svd(rows, full_matrices=False)
        factors.append(directions[:rank].T)
        variances.append(np.maximum(singular[:rank] ** 2 - WHITE, 1e-4))
    weights = shares.mean(0)
    return LowRankMixture(weights, *map(np.array, (means, factors, variances)), np.array(WHITE))
