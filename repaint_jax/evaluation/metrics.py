"""How good a set of inpainted samples is. NumPy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def energy_score(samples: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Energy score of samples for one image: E|X - y| - E|X - X'|/2, lower is better.

    A strictly proper score (Gneiting and Raftery 2007, section 4.3): in expectation only samples from the
    true posterior have the lowest. |.| is the Euclidean norm over the inpainted pixels, and the
    expectations run over all samples and all pairs of different samples.

    Args:
        samples: [n, H, W, C], n at least 2.
        truth: [H, W, C], the image before pixels were removed.
        mask: broadcastable to [H, W, C]; pixels with 0 count.
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    between_samples = diversity(samples, mask)
    _check_truth(samples, truth)
    unknown = _unknown(mask, truth.shape)
    to_truth = np.linalg.norm(samples[:, unknown] - truth[unknown], axis=1).mean()
    return float(to_truth - between_samples / 2)


def diversity(samples: ArrayLike, mask: ArrayLike) -> float:
    """Mean distance E|X - X'| between two different samples over the inpainted pixels."""
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        raise ValueError(f"samples has {len(samples)} entries, expected at least 2")
    x = samples[:, _unknown(mask, samples.shape[1:])]
    distances = sum(np.linalg.norm(x - one, axis=1).sum() for one in x)
    return float(distances / (len(x) * (len(x) - 1)))


def rmse_of_mean(samples: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Root mean squared error of the samples' mean over the inpainted pixels."""
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    _check_truth(samples, truth)
    unknown = _unknown(mask, truth.shape)
    return float(np.sqrt(np.mean((samples.mean(0) - truth)[unknown] ** 2)))


def _check_truth(samples: NDArray[np.float64], truth: NDArray[np.float64]) -> None:
    if samples.shape[1:] != truth.shape:
        raise ValueError(f"truth has shape {truth.shape}, expected that of a sample, {samples.shape[1:]}")


def _unknown(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    unknown = np.broadcast_to(np.asarray(mask) == 0, shape)
    if not unknown.any():
        raise ValueError("mask has no pixel that is 0, expected some that were inpainted")
    return unknown
