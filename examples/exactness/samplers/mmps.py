"""MMPS: moment matching posterior sampling (Rozet et al. 2024, arXiv 2405.13712)."""

from functools import cache

import jax.numpy as jnp
from samplers.sampler import Sampler, ancestral, make_sampler, predict_and_pull

GRID = [
    {"levels": "dense", "iterations": 1, "eta": 1.0},
    {"levels": "dense", "iterations": 1, "eta": 0.3},
    {"levels": "dense", "iterations": 3, "eta": 1.0},
    {"levels": "even", "iterations": 1, "eta": 1.0},
]


def mmps(sigmas, iterations: int = 1, eta: float = 1.0, noise: float = 1e-2) -> Sampler:
    """Predict the mean of the posterior from mean and covariance of x0 given x, and take DDIM's step.

    With V = sigma^2 J the covariance (Tweedie), x0' = x0 + V A^T (A V A^T + noise^2)^-1 (y - A x0).
    Conjugate gradients solve it. A step costs a call and a product for each iteration, 1 + 2 iterations.
    """
    cost = 1 + 2 * iterations
    return make_sampler("MMPS", _step_of(iterations), sigmas, cost, eta=eta, variance=noise**2)


@cache
def _step_of(iterations):
    def step(problem, x, memory, draw, sigma, after, eta, variance):
        x0, pull = predict_and_pull(problem, x, sigma)
        residual = problem.mask * (problem.image - x0)
        direction, squared = residual, _dot(residual, residual)
        for _ in range(iterations):
            spread = sigma**2 * pull(direction)  # V A^T of the direction
            image = problem.mask * spread + variance * direction
            length = squared / jnp.maximum(_dot(direction, image), 1e-12)
            x0 = x0 + length * spread
            residual = residual - length * image
            previous, squared = squared, _dot(residual, residual)
            direction = residual + squared / jnp.maximum(previous, 1e-12) * direction
        mean, std = ancestral(x0, (x - x0) / sigma, sigma, after, eta)
        return mean + std * draw(), memory

    return step


def _dot(a, b):
    return jnp.sum(a * b, axis=-1, keepdims=True)
