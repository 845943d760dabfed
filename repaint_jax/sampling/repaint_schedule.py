"""RePaint's own schedule, with time jumps, and its steps (Lugmayr et al. 2022, arXiv 2201.09865).

`set_timesteps` turns a walk over noise levels (`jumps`) into a schedule. `step` moves a sample one level
down, and `undo_step` one level up. `repaint_transition` has the equations of a step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import jumps, noise_levels
from repaint_jax.sampling.checks import check_floating, check_image_and_mask, check_int, check_like_image
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.keys import gaussian, working_dtype
from repaint_jax.sampling.repaint_transition import (
    LevelCoefficients,
    level_coefficients,
    reverse_transition,
    undo_variance,
)
from repaint_jax.sampling.scheduler import (
    RePaintSchedulerState,
    check_state,
    levels_left,
    schedule_of,
    warn_of_signal,
    without_missing,
)


class ResamplingCall(NamedTuple):
    """A model call: a reverse step, and the jump that may follow it."""

    level: LevelCoefficients
    jump_variance: jax.Array

    @property
    def timestep(self) -> jax.Array:
        """Return the model's timestep argument."""
        return self.level.timestep


class NoMemory(NamedTuple):
    """An empty memory: a call passes only the sample to the next one."""

    @property
    def made_by(self) -> str:
        """Return the name of the function that makes such chains."""
        return "set_timesteps"


class ResamplingSchedule(NamedTuple):
    """A chain with time jumps. The last two fields have one entry for each model call."""

    levels: LevelCoefficients  # coefficients of each level of the ladder
    call_levels: jax.Array  # [num_model_calls] int32, the level of each model call
    jump_variances: jax.Array  # [num_model_calls], variance of the jump that follows; 0 if none follows

    def rows(self) -> ResamplingCall:
        """Return the coefficients of all calls, each with the variance of the jump that follows."""
        levels = jax.tree.map(lambda field: field[self.call_levels], self.levels)
        return ResamplingCall(levels, self.jump_variances)

    def first_memory(self, sample: jax.Array) -> NoMemory:
        """Return an empty memory."""
        return NoMemory()

    def transition(
        self,
        config: RePaintSchedulerConfig,
        row: ResamplingCall,
        model_output: jax.Array,
        sample: jax.Array,
        memory: NoMemory,
        original_image: jax.Array,
        mask: jax.Array,
        z: jax.Array,
        observation_noise: jax.Array | None,
    ) -> tuple[jax.Array, NoMemory, jax.Array]:
        """Take a reverse step and the jump that may follow it; see `Schedule.transition`."""
        sample, x0 = reverse_transition(
            config, *row, model_output, sample, original_image, mask, z, observation_noise
        )
        return sample, memory, x0

    def keeps_known_pixels(self, config: RePaintSchedulerConfig) -> bool:
        """Return whether the known pixels are put in after the last step."""
        return config.known_region == "after_step"

    def noise_of_calls(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the noise levels before and after each call's reverse step, without its jump."""
        noise = np.append(self.levels.noise, np.float32(0))  # index -1 is level -1, the clean image
        levels = np.asarray(self.call_levels)
        return noise[levels], noise[levels - 1]


class RePaintSchedulerOutput(NamedTuple):
    """Result of a reverse step."""

    prev_sample: jax.Array  # the sample, one level lower
    pred_original_sample: jax.Array  # the predicted clean image


def set_timesteps(
    state: RePaintSchedulerState,
    num_inference_steps: int,
    jump_length: int = 10,
    jump_n_sample: int = 10,
    *,
    n_sample: int = 1,
    start_resampling: int | None = None,
    jump2_length: int = 1,
    jump2_n_sample: int = 1,
    jump3_length: int = 1,
    jump3_n_sample: int = 1,
    strength: float = 1.0,
) -> RePaintSchedulerState:
    """Add RePaint's schedule with time jumps to a state (section 4.2; figures 9 and 10).

    Args:
        state: any state. An existing schedule is replaced.
        num_inference_steps: T, the number of inference steps, from 1 to num_train_timesteps.
        jump_length: j, the number of inference steps that a jump goes back up. At least 1, and below T if
            jump_n_sample > 1.
        jump_n_sample: r, the number of passes through each stretch of j steps; 1 means no resampling.
        n_sample: number of visits to each level below T - 2 in a row (`n_sample` in the official code).
        start_resampling: no hop (see n_sample) starts above this level, and no jump ends above it; None
            means no limit.
        jump2_length: jump_length of the jumps inside the jumps.
        jump2_n_sample: jump_n_sample of the jumps inside the jumps.
        jump3_length: jump_length of the jumps inside those.
        jump3_n_sample: jump_n_sample of the jumps inside those.
        strength: the share of the noise levels that is used, in (0, 1], as in diffusers' image-to-image
            pipelines: the cleanest int(strength T) of T. Below 1, `inpaint` does not start from noise, but
            from the whole image at the noisiest of these levels, sqrt(abar) x + sqrt(1 - abar) z. So the
            hole is filled from its content x_h. At infinitely many calls the result has the law of x0
            given the known pixels and one noised content, x0_h + s n = x_h + s z with the s =
            sqrt((1 - abar)/abar) of that level: it deviates by about s from the content.

    Returns:
        A new state. If only j and r are given, it has T + j (r - 1) len(range(0, T - j, j)) model calls.

    Raises:
        TypeError: a number is not an integer, or strength is not a number.
        ValueError: a number is outside its range, or strength leaves no level. With undo="diffusers", T is
            clamped and jump lengths that do not fit are ignored, as in diffusers.

    Warns:
        UserWarning: the chain starts from pure noise at a timestep at which the model expects a visible
            share of signal.

    >>> from repaint_jax import create_state
    >>> state = set_timesteps(create_state(), 250)
    >>> state.num_model_calls, len(state.timesteps)
    (2410, 4570)
    """
    check_state(state)
    config = state.config
    num_inference_steps = check_int("num_inference_steps", num_inference_steps, 1)
    jump_length = check_int("jump_length", jump_length, 1)
    jump_n_sample = check_int("jump_n_sample", jump_n_sample, 1)
    n_sample = check_int("n_sample", n_sample, 1)
    jump2_length = check_int("jump2_length", jump2_length, 1)
    jump2_n_sample = check_int("jump2_n_sample", jump2_n_sample, 1)
    jump3_length = check_int("jump3_length", jump3_length, 1)
    jump3_n_sample = check_int("jump3_n_sample", jump3_n_sample, 1)
    if start_resampling is not None:
        start_resampling = check_int("start_resampling", start_resampling, 0)
    legacy = config.undo == "diffusers"
    if num_inference_steps > config.num_train_timesteps:
        if not legacy:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, expected at most "
                f"num_train_timesteps={config.num_train_timesteps}"
            )
        num_inference_steps = config.num_train_timesteps
    left = levels_left(strength, num_inference_steps, "num_inference_steps")
    for name, length, count in (
        ("jump_length", jump_length, jump_n_sample),
        ("jump2_length", jump2_length, jump2_n_sample),
        ("jump3_length", jump3_length, jump3_n_sample),
    ):
        if count > 1 and length >= left and not legacy:
            levels = f"num_inference_steps={num_inference_steps}"
            if left < num_inference_steps:
                levels = f"the {left} that strength={strength} leaves of {levels}"
            raise ValueError(
                f"{name} is {length}, expected less than {levels}: no jump of that length fits"
            )

    walk = jumps.resampling_walk(
        left,
        [
            (jump3_length, jump3_n_sample),
            (jump2_length, jump2_n_sample),
            (jump_length, jump_n_sample),
        ],
        n_sample,
        start_resampling,
    )
    ladder = noise_levels.ladder(config.timestep_spacing, config.num_train_timesteps, num_inference_steps)
    if not legacy and strength == 1:
        warn_of_signal(config, int(ladder[-1]))
    if config.jump_schedule == "paper":
        passed = np.array(jumps.paper_levels(walk))
        timesteps = np.append(ladder[passed[:-1]], -1)
    else:
        passed = np.array(jumps.diffusers_levels(walk))
        timesteps = ladder[walk]

    going_down = passed[1:] < passed[:-1]
    calls = np.flatnonzero(going_down)
    log_kept = np.where(going_down, 0.0, np.log1p(-undo_variance(config, ladder)[passed[1:]]))
    return dataclasses.replace(
        state,
        num_inference_steps=num_inference_steps,
        num_model_calls=len(calls),
        timesteps=jnp.asarray(timesteps, jnp.int32),
        schedule=ResamplingSchedule(
            level_coefficients(config, ladder),
            call_levels=jnp.asarray(passed[calls], jnp.int32),
            jump_variances=jnp.asarray(0 - np.expm1(np.add.reduceat(log_kept, calls)), jnp.float32),
        ),
        starts_from_image=strength < 1,
    )


def step(
    state: RePaintSchedulerState,
    model_output: jax.Array,
    timestep: jax.Array | int,
    sample: jax.Array,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
) -> RePaintSchedulerOutput:
    """Take the sample one level down and put in the known pixels (algorithm 1, lines 4 to 8).

    With jump_schedule="diffusers" this code runs a whole chain:

        t_last = timesteps[0] + 1
        for t in timesteps:
            sample = step(...t...).prev_sample if t < t_last else undo_step(...t_last...)
            t_last = t

    With jump_schedule="paper", go through all pairs `t_last, t` of consecutive timesteps. Call
    `step(...t_last...)` if t < t_last, and `undo_step(...t...)` otherwise.

    With known_region="before_model", the step to the clean image does not put in the known pixels, because
    the chain's last step does not. With jump_schedule="diffusers", an undo step can follow the step to the
    clean image. Then put in the known pixels before that undo step, as `inpaint` does.

    Args:
        state: a state from `set_timesteps`.
        model_output: the model's output for `sample` at `timestep`, of the sample's shape. With
            variance_type="learned_range" it has twice as many channels in the last axis.
        timestep: a timestep of the schedule: an int or an int32 scalar. A traced value is not checked.
        sample: the noisy image, floating, any shape.
        original_image: the image to inpaint, of the sample's shape, in [-1, 1].
        mask: 1 keeps a pixel, 0 inpaints it, and values between 0 and 1 blend. Floating, of the image's
            rank; each axis is equal to the image's or 1.
        key: a key, or a vector of keys, one for each entry of the leading axis.

    Returns:
        A `RePaintSchedulerOutput`: the sample one level lower, and the predicted clean image.

    Raises:
        ValueError: the state has no schedule of `set_timesteps`, the timestep is not in it, or a shape is
            wrong.
        TypeError: an argument has the wrong type or dtype.
    """
    row = _row(state, timestep)
    check_image_and_mask(original_image, mask)
    check_like_image("sample", sample, original_image)
    sample, original_image = jnp.asarray(sample), without_missing(original_image, mask)
    z = gaussian(key, sample.shape, working_dtype(sample.dtype))
    prev_sample, pred_original_sample = reverse_transition(
        state.config, row, jnp.float32(0), model_output, sample, original_image, mask, z
    )
    return RePaintSchedulerOutput(
        prev_sample.astype(sample.dtype), pred_original_sample.astype(sample.dtype)
    )


def undo_step(
    state: RePaintSchedulerState, sample: jax.Array, timestep: jax.Array | int, key: jax.Array
) -> jax.Array:
    """Diffuse the sample one level up (algorithm 1, line 10).

    Args:
        state: a state from `set_timesteps`.
        sample: the noisy image, one level below `timestep`.
        timestep: the timestep of the last step (diffusers' `t_last`). The sample returns to its level.
        key: a key, or a vector of keys, one for each entry of the leading axis.

    Returns:
        The sample one level higher, of the same shape and dtype.

    Raises:
        ValueError: see `step`.
        TypeError: see `step`.
    """
    check_floating("sample", sample)
    sample = jnp.asarray(sample)
    dtype = working_dtype(sample.dtype)
    variance = jnp.asarray(_row(state, timestep).undo_variance, dtype)
    z = gaussian(key, sample.shape, dtype)
    diffused = jnp.sqrt(1 - variance) * sample.astype(dtype) + jnp.sqrt(variance) * z
    return diffused.astype(sample.dtype)


def _row(state: RePaintSchedulerState, timestep: jax.Array | int) -> LevelCoefficients:
    """Return the coefficients of a timestep's level."""
    schedule = schedule_of(state)
    if not isinstance(schedule, ResamplingSchedule):
        raise ValueError(
            "state has a budget of model calls, expected a schedule of set_timesteps for this step "
            "(budget_step takes a budget)"
        )
    levels = schedule.levels
    if not jnp.issubdtype(jnp.result_type(timestep), jnp.integer):
        raise TypeError(f"timestep is {timestep!r}, expected an integer")
    if jnp.shape(timestep) != ():
        raise ValueError(f"timestep has shape {jnp.shape(timestep)}, expected a scalar")
    config = state.config
    # Computed from the static settings, so that it is known even if the state is traced.
    ladder = noise_levels.ladder(config.timestep_spacing, config.num_train_timesteps, len(levels.timestep))
    if isinstance(timestep, jax.core.Tracer):
        level = jnp.searchsorted(levels.timestep, timestep)
    else:
        found = np.flatnonzero(ladder == np.asarray(timestep))
        if not found.size:
            raise ValueError(f"timestep is {timestep}, expected one of the schedule's: {_abridged(ladder)}")
        level = jnp.int32(found[0])
    return jax.tree.map(lambda field: field[level], levels)


def _abridged(ladder: np.ndarray) -> str:
    shown = [str(t) for t in ladder]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])
