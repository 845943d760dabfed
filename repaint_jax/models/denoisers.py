"""Models that were trained on continuous noise levels, as the `model_fn` that `inpaint` needs.

The chain's sample is u = sqrt(abar) x0 + sqrt(1 - abar) z, and sigma = sqrt((1 - abar)/abar) is its noise
level. A family of models sees the same x0 and z with other weights:

    family                     input x                       prediction
    denoiser D(x, sigma)       u sqrt(1 + sigma^2)           x0 = D
    EDM network F              u sqrt(1 + sigma^2)           x0 = c_skip x + c_out F(c_in x, ln(sigma)/4)
    rectified flow V(x, t)     u sqrt((1 - t)^2 + t^2)       x0 = x - t V,  t = sigma/(1 + sigma)
    score of VE, s(x, sigma)   u sqrt(1 + sigma^2)           x0 = x + sigma^2 s
    score of VP, s(x, i)       u                             z = -sqrt(1 - abar) s,  i the timestep

The noise levels are those of a `RePaintSchedulerConfig`, which `.from_sigmas`, `.edm` and `.flow` make.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import (
    check_callable,
    check_choice,
    check_number,
    check_positive,
)
from repaint_jax.sampling.config import RePaintSchedulerConfig, check_config
from repaint_jax.sampling.keys import working_dtype

# network(params, x, level, *conditions) -> output, where level is sigma, a function of it, a time or a
# timestep; and the model_fn(params, sample, timestep, *conditions) -> model_output that is made from it
Network = Callable[..., jax.Array]


def sigmas_of(config: RePaintSchedulerConfig) -> NDArray[np.float64]:
    """Return the noise level sigma of each training timestep, [num_train_timesteps]."""
    return np.exp(noise_levels.log_sigma(noise_levels.alphas_cumprod(config.betas)))


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """A network with its noise levels, to be called as a `model_fn`.

    The timestep is a scalar, or one for each image of a batch. The network gets its level in that shape.
    Two adapters are equal if their networks and settings are, so `inpaint` compiles once for both.
    """

    network: Network
    config: RePaintSchedulerConfig

    def output(
        self, params: Any, x: jax.Array, level: jax.Array, conditions: tuple[Any, ...], dtype: Any
    ) -> jax.Array:
        """Return the network's output in the working dtype; the network gets its input in this dtype."""
        output = self.network(params, x.astype(dtype), level, *conditions)
        if jnp.shape(output) != x.shape:
            raise ValueError(f"the network returned shape {jnp.shape(output)}, expected {x.shape}")
        return output.astype(working_dtype(dtype))


class _AtNoiseLevel(_Adapter):
    """A network of a noise level; as a `model_fn` it predicts the clean image."""

    def __call__(self, params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        sigma = _of_each_image(sigmas_of(self.config), timestep, sample)
        x = sample.astype(sigma.dtype) * jnp.sqrt(1 + sigma**2)  # x0 + sigma z

        def network(x: jax.Array, level: jax.Array) -> jax.Array:
            return self.output(params, x, level.reshape(jnp.shape(timestep)), conditions, sample.dtype)

        return self.clean(network, x, sigma)

    def clean(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Return x0 for x = x0 + sigma z; sigma has the rank of x."""
        raise NotImplementedError


class _Denoiser(_AtNoiseLevel):
    def clean(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return network(x, sigma)


@dataclasses.dataclass(frozen=True)
class _EDM(_AtNoiseLevel):
    sigma_data: float

    def clean(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        skip, out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        return skip * x + out * network(x / total, jnp.log(sigma) / 4)


@dataclasses.dataclass(frozen=True)
class _Flow(_AtNoiseLevel):
    data_at: int

    def clean(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        t = sigma / (1 + sigma)
        mixed = (1 - t) * x  # (1 - t) x0 + t z
        velocity = network(mixed, t) if self.data_at == 0 else -network(mixed, 1 - t)
        return mixed - t * velocity


class _VEScore(_AtNoiseLevel):
    def clean(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        return x + sigma**2 * network(x, sigma)


class _VPScore(_Adapter):
    """As a `model_fn` it predicts the noise."""

    def __call__(self, params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        abar = noise_levels.alphas_cumprod(self.config.betas)
        noise = _of_each_image(np.sqrt(1 - abar), timestep, sample)
        return -noise * self.output(params, sample, timestep, conditions, sample.dtype)


def _of_each_image(levels: NDArray[np.float64], timestep: jax.Array, sample: jax.Array) -> jax.Array:
    """Return the level of each timestep in the working dtype, with the sample's rank."""
    shape = jnp.shape(timestep)
    if shape != sample.shape[: len(shape)]:
        raise ValueError(
            f"timestep has shape {shape}, expected a scalar or one for each image of the sample's shape "
            f"{sample.shape}"
        )
    level = jnp.asarray(levels, working_dtype(sample.dtype))[timestep]
    return level.reshape(shape + (1,) * (sample.ndim - len(shape)))


def denoiser_model_fn(denoiser: Network, config: RePaintSchedulerConfig) -> Network:
    """Make a `model_fn` from a denoiser.

    Args:
        denoiser: `denoiser(params, x, sigma)` -> E[x0 | x = x0 + sigma z], of x's shape; sigma is a float32
            scalar, or [B] where the timestep is.
        config: the noise levels, such as `RePaintSchedulerConfig.edm()`, with prediction_type="sample".

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config. Its timestep is a scalar, or one
        for each image of a batch. More arguments, such as class labels, are passed on to the network.

    Raises:
        TypeError: denoiser is no function, or config is no RePaintSchedulerConfig.
        ValueError: config has another prediction_type.

    >>> import repaint_jax as rp
    >>> config = rp.RePaintSchedulerConfig.edm()
    >>> shrink = lambda params, x, sigma: x / (1 + sigma**2)  # of images with variance 1
    >>> model_fn = rp.denoiser_model_fn(shrink, config)
    >>> state = rp.set_timesteps_for_budget(rp.create_state(config), 8)
    >>> image, mask = jnp.zeros((4, 4, 1)), rp.masks.half(4, 4)
    >>> rp.inpaint(state, model_fn, None, image, mask, jax.random.key(0)).shape
    (4, 4, 1)
    """
    return _Denoiser(*_checked("denoiser", denoiser, config))


def edm_model_fn(network: Network, config: RePaintSchedulerConfig, sigma_data: float = 0.5) -> Network:
    """Make a `model_fn` from a network of EDM, with its preconditioning (arXiv 2206.00364, table 1).

    Args:
        network: `network(params, c_in * x, c_noise)` -> F, with c_in = 1/sqrt(sigma^2 + sigma_data^2) and
            c_noise = ln(sigma)/4, a float32 scalar, or [B] where the timestep is.
        config: the noise levels, such as `RePaintSchedulerConfig.edm()`.
        sigma_data: standard deviation of the training data, positive.

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config, as of `denoiser_model_fn`.

    Raises:
        TypeError: network is no function, config is no RePaintSchedulerConfig, or sigma_data is no number.
        ValueError: sigma_data is not positive, or config has another prediction_type than "sample".
    """
    return _EDM(*_checked("network", network, config), check_positive("sigma_data", sigma_data))


def flow_model_fn(velocity: Network, config: RePaintSchedulerConfig, data_at: int = 0) -> Network:
    """Make a `model_fn` from the velocity of a rectified flow or of conditional flow matching.

    Args:
        velocity: `velocity(params, x, t)` -> dx/dt, of x's shape; t is a float32 scalar in (0, 1), or [B]
            where the timestep is. With the data at 0, x = (1 - t) x0 + t z and the velocity is z - x0; with
            the data at 1, x = t x0 + (1 - t) z and the velocity is x0 - z.
        config: the noise levels, such as `RePaintSchedulerConfig.flow()`.
        data_at: the time of the data, 0 or 1.

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config, as of `denoiser_model_fn`.

    Raises:
        TypeError: velocity is no function, config is no RePaintSchedulerConfig, or data_at is no number.
        ValueError: data_at is neither 0 nor 1, or config has another prediction_type than "sample".
    """
    if check_number("data_at", data_at, "0 or 1: the time of the data") not in (0, 1):
        raise ValueError(f"data_at is {data_at}, expected 0 or 1: the time of the data")
    return _Flow(*_checked("velocity", velocity, config), int(data_at))


def score_model_fn(score: Network, config: RePaintSchedulerConfig, process: str = "ve") -> Network:
    """Make a `model_fn` from a score network (Song et al. 2020, arXiv 2011.13456, section 3.4).

    The score of noisy images is grad log p(x), on average -noise/(its standard deviation). VE adds noise to
    a signal that keeps its size: x = x0 + sigma z and x0 = x + sigma^2 score. VP keeps the variance:
    x = sqrt(abar) x0 + sqrt(1 - abar) z and z = -sqrt(1 - abar) score.

    Args:
        score: the score of x, of its shape. VE calls `score(params, x, sigma)`; sigma is a float32 scalar,
            or [B] where the timestep is. VP calls `score(params, x, timestep)` with the timestep itself,
            from 0 to num_train_timesteps - 1.
        config: the noise levels. For VE, such as `RePaintSchedulerConfig.from_sigmas(...)`, with
            prediction_type="sample". For VP any betas, those of DDPM by default, with
            prediction_type="epsilon".
        process: "ve" or "vp".

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config, as of `denoiser_model_fn`. It
        predicts the clean image for VE and the noise for VP.

    Raises:
        TypeError: score is no function, or config is no RePaintSchedulerConfig.
        ValueError: process is another, or config has another prediction_type.
    """
    check_choice("process", process, ("ve", "vp"))
    if process == "ve":
        return _VEScore(*_checked("score", score, config))
    return _VPScore(*_checked("score", score, config, "epsilon"))


_CONFIGS_OF = {
    "sample": "RePaintSchedulerConfig.from_sigmas, .edm and .flow set it",
    "epsilon": "RePaintSchedulerConfig() has it, with the betas of DDPM",
}


def _checked(
    name: str, network: Network, config: RePaintSchedulerConfig, prediction_type: str = "sample"
) -> tuple[Network, RePaintSchedulerConfig]:
    check_callable(name, network)
    check_config(config)
    if config.prediction_type != prediction_type:
        raise ValueError(
            f"prediction_type is {config.prediction_type!r}, expected {prediction_type!r}, the prediction "
            f"of the adapter's model_fn; {_CONFIGS_OF[prediction_type]}"
        )
    return network, config
