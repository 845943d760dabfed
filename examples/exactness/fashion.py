"""A prior of images: a mixture of 60 low-rank Gaussians, fitted to Fashion-MNIST.

Clusters of k-means start it, and a few steps of the EM algorithm for mixtures of probabilistic PCA (Tipping
and Bishop 1999) with a white variance that stays .01 refine it. The fit takes less than a minute
and is kept in a file.

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


def clusters(images: np.ndarray, components: int, rounds: int = 15) -> np.ndarray:
    """Return the cluster of each image by k-means; one that is too small starts again at some image."""
    rng, fewest = np.random.default_rng(0), len(images) // (10 * components)
    centres = images[rng.choice(len(images), components, replace=False)]
    for left in reversed(range(rounds)):
        nearest = ((centres**2).sum(1) - 2 * images @ centres.T).argmin(1)
        for k, count in enumerate(np.bincount(nearest, minlength=components)):
            if count >= fewest:
                centres[k] = images[nearest == k].mean(0)
            elif left > 3:
                centres[k] = images[rng.integers(len(images))]
    return nearest


def maximise(images: np.ndarray, shares: np.ndarray, rank: int) -> LowRankMixture:
    """Return weights, means and leading directions of the components, given shares [n, K]."""
    means, factors, variances = [], [], []
    for share in shares.T:
        near = np.argsort(-share)[: max(4 * rank, (share > 1e-3).sum())]
        weights = share[near] + 1e-6  # a small component still needs as many directions
        weights /= weights.sum()
        means.append(weights @ images[near])
        rows = np.sqrt(weights)[:, None] * (images[near] - means[-1])
        squared, coordinates = np.linalg.eigh(rows @ rows.T)
        leading = rows.T @ coordinates[:, -rank:]
        factors.append(leading / np.linalg.norm(leading, axis=0))
        variances.append(np.maximum(squared[-rank:] - WHITE, 1e-4))
    weights = shares.mean(0)
    return LowRankMixture(weights, *map(np.array, (means, factors, variances)), np.array(WHITE))
