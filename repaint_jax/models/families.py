"""Families of networks that were trained on continuous noise levels, and the files of their schedulers.

A family has the noise levels, the way in which a network is called at each of them, and the weights of its
training's loss. Its file is the `scheduler_config.json` of a diffusers scheduler:

    family    diffusers' class                  the network is told     it predicts
    EDM       EDMEulerScheduler                 ln(sigma)/4             F of EDM's preconditioning
    Flow      FlowMatchEulerDiscreteScheduler   1000 t                  the velocity z - x0
    ScoreVE   ScoreSdeVeScheduler               sigma of data in [0,1]  the score

All other networks have a `RePaintSchedulerConfig` instead of a family.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from numpy.typing import NDArray

from repaint_jax.files import read_config, read_json, write_json
from repaint_jax.models.denoisers import edm_model_fn, flow_model_fn, score_model_fn, sigmas_of
from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.sampling.checks import check_int, check_mapping, check_positive
from repaint_jax.sampling.config import CONFIG_NAME, RePaintSchedulerConfig, check_sigma_range

NetworkFn = Callable[..., Any]  # (params, sample, timestep, *labels) -> output, as `nnx_model_fn` makes


@dataclasses.dataclass(frozen=True)
class Family:
    """What all families have. A family is a value: equal families make equal functions."""

    class_name: ClassVar[str]  # in the scheduler's file
    supported: ClassVar[Mapping[str, Any]] = {}  # options of the file that have no field, with their value

    num_train_timesteps: int = 1000

    @classmethod
    def from_dict(cls, file: Mapping[str, Any]) -> Self:
        """Make a family from the content of its scheduler's file. Options of samplers are ignored.

        Raises:
            ValueError: an option is not supported, or out of range.
            TypeError: file is no dict, or an option has the wrong type.
        """
        check_mapping("file", file)
        for name, value in cls.supported.items():
            if file.get(name, value) not in (value, None):
                raise ValueError(f"{name} is {file[name]!r}, expected {value!r}: it is not supported")
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in file.items() if name in names and value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the scheduler's file."""
        return {"_class_name": self.class_name, **dataclasses.asdict(self), **self.supported}

    def config(self) -> RePaintSchedulerConfig:
        """Return the noise levels."""
        raise NotImplementedError

    def model_fn(self, network: NetworkFn) -> NetworkFn:
        """Return the `model_fn` for `config()` that calls the network as it was trained."""
        raise NotImplementedError

    def call(self, network: NetworkFn, params: Any, x: jax.Array, level: jax.Array, *labels: Any) -> Any:
        """Call the network with the x and the level that the family's adapter in `denoisers` gives."""
        raise NotImplementedError

    def loss_weights(self) -> NDArray[np.float64]:
        """Return the weight of the predicted clean image's squared error at each noise level.

        With these weights, [num_train_timesteps], the network's own squared error has weight 1.
        """
        raise NotImplementedError

    def __post_init__(self) -> None:
        count = check_int("num_train_timesteps", self.num_train_timesteps, 1)
        object.__setattr__(self, "num_train_timesteps", count)
        for field in dataclasses.fields(self)[1:]:  # so that equal families have equal digests
            object.__setattr__(self, field.name, check_positive(field.name, getattr(self, field.name)))
        self.config()  # raises if the noise levels do not rise


@dataclasses.dataclass(frozen=True)
class EDM(Family):
    """Networks of EDM (Karras et al. 2022, arXiv 2206.00364, table 1).

    Attributes:
        num_train_timesteps: number of noise levels.
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        rho: how much denser the levels are at little noise.
        sigma_data: standard deviation of the training data.
        noise_scale: the network is told noise_scale ln(sigma). This is 1/4 in EDM and in diffusers, and 250
            in openai/consistency_models.
    """

    class_name = "EDMEulerScheduler"
    supported: ClassVar[Mapping[str, Any]] = {"prediction_type": "epsilon"}

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    noise_scale: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the scheduler's file."""
        file = super().to_dict()
        if file["noise_scale"] == EDM.noise_scale:
            del file["noise_scale"]
        else:  # diffusers would ignore it; it does not know this class, and refuses the folder
            file["_class_name"] = _SCALED_EDM
        return file

    def config(self) -> RePaintSchedulerConfig:
        """Return the noise levels."""
        ladder = (self.sigma_min, self.sigma_max, self.rho, self.num_train_timesteps)
        return RePaintSchedulerConfig.edm(*ladder)

    def model_fn(self, network: NetworkFn) -> NetworkFn:
        """Return the `model_fn` for `config()` that calls the network as it was trained."""
        return edm_model_fn(_NetworkOfFamily(network, self), self.config(), self.sigma_data)

    def call(self, network: NetworkFn, params: Any, x: jax.Array, level: jax.Array, *labels: Any) -> Any:
        """Call the network with c_in x; the adapter gives the level ln(sigma)/4."""
        return network(params, x, level * (4 * self.noise_scale), *labels)

    def loss_weights(self) -> NDArray[np.float64]:
        """Return EDM's lambda(sigma)."""
        sigma = sigmas_of(self.config())
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclasses.dataclass(frozen=True)
class Flow(Family):
    """Velocity networks of a rectified flow with the data at t = 0 (Liu et al. 2022, arXiv 2209.03003).

    Attributes:
        num_train_timesteps: number of times. The network is told num_train_timesteps t.
        shift: shift of the times towards noise (Esser et al. 2024, arXiv 2403.03206, eq. 23).
    """

    class_name = "FlowMatchEulerDiscreteScheduler"
    supported: ClassVar[Mapping[str, Any]] = {"invert_sigmas": False}

    shift: float = 1.0

    def config(self) -> RePaintSchedulerConfig:
        """Return the noise levels."""
        return RePaintSchedulerConfig.flow(self.num_train_timesteps, self.shift)

    def model_fn(self, network: NetworkFn) -> NetworkFn:
        """Return the `model_fn` for `config()` that calls the network as it was trained."""
        return flow_model_fn(_NetworkOfFamily(network, self), self.config())

    def call(self, network: NetworkFn, params: Any, x: jax.Array, level: jax.Array, *labels: Any) -> Any:
        """Call the network with (1 - t) x0 + t z; the adapter gives the level t."""
        return network(params, x, level * self.num_train_timesteps, *labels)

    def loss_weights(self) -> NDArray[np.float64]:
        """Return 1/t^2."""
        sigma = sigmas_of(self.config())
        return ((1 + sigma) / sigma) ** 2


@dataclasses.dataclass(frozen=True)
class ScoreVE(Family):
    """Score networks of the VE process (Song et al. 2020, arXiv 2011.13456), such as NCSN++.

    Their data are in [0, 1], and so are the noise levels in the file and those that the network is told.

    Attributes:
        num_train_timesteps: number of noise levels, evenly spaced in ln(sigma).
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
    """

    class_name = "ScoreSdeVeScheduler"

    num_train_timesteps: int = 2000
    sigma_min: float = 0.01
    sigma_max: float = 1348.0

    def config(self) -> RePaintSchedulerConfig:
        """Return the noise levels of images in [-1, 1], which are twice those of the file."""
        check_sigma_range(self.sigma_min, self.sigma_max)
        levels = np.geomspace(self.sigma_min, self.sigma_max, self.num_train_timesteps)
        return RePaintSchedulerConfig.from_sigmas(2 * levels)

    def model_fn(self, network: NetworkFn) -> NetworkFn:
        """Return the `model_fn` for `config()` that calls the network as it was trained."""
        return score_model_fn(_NetworkOfFamily(network, self), self.config())

    def call(self, network: NetworkFn, params: Any, x: jax.Array, level: jax.Array, *labels: Any) -> Any:
        """Call the network with data in [0, 1], and return the score of data in [-1, 1]."""
        return network(params, (x + 1) / 2, level / 2, *labels) / 2

    def loss_weights(self) -> NDArray[np.float64]:
        """Return 1/sigma^2, for sigma times the score."""
        return 1 / sigmas_of(self.config()) ** 2


Scheduler = RePaintSchedulerConfig | Family

_SCALED_EDM = "ScaledEDMScheduler"

_FAMILIES: dict[str, type[Family]] = {
    **{family.class_name: family for family in (EDM, Flow, ScoreVE)},
    _SCALED_EDM: EDM,
}


def read_scheduler(folder: Path) -> Scheduler:
    """Read the `scheduler_config.json` in a folder: that of a family, or of a scheduler with betas."""
    path = folder / CONFIG_NAME
    class_name = read_json(path).get("_class_name")
    family = _FAMILIES.get(class_name) if isinstance(class_name, str) else None
    if family is None:
        return read_config(path, RePaintSchedulerConfig.from_dict)
    return read_config(path, family.from_dict)


def write_scheduler(folder: Path, scheduler: Scheduler) -> None:
    """Write `scheduler_config.json` into a folder, and create the folder if it is missing."""
    write_json(folder / CONFIG_NAME, scheduler.to_dict())


def config_of(scheduler: Scheduler) -> RePaintSchedulerConfig:
    """Return the noise levels, and what the `model_fn` predicts."""
    return scheduler.config() if isinstance(scheduler, Family) else scheduler


def model_fn_of(scheduler: Scheduler, network: NetworkFn) -> NetworkFn:
    """Return the `model_fn` for `config_of(scheduler)`: the network itself if it has no family."""
    return scheduler.model_fn(network) if isinstance(scheduler, Family) else network


def check_time_embedding(unet: UNet2DConfig, scheduler: Scheduler) -> None:
    """Raise if a network cannot be told the levels of a scheduler.

    A Fourier embedding takes the logarithm of what the network is told: a noise level or a time. Timestep 0
    and the ln(sigma)/4 of EDM have none. A learned embedding has a row for each timestep.
    """
    family = scheduler if isinstance(scheduler, Family) else None
    found = "one with betas" if family is None else family.to_dict()["_class_name"]
    if unet.time_embedding_type == "fourier" and (family is None or isinstance(family, EDM)):
        raise ValueError(
            f"time_embedding_type is 'fourier', expected a scheduler such as {ScoreVE.class_name}, "
            f"not {found}: the network takes the logarithm of what it is told, which must be a "
            "positive number"
        )
    if unet.time_embedding_type != "learned" or unet.num_train_timesteps is None:
        return
    if family is not None:
        raise ValueError(
            f"time_embedding_type is 'learned', expected a scheduler with betas, not {found}: the "
            "network has an embedding for each timestep"
        )
    levels = config_of(scheduler).num_train_timesteps
    if unet.num_train_timesteps < levels:
        raise ValueError(
            f"num_train_timesteps of the network is {unet.num_train_timesteps}, expected at least the "
            f"{levels} of the scheduler: time_embedding_type is 'learned'"
        )


@dataclasses.dataclass(frozen=True)
class _NetworkOfFamily:
    """A network as an adapter in `denoisers` calls it. Equal ones compile once."""

    network: NetworkFn
    family: Family

    def __call__(self, params: Any, x: jax.Array, level: jax.Array, *labels: Any) -> Any:
        return self.family.call(self.network, params, x, level, *labels)
