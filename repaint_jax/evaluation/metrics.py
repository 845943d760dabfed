"""Metrics of a set of inpainted samples, in NumPy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def energy_score(samples: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Return the energy score of the samples of one image: E|X - y| - E|X - X'|/2. Lower is better.

    The score is strictly proper (Gneiting and Raftery 2007, section 4.3): in expectation, only samples from
    the true posterior reach the lowest score. |.| is the Euclidean norm over the inpainted pixels. The
    expectations are means over all samples and over all pairs of different samples.

    Args:
        samples: the samples, [n, H, W, C], with n at least 2.
        truth: the image before pixels were removed, [H, W, C].
        mask: the mask, broadcastable to [H, W, C]. Pixels with the value 0 were inpainted.

    Raises:
        ValueError: if there are fewer than 2 samples, truth has another shape than a sample, or no pixel of
            the mask is 0.
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    between_samples = diversity(samples, mask)
    _check_truth(samples, truth)
    unknown = _unknown(mask, truth.shape)
    to_truth = np.linalg.norm(samples[:, unknown] - truth[unknown], axis=1).mean()
    return float(to_truth - between_samples / 2)


def diversity(samples: ArrayLike, mask: ArrayLike) -> float:
    """Return the mean distance E|X - X'| between two different samples over the inpainted pixels.

    Args:
        samples: the samples, [n, H, W, C], with n at least 2.
        mask: the mask, broadcastable to [H, W, C]. Pixels with the value 0 were inpainted.

    Raises:
        ValueError: if there are fewer than 2 samples, or no pixel of the mask is 0.
    """
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        raise ValueError(f"samples has {len(samples)} entries, expected at least 2")
    x = samples[:, _unknown(mask, samples.shape[1:])]
    distances = sum(np.linalg.norm(x - one, axis=1).sum() for one in x)
    return float(distances / (len(x) * (len(x) - 1)))


def rmse_of_mean(samples: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> float:
    """Return the root mean squared error of the samples' mean over the inpainted pixels.

    Args:
        samples: the samples, [n, H, W, C].
        truth: the image before pixels were removed, [H, W, C].
        mask: the mask, broadcastable to [H, W, C]. Pixels with the value 0 were inpainted.

    Raises:
        ValueError: if truth has another shape than a sample, or no pixel of the mask is 0.
    """
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
