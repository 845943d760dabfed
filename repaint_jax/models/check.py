"""Find out whether a model predicts what its config says."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_callable, check_floating
from repaint_jax.sampling.config import PREDICTION_TYPES, RePaintSchedulerConfig, check_config
from repaint_jax.sampling.inpaint import ModelFn
from repaint_jax.sampling.keys import gaussian, is_key_vector, working_dtype
from repaint_jax.sampling.prediction import predict, split_model_output

# As root mean squares of clean images. At sigma = 1 the ideal predictions for independent pixels of
# variance 1 are 0.71 apart; those of a model that predicts the noise itself are 1.41 apart.
_LARGEST_ERROR = 0.1
_MOST_APART = 0.8

# Of all readings of an ideal model's output the right one has the smallest mean squared error, on average
# over images. For single images of Gaussian priors of 64 pixels, another reading was up to 1.3 times
# nearer. Where the clean image of smooth priors was declared as v, the right one was 2 to 8 times nearer.
_MUCH_NEARER = 2


class _Level(NamedTuple):
    timestep: int
    signal: float  # sqrt(abar)
    noise: float  # sqrt(1 - abar)

    @property
    def sigma(self) -> float:
        return self.noise / self.signal


def check_model(
    model_fn: ModelFn, params: Any, config: RePaintSchedulerConfig, image: jax.Array, key: jax.Array
) -> None:
    """Check the convention of a model with five calls: what it predicts, and which way its time runs.

    At the smallest noise level the predicted clean image must be near the image. At sigma = 1 and at the
    largest level it must not follow the noise. At sigma = 1 no other prediction_type may bring it twice as
    near to the image. A model of another convention fails one of these: a velocity of the other sign, noise
    instead of the clean image, v instead of noise, a time that runs backwards. A clean image that is
    declared as v fails the last one, unless the image is so noise-like that no model can denoise it.

    Args:
        model_fn: as for `inpaint`.
        params: the model's parameters.
        config: the scheduler's settings.
        image: a clean image of the kind that the model was trained on, [..., H, W, C] or any shape,
            floating, in [-1, 1].
        key: a single key for the noise.

    Raises:
        ValueError: the model fails. The sentence names the noise level and how far off the prediction is.
            Or image is empty or not finite, or key is a vector of keys.
        TypeError: an argument has the wrong type or dtype.
    """
    check_callable("model_fn", model_fn)
    check_config(config)
    check_floating("image", image)
    if not image.size:
        raise ValueError(f"image has shape {image.shape}, expected at least one pixel")
    if not np.isfinite(image).all():
        raise ValueError("image has values that are not finite, expected a clean image")
    if is_key_vector(key):
        raise ValueError(f"key is a vector of {len(key)} keys, expected a single key")
    model, dtype = jax.jit(model_fn), working_dtype(image.dtype)
    clean = jnp.asarray(image, dtype)
    abar = noise_levels.alphas_cumprod(config.betas)
    levels = [
        _Level(timestep, math.sqrt(abar[timestep]), math.sqrt(1 - abar[timestep]))
        for timestep in (0, int(np.abs(noise_levels.log_sigma(abar)).argmin()), len(abar) - 1)
    ]

    def predicted(level: _Level, number: int) -> dict[str, np.ndarray]:
        """Return the clean image for each prediction_type that the output may have."""
        z = gaussian(jax.random.fold_in(key, number), clean.shape, dtype)
        sample = level.signal * clean + level.noise * z
        output = model(params, sample.astype(image.dtype), np.int32(level.timestep))
        prediction, _ = split_model_output(config, output, sample)
        if not np.isfinite(prediction).all():
            raise ValueError(
                f"model_fn returns values that are not finite at timestep {level.timestep}, sigma = "
                f"{level.sigma:.2g}, expected a finite output"
            )
        readings = {kind: dataclasses.replace(config, prediction_type=kind) for kind in PREDICTION_TYPES}
        return {
            kind: np.asarray(predict(reading, level, prediction, sample, noise_of_clipped=False)[0])
            for kind, reading in readings.items()
        }

    declared = config.prediction_type
    smallest, middle, largest = levels
    error = _distance(predicted(smallest, 0)[declared], np.asarray(clean))
    if not error < _LARGEST_ERROR + 3 * smallest.sigma:
        raise ValueError(
            f"model_fn predicts a clean image that is {error:.2g} off at the smallest noise level, sigma = "
            f"{smallest.sigma:.2g}, expected nearly the image itself; {_advice(config)}"
        )
    draws = {level: [predicted(level, 1), predicted(level, 2)] for level in (middle, largest)}
    for level, (first, second) in draws.items():
        apart = _distance(first[declared], second[declared])
        if not apart < _MOST_APART:
            raise ValueError(
                f"model_fn predicts clean images that are {apart:.2g} apart for two draws of noise, sigma "
                f"= {level.sigma:.3g}, expected at most {_MOST_APART}; {_advice(config)}"
            )
    errors = {
        kind: _distance(np.stack([draw[kind] for draw in draws[middle]]), np.asarray(clean)[None])
        for kind in PREDICTION_TYPES
    }
    error, (smallest_error, nearest) = errors[declared], min((errors[kind], kind) for kind in errors)
    if error > _MUCH_NEARER * smallest_error:
        raise ValueError(
            f"model_fn predicts clean images that are {error:.2g} off, sigma = {middle.sigma:.3g}, "
            f"expected {smallest_error:.2g} as with prediction_type={nearest!r}; {_advice(config)}"
        )


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(first - second))))


def _advice(config: RePaintSchedulerConfig) -> str:
    return (
        f"prediction_type is {config.prediction_type!r}: is that what it predicts, and do the sign and the "
        "time of its output have the convention of its adapter?"
    )
