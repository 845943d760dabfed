"""RePaint's own schedule, with time jumps, and its steps (Lugmayr et al. 2022, arXiv 2201.09865).

`set_timesteps` turns a walk over noise levels (`jumps`) into a schedule; `step` and `undo_step` move a
sample one level down and up. What happens in a step is in `repaint_transition`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import jumps, noise
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
    schedule_of,
    warn_of_signal,
)


class ResamplingCall(NamedTuple):
    """A model call: a reverse step, and the jump that may follow it."""

    level: LevelCoefficients
    jump_variance: jax.Array

    @property
    def timestep(self) -> jax.Array:
        """What the model is told."""
        return self.level.timestep


class NoMemory(NamedTuple):
    """A call hands the sample alone to the next one."""

    @property
    def made_by(self) -> str:
        """The function that makes such chains."""
        return "set_timesteps"


class ResamplingSchedule(NamedTuple):
    """A chain with time jumps, an entry for each model call."""

    levels: LevelCoefficients  # of each level of the ladder
    call_levels: jax.Array  # [num_model_calls] int32, the level of each model call
    jump_variances: jax.Array  # [num_model_calls], noise of the jump that follows; 0 where none does

    def rows(self) -> ResamplingCall:
        """See `Schedule`, as for what follows."""
        levels = jax.tree.map(lambda field: field[self.call_levels], self.levels)
        return ResamplingCall(levels, self.jump_variances)

    def first_memory(self, sample: jax.Array) -> NoMemory:
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
    ) -> tuple[jax.Array, NoMemory, jax.Array]:
        sample, x0 = reverse_transition(config, *row, model_output, sample, original_image, mask, z)
        return sample, memory, x0

    def keeps_known_pixels(self, config: RePaintSchedulerConfig) -> bool:
        return config.known_region == "after_step"

    def noise_levels(self) -> tuple[np.ndarray, np.ndarray]:
        noise = np.append(self.levels.noise, np.float32(0))  # the last is that of level -1
        levels = np.asarray(self.call_levels)
        return noise[levels], noise[levels - 1]


class RePaintSchedulerOutput(NamedTuple):
    """Result of a reverse step."""

    prev_sample: jax.Array  # the sample, one level lower
    pred_original_sample: jax.Array  # the clean image that the model sees in it


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
) -> RePaintSchedulerState:
    """Give a state the schedule of RePaint with time jumps (section 4.2; figures 9 and 10).

    Args:
        state: any state; a schedule it has is replaced.
        num_inference_steps: T, from 1 to num_train_timesteps.
        jump_length: j, inference steps that a jump goes back up; at least 1 and, where
            jump_n_sample > 1, below T.
        jump_n_sample: r, passes through each stretch of j steps; 1 means no resampling.
        n_sample: visits of each level below T - 2 in a row (official code's `n_sample`).
        start_resampling: no hop (n_sample) starts above this level and no jump ends above it; None for no
            limit.
        jump2_length, jump2_n_sample: jumps inside the jumps.
        jump3_length, jump3_n_sample: jumps inside those.

    Returns:
        A new state, with T + j (r - 1) len(range(0, T - j, j)) model calls when only j and r are given.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is outside its range; with undo="diffusers" T and the jump lengths are clamped
            or ignored as upstream instead.

    Warns:
        UserWarning: the chain starts from pure noise where the model expects a visible share of signal.

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
    for name, length, count in (
        ("jump_length", jump_length, jump_n_sample),
        ("jump2_length", jump2_length, jump2_n_sample),
        ("jump3_length", jump3_length, jump3_n_sample),
    ):
        if count > 1 and length >= num_inference_steps and not legacy:
            raise ValueError(
                f"{name} is {length}, expected less than num_inference_steps="
                f"{num_inference_steps}: no jump of that length fits"
            )

    walk = jumps.resampling_walk(
        num_inference_steps,
        [
            (jump3_length, jump3_n_sample),
            (jump2_length, jump2_n_sample),
            (jump_length, jump_n_sample),
        ],
        n_sample,
        start_resampling,
    )
    ladder = noise.ladder(config.timestep_spacing, config.num_train_timesteps, num_inference_steps)
    if not legacy:
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
    """Take the sample one level down and put the known pixels in (algorithm 1, lines 4 to 8).

    With jump_schedule="diffusers" a whole chain by hand is

        t_last = timesteps[0] + 1
        for t in timesteps:
            sample = step(...t...).prev_sample if t < t_last else undo_step(...t_last...)
            t_last = t

    and with "paper" it is, for consecutive entries `t_last, t` of timesteps, `step(...t_last...)` where
    t < t_last and `undo_step(...t...)` otherwise. With known_region="before_model" the step to the clean
    image leaves the known pixels out, as in the chain's last step: where an undo step follows it, as it can
    with jump_schedule="diffusers", put them in before, as `inpaint` does.

    Args:
        state: from `set_timesteps`.
        model_output: the model's output for `sample` at `timestep`, of the sample's shape; with
            variance_type="learned_range" it has twice the channels in the last axis.
        timestep: a timestep of the schedule: an int or an int32 scalar. A traced one is not checked.
        sample: the noisy image, floating, any shape.
        original_image: the image to inpaint, of the sample's shape, in [-1, 1].
        mask: 1 keeps, 0 inpaints, values between blend; floating, of the image's rank, each axis equal
            or 1.
        key: a key, or a vector of keys, one for each entry of the leading axis.

    Raises:
        ValueError, TypeError: on a state without a schedule, a timestep that is not in it, and on
            shapes and dtypes other than the above.
    """
    row = _row(state, timestep)
    check_image_and_mask(original_image, mask)
    check_like_image("sample", sample, original_image)
    sample = jnp.asarray(sample)
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
    """Diffuse the sample one level up again (algorithm 1, line 10).

    Args:
        state: from `set_timesteps`.
        sample: the noisy image, one level below `timestep`.
        timestep: the timestep stepped last (diffusers' `t_last`), to whose level the sample returns.
        key: a key, or a vector of keys, one for each entry of the leading axis.

    Returns:
        The sample, of the same shape and dtype.

    Raises:
        TypeError, ValueError: as `step`.
    """
    check_floating("sample", sample)
    sample = jnp.asarray(sample)
    dtype = working_dtype(sample.dtype)
    variance = jnp.asarray(_row(state, timestep).undo_variance, dtype)
    z = gaussian(key, sample.shape, dtype)
    diffused = jnp.sqrt(1 - variance) * sample.astype(dtype) + jnp.sqrt(variance) * z
    return diffused.astype(sample.dtype)


def _row(state: RePaintSchedulerState, timestep: jax.Array | int) -> LevelCoefficients:
    """Look a timestep up in the ladder, and return its level's coefficients."""
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
    # From the static settings, so that it is known even while the state is traced.
    ladder = noise.ladder(config.timestep_spacing, config.num_train_timesteps, len(levels.timestep))
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
