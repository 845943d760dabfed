"""The scheduler: a frozen state and pure functions on it, with the names of diffusers.

A state has the noise levels of the model's training. A sampler adds a `Schedule`, which defines what each
model call does. `repaint_schedule` has RePaint's own schedule, and `budget_schedule` that of a call budget.
"""

import dataclasses
import warnings
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_floating, check_strength
from repaint_jax.sampling.config import RePaintSchedulerConfig, check_config
from repaint_jax.sampling.keys import working_dtype

# At the last timestep of training, abar is below 5e-5 (linear) or 5e-3 (scaled_linear). If a chain starts
# from pure noise at a level with a larger abar than this, its results are visibly wrong.
_NOISIEST_START = 0.02


class Row(Protocol):
    """The coefficients of a model call: a pytree of arrays."""

    @property
    def timestep(self) -> jax.Array:
        """Return the training timestep that the model gets, int32."""


class Memory(Protocol):
    """What a call passes to the next one in addition to the sample: a pytree, of one type per sampler."""

    @property
    def made_by(self) -> str:
        """Return the name of the function that makes the sampler's schedule, for messages."""


class Schedule(Protocol):
    """The interface between the loop and a sampler: a pytree with the coefficients of all calls."""

    def rows(self) -> Any:
        """Return the `Row`s of all calls, stacked: the leading axis of every leaf runs over the calls."""

    def first_memory(self, sample: jax.Array) -> Any:
        """Return the `Memory` for the first call."""

    def transition(
        self,
        config: RePaintSchedulerConfig,
        row: Any,
        model_output: jax.Array,
        sample: jax.Array,
        memory: Any,
        original_image: jax.Array,
        mask: jax.Array,
        z: jax.Array,
        observation_noise: jax.Array | None,
    ) -> tuple[jax.Array, Any, jax.Array]:
        """Take the sample to the noise level of the next call.

        Args:
            config: the scheduler's settings.
            row: the `Row` of this call.
            model_output: the model's output for `sample`.
            sample: the noisy image.
            memory: the `Memory` from the previous call.
            original_image: the image to inpaint.
            mask: 1 keeps a pixel, 0 inpaints it.
            z: standard Gaussian noise of the sample's shape.
            observation_noise: standard deviation of the noise of known pixels, of a shape that broadcasts
                to the sample's; None if they are exact.

        Returns:
            The sample, the memory for the next call, and pred_original_sample.
        """

    def keeps_known_pixels(self, config: RePaintSchedulerConfig) -> bool:
        """Return whether the known pixels of the result are those of the original."""

    def noise_of_calls(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the noise levels before and after each call, as sqrt(1 - abar).

        This is the standard deviation of the noise in the sample.
        """


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "timesteps", "schedule"],
    meta_fields=["config", "num_inference_steps", "num_model_calls", "starts_from_image"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class RePaintSchedulerState:
    """The settings and precomputed arrays of a scheduler. A state never changes.

    `create_state` makes a state. `set_timesteps` and `set_timesteps_for_budget` return a new state with a
    schedule.

    Attributes:
        config: the settings (static).
        alphas_cumprod: abar of each training timestep, [num_train_timesteps] float32.
        sqrt_one_minus_alphas_cumprod: sqrt(1 - abar), [num_train_timesteps] float32. It is rounded from
            float64, because 1 - alphas_cumprod in float32 would lose digits near the clean end.
        num_inference_steps: T (static). None without a schedule, and for a budget, which has no T.
        num_model_calls: number of model calls of the whole chain (static). None without a schedule.
        timesteps: the chain as training timesteps, int32. With jump_schedule="diffusers" it is the list
            that diffusers makes, with an entry for each step and undo step. With "paper" it has the levels
            of the sample, from the start to -1. For a budget it has an entry for each model call.
        schedule: the coefficients of the chain. None without a schedule.
        starts_from_image: whether a chain starts from the noised image (strength below 1) and not from
            noise (static).
    """

    config: RePaintSchedulerConfig
    alphas_cumprod: jax.Array
    sqrt_one_minus_alphas_cumprod: jax.Array
    num_inference_steps: int | None = None
    num_model_calls: int | None = None
    timesteps: jax.Array | None = None
    schedule: Schedule | None = None
    starts_from_image: bool = False

    def __eq__(self, other: object) -> bool:
        """Compare settings and arrays, value by value."""
        if not isinstance(other, RePaintSchedulerState):
            return NotImplemented
        tree: Any = jax.tree.structure(self)
        if tree != jax.tree.structure(other):
            return False
        return all(map(np.array_equal, jax.tree.leaves(self), jax.tree.leaves(other)))

    def __hash__(self) -> int:
        return hash((self.config, self.num_inference_steps, self.num_model_calls))

    @property
    def init_noise_sigma(self) -> float:
        """Return the standard deviation of the sample that a chain starts from."""
        return 1.0


def create_state(config: RePaintSchedulerConfig | None = None) -> RePaintSchedulerState:
    """Make a state without a schedule.

    `set_timesteps` and `set_timesteps_for_budget` add a schedule.

    Args:
        config: the settings; None means the defaults of `RePaintSchedulerConfig`.

    Returns:
        The state.

    Raises:
        TypeError: config is not a RePaintSchedulerConfig.
        ValueError: the signal that the betas leave at the last timestep is too small for float32, or the
            noise that they add in a step is too small for float64.

    >>> create_state().alphas_cumprod.shape
    (1000,)
    """
    if config is None:
        config = RePaintSchedulerConfig()
    check_config(config)
    abar = noise_levels.alphas_cumprod(config.betas)
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


def scale_model_input(
    state: RePaintSchedulerState, sample: jax.Array, timestep: jax.Array | int | None = None
) -> jax.Array:
    """Return the sample unchanged, because the models take it unscaled.

    This function exists for loops that were written for diffusers.

    Args:
        state: any state; not used.
        sample: the sample.
        timestep: the timestep; not used.
    """
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
        original_samples: the clean samples, [..., H, W, C] or any shape, floating.
        noise: standard Gaussian noise of the samples' shape.
        timesteps: training timesteps in 0..num_train_timesteps-1: a scalar or [1], or [B] for the leading
            axis.

    Returns:
        The noisy samples, of the shape and dtype of original_samples.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape is wrong, or a timestep is out of range.
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


def warn_of_signal(config: RePaintSchedulerConfig, timestep: int) -> None:
    """Warn if a chain starts from pure noise at a timestep at which the model expects signal."""
    share = noise_levels.alphas_cumprod(config.betas)[timestep]
    if share > _NOISIEST_START:
        last = config.num_train_timesteps - 1
        cure = (
            "'trailing' spacing starts at the last timestep"
            if timestep < last
            else "expected betas that leave almost none"
        )
        warnings.warn(
            f"the chain starts from pure noise at timestep {timestep} of 0 to {last}, where the model "
            f"expects a share {share:.2g} of signal; {cure}",
            stacklevel=3,
        )


def check_state(state: RePaintSchedulerState) -> None:
    """Raise if a value is not a RePaintSchedulerState."""
    if not isinstance(state, RePaintSchedulerState):
        raise TypeError(f"state is {state!r}, expected a RePaintSchedulerState, as create_state makes")


def schedule_of(state: RePaintSchedulerState) -> Schedule:
    """Return the schedule of a state, or raise if it has none."""
    check_state(state)
    if state.schedule is None:
        raise ValueError("state has no schedule, expected one from set_timesteps")
    return state.schedule


def levels_left(strength: float, num_levels: int, name: str) -> int:
    """Return how many noise levels of a chain a strength leaves, from the cleanest on, as in diffusers."""
    left = int(num_levels * check_strength(strength))
    if left < 1:
        raise ValueError(
            f"strength is {strength}, expected at least 1/{num_levels}: it leaves none of the noise levels "
            f"of {name}={num_levels}"
        )
    return left


def without_missing(original_image: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the image with zeros where the mask is 0, so that a NaN there does not spread."""
    original_image = jnp.asarray(original_image)
    return jnp.where(jnp.asarray(mask) == 0, jnp.zeros((), original_image.dtype), original_image)


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
