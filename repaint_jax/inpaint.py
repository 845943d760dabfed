"""The whole chain of RePaint in one `lax.scan` with one iteration per model call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp

from repaint_jax.checks import (
    check_callable,
    check_image_and_mask,
    check_int,
    check_like_image,
    working_dtype,
)
from repaint_jax.config import RePaintSchedulerConfig
from repaint_jax.correlated import CorrelatedCoefficients, correlated_transition
from repaint_jax.keys import gaussian, is_key_vector
from repaint_jax.scheduler import RePaintSchedulerState, ResamplingSchedule, schedule_of
from repaint_jax.transition import reverse_transition

ModelFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


@overload
def inpaint(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    initial_sample: jax.Array | None = None,
    preview_calls: None = None,
    progress: Callable[[int], None] | None = None,
) -> jax.Array: ...


@overload
def inpaint(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    initial_sample: jax.Array | None = None,
    preview_calls: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def inpaint(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    initial_sample: jax.Array | None = None,
    preview_calls: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Fill the holes of an image with what a diffusion model finds likely (algorithm 1, whole).

    Compiled once for each `model_fn`, configuration, length of the chain, shape and dtype; so keep one
    `model_fn` and one `progress` rather than making new ones. Call it under `jax.jit` with `model_fn` and
    the options static, under `jax.vmap` and under `jax.grad` as you like.

    Args:
        state: from `set_timesteps` or `set_timesteps_for_budget`.
        model_fn: `model_fn(params, sample, timestep) -> model_output`, pure; the sample has the image's
            shape and dtype, the timestep is an int32 scalar.
        params: the model's parameters, any pytree.
        original_image: [..., H, W, C] or any shape, floating, in [-1, 1].
        mask: 1 keeps the pixel, 0 inpaints it, values between blend; floating, of the image's rank,
            each axis equal or 1.
        key: a key; or a vector of B keys, then the leading axis is a batch, and image i depends on
            key[i] alone.
        initial_sample: what to start from, of the image's shape; standard Gaussian noise where None.
        preview_calls: model calls, of 0..num_model_calls-1, whose `pred_original_sample` to keep.
        progress: called on the host as `progress(calls_done)` after each model call.

    Returns:
        The inpainted image, of the original's shape and dtype; known pixels bit for bit, unless
        known_region is "before_model" or the model's output is not finite. With preview_calls, a pair of it
        and the previews [len(preview_calls), *image shape].

    Raises:
        ValueError, TypeError: on a state without a schedule and on shapes, ranks and dtypes other than
            the above. Values on the device (a NaN, a mask outside [0, 1]) raise nothing.

    >>> from repaint_jax import create_state, set_timesteps
    >>> state = set_timesteps(create_state(), 5, jump_length=2, jump_n_sample=2)
    >>> denoise_to_zero = lambda params, sample, timestep: sample
    >>> image, mask = jnp.ones((4, 4, 1)), jnp.ones((4, 4, 1)).at[1:3, 1:3].set(0)
    >>> inpaint(state, denoise_to_zero, None, image, mask, jax.random.key(0)).shape
    (4, 4, 1)
    """
    schedule = schedule_of(state)
    check_callable("model_fn", model_fn)
    if progress is not None:
        check_callable("progress", progress)
    is_key_vector(key)
    check_image_and_mask(original_image, mask)
    original_image, mask = jnp.asarray(original_image), jnp.asarray(mask)
    if initial_sample is not None:
        check_like_image("initial_sample", initial_sample, original_image)
    calls = None if preview_calls is None else tuple(preview_calls)
    if len(set(calls or ())) != len(calls or ()):
        raise ValueError(f"preview_calls is {calls}, expected each call once")
    for call in calls or ():
        check_int("preview_calls", call, 0)
        if call >= (state.num_model_calls or 0):
            raise ValueError(
                f"preview_calls has {call}, expected calls below num_model_calls={state.num_model_calls}"
            )
    image, previews = _run_chain(
        state.config,
        schedule,
        model_fn,
        params,
        original_image,
        mask,
        key,
        initial_sample,
        calls or (),
        progress,
    )
    return image if calls is None else (image, previews)


@partial(jax.jit, static_argnames=("config", "model_fn", "preview_calls", "progress"))
def _run_chain(
    config: RePaintSchedulerConfig,
    schedule: ResamplingSchedule | CorrelatedCoefficients,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    initial_sample: jax.Array | None,
    preview_calls: tuple[int, ...],
    progress: Callable[[int], None] | None,
) -> tuple[jax.Array, jax.Array]:
    # The chain is carried in float32 at least; the model sees the image's own dtype.
    image_dtype, dtype = original_image.dtype, working_dtype(original_image.dtype)
    shape = original_image.shape

    def fresh_noise(index: jax.Array | int) -> jax.Array:
        fold_in = jax.vmap(jax.random.fold_in, (0, None)) if is_key_vector(key) else jax.random.fold_in
        return gaussian(fold_in(key, index), shape, dtype)

    if isinstance(schedule, CorrelatedCoefficients):
        rows, jump_variances = schedule, None
        previous_z = jnp.zeros(shape, dtype)
    else:
        rows = jax.tree.map(lambda field: field[schedule.call_levels], schedule.levels)
        jump_variances, previous_z = schedule.jump_variances, None

    num_calls = len(rows.timestep)
    # Where call i's preview goes; one past the end, which writes nothing, for calls without one.
    slots = jnp.full(num_calls, len(preview_calls), jnp.int32)
    slots = slots.at[jnp.array(preview_calls, jnp.int32)].set(
        jnp.arange(len(preview_calls), dtype=jnp.int32)
    )

    def model_call(carry: tuple[Any, ...], call: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
        sample, previous_z, previews = carry
        index, row, jump_variance, slot = call
        model_output = model_fn(params, sample.astype(image_dtype), row.timestep)
        z = fresh_noise(index + 1)
        if isinstance(row, CorrelatedCoefficients):
            sample, x0 = correlated_transition(
                config, row, model_output, sample, previous_z, original_image, mask, z
            )
            previous_z = z
        else:
            sample, x0 = reverse_transition(
                config, row, jump_variance, model_output, sample, original_image, mask, z
            )
        if preview_calls:
            previews = previews.at[slot].set(x0.astype(image_dtype), mode="drop")
        if progress is not None:
            jax.debug.callback(lambda calls_done: progress(int(calls_done)), index + 1)
        return (sample, previous_z, previews), None

    sample = fresh_noise(0) if initial_sample is None else initial_sample.astype(dtype)
    previews = jnp.zeros((len(preview_calls), *shape), image_dtype)
    calls = (jnp.arange(num_calls, dtype=jnp.int32), rows, jump_variances, slots)
    (sample, _, previews), _ = jax.lax.scan(model_call, (sample, previous_z, previews), calls)
    return sample.astype(image_dtype), previews
