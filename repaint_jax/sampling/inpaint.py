"""The sampling loop: a whole chain in one `lax.scan`, with one iteration per model call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp

from repaint_jax.sampling.carry_types import with_type_of_output
from repaint_jax.sampling.chain_start import (
    check_initial_sample,
    first_sample,
    known_to_chain,
    noise_of_chain,
)
from repaint_jax.sampling.checks import (
    check_callable,
    check_floating,
    check_image_and_mask,
    check_int,
    check_like_image,
    checked_calls,
)
from repaint_jax.sampling.keys import is_key_vector, working_dtype
from repaint_jax.sampling.noisy_pixels import Observation, checked_noise
from repaint_jax.sampling.progress import report, with_progress
from repaint_jax.sampling.scheduler import (
    RePaintSchedulerState,
    schedule_of,
    without_missing,
)

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
    observation_noise: jax.Array | float = 0.0,
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
    observation_noise: jax.Array | float = 0.0,
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
    observation_noise: jax.Array | float = 0.0,
    preview_calls: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Inpaint an image with a diffusion model (the whole of RePaint's algorithm 1).

    JAX compiles this function once for each `model_fn`, config, number of model calls, shape and dtype.
    Reuse one `model_fn`: a new function object compiles again. You can call `inpaint` under `jax.jit` (with
    `model_fn` and the options static), `jax.vmap` and `jax.grad`.

    Args:
        state: a state from `set_timesteps` or `set_timesteps_for_budget`.
        model_fn: a pure function `model_fn(params, sample, timestep) -> model_output`. The sample has the
            image's shape and dtype, and the timestep is an int32 scalar.
        params: the model's parameters, any pytree.
        original_image: the image to inpaint, [..., H, W, C] or any shape, floating, in [-1, 1]. Where the
            mask is 0 its values do not matter and may be NaN or infinite, unless state has a strength below
            1.
        mask: 1 keeps a pixel, 0 inpaints it, and values between 0 and 1 blend. Floating, of the image's
            rank; each axis is equal to the image's or 1.
        key: a key, or a vector of B keys. With a vector the leading axis is a batch, and image i depends
            on key[i] alone. With JAX's "rbg" keys it depends on the whole vector, because JAX draws the
            numbers of a batch from its first key.
        initial_sample: the sample to start from, of the image's shape; None means standard Gaussian noise,
            or the noised image if state has a strength below 1.
        observation_noise: standard deviation c of the noise in the known pixels of original_image, in the
            image's units: a number, or a floating array of the image's rank with each axis equal or 1.
            Where it is above 0, a known pixel y = x0 + c n, with a standard Gaussian n, does not come
            back as it is. At infinitely many calls the result is a draw of x0 given all y.
        preview_calls: model calls, in 0..num_model_calls-1, whose `pred_original_sample` to return.
        progress: a function that is called on the host as `progress(calls_done)` after each model call.
            With it, `inpaint` returns when the chain is done. It may be a new function for each call.

    Returns:
        The inpainted image, of the original image's shape and dtype. Its known pixels without noise are
        those of the original bit for bit, unless known_region is "before_model" in a schedule of
        `set_timesteps`. With preview_calls, a pair of the image and the previews [len(preview_calls),
        *image shape].

    Raises:
        ValueError: the state has no schedule, or a shape, a rank or a value is wrong. Values on the device
            (a NaN, a mask outside [0, 1]) are not checked.
        TypeError: an argument has the wrong type or dtype.

    >>> from repaint_jax import create_state, set_timesteps
    >>> state = set_timesteps(create_state(), 5, jump_length=2, jump_n_sample=2)
    >>> denoise_to_zero = lambda params, sample, timestep: sample
    >>> image, mask = jnp.ones((4, 4, 1)), jnp.ones((4, 4, 1)).at[1:3, 1:3].set(0)
    >>> inpaint(state, denoise_to_zero, None, image, mask, jax.random.key(0)).shape
    (4, 4, 1)
    """
    schedule_of(state)
    _check_arguments(model_fn, original_image, mask, key, progress)
    original_image, mask = jnp.asarray(original_image), jnp.asarray(mask)
    calls = checked_calls(preview_calls, "num_model_calls", state.num_model_calls or 0)
    check_initial_sample(state, initial_sample, original_image)
    known = Observation(original_image, mask, checked_noise(observation_noise, original_image))
    run = partial(_run_chain, state, model_fn, params, known, key, initial_sample, calls)
    image, previews = with_progress(run, progress)
    return image if preview_calls is None else (image, previews)


class ChainCarry(NamedTuple):
    """The state of a chain between two model calls, apart from the arguments of `inpaint`."""

    sample: jax.Array  # float32, or the image's dtype if that is wider
    memory: Any  # the `Memory` of the schedule, for the next call
    calls_done: jax.Array  # number of model calls made so far, int32


def start_chain(
    state: RePaintSchedulerState,
    original_image: jax.Array,
    key: jax.Array,
    *,
    initial_sample: jax.Array | None = None,
) -> ChainCarry:
    """Return the carry of a chain before its first model call, for `continue_chain`.

    Args:
        state: see `inpaint`.
        original_image: see `inpaint`.
        key: see `inpaint`.
        initial_sample: see `inpaint`.

    Returns:
        The carry that `inpaint` starts from if it gets the same arguments.

    Raises:
        ValueError: see `inpaint`.
        TypeError: see `inpaint`.
    """
    schedule = schedule_of(state)
    is_key_vector(key)
    check_floating("original_image", original_image)
    check_initial_sample(state, initial_sample, original_image)
    dtype = working_dtype(jnp.result_type(original_image))
    if initial_sample is None:
        initial_sample = first_sample(state, jnp.asarray(original_image, dtype), key)
    sample = jnp.asarray(initial_sample, dtype)
    return ChainCarry(sample, schedule.first_memory(sample), jnp.int32(0))


@overload
def continue_chain(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    carry: ChainCarry,
    num_calls: int,
    *,
    observation_noise: jax.Array | float = 0.0,
    preview_calls: None = None,
    progress: Callable[[int], None] | None = None,
) -> ChainCarry: ...


@overload
def continue_chain(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    carry: ChainCarry,
    num_calls: int,
    *,
    observation_noise: jax.Array | float = 0.0,
    preview_calls: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> tuple[ChainCarry, jax.Array]: ...


def continue_chain(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    carry: ChainCarry,
    num_calls: int,
    *,
    observation_noise: jax.Array | float = 0.0,
    preview_calls: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ChainCarry | tuple[ChainCarry, jax.Array]:
    """Run the next num_calls model calls of a chain.

    A chain can be run in several stretches. Each of them gets the same arguments from state to key. After
    `state.num_model_calls` calls in all, `carry.sample`, cast to the image's dtype, equals the result of
    `inpaint` bit for bit. Between two stretches the carry can be saved like any pytree, for example with
    Orbax, and the chain can be resumed elsewhere.

    Args:
        state: see `inpaint`.
        model_fn: see `inpaint`.
        params: see `inpaint`.
        original_image: see `inpaint`.
        mask: see `inpaint`.
        key: see `inpaint`.
        carry: the carry from `start_chain` or from the previous stretch.
        num_calls: number of model calls to run. Each new number compiles again.
        observation_noise: see `inpaint`. It must be the same in all stretches, as the arguments are.
        preview_calls: calls of this stretch, in 0..num_calls-1, whose `pred_original_sample` to return.
        progress: a function that is called on the host as `progress(calls_done)` after each model call.

    Returns:
        The carry after these calls. With preview_calls, a pair of the carry and the previews
        [len(preview_calls), *image shape].

    Raises:
        ValueError: see `inpaint`; also if fewer than num_calls calls are left, or if the carry belongs to
            another kind of chain.
        TypeError: see `inpaint`; also if carry is not a `ChainCarry`.

    >>> from repaint_jax import create_state, set_timesteps_for_budget
    >>> state = set_timesteps_for_budget(create_state(), 8)
    >>> denoise_to_zero = lambda params, sample, timestep: sample
    >>> arguments = denoise_to_zero, None, jnp.ones((4, 4, 1)), jnp.zeros((4, 4, 1)), jax.random.key(0)
    >>> carry = start_chain(state, arguments[2], arguments[4])
    >>> for _ in range(2):
    ...     carry = continue_chain(state, *arguments, carry, 4)
    >>> bool((carry.sample == inpaint(state, *arguments)).all())
    True
    """
    schedule = schedule_of(state)
    _check_arguments(model_fn, original_image, mask, key, progress)
    if not isinstance(carry, ChainCarry):
        raise TypeError(f"carry is {carry!r}, expected a ChainCarry, as start_chain makes")
    check_like_image("carry.sample", carry.sample, original_image)
    _check_memory(carry.memory, schedule.first_memory(carry.sample))
    check_int("num_calls", num_calls, 1)
    left = state.num_model_calls or 0
    if not isinstance(carry.calls_done, jax.core.Tracer):
        left -= int(carry.calls_done)
    if num_calls > left:
        raise ValueError(
            f"num_calls is {num_calls}, expected at most the {left} that are left of "
            f"{state.num_model_calls}"
        )
    calls = checked_calls(preview_calls, "num_calls", num_calls)
    original_image, mask = jnp.asarray(original_image), jnp.asarray(mask)
    known = Observation(original_image, mask, checked_noise(observation_noise, original_image))
    run = partial(_run_calls, state, model_fn, params, known, key, carry, num_calls, calls)
    carry, previews = with_progress(run, progress)
    return carry if preview_calls is None else (carry, previews)


def _check_memory(memory: Any, expected: Any) -> None:
    """Raise if the memory belongs to another sampler or to images of another shape."""
    if type(memory) is not type(expected):
        made_by = getattr(memory, "made_by", "something else")
        raise ValueError(f"carry belongs to a chain of {made_by}, and state to one of {expected.made_by}")
    for name, array, like in zip(expected._fields, memory, expected, strict=True):
        check_like_image(f"carry.{name}", array, like)


def _check_arguments(
    model_fn: ModelFn,
    original_image: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    progress: Callable[[int], None] | None,
) -> None:
    check_callable("model_fn", model_fn)
    if progress is not None:
        check_callable("progress", progress)
    is_key_vector(key)
    check_image_and_mask(original_image, mask)


@partial(jax.jit, static_argnames=("model_fn", "preview_calls"))
def _run_chain(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    known: Observation,
    key: jax.Array,
    initial_sample: jax.Array | None,
    preview_calls: tuple[int, ...],
    progress_number: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    carry = start_chain(state, known.image, key, initial_sample=initial_sample)
    carry, previews = _run_calls(
        state, model_fn, params, known, key, carry, state.num_model_calls, preview_calls, progress_number
    )
    return carry.sample.astype(known.image.dtype), previews


@partial(jax.jit, static_argnames=("model_fn", "num_calls", "preview_calls"))
def _run_calls(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    known: Observation,
    key: jax.Array,
    carry: ChainCarry,
    num_calls: int,
    preview_calls: tuple[int, ...],
    progress_number: jax.Array | None,
) -> tuple[ChainCarry, jax.Array]:
    # The chain is computed in float32 or wider. The model gets the image's own dtype.
    image_dtype, dtype = known.image.dtype, carry.sample.dtype
    config, schedule = state.config, schedule_of(state)
    rows = schedule.rows()
    original_image, mask, observation_noise = known_to_chain(state, known, key, dtype)
    original_image = without_missing(original_image, mask)
    num_model_calls = len(rows.timestep)
    # slots[i] is the index at which the preview of the stretch's call i is stored. Calls without a preview
    # have an index past the end, at which nothing is written.
    slots = jnp.full(num_calls, len(preview_calls), jnp.int32)
    slots = slots.at[jnp.array(preview_calls, jnp.int32)].set(
        jnp.arange(len(preview_calls), dtype=jnp.int32)
    )
    calls = (jnp.arange(num_model_calls, dtype=jnp.int32), rows)
    if num_calls < num_model_calls:
        calls = jax.tree.map(
            lambda field: jax.lax.dynamic_slice_in_dim(field, carry.calls_done, num_calls), calls
        )

    def model_call(carry: tuple[Any, ...], call: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
        sample, memory, previews = carry
        (index, row), slot = call
        model_output = model_fn(params, sample.astype(image_dtype), row.timestep)
        z = noise_of_chain(key, index + 1, sample.shape, dtype)
        sample, memory, x0 = schedule.transition(
            config, row, model_output, sample, memory, original_image, mask, z, observation_noise
        )
        if preview_calls:
            previews = previews.at[slot].set(x0.astype(image_dtype), mode="drop")
        if progress_number is not None:
            report(progress_number, index + 1)
        return (sample, memory, previews), None

    previews = jnp.zeros((len(preview_calls), *original_image.shape), image_dtype)
    first = carry.sample, carry.memory, previews
    first = with_type_of_output(model_call, first, jax.tree.map(lambda field: field[0], (calls, slots)))
    (sample, memory, previews), _ = jax.lax.scan(model_call, first, (calls, slots))
    calls_done = carry.calls_done + num_calls
    if schedule.keeps_known_pixels(config):
        # Copy them bit for bit: arithmetic loses the sign of zeros, and subnormal numbers.
        exact = (calls_done == num_model_calls) & (mask == 1)
        if observation_noise is not None:
            exact &= observation_noise == 0
        sample = jnp.where(exact, original_image.astype(dtype), sample)
    return ChainCarry(sample, memory, calls_done), previews
