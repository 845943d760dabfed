"""Checkpoints of openai/consistency_models (Song et al. 2023, arXiv 2303.01469), which are of two kinds.

Its EDM teachers predict the mean of the clean pictures, as `RePaintPipeline` needs. Its consistency models
have the same tensors and predict one clean picture, so they are refused where anything tells them apart:
the flag `training_mode` of the repository's scripts, or the name of a published file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repaint_jax.models.families import EDM
from repaint_jax.models.guided_diffusion.layout import Layout

TRAINING_MODE = "edm"
NOISE_SCALE = 250.0  # the network is told 1000 * ln(sigma)/4
_CONSISTENCY_MODELS = ("cd_", "ct_")  # how the names of published files begin
_FLAGS_OF_BETAS = (
    "noise_schedule",
    "diffusion_steps",
    "predict_xstart",
    "rescale_timesteps",
    "sigma_small",
)


def check_training_mode(settings: Mapping[str, Any], layout: Layout, source: Path) -> None:
    """Raise if a checkpoint is no EDM teacher although it or its settings say so, or the other way round.

    Args:
        settings: the settings that are given.
        layout: what the weights tell.
        source: the file that error messages name.

    Raises:
        ValueError: the settings contradict the weights, or the checkpoint is a consistency model.
    """
    told, mode = "training_mode" in settings, settings.get("training_mode")
    if not layout.of_consistency_models:
        if told:
            raise ValueError(
                f"training_mode is {mode!r} in the settings, expected none: the attention of {source} is "
                "not that of openai/consistency_models"
            )
        return
    if told and mode != TRAINING_MODE:
        raise ValueError(
            f"training_mode is {mode!r} in the settings, expected {TRAINING_MODE!r}: consistency models "
            "and other distilled models cannot be used, their EDM teachers can"
        )
    if not told and source.name.startswith(_CONSISTENCY_MODELS):
        raise ValueError(
            f"{source} has the name of a consistency model, which cannot be used, expected its EDM "
            f"teacher; if it is one, give training_mode: {TRAINING_MODE} in a .yml file"
        )
    if layout.learns_variance:
        raise ValueError(
            f"{source} takes {layout.in_channels} channels and predicts {layout.out_channels}, expected as "
            "many of an EDM model, which learns no variance"
        )
    for name in _FLAGS_OF_BETAS:
        if name in settings:
            raise ValueError(
                f"{name} is {settings[name]!r} in the settings, expected none: {source} is an EDM model of "
                "openai/consistency_models, which has no betas"
            )
    if not settings.get("use_new_attention_order", True):
        raise ValueError(
            "use_new_attention_order is False in the settings, expected true or none: the code of "
            f"openai/consistency_models, which made {source}, always uses the new order"
        )


def edm_of_teacher(settings: Mapping[str, Any]) -> EDM:
    """Return the noise levels of a teacher, and what its network is told of them."""
    return EDM(sigma_min=settings["sigma_min"], sigma_max=settings["sigma_max"], noise_scale=NOISE_SCALE)
