"""Populations of particles: chains of a problem that are weighed and resampled together."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm


def resample(
    z: jax.Array, log_weights: jax.Array, *arrays: jax.Array, is_last: jax.Array
) -> tuple[jax.Array, ...]:
    """Return as many particles, drawn by their weights [n] with systematic resampling.

    It draws at the end, and when the effective number has fallen below half; else it leaves all as they
    are. The weights that are left come first.
    """
    weights = jax.nn.softmax(log_weights)
    count = len(weights)
    points = (jnp.arange(count) + norm.cdf(z[0, 0])) / count  # a uniform number from a normal one
    chosen = jnp.searchsorted(jnp.cumsum(weights), points.astype(weights.dtype))
    is_due = is_last | (1 / jnp.sum(weights**2) < count / 2)
    chosen = jnp.where(is_due, jnp.minimum(chosen, count - 1), jnp.arange(count))
    return jnp.where(is_due, 0.0, log_weights), *(array[chosen] for array in arrays)


def log_normal(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Return the log density of pixels, less a constant, [..., d]."""
    return -((x - mean) ** 2) / (2 * variance)
