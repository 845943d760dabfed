"""Models that were trained on continuous noise levels, as the `model_fn` that `inpaint` needs.

The chain's sample is u = sqrt(abar) x0 + sqrt(1 - abar) z, and sigma = sqrt((1 - abar)/abar) is its noise
level. A family of models sees the same x0 and z with other weights:

    family                     input x                       x0
    denoiser D(x, sigma)       u sqrt(1 + sigma^2)           D
    EDM network F              u sqrt(1 + sigma^2)           c_skip x + c_out F(c_in x, ln(sigma)/4)
    rectified flow V(x, t)     u sqrt((1 - t)^2 + t^2)       x - t V,  t = sigma/(1 + sigma)
    score of VE, s(x, sigma)   u sqrt(1 + sigma^2)           x + sigma^2 s

The noise levels are those of a `RePaintSchedulerConfig`, which `.from_sigmas`, `.edm` and `.flow` make.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_callable
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.keys import working_dtype

# network(params, x, level) -> output, where level is sigma, a function of it, or a time
Network = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class _AtNoiseLevel:
    """A network with its noise levels; called as a `model_fn` it predicts the clean image.

    Two of these are equal if their networks and settings are, so `inpaint` compiles once for both.
    """

    network: Network
    config: RePaintSchedulerConfig

    def __call__(self, params: Any, sample: jax.Array, timestep: jax.Array) -> jax.Array:
        dtype = working_dtype(sample.dtype)
        sigmas = np.exp(noise_levels.log_sigma(noise_levels.alphas_cumprod(self.config.betas)))
        sigma = jnp.asarray(sigmas, dtype)[timestep]
        x = sample.astype(dtype) * jnp.sqrt(1 + sigma**2)  # x0 + sigma z
        return self.clean(params, x, sigma, sample.dtype)

    def clean(self, params: Any, x: jax.Array, sigma: jax.Array, dtype: Any) -> jax.Array:
        """Return x0 for x = x0 + sigma z; the network gets its input in this dtype."""
        raise NotImplementedError


class _Denoiser(_AtNoiseLevel):
    def clean(self, params: Any, x: jax.Array, sigma: jax.Array, dtype: Any) -> jax.Array:
        return self.network(params, x.astype(dtype), sigma)


@dataclasses.dataclass(frozen=True)
class _EDM(_AtNoiseLevel):
    sigma_data: float

    def clean(self, params: Any, x: jax.Array, sigma: jax.Array, dtype: Any) -> jax.Array:
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        skip, out = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total
        output = self.network(params, (x / total).astype(dtype), jnp.log(sigma) / 4)
        return skip * x + out * output.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Flow(_AtNoiseLevel):
    data_at: int

    def clean(self, params: Any, x: jax.Array, sigma: jax.Array, dtype: Any) -> jax.Array:
        t = sigma / (1 + sigma)
        mixed = (1 - t) * x  # (1 - t) x0 + t z
        if self.data_at == 0:
            velocity = self.network(params, mixed.astype(dtype), t)
        else:
            velocity = -self.network(params, mixed.astype(dtype), 1 - t)
        return mixed - t * velocity.astype(x.dtype)


class _Score(_AtNoiseLevel):
    def clean(self, params: Any, x: jax.Array, sigma: jax.Array, dtype: Any) -> jax.Array:
        return x + sigma**2 * self.network(params, x.astype(dtype), sigma).astype(x.dtype)


def denoiser_model_fn(denoiser: Network, config: RePaintSchedulerConfig) -> Network:
    """Make a `model_fn` from a denoiser.

    Args:
        denoiser: `denoiser(params, x, sigma)` -> E[x0 | x = x0 + sigma z], of x's shape; sigma is a float32
            scalar.
        config: the noise levels, such as `RePaintSchedulerConfig.edm()`, with prediction_type="sample".

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config.

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
            the float32 scalar c_noise = ln(sigma)/4.
        config: the noise levels, such as `RePaintSchedulerConfig.edm()`.
        sigma_data: standard deviation of the training data, positive.

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config.

    Raises:
        TypeError: network is no function, or config is no RePaintSchedulerConfig.
        ValueError: sigma_data is not positive, or config has another prediction_type than "sample".
    """
    if not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data is {sigma_data}, expected a positive number")
    return _EDM(*_checked("network", network, config), float(sigma_data))


def flow_model_fn(velocity: Network, config: RePaintSchedulerConfig, data_at: int = 0) -> Network:
    """Make a `model_fn` from the velocity of a rectified flow or of conditional flow matching.

    Args:
        velocity: `velocity(params, x, t)` -> dx/dt, of x's shape; t is a float32 scalar in (0, 1). With the
            data at 0, x = (1 - t) x0 + t z and the velocity is z - x0; with the data at 1,
            x = t x0 + (1 - t) z and the velocity is x0 - z.
        config: the noise levels, such as `RePaintSchedulerConfig.flow()`.
        data_at: the time of the data, 0 or 1.

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config.

    Raises:
        TypeError: velocity is no function, or config is no RePaintSchedulerConfig.
        ValueError: data_at is neither 0 nor 1, or config has another prediction_type than "sample".
    """
    if data_at not in (0, 1):
        raise ValueError(f"data_at is {data_at!r}, expected 0 or 1: the time of the data")
    return _Flow(*_checked("velocity", velocity, config), int(data_at))


def score_model_fn(score: Network, config: RePaintSchedulerConfig) -> Network:
    """Make a `model_fn` from a score network of the VE kind (Song et al. 2020, arXiv 2011.13456).

    Args:
        score: `score(params, x, sigma)` -> grad log p(x) for x = x0 + sigma z, on average -z/sigma.
        config: the noise levels, such as `RePaintSchedulerConfig.from_sigmas(...)`.

    Returns:
        A `model_fn(params, sample, timestep)` for a state of this config.

    Raises:
        TypeError: score is no function, or config is no RePaintSchedulerConfig.
        ValueError: config has another prediction_type than "sample".
    """
    return _Score(*_checked("score", score, config))


def _checked(
    name: str, network: Network, config: RePaintSchedulerConfig
) -> tuple[Network, RePaintSchedulerConfig]:
    check_callable(name, network)
    if not isinstance(config, RePaintSchedulerConfig):
        raise TypeError(f"config is {config!r}, expected a RePaintSchedulerConfig")
    if config.prediction_type != "sample":
        raise ValueError(
            f"prediction_type is {config.prediction_type!r}, expected 'sample', the prediction of the "
            "adapter's model_fn; RePaintSchedulerConfig.from_sigmas, .edm and .flow set it"
        )
    return network, config
