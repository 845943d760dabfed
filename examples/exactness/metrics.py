"""Distances between results and the posterior, each with its floor.

The floor is the distance of one set of posterior samples to another. Distances that grow with both error
and floor are corrected by `less_floor`.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

W2_SAMPLES = 400  # of each set: the assignment takes time in their third power
ENERGY_SAMPLES = 1000


def gaussian_w2_squared(mean, covariance, target_mean, target) -> float:
    """Return the squared W2 distance of two Gaussians over the trace of the second's covariance."""
    offset, root = mean - target_mean, matrix_root(target)
    cross = np.trace(matrix_root(root @ covariance @ root))
    distance = offset @ offset + np.trace(covariance) + np.trace(target) - 2 * cross
    return float(distance / np.trace(target))


def matrix_root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a positive semidefinite matrix."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    return (eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))) @ eigenvectors.T


def sliced_w2_squared(results: np.ndarray, target: np.ndarray) -> float:
    """Return the mean squared W2 distance along 64 directions over the target's variance."""
    directions = np.random.default_rng(0).standard_normal((target.shape[1], 64))
    directions /= np.linalg.norm(directions, axis=0)
    results, part = first_of_both(results, target)
    difference = np.sort(results @ directions, 0) - np.sort(part @ directions, 0)
    return float(np.mean(difference**2) / target.var(0).mean())


def w2_squared(results: np.ndarray, target: np.ndarray) -> float:
    """Return the squared W2 distance of the first samples of each set over the target's variance."""
    cost = cdist(*first_of_both(results, target, W2_SAMPLES), "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean() / target.var(0).sum())


def energy_distance(results: np.ndarray, target: np.ndarray) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| over E|Y - Y'|, for results X and the target Y."""
    x, y = results[:ENERGY_SAMPLES], target[:ENERGY_SAMPLES]
    within = cdist(y, y).mean()
    return float((2 * cdist(x, y).mean() - cdist(x, x).mean() - within) / within)


def weights_error(results: np.ndarray, target: np.ndarray) -> float:
    """Return the total variation distance of mean responsibilities [n, K] of the components."""
    return float(np.abs(results.mean(0) - target.mean(0)).sum() / 2)


def less_floor(squared: float, floor: float) -> float:
    """Return the excess of a squared distance over its floor, and never less than a quarter of that."""
    return max(squared - floor, floor / 4)


def first_of_both(results: np.ndarray, target: np.ndarray, most: int | None = None):
    """Return as many samples of both sets."""
    count = min(len(results), len(target), most or len(target))
    return results[:count], target[:count]
