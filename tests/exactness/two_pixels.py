"""A Gaussian prior of two pixels, of which the first is known, in the forms that the tests need."""

import numpy as np
from priors.gaussian_mixture import GaussianMixture
from samplers.sampler import Problem

COVARIANCE = np.array([[0.30, 0.18], [0.18, 0.25]])
Y = 0.6
KNOWN = np.diag([1.0, 0.0])
MISSING = np.eye(2) - KNOWN
SIGMAS = np.array([5.0, 2.0, 1.0, 0.5, 0.2, 0.0])

# The missing pixel given the known one.
MEAN = 0.18 / 0.30 * Y
VARIANCE = 0.25 - 0.18**2 / 0.30


def problem() -> Problem:
    values, vectors = np.linalg.eigh(COVARIANCE)
    prior = GaussianMixture(np.ones(1), np.zeros((1, 2)), values[None], vectors)
    return Problem(prior, np.array([Y, 0.0]), np.array([1.0, 0.0]))


def denoiser(sigma: float) -> np.ndarray:
    """W of E[x0 | x] = W x."""
    return COVARIANCE @ np.linalg.inv(COVARIANCE + sigma**2 * np.eye(2))


def propagate(steps, mean, cov) -> tuple[np.ndarray, np.ndarray]:
    """Push moments through steps x <- A x + b + N z, a list of (A, b, N)."""
    for linear, offset, noise in steps:
        mean, cov = linear @ mean + offset, linear @ cov @ linear.T + noise @ noise.T
    return mean, cov
