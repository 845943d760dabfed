"""Compute the predicted clean image and noise of a sample from a model's output."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling.config import RePaintSchedulerConfig


def split_model_output(
    config: RePaintSchedulerConfig, model_output: jax.Array, sample: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Split a model's output into the prediction and the fraction of the learned variance.

    Args:
        config: the scheduler's settings.
        model_output: the model's output for `sample`.
        sample: the noisy sample.

    Returns:
        The prediction, and the fraction that interpolates the logarithm of the variance, or None if
        variance_type is not "learned_range". Both have the sample's dtype.

    Raises:
        TypeError: model_output is not an array.
        ValueError: model_output has the wrong shape.
    """
    if not isinstance(model_output, jax.Array | np.ndarray):
        raise TypeError(f"model_output is a {type(model_output).__name__}, expected an array")
    shape = sample.shape
    learned = config.variance_type == "learned_range"
    expected = (*shape[:-1], 2 * shape[-1]) if learned and shape else shape
    if model_output.shape != expected:
        reason = " (variance_type is 'learned_range')" if learned else ""
        raise ValueError(f"model_output has shape {model_output.shape}, expected {expected}{reason}")
    model_output = jnp.asarray(model_output, sample.dtype)
    if not learned:
        return model_output, None
    prediction, fraction = jnp.split(model_output, 2, axis=-1)
    return prediction, fraction


def predict(
    config: RePaintSchedulerConfig,
    row: Any,
    prediction: jax.Array,
    sample: jax.Array,
    noise_of_clipped: bool,
) -> tuple[jax.Array, jax.Array]:
    """Return the clean image and the noise that the model predicts in a sample.

    Args:
        config: the scheduler's settings.
        row: coefficients of the noise level, with the fields `signal` and `noise`.
        prediction: the model's prediction, of the kind config.prediction_type.
        sample: the noisy sample.
        noise_of_clipped: whether to compute the noise again from the clipped image.
    """
    if config.prediction_type == "epsilon":
        eps = prediction
        x0 = (sample - row.noise * eps) / row.signal
    elif config.prediction_type == "sample":
        x0 = prediction
        eps = (sample - row.signal * x0) / row.noise
    else:
        x0 = row.signal * sample - row.noise * prediction
        eps = row.signal * prediction + row.noise * sample
    if config.clip_sample:
        x0 = jnp.clip(x0, -config.clip_sample_range, config.clip_sample_range)
        if noise_of_clipped:
            eps = (sample - row.signal * x0) / row.noise
    return x0, eps
