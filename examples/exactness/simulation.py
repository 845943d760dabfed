"""Run samplers: draw their results, or compute mean and covariance of them if all is affine."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from samplers.sampler import Problem, Sampler

PADDED = 256  # rows are padded to a multiple of this, so that budgets share a compiled loop


def draw_results(problem: Problem, sampler: Sampler, count: int, key: jax.Array) -> np.ndarray:
    """Return results of chains in float32, [count, m], the missing pixels only."""
    shape = (count, len(problem.image))
    steps, rows = _padded(sampler.rows)
    samples = _run(sampler.start, sampler.step, shape, problem, steps, rows, key)
    return np.asarray(samples)[:, problem.mask == 0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(start, step, shape, problem, steps, rows, key):
    def iteration(i, carry):
        sample, memory, key = carry
        key, draw_key = jax.random.split(key)
        sample, memory = step(problem, sample, memory, _Random(draw_key, shape), **_row(rows, i))
        return *_as_float32((sample, memory)), key

    start_key, key = jax.random.split(key)
    first = start(problem, _Random(start_key, shape), **_row(rows, 0))
    sample, _, _ = jax.lax.fori_loop(0, steps, iteration, (*_as_float32(first), key))
    return sample


def _padded(rows: Any) -> tuple[int, Any]:
    """Return the number of steps, and rows padded to a length that many samplers share: compiled once."""
    steps = len(jax.tree.leaves(rows)[0])
    missing = (-steps) % PADDED
    pad = lambda row: np.concatenate([row, np.repeat(row[-1:], missing, 0)])  # noqa: E731
    return steps, jax.tree.map(pad, jax.tree.map(np.asarray, rows))


def _row(rows: Any, i: int) -> Any:
    return jax.tree.map(lambda row: row[i], rows)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda array: array.astype(jnp.float32), tree)


class _Random:
    """Noise from a key: new noise with each call."""

    def __init__(self, key: jax.Array, shape: tuple[int, int]) -> None:
        self.key, self.shape, self.calls = key, shape, 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key, self.calls) if self.calls else self.key
        self.calls += 1
        return jax.random.normal(key, self.shape, jnp.float32)


class _Given:
    """Noise from the rows of an array, one with each call."""

    def __init__(self, noise: jax.Array) -> None:
        self.noise, self.calls = noise, 0

    def __call__(self) -> jax.Array:
        self.calls += 1
        return self.noise[self.calls - 1]


def moments(
    problem: Problem, sampler: Sampler, functionals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # [m], [m, m]
    """Return mean and covariance of linear functions [m, d] of an affine sampler's result.

    The mean is the result without noise. For the covariance, the functions are pulled back through all
    steps, and their products with each draw of noise add up. No sampling is involved.
    """
    first = jax.tree.map(lambda row: row[0], sampler.rows)
    counts = _noise_count(lambda draw: sampler.start(problem, draw, **first), problem)
    start = sampler.start(problem, _Given(jnp.zeros((counts, len(problem.image)))), **first)
    per_step = _noise_count(lambda draw: sampler.step(problem, *start, draw, **first), problem)
    steps, rows = _padded(sampler.rows)
    results = _moments(
        sampler.start, sampler.step, counts, per_step, problem, steps, rows, jnp.asarray(functionals)
    )
    return tuple(map(np.asarray, results))


def _noise_count(run: Callable[..., Any], problem: Problem) -> int:
    draw = _Given(jnp.zeros((64, len(problem.image)), problem.image.dtype))
    jax.eval_shape(lambda: run(draw))
    return draw.calls


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _moments(start, step, draws_at_start, draws, problem, steps, rows, functionals):
    def begin(noise):
        return start(problem, _Given(noise), **_row(rows, 0))

    def advance(i, carry, noise):
        return step(problem, *carry, _Given(noise), **_row(rows, i))

    def backward(i, carry):
        gradients, covariance = carry
        _, pull = jax.vjp(partial(advance, steps - 1 - i), zeros, none)
        gradients, by_noise = jax.vmap(pull)(gradients)
        return gradients, covariance + _products(by_noise)

    size, count, dtype = len(problem.image), len(functionals), functionals.dtype
    none, none_at_start = jnp.zeros((draws, size), dtype), jnp.zeros((draws_at_start, size), dtype)
    first = begin(none_at_start)
    result, _ = jax.lax.fori_loop(0, steps, lambda i, carry: advance(i, carry, none), first)
    zeros = jax.tree.map(jnp.zeros_like, first)
    by_memory = jax.tree.map(lambda memory: jnp.zeros((count, *memory.shape), dtype), zeros[1])
    gradients = (functionals, by_memory), jnp.zeros((count, count), dtype)
    gradients, covariance = jax.lax.fori_loop(0, steps, backward, gradients)
    _, pull = jax.vjp(begin, none_at_start)
    (by_noise,) = jax.vmap(pull)(gradients)
    return functionals @ result, covariance + _products(by_noise)


def _products(by_noise: jax.Array) -> jax.Array:  # [m, n, d] -> [m, m]
    return jnp.einsum("mnd,knd->mk", by_noise, by_noise)
