"""Settings of a RePaint scheduler, and their file `scheduler_config.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from repaint_jax.files import Hub, StrPath, checked_path, inner_path, local_folder, read_config, write_json
from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import (
    check_choice,
    check_int,
    check_mapping,
    check_number,
    check_positive,
    described,
)

CONFIG_NAME = "scheduler_config.json"

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

_CHOICES = {
    "beta_schedule": noise_levels.BETA_SCHEDULES,
    "prediction_type": PREDICTION_TYPES,
    "variance_type": ("fixed_small", "fixed_large", "learned_range"),
    "timestep_spacing": noise_levels.TIMESTEP_SPACINGS,
    "known_region": ("after_step", "before_model"),
    "undo": ("exact", "diffusers"),
    "jump_schedule": ("diffusers", "paper"),
}

_SCHEDULERS_WITH_BETAS = ("RePaintScheduler", "DDPMScheduler", "DDIMScheduler")

# Read by `models.families`, which is a layer above. Named here for the message that a class is not read.
FAMILY_CLASSES = ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler")
_EXPECTED_CLASSES = (
    f"expected a scheduler with betas such as {', '.join(_SCHEDULERS_WITH_BETAS)}, or in a model's folder "
    f"one of {', '.join(FAMILY_CLASSES)}"
)

# Classes of diffusers whose files look like those of a DDPM's noise levels, but are not.
_REFUSED_CLASSES = {
    "LCMScheduler": "its networks are consistency models, which do not predict noise",
    "TCDScheduler": "its networks are consistency models, which do not predict noise",
    "CogVideoXDDIMScheduler": "its networks are of videos",
    "CogVideoXDPMScheduler": "its networks are of videos",
}

# DDPMScheduler's names for the same variances, up to the rounding of their logarithm.
_VARIANCE_ALIASES = {"fixed_small_log": "fixed_small", "fixed_large_log": "fixed_large"}

# Keys in other schedulers' files that change the noise levels or the prediction, and the values that do
# not.
_HARMLESS_VALUES: dict[str, tuple[Any, ...]] = {
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "timestep_type": ("discrete",),
    "snr_shift_scale": (1, 1.0),
}


@dataclasses.dataclass(frozen=True)
class RePaintSchedulerConfig:
    """Settings of a RePaint scheduler.

    Settings that diffusers has too keep its names and defaults.

    Attributes:
        num_train_timesteps: number of diffusion steps in the model's training, at least 1.
        beta_start: variance of the first training step, in (0, 1).
        beta_end: variance of the last training step, in (0, 1).
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" (capped at 0.999; it uses neither
            beta_start nor beta_end) or "sigmoid".
        eta: share of DDPM's noise in a reverse step, in [0, 1]. 0 is DDIM (Song et al. 2020,
            arXiv 2010.02502, eq. 16), and 1 is DDPM.
        trained_betas: betas that replace the schedule: num_train_timesteps values, each in (0, 1).
        clip_sample: whether to clip the predicted clean image.
        clip_sample_range: the limit of the clipping, positive. The predicted clean image is clipped to
            [-clip_sample_range, clip_sample_range].
        prediction_type: what the model predicts: the noise ("epsilon"), the clean image ("sample") or
            v = sqrt(abar) noise - sqrt(1 - abar) image ("v_prediction", arXiv 2202.00512).
        variance_type: variance of a reverse step's noise at eta=1. "fixed_small" is DDPM's posterior
            variance, and "fixed_large" is beta. With "learned_range" the model's output has C more
            channels, which interpolate between the logarithms of the two: -1 is small, 1 is large
            (arXiv 2102.09672, eq. 15).
        timestep_spacing: "leading", "trailing" or "linspace"; see `noise_levels.ladder`.
        known_region: when the known pixels are put in. "after_step" puts them in after each reverse step,
            including the last one, so the result has them exactly. "before_model", the order of the
            official code, puts them in before each model call but the first. With a mask of zeros and
            ones the two differ only in the last step: with "before_model" the known pixels of the result
            are those that the model predicts.
        undo: variance of a jump's noise. "exact" uses the variance between the jump's two levels.
            "diffusers" uses the betas of diffusers' `undo_step`, which belong to a level higher. It also
            uses one noise tensor for the known and the unknown part of soft masks, and clamps or ignores
            schedule arguments that "exact" refuses.
        jump_schedule: how to read the walk of `jumps.resampling_walk`: "diffusers" reads it as steps,
            "paper" as levels.
        use_clipped_model_output: after clipping, compute the noise again from the clipped image, as
            DDPM's posterior mean does implicitly. diffusers' DDIMScheduler has the same argument.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    eta: float = 0.0
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    timestep_spacing: str = "leading"
    known_region: str = "after_step"
    undo: str = "exact"
    jump_schedule: str = "diffusers"
    use_clipped_model_output: bool = False

    def __post_init__(self) -> None:
        num_train_timesteps = check_int("num_train_timesteps", self.num_train_timesteps, 1)
        object.__setattr__(self, "num_train_timesteps", num_train_timesteps)
        for name in ("beta_start", "beta_end", "eta", "clip_sample_range"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        for name in ("beta_start", "beta_end"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a variance in (0, 1)")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a number in [0, 1]")
        check_positive("clip_sample_range", self.clip_sample_range)
        for name in ("clip_sample", "use_clipped_model_output"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected True or False")
            object.__setattr__(self, name, bool(getattr(self, name)))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.trained_betas is not None:
            object.__setattr__(self, "trained_betas", self._checked_betas(self.trained_betas))

    def _checked_betas(self, trained_betas: Any) -> tuple[float, ...]:
        try:
            betas = np.asarray(trained_betas, np.float64)
        except (TypeError, ValueError):
            raise TypeError(
                f"trained_betas is {described(trained_betas)}, expected a sequence of numbers"
            ) from None
        if betas.shape != (self.num_train_timesteps,):
            raise ValueError(
                f"trained_betas has shape {betas.shape}, expected one beta for each of "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        for index in np.flatnonzero(~((betas > 0) & (betas < 1)))[:1]:
            raise ValueError(f"trained_betas[{index}] is {betas[index]}, expected a variance in (0, 1)")
        return tuple(betas.tolist())

    @property
    def betas(self) -> NDArray[np.float64]:
        """Return the variance of each training step, [num_train_timesteps]."""
        if self.trained_betas is not None:
            return np.array(self.trained_betas)
        settings = self.num_train_timesteps, self.beta_start, self.beta_end
        return noise_levels.betas(self.beta_schedule, *settings)

    @classmethod
    def diffusers(cls, **overrides: Any) -> Self:
        """Return the settings of the sampler of diffusers 0.42, including the betas of its undo step."""
        return cls(**{"undo": "diffusers", **overrides})

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """Return the settings of the official code: DDPM steps, learned variance, "linspace" spacing."""
        choices = {
            "eta": 1.0,
            "variance_type": "learned_range",
            "timestep_spacing": "linspace",
            "known_region": "before_model",
            "jump_schedule": "paper",
            "use_clipped_model_output": True,
        }
        return cls(**{**choices, **overrides})

    @classmethod
    def from_sigmas(cls, sigmas: Sequence[float] | NDArray[Any], **overrides: Any) -> Self:
        """Return the settings for a model that was trained on continuous noise levels.

        Training timestep i gets the noise level sigmas[i], the noise beside a signal that is not scaled,
        x = x0 + sigma z. The chain's own sample is that over sqrt(1 + sigma^2); adapters such as
        `denoiser_model_fn` convert it. The model predicts the clean image.

        Args:
            sigmas: noise levels [num_train_timesteps], positive and rising, as fine as you like.
            overrides: other fields of the config.

        Raises:
            ValueError: sigmas are not positive and rising, or a field cannot have its value.
            TypeError: sigmas are not numbers.

        >>> config = RePaintSchedulerConfig.from_sigmas([0.01, 0.1, 1.0, 10.0, 100.0])
        >>> config.num_train_timesteps, config.prediction_type
        (5, 'sample')
        """
        try:
            levels = np.asarray(sigmas, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"sigmas is {described(sigmas)}, expected a sequence of numbers") from None
        if levels.ndim != 1 or not levels.size:
            raise ValueError(f"sigmas has shape {levels.shape}, expected a vector of noise levels")
        rises = np.diff(levels, prepend=0.0) > 0
        for index in np.flatnonzero(~(rises & np.isfinite(levels)))[:1]:
            before = f", after {levels[index - 1]:g}" if index else ""
            raise ValueError(
                f"sigmas[{index}] is {levels[index]:g}{before}, expected positive noise levels that rise"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            betas = noise_levels.betas_of_sigmas(levels)
        for index in np.flatnonzero(~((betas > 0) & (betas < 1)))[:1]:
            raise ValueError(
                f"sigmas[{index}] is {levels[index]:g}, expected noise levels that float64 can tell from "
                "each other, from no noise and from noise alone"
            )
        choices = {
            "num_train_timesteps": len(betas),
            "trained_betas": tuple(betas.tolist()),
            "prediction_type": "sample",
        }
        return cls(**{**choices, **overrides})

    @classmethod
    def edm(
        cls,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        num_train_timesteps: int = 1000,
        **overrides: Any,
    ) -> Self:
        """Return the settings for a model of EDM (Karras et al. 2022, arXiv 2206.00364), table 1.

        Args:
            sigma_min: smallest noise level, positive.
            sigma_max: largest noise level.
            rho: how much denser the levels are at little noise, positive.
            num_train_timesteps: number of noise levels.
            overrides: other fields of the config.

        Raises:
            ValueError: a number is outside its range.
            TypeError: it is no number.
        """
        count = check_int("num_train_timesteps", num_train_timesteps, 1)
        low, high = check_sigma_range(sigma_min, sigma_max)
        rho = check_positive("rho", rho)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            levels = noise_levels.karras_sigmas(np.float64(low), np.float64(high), rho, count)
        _check_rising("rho", rho, levels)
        return cls.from_sigmas(levels, **overrides)

    @classmethod
    def flow(cls, num_train_timesteps: int = 1000, shift: float = 1.0, **overrides: Any) -> Self:
        """Return the settings for a rectified flow or a conditional flow matching model.

        Args:
            num_train_timesteps: number of times, up to 0.999 where 1 is pure noise.
            shift: shift of the times towards noise, as in the model's own sampler (Esser et al. 2024, arXiv
                2403.03206, eq. 23); 1 means even times.
            overrides: other fields of the config.

        Raises:
            ValueError: a number is outside its range.
            TypeError: it is no number.
        """
        count = check_int("num_train_timesteps", num_train_timesteps, 1)
        shift = check_positive("shift", shift)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            levels = noise_levels.flow_sigmas(shift, count)
        _check_rising("shift", shift, levels)
        return cls.from_sigmas(levels, **overrides)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Make a config from a dict of `to_dict` or of another diffusers scheduler.

        None means the default. Unknown keys are ignored.

        Raises:
            ValueError: the scheduler has no betas, or has options that are not supported. The message names
                the class or the option.
            TypeError: config is no dict, or an option has the wrong type.
        """
        check_mapping("config", config)
        config = {name: value for name, value in config.items() if value is not None}
        class_name = config.get("_class_name", "RePaintScheduler")
        if not isinstance(class_name, str):
            raise ValueError(f"_class_name is {class_name!r}, expected the name of a scheduler")
        reason = _REFUSED_CLASSES.get(class_name)
        has_betas = class_name in _SCHEDULERS_WITH_BETAS or "beta_schedule" in config
        if reason is not None or not has_betas:
            because = "" if reason is None else f"; {reason}"
            raise ValueError(f"the scheduler's config is of a {class_name}, {_EXPECTED_CLASSES}{because}")
        for name, harmless in _HARMLESS_VALUES.items():
            if name in config and config[name] not in harmless:
                expected = "false" if harmless == (False,) else repr(harmless[0])
                raise ValueError(f"{name} is {config[name]!r}, expected {expected}: it is not supported")
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in config.items() if name in names}
        if config.get("predict_epsilon") is False:  # in files older than prediction_type
            known.setdefault("prediction_type", "sample")
        variance_type = known.get("variance_type")
        if isinstance(variance_type, str):
            known["variance_type"] = _VARIANCE_ALIASES.get(variance_type, variance_type)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of diffusers' `scheduler_config.json` as a dict."""
        return {"_class_name": "RePaintScheduler", **dataclasses.asdict(self)}

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: StrPath,
        subfolder: StrPath | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: StrPath | None = None,
    ) -> Self:
        """Read `scheduler_config.json` of a RePaint, DDPM, DDIM or other diffusers scheduler with betas.

        Args:
            path_or_repo: a folder, or the name of a repository on the Hugging Face hub (which needs the
                package huggingface_hub).
            subfolder: the subfolder that has the file. In a pipeline it is "scheduler".
            revision: branch, tag or commit on the hub.
            token: access token for a private or gated repository; None means the stored one.
            cache_dir: folder for downloads; None means the one of huggingface_hub.
        """
        name = str(PurePosixPath(inner_path(subfolder)) / CONFIG_NAME)
        folder = local_folder(path_or_repo, [name], Hub(revision, token, cache_dir))
        return read_config(folder / name, cls.from_dict)

    def save_pretrained(self, folder: StrPath) -> None:
        """Write `scheduler_config.json` into a folder, and create the folder if it is missing."""
        write_json(checked_path("folder", folder) / CONFIG_NAME, self.to_dict())


def check_config(config: object) -> None:
    """Raise if a value is no `RePaintSchedulerConfig`."""
    if not isinstance(config, RePaintSchedulerConfig):
        raise TypeError(f"config is {described(config)}, expected a RePaintSchedulerConfig")


def check_sigma_range(sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    """Return the smallest and the largest noise level as floats, or raise if they do not rise."""
    low, high = check_positive("sigma_min", sigma_min), check_positive("sigma_max", sigma_max)
    if not low < high:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max is {sigma_max}, expected rising positive numbers"
        )
    return low, high


def _check_rising(name: str, value: float, levels: NDArray[np.float64]) -> None:
    """Raise if a parameter is so extreme that the noise levels made with it do not rise in float64."""
    if not (np.isfinite(levels).all() and (np.diff(levels, prepend=0.0) > 0).all()):
        raise ValueError(f"{name} is {value}, expected a number that gives rising noise levels in float64")
