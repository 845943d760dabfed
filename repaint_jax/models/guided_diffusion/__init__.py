"""Load checkpoints of openai/guided-diffusion, the format of the official RePaint models.

The U-Net of guided-diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233) is a `UNet2D` with scale-shift
norms and resampling resnets. Its files differ from diffusers' files in three ways: the tensors have other
names, the queries, keys and values of an attention block are in one matrix, and there is no config file.
Nearly all of the architecture follows from the names and shapes of the weights. The rest (the heads, their
order, the size of the pictures, the noise levels) comes from the `.yml` file of the dataset. Published
models are recognised and need none. For any other model, what is missing is assumed, with a warning.

Checkpoints of openai/improved-diffusion (Nichol and Dhariwal 2021, arXiv 2102.09672) have the same layout,
and so have the EDM teachers of openai/consistency_models, but for the shapes of their attention.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from repaint_jax.files import StrPath, warn
from repaint_jax.models.checkpoints import load_module
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.families import Scheduler
from repaint_jax.models.guided_diffusion.layout import Layout, layout_of
from repaint_jax.models.guided_diffusion.names import DiffusersNames, Weights, is_classifier
from repaint_jax.models.guided_diffusion.settings import complete_settings, read_settings
from repaint_jax.models.guided_diffusion.teachers import edm_of_teacher
from repaint_jax.models.tensor_files import TorchFile
from repaint_jax.models.unet2d import UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.sampling.config import RePaintSchedulerConfig

__all__ = [
    "DiffusersNames",
    "is_classifier",
    "load_classifier",
    "load_unet",
    "read_settings",
    "scheduler_config",
    "unet_config",
]

NUM_GROUPS = 32
RESCALED_STEPS = 1000  # with rescale_timesteps, the network sees timesteps in [0, 1000)


def load_unet(
    path: StrPath, settings: Mapping[str, Any] | None = None, dtype: Any = None
) -> tuple[UNet2D, Scheduler]:
    """Load an official checkpoint such as `celeba256_250000.pt`, and make the settings of its scheduler.

    Args:
        path: the `.pt` file. Reading it needs torch.
        settings: the content of the dataset's `.yml` file. Published models need none; for any other
            model, what is missing is assumed, with a warning. That a file of openai/consistency_models is
            an EDM teacher, and no consistency model, is assumed with a warning too.
        dtype: dtype of the parameters; None means float32.

    Returns:
        The model, and the settings of the scheduler that it was trained for. An EDM teacher has an `EDM`
        instead, whose `model_fn` calls the network as it was trained.

    Raises:
        ImportError: torch is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, is not a diffusion model's, or does not fit the settings.
    """
    path = Path(path)
    weights = TorchFile(path)
    if is_classifier(weights):
        raise ValueError(f"{path} is a classifier, expected a diffusion model")
    layout, given = layout_of(weights, path), settings or {}
    config = unet_config(weights, path, given)
    settings, assumed = complete_settings(given, layout, path)
    scheduler: Scheduler = (
        edm_of_teacher(settings) if layout.of_consistency_models else scheduler_config(config, settings)
    )
    renamed = DiffusersNames(weights, path, config, settings["use_new_attention_order"])
    module = load_module(lambda: UNet2D(config, rngs=nnx.Rngs(0)), renamed, path, dtype)
    if assumed:
        values = ", ".join(f"{name}={value!r}" for name, value in assumed.items())
        doubt = "; a consistency model has the same tensors, but cannot be used"
        warn(
            f"{path} does not tell all settings of the model; assumed {values}: other values belong in the "
            f".yml file that `repaint-jax convert --config` takes{doubt * ('training_mode' in assumed)}"
        )
    return module, scheduler


def load_classifier(path: StrPath, dtype: Any = None) -> UNet2DClassifier:
    """Load an official classifier of noisy pictures, such as `256x256_classifier.pt`."""
    path = Path(path)
    weights = TorchFile(path)
    if not is_classifier(weights):
        raise ValueError(f"{path} is no classifier with attention pooling, expected one")
    config = unet_config(weights, path, {})
    renamed = DiffusersNames(weights, path, config, new_attention_order=False)
    return load_module(lambda: UNet2DClassifier(config, rngs=nnx.Rngs(0)), renamed, path, dtype)


def unet_config(weights: Weights, source: Path, settings: Mapping[str, Any]) -> UNet2DConfig:
    """Derive the architecture from the weights, and from the settings where the weights do not show it."""
    layout = layout_of(weights, source)
    settings, _ = complete_settings(settings, layout, source)
    widths = layout.widths
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if layout.resnet_resampling
        else ("DownBlock2D", "UpBlock2D")
    )
    rescaled = settings["rescale_timesteps"] and settings["diffusion_steps"] != RESCALED_STEPS
    return UNet2DConfig(
        sample_size=settings["image_size"],
        in_channels=layout.in_channels,
        out_channels=layout.out_channels,
        time_embedding_type="learned" if rescaled else "positional",
        time_embedding_dim=layout.time_embed_dim,
        time_proj_dim=None if layout.model_channels == widths[0] else layout.model_channels,
        down_block_types=tuple("AttnDownBlock2D" if attention else down for attention in layout.attended),
        up_block_types=tuple("AttnUpBlock2D" if attention else up for attention in layout.attended[::-1]),
        block_out_channels=widths,
        layers_per_block=layout.layers,
        downsample_type="resnet" if layout.resnet_resampling else "conv",
        upsample_type="resnet" if layout.resnet_resampling else "conv",
        attention_head_dim=_head_channels(layout, settings),
        norm_num_groups=NUM_GROUPS,
        attn_norm_num_groups=NUM_GROUPS,
        resnet_time_scale_shift="scale_shift" if layout.scale_shift else "default",
        num_class_embeds=layout.num_classes,
        num_train_timesteps=settings["diffusion_steps"] if rescaled else None,
    )


def scheduler_config(config: UNet2DConfig, settings: Mapping[str, Any]) -> RePaintSchedulerConfig:
    """Return the settings of the official sampler, with the noise levels of a dataset's settings.

    They differ from the official sampler in one way: known pixels are put in after each step, so that the
    result has them exactly. With masks of zeros and ones, the official order differs only in the last step.
    """
    schedules = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    name, steps = settings.get("noise_schedule", "linear"), settings.get("diffusion_steps", 1000)
    if name not in schedules:
        raise ValueError(f"noise_schedule is {name!r} in the settings, expected linear or cosine")
    fixed = "fixed_small" if settings.get("sigma_small", False) else "fixed_large"
    return RePaintSchedulerConfig.paper(
        num_train_timesteps=steps,
        beta_start=0.1 / steps,
        beta_end=20 / steps,
        beta_schedule=schedules[name],
        prediction_type="sample" if settings.get("predict_xstart", False) else "epsilon",
        variance_type="learned_range" if config.out_channels == 2 * config.in_channels else fixed,
        known_region="after_step",
    )


def _head_channels(layout: Layout, settings: Mapping[str, Any]) -> int | tuple[int, ...] | None:
    """Return the channels of a head: one number where possible, or one for each down and up block."""
    if settings["num_head_channels"] != -1:
        return settings["num_head_channels"]
    heads = settings["num_heads"]
    heads_up = heads if settings["num_heads_upsample"] == -1 else settings["num_heads_upsample"]
    for name, count in (("num_heads", heads), ("num_heads_upsample", heads_up)):
        for width in layout.attended_widths:
            if count < 1 or width % count:
                raise ValueError(
                    f"{name} is {count} in the settings, expected a divisor of the {width} channels that a "
                    "block with attention has"
                )
    if heads == heads_up == 1:
        return None
    if heads == heads_up and len(layout.attended_widths) == 1:
        return layout.attended_widths[0] // heads
    # A level without attention gets 1, because its width may not be divisible.
    attended = list(zip(layout.widths, layout.attended, strict=True))
    down = [width // heads if attention else 1 for width, attention in attended]
    down[-1] = layout.widths[-1] // heads  # of the middle as well, which always has attention
    up = [width // heads_up if attention else 1 for width, attention in attended[::-1]]
    return tuple(down) if down == up[::-1] else (*down, *up)
