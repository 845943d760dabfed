"""Find out whether a model predicts what its config says."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_callable, check_floating
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.inpaint import ModelFn
from repaint_jax.sampling.keys import gaussian, working_dtype
from repaint_jax.sampling.repaint_schedule import set_timesteps, step
from repaint_jax.sampling.scheduler import add_noise, create_state

# As root mean squares of clean images. At sigma = 1 the ideal predictions for independent pixels of
# variance 1 are 0.71 apart; those of a model that predicts the noise itself are 1.41 apart.
_LARGEST_ERROR = 0.1
_MOST_APART = 0.8


def check_model(
    model_fn: ModelFn, params: Any, config: RePaintSchedulerConfig, image: jax.Array, key: jax.Array
) -> None:
    """Check the convention of a model with five calls: what it predicts, and which way its time runs.

    At the smallest noise level the predicted clean image must be near the image. At sigma = 1 and at the
    largest level it must not follow the noise. A model of another convention fails one of the three: a
    velocity of the other sign, noise instead of the clean image, v instead of noise, a time that runs
    backwards. A clean image that is declared as v passes.

    Args:
        model_fn: as for `inpaint`.
        params: the model's parameters.
        config: the scheduler's settings.
        image: a clean image of the kind that the model was trained on, [..., H, W, C] or any shape,
            floating, in [-1, 1].
        key: a key for the noise.

    Raises:
        ValueError: the model fails. The sentence names the noise level and how far off the prediction is.
        TypeError: an argument has the wrong type or dtype.
    """
    check_callable("model_fn", model_fn)
    check_floating("image", image)
    every_level = dataclasses.replace(config, timestep_spacing="leading")
    state = set_timesteps(create_state(every_level), config.num_train_timesteps, 1, 1)
    model = jax.jit(model_fn)
    log_sigma = noise_levels.log_sigma(noise_levels.alphas_cumprod(config.betas))

    def predicted(timestep: int, number: int) -> np.ndarray:
        z = gaussian(jax.random.fold_in(key, number), jnp.shape(image), working_dtype(image.dtype))
        sample = add_noise(state, image, z.astype(image.dtype), timestep)
        output = model(params, sample, jnp.int32(timestep))
        nothing = jnp.zeros_like(image)
        return np.asarray(step(state, output, timestep, sample, nothing, nothing, key)[1], np.float32)

    error, sigma = _distance(predicted(0, 0), np.asarray(image, np.float32)), math.exp(log_sigma[0])
    if not error < _LARGEST_ERROR + 3 * sigma:
        raise ValueError(
            f"model_fn predicts a clean image that is {error:.2g} off at the smallest noise level, sigma = "
            f"{sigma:.2g}, expected nearly the image itself; {_advice(config)}"
        )
    for timestep in (int(np.abs(log_sigma).argmin()), len(log_sigma) - 1):
        apart = _distance(predicted(timestep, 1), predicted(timestep, 2))
        if not apart < _MOST_APART:
            raise ValueError(
                f"model_fn predicts clean images that are {apart:.2g} apart for two draws of noise, sigma "
                f"= {math.exp(log_sigma[timestep]):.3g}, expected at most {_MOST_APART}; {_advice(config)}"
            )


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(first - second))))


def _advice(config: RePaintSchedulerConfig) -> str:
    return (
        f"prediction_type is {config.prediction_type!r}: is that what it predicts, and do the sign and the "
        "time of its output have the convention of its adapter?"
    )
