"""RePaint's scheduler: a frozen state, and pure functions on it, named as in diffusers.

A state has the noise levels of the model's training. A sampler gives it a `Schedule`, which says what
happens in each model call: `repaint_schedule` has RePaint's own, `budget_schedule` that of a call budget.
"""

import dataclasses
import warnings
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise
from repaint_jax.sampling.checks import check_floating
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.keys import working_dtype

# Training leaves abar below 5e-5 (linear) or 5e-3 (scaled_linear) at the last timestep; a chain that
# starts from pure noise at a level with more signal than this is visibly off.
_NOISIEST_START = 0.02


class Row(Protocol):
    """What a model call needs: a pytree of arrays."""

    @property
    def timestep(self) -> jax.Array:
        """Training timestep that the model is told, int32."""


class Memory(Protocol):
    """What a call hands to the next one besides the sample: a pytree, and a type of its sampler's own."""

    @property
    def made_by(self) -> str:
        """The function that makes the sampler's schedule, for messages."""


class Schedule(Protocol):
    """What the loop asks of a sampler: a pytree of all that its calls compute with."""

    def rows(self) -> Any:
        """Return the calls' `Row`s as one: every leaf has the calls on its leading axis."""

    def first_memory(self, sample: jax.Array) -> Any:
        """Return the `Memory` that the first call gets."""

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
    ) -> tuple[jax.Array, Any, jax.Array]:
        """Take the sample to where the next call finds it, with one standard Gaussian `z`.

        Returns:
            The sample, the memory for the next call, and pred_original_sample.
        """

    def keeps_known_pixels(self, config: RePaintSchedulerConfig) -> bool:
        """Whether known pixels are those of the original in the result."""

    def noise_levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Standard deviation of the sample's noise, sqrt(1 - abar), before and after each call."""


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
    schedule: Schedule | None = None

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the sample that a chain starts from."""
        return 1.0


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


def warn_of_signal(config: RePaintSchedulerConfig, timestep: int) -> None:
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


def schedule_of(state: RePaintSchedulerState) -> Schedule:
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
