"""Load checkpoints of openai/guided-diffusion, the format of the official RePaint models.

The U-Net of guided-diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233) is a `UNet2D` with scale-shift
norms and resampling resnets. Its files differ from diffusers' files in three ways: the tensors have other
names, the queries, keys and values of an attention block are in one matrix, and there is no config file.
Nearly all of the architecture follows from the names and shapes of the weights. The rest (the heads, their
order, the size of the pictures, the noise levels) comes from the `.yml` file of the dataset. Without that
file, the values of the published 256 px models are used.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from flax import nnx
from numpy.typing import NDArray

from repaint_jax.models.checkpoints import Weights, load_module
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.tensor_files import TorchFile
from repaint_jax.models.unet2d import UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.sampling.config import RePaintSchedulerConfig

Setting = TypeVar("Setting", bool, int, str)

HEAD_CHANNELS = 64  # of all published 256 px models and classifiers
NUM_GROUPS = 32
_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}  # by the widths of the levels

_OUTER_LAYERS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
}
_BLOCK_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "qkv": "qkv",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}


def load_unet(
    path: Path, settings: Mapping[str, Any] | None = None, dtype: Any = None
) -> tuple[UNet2D, RePaintSchedulerConfig]:
    """Load an official checkpoint such as `celeba256_250000.pt`, and make the settings of its scheduler.

    Args:
        path: the `.pt` file. Reading it needs torch.
        settings: the content of the dataset's `.yml` file; None means the settings of the published 256 px
            models.
        dtype: dtype of the parameters; None means float32.

    Returns:
        The model, and the settings of the scheduler that it was trained for.

    Raises:
        ImportError: torch is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, is not a diffusion model's, or does not fit the settings.
    """
    weights = TorchFile(path)
    if is_classifier(weights):
        raise ValueError(f"{path} is a classifier, expected a diffusion model")
    settings = settings or {}
    config = unet_config(weights, path, settings)
    scheduler = scheduler_config(config, settings)
    renamed = DiffusersNames(weights, path, config, _setting(settings, "use_new_attention_order", False))
    return load_module(lambda: UNet2D(config, rngs=nnx.Rngs(0)), renamed, path, dtype), scheduler


def load_classifier(path: Path, dtype: Any = None) -> UNet2DClassifier:
    """Load an official classifier of noisy pictures, such as `256x256_classifier.pt`."""
    weights = TorchFile(path)
    if not is_classifier(weights):
        raise ValueError(f"{path} is no classifier with attention pooling, expected one")
    config = unet_config(weights, path, {})
    renamed = DiffusersNames(weights, path, config, new_attention_order=False)
    return load_module(lambda: UNet2DClassifier(config, rngs=nnx.Rngs(0)), renamed, path, dtype)


def is_classifier(names: Weights) -> bool:
    """Return whether a checkpoint belongs to a classifier, judging by the names of its tensors."""
    return "out.2.positional_embedding" in names


def read_settings(path: Path) -> dict[str, Any]:
    """Read the `.yml` file of a dataset."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {type(settings).__name__}, expected a mapping of settings")
    return settings


def unet_config(weights: Weights, source: Path, settings: Mapping[str, Any]) -> UNet2DConfig:
    """Derive the architecture from the weights, and from the settings where the weights do not show it."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != rank:
            raise ValueError(
                f"{source} lacks the tensor {name} of {rank} axes, expected a guided-diffusion checkpoint"
            )
        return weights[name].shape

    layers = _layers_per_block(weights, source)
    levels = len(_indices(weights, r"input_blocks\.(\d+)\..*")) // (layers + 1)
    first = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(shape(f"input_blocks.{block}.0.in_layers.2.weight", 4)[0] for block in first)
    attended = [f"input_blocks.{block}.1.qkv.weight" in weights for block in first]
    resnet_resampling = f"input_blocks.{layers + 1}.0.in_layers.2.weight" in weights
    scale_shift = shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0]
    time_embed_dim, time_features = shape("time_embed.0.weight", 2)
    if time_features != widths[0]:
        raise ValueError(
            f"{source} has {widths[0]} channels and {time_features} sinusoids, expected equal numbers"
        )
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if resnet_resampling
        else ("DownBlock2D", "UpBlock2D")
    )
    output = ("out.2.c_proj.weight", 3) if is_classifier(weights) else ("out.2.weight", 4)
    in_channels, out_channels = shape("input_blocks.0.0.weight", 4)[1], shape(*output)[0]
    in_weights = {
        "num_channels": widths[0],
        "num_res_blocks": layers,
        "class_cond": "label_emb.weight" in weights,
        "learn_sigma": out_channels == 2 * in_channels,
        "use_scale_shift_norm": scale_shift,
        "resblock_updown": resnet_resampling,
    }
    for name, value in in_weights.items():
        if name in settings and settings[name] != value:
            raise ValueError(f"{name} is {settings[name]!r} in the settings, but {value!r} in {source}")
    return UNet2DConfig(
        sample_size=_sample_size(weights, widths, settings, source),
        in_channels=in_channels,
        out_channels=out_channels,
        time_embedding_dim=time_embed_dim,
        down_block_types=tuple("AttnDownBlock2D" if attention else down for attention in attended),
        up_block_types=tuple("AttnUpBlock2D" if attention else up for attention in attended[::-1]),
        block_out_channels=widths,
        layers_per_block=layers,
        downsample_type="resnet" if resnet_resampling else "conv",
        upsample_type="resnet" if resnet_resampling else "conv",
        attention_head_dim=_head_channels(widths, attended, settings),
        norm_num_groups=NUM_GROUPS,
        attn_norm_num_groups=NUM_GROUPS,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=shape("label_emb.weight", 2)[0] if "label_emb.weight" in weights else None,
    )


def scheduler_config(config: UNet2DConfig, settings: Mapping[str, Any]) -> RePaintSchedulerConfig:
    """Return the settings of the official sampler, with the noise levels of a dataset's settings.

    They differ from the official sampler in one way: known pixels are put in after each step, so that the
    result has them exactly. With masks of zeros and ones, the official order differs only in the last step.
    """
    if _setting(settings, "rescale_timesteps", False):
        raise ValueError("rescale_timesteps is true in the settings, only false is supported")
    schedules = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    name = _setting(settings, "noise_schedule", "linear")
    if name not in schedules:
        raise ValueError(f"noise_schedule is {name!r} in the settings, expected linear or cosine")
    steps = _setting(settings, "diffusion_steps", 1000)
    learned = config.out_channels == 2 * config.in_channels
    return RePaintSchedulerConfig.paper(
        num_train_timesteps=steps,
        beta_start=0.1 / steps,
        beta_end=20 / steps,
        beta_schedule=schedules[name],
        prediction_type="sample" if _setting(settings, "predict_xstart", False) else "epsilon",
        variance_type="learned_range" if learned else "fixed_large",
        known_region="after_step",
    )


class DiffusersNames(Mapping[str, NDArray[Any]]):
    """A guided-diffusion checkpoint as a mapping, with the names and shapes of a diffusers checkpoint."""

    def __init__(self, weights: Weights, source: Path, config: UNet2DConfig, new_attention_order: bool):
        self.weights, self.source, self.new_attention_order = weights, source, new_attention_order
        self.head_channels = config.attention_head_dim or 1
        classifier = is_classifier(weights)
        self.stored: dict[str, tuple[str, int | None]] = {}  # name in the file; which of q, k, v
        for name in weights:
            renamed = _diffusers_name(name, config.layers_per_block, classifier)
            if ".qkv." in renamed:
                for part, letter in enumerate("qkv"):
                    self.stored[renamed.replace(".qkv.", f".to_{letter}.")] = (name, part)
            else:
                self.stored[renamed] = (name, None)

    def __getitem__(self, name: str) -> NDArray[Any]:
        stored, part = self.stored[name]
        tensor = self.weights[stored]
        if ".to_" in name and tensor.ndim == 3:  # a 1x1 convolution over a sequence is a linear layer
            tensor = tensor[..., 0]
        if part is None:
            return tensor
        if tensor.ndim == 0 or len(tensor) % (3 * self.head_channels):
            raise ValueError(
                f"{self.source}: {stored} has shape {tensor.shape}, expected queries, keys and values "
                f"for heads of {self.head_channels} channels"
            )
        if self.new_attention_order or stored.startswith("out.2."):
            return tensor.reshape(3, -1, *tensor.shape[1:])[part]
        by_head = tensor.reshape(-1, 3, self.head_channels, *tensor.shape[1:])
        return by_head[:, part].reshape(-1, *tensor.shape[1:])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def _diffusers_name(name: str, layers: int, classifier: bool) -> str:
    """Return a tensor's name in diffusers' layout, or the name itself if it has none there."""
    stem, _, leaf = name.rpartition(".")
    if stem in _OUTER_LAYERS:
        return f"{_OUTER_LAYERS[stem]}.{leaf}"
    if not classifier and stem == "out.2":
        return f"conv_out.{leaf}"
    if classifier and stem.startswith("out.2"):
        inner = {"out.2": "", "out.2.qkv_proj": "qkv.", "out.2.c_proj": "to_out.0."}
        return f"pool.{inner[stem]}{leaf}" if stem in inner else name
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", stem)
    side = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", stem)
    if middle:
        module = ("resnets.0", "attentions.0", "resnets.1")[int(middle[1])]
        block, layer = "mid_block", middle[2]
    elif side and side[1] == "input":
        level, i = divmod(int(side[2]) - 1, layers + 1)
        kind = "resnets" if side[3] == "0" else "attentions"
        module = "downsamplers.0" if i == layers else f"{kind}.{i}"
        block, layer = f"down_blocks.{level}", side[4]
    elif side:
        level, i = divmod(int(side[2]), layers + 1)
        attention = side[4] in ("norm", "qkv", "proj_out")
        module = f"resnets.{i}" if side[3] == "0" else f"attentions.{i}" if attention else "upsamplers.0"
        block, layer = f"up_blocks.{level}", side[4]
    else:
        return name
    return f"{block}.{module}.{_BLOCK_LAYERS[layer]}.{leaf}" if layer in _BLOCK_LAYERS else name


def _indices(names: Weights, pattern: str) -> list[int]:
    matches = (re.fullmatch(pattern, name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def _layers_per_block(weights: Weights, source: Path) -> int:
    # A resnet that halves the picture has the same tensors as any other. The up path shows where a level
    # ends. So does the attention, which follows the other resnets of its level.
    ups = _indices(weights, r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.2|conv)\.weight")
    attended = _indices(weights, r"input_blocks\.(\d+)\.1\.qkv\.weight")
    if ups:
        return ups[0]
    if attended:
        return next(i for i in range(1, 10**6) if attended[0] + i not in attended)
    raise ValueError(f"{source} has neither a way up nor attention, expected a guided-diffusion checkpoint")


def _sample_size(
    weights: Weights, widths: tuple[int, ...], settings: Mapping[str, Any], source: Path
) -> int:
    if is_classifier(weights):
        pixels = weights["out.2.positional_embedding"].shape[1] - 1
        return math.isqrt(pixels) * 2 ** (len(widths) - 1)
    size = _setting(settings, "image_size", _SIZES.get(tuple(width // widths[0] for width in widths), -1))
    if size == -1:
        raise ValueError(f"{source} does not tell the pictures' size, expected image_size in a .yml file")
    return size


def _head_channels(widths: tuple[int, ...], attended: list[bool], settings: Mapping[str, Any]) -> int:
    head_channels = _setting(settings, "num_head_channels", HEAD_CHANNELS)
    if head_channels != -1:
        return head_channels
    heads = _setting(settings, "num_heads", 4)
    attended_widths = {width for width, attention in zip(widths, attended, strict=True) if attention}
    attended_widths.add(widths[-1])
    if len(attended_widths) > 1 or _setting(settings, "num_heads_upsample", -1) != -1:
        raise ValueError(
            f"num_heads is {heads} in the settings for attention over {sorted(attended_widths)} channels; "
            "only heads of the same number of channels everywhere (num_head_channels) are supported"
        )
    return attended_widths.pop() // heads


def _setting(settings: Mapping[str, Any], name: str, default: Setting) -> Setting:
    value = settings.get(name, default)
    if type(value) is not type(default) or (type(value) is int and value < 1 and value != -1):
        expected = {bool: "true or false", int: "a positive integer", str: "a word"}[type(default)]
        raise ValueError(f"{name} is {value!r} in the settings, expected {expected}")
    return value
