"""RePaint's scheduler: a frozen state, and pure functions on it, named as in diffusers.

`set_timesteps` turns a walk over noise levels (`jumps`) into a schedule; `step` and `undo_step` move a
sample one level down and up. What happens in a step is in `transition`. `set_timesteps_for_budget` and
`budget_step` are the same for a given number of model calls, and that step is in `correlated`.
"""

import dataclasses
import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax import jumps, noise
from repaint_jax.checks import (
    check_floating,
    check_image_and_mask,
    check_int,
    check_like_image,
)
from repaint_jax.config import RePaintSchedulerConfig
from repaint_jax.correlated import (
    CorrelatedCoefficients,
    correlated_coefficients,
    correlated_transition,
)
from repaint_jax.keys import gaussian, working_dtype
from repaint_jax.transition import (
    LevelCoefficients,
    level_coefficients,
    reverse_transition,
    undo_variance,
)

SMALLEST_BUDGET = 8  # fewer calls are nothing but a few strides of denoising

# Training leaves abar below 5e-5 (linear) or 5e-3 (scaled_linear) at the last timestep; a chain that
# starts from pure noise at a level with more signal than this is visibly off.
_NOISIEST_START = 0.02


class ResamplingSchedule(NamedTuple):
    """A chain with time jumps, an entry for each model call."""

    levels: LevelCoefficients  # of each level of the ladder
    call_levels: jax.Array  # [num_model_calls] int32, the level of each model call
    jump_variances: jax.Array  # [num_model_calls], noise of the jump that follows; 0 where none does


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "timesteps", "schedule"],
    meta_fields=["config", "num_inference_steps", "num_model_calls"],
)
@dataclasses.dataclass(frozen=True)
class RePaintSchedulerState:
    """A scheduler's precomputed arrays; made by `create_state` and `set_timesteps`, never changed.

    Attributes:
        config: the settings (static).
        alphas_cumprod: [num_train_timesteps] float32.
        sqrt_one_minus_alphas_cumprod: [num_train_timesteps] float32, rounded from float64: near the clean
            end 1 - alphas_cumprod would have lost its digits.
        num_inference_steps: T (static), or None before `set_timesteps` and for a budget, which has no T.
        num_model_calls: model calls of the whole chain (static), or None before `set_timesteps`.
        timesteps: int32, the chain as training timesteps. With jump_schedule="diffusers" it is the
            list that diffusers makes, an entry for each step and undo step; with "paper" it is the levels
            that the sample passes through, from the start to -1. For a budget it has an entry for
            each model call.
        schedule: what the chain computes with, or None before `set_timesteps`.
    """

    config: RePaintSchedulerConfig
    alphas_cumprod: jax.Array
    sqrt_one_minus_alphas_cumprod: jax.Array
    num_inference_steps: int | None = None
    num_model_calls: int | None = None
    timesteps: jax.Array | None = None
    schedule: ResamplingSchedule | CorrelatedCoefficients | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the sample that a chain starts from."""
        return 1.0


class RePaintSchedulerOutput(NamedTuple):
    """Result of a reverse step."""

    prev_sample: jax.Array  # the sample, one level lower
    pred_original_sample: jax.Array  # the clean image that the model sees in it


class BudgetStepOutput(NamedTuple):
    """Result of a step of a budget."""

    prev_sample: jax.Array  # the sample at the next call's level
    noise: jax.Array  # what was drawn, of which the next call uses half
    pred_original_sample: jax.Array  # the clean image that the model sees in it


def create_state(config: RePaintSchedulerConfig | None = None) -> RePaintSchedulerState:
    """Make a state without a schedule; `set_timesteps` adds one.

    Raises:
        TypeError: config is no RePaintSchedulerConfig.
        ValueError: the betas leave less signal at the last timestep than float32 can hold, or add less
            noise in a step than float64 can.

    >>> create_state().alphas_cumprod.shape
    (1000,)
    """
    if config is None:
        config = RePaintSchedulerConfig()
    if not isinstance(config, RePaintSchedulerConfig):
        raise TypeError(f"config is {config!r}, expected a RePaintSchedulerConfig")
    abar = noise.alphas_cumprod(config.betas)
    if abar[-1] < np.finfo(np.float32).tiny:
        raise ValueError(
            f"the betas leave alphas_cumprod={abar[-1]:.2g} at the last timestep, expected at least the "
            "smallest float32"
        )
    if (np.diff(abar, prepend=1.0) >= 0).any():
        raise ValueError(
            f"the smallest of the betas is {config.betas.min():.2g}, expected noise in each training step "
            "that float64 can hold"
        )
    return RePaintSchedulerState(
        config,
        alphas_cumprod=jnp.asarray(abar, jnp.float32),
        sqrt_one_minus_alphas_cumprod=jnp.asarray(np.sqrt(1 - abar), jnp.float32),
    )


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
        _warn_of_signal(config, int(ladder[-1]))
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


def set_timesteps_for_budget(state: RePaintSchedulerState, num_model_calls: int) -> RePaintSchedulerState:
    """Give a state the most exact chain for that many model calls: correlated renoising.

    It goes down through noise levels that lie densely where known and missing pixels inform each
    other, one level a call and without jumps, and uses each draw of noise twice. The equations and
    their sources (Leimkuhler and Matthews 2013; DDNM, Wang et al. 2023; RePaint) are in
    `repaint_jax.correlated`. `inpaint` runs it like any other schedule, `budget_step` by hand. Of the
    config only the betas, the prediction and its clipping matter, and whether the model returns a
    learned variance, which is not used; eta, the spacing, undo and the order of the known region
    belong to the other chain.

    Args:
        state: any state; a schedule it has is replaced.
        num_model_calls: at least 8. With many of them, neighbouring calls share a timestep.

    Returns:
        A new state with exactly num_model_calls model calls.

    Raises:
        TypeError, ValueError: num_model_calls is not an integer, or below 8.

    Warns:
        UserWarning: as `set_timesteps`.

    >>> state = set_timesteps_for_budget(create_state(), 64)
    >>> state.num_model_calls, int(state.timesteps[0]), int(state.timesteps[-1])
    (64, 853, 0)
    """
    check_state(state)
    num_model_calls = check_int("num_model_calls", num_model_calls, SMALLEST_BUDGET)
    _warn_of_signal(state.config, state.config.num_train_timesteps - 1)
    calls = correlated_coefficients(state.config, num_model_calls)
    return dataclasses.replace(
        state,
        num_inference_steps=None,
        num_model_calls=num_model_calls,
        timesteps=calls.timestep,
        schedule=calls,
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
    """Take the sample through one model call of a budget (equations in `repaint_jax.correlated`).

    A whole chain by hand is, from a `sample` of standard Gaussian noise,

        noise = jnp.zeros_like(sample)
        for call, t in enumerate(state.timesteps):
            sample, noise, _ = budget_step(state, model_output, call, sample, noise, image, mask, key)

    with the model's output for `sample` at `t`, and a new key for each call.

    Args:
        state: from `set_timesteps_for_budget`.
        model_output: as for `step`.
        call: the model call, in 0..num_model_calls-1: an int or an int32 scalar. A traced one is not
            checked.
        sample: the noisy image, floating, any shape.
        previous_noise: the `noise` that the call before returned, zeros in the first.
        original_image, mask, key: as for `step`.

    Raises:
        ValueError, TypeError: on a state without a budget, a call that is not in it, and on shapes and
            dtypes other than the above.
    """
    schedule = schedule_of(state)
    if not isinstance(schedule, CorrelatedCoefficients):
        raise ValueError("state has a schedule of set_timesteps, expected one of set_timesteps_for_budget")
    last = len(schedule.timestep) - 1
    is_index = isinstance(call, int | np.integer | jax.Array) and jnp.shape(call) == ()
    if not is_index or not jnp.issubdtype(jnp.result_type(call), jnp.integer):
        raise TypeError(f"call is {call!r}, expected an integer from 0 to num_model_calls - 1 = {last}")
    if not isinstance(call, jax.core.Tracer) and not 0 <= call <= last:
        raise ValueError(f"call is {call}, expected 0 to num_model_calls - 1 = {last}")
    check_image_and_mask(original_image, mask)
    check_like_image("sample", sample, original_image)
    check_like_image("previous_noise", previous_noise, original_image)
    sample = jnp.asarray(sample)
    z = gaussian(key, sample.shape, working_dtype(sample.dtype))
    row = jax.tree.map(lambda field: field[call], schedule)
    prev_sample, pred_original_sample = correlated_transition(
        state.config, row, model_output, sample, previous_noise, original_image, mask, z
    )
    return BudgetStepOutput(
        *(array.astype(sample.dtype) for array in (prev_sample, z, pred_original_sample))
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


def scale_model_input(
    state: RePaintSchedulerState, sample: jax.Array, timestep: jax.Array | int | None = None
) -> jax.Array:
    """Return the sample as it is: RePaint's models take it unscaled (for loops written for diffusers)."""
    del state, timestep
    return sample


def add_noise(
    state: RePaintSchedulerState,
    original_samples: jax.Array,
    noise: jax.Array,
    timesteps: jax.Array | int,
) -> jax.Array:
    """Diffuse clean samples to training timesteps: sqrt(abar) x_0 + sqrt(1 - abar) z.

    Args:
        state: any state.
        original_samples: [..., H, W, C] or any shape, floating.
        noise: standard Gaussian, of the samples' shape.
        timesteps: in 0..num_train_timesteps-1; a scalar or [1], or [B] for the leading axis.

    Returns:
        The noisy samples, of the samples' shape and dtype.

    Raises:
        TypeError, ValueError: on shapes and dtypes other than the above, and timesteps out of range.
    """
    check_state(state)
    check_floating("original_samples", original_samples)
    check_floating("noise", noise)
    if jnp.shape(noise) != jnp.shape(original_samples):
        raise ValueError(
            f"noise has shape {jnp.shape(noise)}, expected original_samples' {original_samples.shape}"
        )
    timesteps = _checked_timesteps(state, timesteps, original_samples.shape)
    original_samples, noise = jnp.asarray(original_samples), jnp.asarray(noise)
    dtype = working_dtype(original_samples.dtype)
    signal, noise_std = (
        per_timestep[timesteps]
        .astype(dtype)
        .reshape(timesteps.shape + (1,) * (original_samples.ndim - timesteps.ndim))
        for per_timestep in (jnp.sqrt(state.alphas_cumprod), state.sqrt_one_minus_alphas_cumprod)
    )
    noisy = signal * original_samples.astype(dtype) + noise_std * noise.astype(dtype)
    return noisy.astype(original_samples.dtype)


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


def _warn_of_signal(config: RePaintSchedulerConfig, timestep: int) -> None:
    """Say where a chain starts from pure noise though the model expects to see something there."""
    share = noise.alphas_cumprod(config.betas)[timestep]
    if share > _NOISIEST_START:
        last = config.num_train_timesteps - 1
        cure = (
            "'trailing' spacing starts at the top"
            if timestep < last
            else "expected betas that leave next to none"
        )
        warnings.warn(
            f"the chain starts from pure noise at timestep {timestep} of 0 to {last}, where the model "
            f"expects a share {share:.2g} of signal; {cure}",
            stacklevel=3,
        )


def check_state(state: RePaintSchedulerState) -> None:
    """Refuse what is no state."""
    if not isinstance(state, RePaintSchedulerState):
        raise TypeError(f"state is {state!r}, expected a RePaintSchedulerState, as create_state makes")


def schedule_of(state: RePaintSchedulerState) -> ResamplingSchedule | CorrelatedCoefficients:
    """Return a state's schedule, or refuse a state without one."""
    check_state(state)
    if state.schedule is None:
        raise ValueError("state has no schedule, expected one from set_timesteps")
    return state.schedule


def _checked_timesteps(
    state: RePaintSchedulerState, timesteps: jax.Array | int, shape: tuple[int, ...]
) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(timesteps), jnp.integer):
        raise TypeError(f"timesteps has dtype {jnp.result_type(timesteps)}, expected an integer dtype")
    if jnp.shape(timesteps) not in ((), (1,), shape[:1]):
        raise ValueError(
            f"timesteps has shape {jnp.shape(timesteps)}, expected (), (1,) or the leading axis of "
            f"original_samples' {shape}"
        )
    if not isinstance(timesteps, jax.core.Tracer):
        last, flat = state.config.num_train_timesteps - 1, np.ravel(timesteps)
        for timestep in flat[(flat < 0) | (flat > last)][:1]:
            raise ValueError(f"timesteps is {timestep}, expected 0 to num_train_timesteps - 1 = {last}")
    return jnp.asarray(timesteps)


def _abridged(ladder: np.ndarray) -> str:
    shown = [str(t) for t in ladder]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])
