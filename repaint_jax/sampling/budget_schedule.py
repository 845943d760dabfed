"""The schedule of a call budget: the noise level of each model call, and functions that take single steps.

`budget_transition` has the equations of a step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.budget_transition import CallCoefficients, budget_transition, call_coefficients
from repaint_jax.sampling.checks import check_image_and_mask, check_int, check_like_image
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.keys import gaussian, working_dtype
from repaint_jax.sampling.scheduler import (
    RePaintSchedulerState,
    check_state,
    levels_left,
    schedule_of,
    warn_of_signal,
    without_missing,
)

DEFAULT_MODEL_CALLS = 64
SMALLEST_BUDGET = 8  # fewer calls would only denoise in a few large steps

# The density of noise levels over ln sigma is highest at _DWELL_SIGMA. Measured for images in [-1, 1].
_DWELL_SIGMA = 0.35  # c
_DWELL_WIDTH = 3.0  # w
_DENSITY_ELSEWHERE = 0.07  # b, before it is normalised
_LARGEST_SIGMA = 40.0  # above it the sample is pure noise
# The correction of the last call is made for calls at one level. On the linear betas all levels within
# 0.19 of the smallest in ln sigma are moved to it; finer ladders have to be told.
_LAST_LEVEL = 0.19


class PreviousNoise(NamedTuple):
    """The memory that a call passes to the next one in addition to the sample."""

    previous_noise: jax.Array  # the noise that the call drew; the next call uses half of it

    @property
    def made_by(self) -> str:
        """Return the name of the function that makes such chains."""
        return "set_timesteps_for_budget"


class BudgetSchedule(NamedTuple):
    """A chain without jumps. The coefficients have one entry for each model call."""

    calls: CallCoefficients

    def rows(self) -> CallCoefficients:
        """Return the coefficients of all calls."""
        return self.calls

    def first_memory(self, sample: jax.Array) -> PreviousNoise:
        """Return zeros of the sample's shape as the noise before the first call."""
        return PreviousNoise(jnp.zeros_like(sample))

    def transition(
        self,
        config: RePaintSchedulerConfig,
        row: CallCoefficients,
        model_output: jax.Array,
        sample: jax.Array,
        memory: PreviousNoise,
        original_image: jax.Array,
        mask: jax.Array,
        z: jax.Array,
        observation_noise: jax.Array | None,
    ) -> tuple[jax.Array, PreviousNoise, jax.Array]:
        """Take the sample to the next noise level; see `Schedule.transition`."""
        sample, x0 = budget_transition(
            config,
            row,
            model_output,
            sample,
            memory.previous_noise,
            original_image,
            mask,
            z,
            observation_noise,
        )
        return sample, PreviousNoise(z), x0

    def keeps_known_pixels(self, config: RePaintSchedulerConfig) -> bool:
        """Return True: the result always has the known pixels of the original."""
        return True

    def noise_of_calls(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the noise levels before and after each call."""
        before = np.asarray(self.calls.noise)
        return before, np.append(before[1:], np.float32(0))


class BudgetStepOutput(NamedTuple):
    """Result of `budget_step`."""

    prev_sample: jax.Array  # the sample at the noise level of the next call
    noise: jax.Array  # the noise that this call drew; the next call uses half of it
    pred_original_sample: jax.Array  # the predicted clean image


def set_timesteps_for_budget(
    state: RePaintSchedulerState, num_model_calls: int = DEFAULT_MODEL_CALLS, *, strength: float = 1.0
) -> RePaintSchedulerState:
    """Add a schedule with a budget of model calls to a state (correlated renoising).

    The chain goes down through the noise levels once, with one call at each level and without jumps. The
    levels are densest where known pixels and pixels to fill inform each other. Each draw of noise is used
    twice. This is the most exact chain in this package for a given number of model calls.
    `budget_transition` has the equations and their sources (Leimkuhler and Matthews 2013; DDNM, Wang et al.
    2023; RePaint).

    Run the chain with `inpaint`, or call by call with `budget_step`. The chain uses these settings of the
    config: the betas, the prediction type, the clipping, and whether the model returns a learned variance
    (which it ignores). It does not use eta, timestep_spacing, known_region, undo, jump_schedule and
    use_clipped_model_output, which apply only to chains of `set_timesteps`.

    Args:
        state: any state. An existing schedule is replaced.
        num_model_calls: number of model calls, at least 8. If it is large, neighbouring calls share a
            timestep.
        strength: the share of the training timesteps whose noise levels are used, see `set_timesteps`. All
            calls are made at these levels.

    Returns:
        A new state with exactly num_model_calls model calls.

    Raises:
        TypeError: num_model_calls is not an integer, or strength is not a number.
        ValueError: num_model_calls is below 8, strength is outside (0, 1], or no timestep is left.

    Warns:
        UserWarning: see `set_timesteps`.

    >>> from repaint_jax import create_state
    >>> state = set_timesteps_for_budget(create_state(), 64)
    >>> state.num_model_calls, int(state.timesteps[0]), int(state.timesteps[-1])
    (64, 853, 0)
    """
    check_state(state)
    num_model_calls = check_int("num_model_calls", num_model_calls, SMALLEST_BUDGET)
    num_levels = levels_left(strength, state.config.num_train_timesteps, "num_train_timesteps")
    if strength == 1:
        warn_of_signal(state.config, num_levels - 1)
    alphas_cumprod = noise_levels.alphas_cumprod(state.config.betas)[:num_levels]
    timesteps = budget_timesteps(alphas_cumprod, num_model_calls)
    calls = call_coefficients(state.config, timesteps)
    return dataclasses.replace(
        state,
        num_inference_steps=None,
        num_model_calls=num_model_calls,
        timesteps=calls.timestep,
        schedule=BudgetSchedule(calls),
        starts_from_image=strength < 1,
    )


def budget_step(
    state: RePaintSchedulerState,
    model_output: jax.Array,
    call: jax.Array | int,
    sample: jax.Array,
    previous_noise: jax.Array,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
) -> BudgetStepOutput:
    """Take one step of a schedule from `set_timesteps_for_budget`.

    `budget_transition` has the equations. This code runs a whole chain, from a `sample` of standard
    Gaussian noise:

        noise = jnp.zeros_like(sample)
        for call, t in enumerate(state.timesteps):
            sample, noise, _ = budget_step(state, model_output, call, sample, noise, image, mask, key)

    `model_output` is the model's output for `sample` at `t`. Each call needs a new key.

    Args:
        state: a state from `set_timesteps_for_budget`.
        model_output: see `step`.
        call: index of the model call, in 0..num_model_calls-1: an int or an int32 scalar. A traced value
            is not checked.
        sample: the noisy image, floating, any shape.
        previous_noise: the `noise` that the previous call returned; zeros in the first call.
        original_image: see `step`.
        mask: see `step`.
        key: see `step`.

    Returns:
        A `BudgetStepOutput`: the next sample, the noise of this call and the predicted clean image.

    Raises:
        ValueError: the state has no budget, the call is not in it, or a shape is wrong.
        TypeError: an argument has the wrong type or dtype.
    """
    schedule = schedule_of(state)
    if not isinstance(schedule, BudgetSchedule):
        raise ValueError("state has a schedule of set_timesteps, expected one of set_timesteps_for_budget")
    last = len(schedule.calls.timestep) - 1
    is_index = isinstance(call, int | np.integer | jax.Array) and jnp.shape(call) == ()
    if not is_index or not jnp.issubdtype(jnp.result_type(call), jnp.integer):
        raise TypeError(f"call is {call!r}, expected an integer from 0 to num_model_calls - 1 = {last}")
    if not isinstance(call, jax.core.Tracer) and not 0 <= call <= last:
        raise ValueError(f"call is {call}, expected 0 to num_model_calls - 1 = {last}")
    check_image_and_mask(original_image, mask)
    check_like_image("sample", sample, original_image)
    check_like_image("previous_noise", previous_noise, original_image)
    sample, original_image = jnp.asarray(sample), without_missing(original_image, mask)
    z = gaussian(key, sample.shape, working_dtype(sample.dtype))
    row = jax.tree.map(lambda field: field[call], schedule.calls)
    prev_sample, pred_original_sample = budget_transition(
        state.config, row, model_output, sample, previous_noise, original_image, mask, z
    )
    return BudgetStepOutput(
        *(array.astype(sample.dtype) for array in (prev_sample, z, pred_original_sample))
    )


def budget_timesteps(
    alphas_cumprod: NDArray[np.float64], num_model_calls: int
) -> NDArray[np.int64]:  # [num_model_calls], falling, with repeats
    """Return the training timesteps of all calls, dense where known and missing pixels inform each other.

    Between the largest sigma and the smallest, the density over ln sigma is proportional to
    b + exp(-(ln(sigma/c)/w)^2). Each level is moved to the nearest training timestep.
    """
    log_sigma = noise_levels.log_sigma(alphas_cumprod)
    grid = np.linspace(log_sigma[0], min(log_sigma[-1], np.log(_LARGEST_SIGMA)), 4096)
    density = _DENSITY_ELSEWHERE + np.exp(-(((grid - np.log(_DWELL_SIGMA)) / _DWELL_WIDTH) ** 2))
    passed = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    wanted = np.interp(np.linspace(passed[-1], 0, num_model_calls), passed, grid)
    wanted = np.where(wanted < grid[0] + _LAST_LEVEL, grid[0], wanted)
    between = (log_sigma[1:] + log_sigma[:-1]) / 2
    return np.searchsorted(between, wanted)
