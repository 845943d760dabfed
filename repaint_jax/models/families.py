"""Families of networks that were trained on continuous noise levels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from repaint_jax.models.denoisers import edm_model_fn
from repaint_jax.sampling.config import RePaintSchedulerConfig

NetworkFn = Callable[..., Any]  # (params, sample, timestep) -> output, as `nnx_model_fn` makes
Scheduler = Any  # a RePaintSchedulerConfig or an EDM


@dataclasses.dataclass(frozen=True)
class EDM:
    """Networks of EDM (Karras et al. 2022, arXiv 2206.00364, table 1).

    Attributes:
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        rho: how much denser the levels are at little noise.
        sigma_data: standard deviation of the training data.
        num_train_timesteps: number of noise levels.
        noise_scale: the network is told noise_scale ln(sigma).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    num_train_timesteps: int = 1000
    noise_scale: float = 0.25

    def config(self) -> RePaintSchedulerConfig:
        """Return the noise levels."""
        ladder = (self.sigma_min, self.sigma_max, self.rho, self.num_train_timesteps)
        return RePaintSchedulerConfig.edm(*ladder)

    def model_fn(self, network: NetworkFn) -> NetworkFn:
        """Return the `model_fn` for `config()` that calls the network as it was trained."""
        return edm_model_fn(_Told(network, self.noise_scale), self.config(), self.sigma_data)

    def __post_init__(self) -> None:
        self.config()  # raises if a value is out of range


@dataclasses.dataclass(frozen=True)
class _Told:
    """A network that is told noise_scale ln(sigma), called with ln(sigma)/4."""

    network: NetworkFn
    noise_scale: float

    def __call__(self, params: Any, x: jax.Array, level: jax.Array) -> Any:
        return self.network(params, x, level * (4 * self.noise_scale))
