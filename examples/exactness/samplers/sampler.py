"""What a sampler is: a start, and a step that runs once for each row of its coefficients.

Samples and noise levels are those of x = x0 + sigma z, where nothing is scaled, except in the chains of
the library. `draw()` returns new standard Gaussian noise of the sample's shape, [..., d]. Chains of one
problem are in the leading axis; only samplers of particles look at more than one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Draw = Callable[[], jax.Array]


class Problem(NamedTuple):
    """A prior and an image with a hole."""

    prior: Any
    image: np.ndarray  # [d]
    mask: np.ndarray  # [d], 1 keeps


class Sampler(NamedTuple):
    """A chain: its start, its step, and the coefficients of each step."""

    name: str
    start: Callable[..., tuple[jax.Array, Any]]  # (problem, draw, **first row) -> sample, memory
    step: Callable[..., tuple[jax.Array, Any]]  # (problem, sample, memory, draw, **row) -> the same
    rows: dict[str, Any]  # each [steps, ...]
    calls: int  # of the model; a vector-Jacobian product counts 2
    is_affine: bool = False  # in sample, memory and noise, if the denoiser is


def make_sampler(name, step, sigmas, calls_per_step, start=None, is_affine=False, **settings) -> Sampler:
    """Return a sampler that goes down through noise levels, the last of which is 0."""
    steps = len(sigmas) - 1
    rows = {"sigma": sigmas[:-1], "after": sigmas[1:]}
    rows |= {name: np.full(steps, float(value)) for name, value in settings.items()}
    return Sampler(name, start or pure_noise, step, rows, steps * calls_per_step, is_affine)


def pure_noise(problem, draw, sigma, **_):
    """Start from the law of a sample at the first level of the linear betas: almost pure noise."""
    return jnp.sqrt(1 + sigma**2) * draw(), ()


def predict(problem: Problem, x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the predictions of the clean image and of the noise, at the cost of one call."""
    x0 = problem.prior.denoise(jnp.ones_like(sigma), sigma, x)
    return x0, (x - x0) / sigma


def predict_and_pull(problem: Problem, x: jax.Array, sigma: jax.Array):
    """Return the prediction and its vector-Jacobian product v -> J^T v, of which each call counts 2.

    J is symmetric, and sigma^2 J is the covariance of x0 given x (Tweedie).
    """
    x0, pull = jax.vjp(partial(problem.prior.denoise, jnp.ones_like(sigma), sigma), x)
    return x0, lambda v: pull(v)[0]


def ancestral(x0, eps, sigma, after, eta):
    """Return mean and standard deviation of DDIM's step (eq. 16), which is DDPM's if eta = 1."""
    std = eta * after * jnp.sqrt(jnp.maximum(1 - (after / sigma) ** 2, 0))
    return x0 + jnp.sqrt(jnp.maximum(after**2 - std**2, 0)) * eps, std


def merge(mask: jax.Array, known: jax.Array, unknown: jax.Array) -> jax.Array:
    """Return the known pixels where the mask is 1, and the unknown ones elsewhere."""
    return mask * known + (1 - mask) * unknown
