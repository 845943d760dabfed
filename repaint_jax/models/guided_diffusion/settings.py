"""The settings of a guided-diffusion model that its weights do not tell, and what is assumed without them.

They are flags of the training scripts of openai/guided-diffusion, openai/improved-diffusion and
openai/consistency_models. The official RePaint code has them in the `.yml` file of a dataset.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from repaint_jax.files import StrPath
from repaint_jax.models.guided_diffusion.layout import Layout
from repaint_jax.models.guided_diffusion.teachers import TRAINING_MODE, check_training_mode

HEAD_CHANNELS = 64  # of most published models, and of all classifiers

Flag = bool | int | float | str

_DEFAULTS: dict[str, Flag] = {  # of guided-diffusion's flags, and of those that consistency_models adds
    "image_size": 64,
    "num_heads": 4,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "sigma_small": False,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
}
_ASSUMED = ("use_new_attention_order", "noise_schedule", "diffusion_steps", "predict_xstart")


class _Published(NamedTuple):
    """A published architecture; each has resampling resnets."""

    model_channels: int
    widths: tuple[int, ...]
    layers: int
    attended_levels: tuple[int, ...]
    scale_shift: bool = True
    learns_variance: bool = True
    of_consistency_models: bool = False


# The flags are those in the README of openai/guided-diffusion. Those of FFHQ are in the code of DPS (Chung
# et al. 2023, arXiv 2209.14687), those of the EDM teachers in `scripts/launch.sh` of consistency_models.
_PUBLISHED: dict[_Published, dict[str, Flag]] = {
    _Published(192, (192, 384, 576, 768), 3, (1, 2, 3)): {  # ImageNet 64
        "image_size": 64,
        "num_head_channels": 64,
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
    },
    _Published(256, (256, 256, 512, 768, 1024), 2, (2, 3, 4)): {"image_size": 128, "num_heads": 4},
    _Published(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5)): {  # RePaint's, ImageNet 256, LSUN
        "image_size": 256,
        "num_head_channels": 64,
    },
    _Published(256, (128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6)): {
        "image_size": 512,
        "num_head_channels": 64,
    },
    _Published(128, (128, 128, 256, 256, 512, 512), 1, (4,)): {  # FFHQ 256
        "image_size": 256,
        "num_head_channels": 64,
    },
    _Published(192, (192, 384, 576, 768), 3, (1, 2, 3), True, False, True): {  # teacher of ImageNet 64
        "image_size": 64,
        "num_head_channels": 64,
    },
    _Published(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5), False, False, True): {
        "image_size": 256,  # teachers of LSUN Bedroom and Cat
        "num_head_channels": 64,
    },
}

# The sizes of pictures, by the ratios of the levels' widths to model_channels.
_SIZES: dict[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
    (1, 2, 2, 2): 32,
}


def read_settings(path: StrPath) -> dict[str, Any]:
    """Read the `.yml` file of a dataset."""
    path = Path(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, expected a mapping of settings")
    return settings


def complete_settings(
    settings: Mapping[str, Any], layout: Layout, source: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all settings, and those among them that were assumed.

    A published model is recognised by its architecture, so nothing is assumed for it. Only that an EDM
    teacher is no consistency model is assumed if the settings do not tell it.

    Args:
        settings: the settings that are given.
        layout: what the weights tell.
        source: the file that error messages name.

    Raises:
        ValueError: a setting has a wrong type or contradicts the weights, or the pictures' size is unknown.
    """
    given = {name: _checked(name, settings[name]) for name in _DEFAULTS if name in settings}
    _check_weights(settings, layout, source)
    if "num_heads" in given:
        given.setdefault("num_head_channels", -1)
    if layout.image_size is not None:  # a classifier, whose code has no flag for its heads
        known: dict[str, Any] = {"image_size": layout.image_size, "num_head_channels": HEAD_CHANNELS}
        return {**_DEFAULTS, **known}, {}
    check_training_mode(settings, layout, source)
    published = _PUBLISHED.get(_key(layout)) if layout.resnet_resampling else None
    guesses = {} if published else _guesses(given, layout, source)
    if layout.of_consistency_models:
        given["use_new_attention_order"] = True
        if "training_mode" not in settings:
            guesses["training_mode"] = TRAINING_MODE
    assumed = {name: value for name, value in sorted(guesses.items()) if name not in given}
    return {**_DEFAULTS, **(published or {}), **assumed, **given}, assumed


def _guesses(given: Mapping[str, Any], layout: Layout, source: Path) -> dict[str, Any]:
    """Return what to assume of a model that is not published; what is given counts more."""
    guesses: dict[str, Any] = {}
    if not layout.of_consistency_models:
        guesses = {name: _DEFAULTS[name] for name in _ASSUMED}
        if given.get("diffusion_steps", 1000) != 1000:
            guesses["rescale_timesteps"] = False
    size = _SIZES.get(tuple(width / layout.model_channels for width in layout.widths))
    if size is not None:
        guesses["image_size"] = size
    elif "image_size" not in given:
        raise ValueError(f"{source} does not tell the pictures' size, expected image_size in a .yml file")
    if given.get("num_head_channels", -1) == -1:
        follows_published = layout.resnet_resampling and "num_head_channels" not in given
        if follows_published and not any(width % HEAD_CHANNELS for width in layout.attended_widths):
            guesses["num_head_channels"] = HEAD_CHANNELS
        else:
            guesses["num_heads"] = _DEFAULTS["num_heads"]
    return guesses


def _key(layout: Layout) -> _Published:
    levels = tuple(level for level, attention in enumerate(layout.attended) if attention)
    options = (layout.scale_shift, layout.learns_variance, layout.of_consistency_models)
    return _Published(layout.model_channels, layout.widths, layout.layers, levels, *options)


def _check_weights(settings: Mapping[str, Any], layout: Layout, source: Path) -> None:
    in_weights = {
        "num_channels": layout.model_channels,
        "num_res_blocks": layout.layers,
        "class_cond": layout.num_classes is not None,
        "learn_sigma": layout.learns_variance,
        "use_scale_shift_norm": layout.scale_shift,
        "resblock_updown": layout.resnet_resampling,
    }
    for name, value in in_weights.items():
        if name in settings and settings[name] != value:
            raise ValueError(f"{name} is {settings[name]!r} in the settings, but {value!r} in {source}")


def _checked(name: str, value: Any) -> Any:
    kind = type(_DEFAULTS[name])
    fits, expected = {
        bool: (type(value) is bool, "true or false"),
        int: (type(value) is int and (value >= 1 or value == -1), "a positive integer"),
        float: (type(value) in (int, float) and 0 < value < math.inf, "a positive number"),
        str: (type(value) is str, "a word"),
    }[kind]
    if not fits:
        raise ValueError(f"{name} is {value!r} in the settings, expected {expected}")
    return value
