"""The architectures of `AutoencoderKL` and `VQModel`, and their file, diffusers' `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from repaint_jax.files import StrPath, read_config
from repaint_jax.models.config_options import check_block_types, known_options, make_tuples
from repaint_jax.sampling.checks import check_choice, check_int, check_mapping

_BLOCK_TYPES = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
_FLAGS = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv", "lookup_from_codebook")


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """What the configs of both autoencoders have, with the fields and defaults of diffusers.

    Attributes:
        sample_size: side, or height and width, of the training's pictures. The networks do not use it.
        force_upcast: kept for diffusers. The networks do not use it: the dtype of the parameters decides.
    """

    class_name: ClassVar[str]
    norm_eps: ClassVar[float] = 1e-6

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 32
    scaling_factor: float = 1.0
    mid_block_add_attention: bool = True
    force_upcast: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Make a config from the content of diffusers' `config.json`.

        Unknown options that are off (null or false) are ignored.

        Raises:
            ValueError: an option is unknown or not supported. The message names it.
            TypeError: an option has the wrong type.
        """
        check_mapping("config", config)
        if config.get("norm_type", "group") != "group":
            raise ValueError(f"norm_type is {config['norm_type']!r}, expected 'group'")
        return cls(**known_options(cls, config, "autoencoder", ("norm_type",)))

    @classmethod
    def from_file(cls, path: StrPath) -> Self:
        """Read a `config.json` file."""
        return read_config(path, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of diffusers' `config.json` as a dict."""
        return {"_class_name": self.class_name, **dataclasses.asdict(self)}

    @property
    def factor(self) -> int:
        """Return the side of a latent in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def latents_shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what `scale_latents` subtracts and its factor, of all channels or of each."""
        return (0.0,), (self.scaling_factor,)

    def __post_init__(self) -> None:
        make_tuples(self)
        for name in (
            "in_channels",
            "out_channels",
            "layers_per_block",
            "latent_channels",
            "norm_num_groups",
        ):
            check_int(name, getattr(self, name), 1)
        for name in _FLAGS:
            if not isinstance(getattr(self, name, False), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected true or false")
        check_choice("act_fn", self.act_fn, ("silu", "swish"))
        _check_number("scaling_factor", self.scaling_factor)
        if self.scaling_factor <= 0:
            raise ValueError(f"scaling_factor is {self.scaling_factor}, expected a positive number")
        for name in ("block_out_channels", *_BLOCK_TYPES):
            if not isinstance(getattr(self, name), tuple):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected a list")
        self._check_levels()

    def _check_levels(self) -> None:
        widths = self.block_out_channels
        if not widths:
            raise ValueError("block_out_channels is empty, expected the channels of each level")
        for channels in widths:
            check_int("block_out_channels", channels, 1)
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, expected a multiple of "
                    f"norm_num_groups={self.norm_num_groups}"
                )
        for name, supported in _BLOCK_TYPES.items():
            check_block_types(name, getattr(self, name), supported, len(widths))


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig(AutoencoderConfig):
    """Architecture of an `AutoencoderKL`, with the fields and defaults of diffusers'.

    Attributes:
        scaling_factor: a network of latents gets (latents - shift_factor) * scaling_factor. The default is
            that of Stable Diffusion 1 and 2. Many folders of its autoencoders leave it out.
        shift_factor: see scaling_factor; None means 0.
        latents_mean: a mean for each channel, instead of shift_factor.
        latents_std: a standard deviation for each channel, by which scaled latents are divided.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether a 1x1 convolution precedes the decoder.
    """

    class_name: ClassVar[str] = "AutoencoderKL"

    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def latents_shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what `scale_latents` subtracts and its factor, of all channels or of each."""
        shift = self.latents_mean or (self.shift_factor or 0.0,)
        return shift, tuple(self.scaling_factor / std for std in self.latents_std or (1.0,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift_factor is not None:
            _check_number("shift_factor", self.shift_factor)
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is None:
                continue
            if not isinstance(values, tuple) or len(values) != self.latent_channels:
                raise ValueError(f"{name} is {values}, expected {self.latent_channels} numbers")
            for value in values:
                _check_number(name, value)
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean or latents_std is given, expected both or none")
        if self.latents_std is not None and min(self.latents_std) <= 0:
            raise ValueError(f"latents_std is {self.latents_std}, expected positive numbers")
        if self.latents_mean is not None and self.shift_factor:
            raise ValueError("latents_mean and shift_factor are given, expected one of them")


@dataclasses.dataclass(frozen=True)
class VQModelConfig(AutoencoderConfig):
    """Architecture of a `VQModel`, with the fields and defaults of diffusers', except scaling_factor's.

    Attributes:
        scaling_factor: a network of latents gets latents * scaling_factor. Files from before diffusers had
            the option, such as that of CompVis/ldm-celebahq-256, are of models whose latents are not
            scaled. The default is therefore 1. diffusers' is 0.18215, and it writes that into every folder
            that it saves.
        num_vq_embeddings: number of entries in the codebook.
        vq_embed_dim: channels of an entry, and of the latents; None means latent_channels.
        lookup_from_codebook: kept for diffusers. `decode` always quantises.
    """

    class_name: ClassVar[str] = "VQModel"

    latent_channels: int = 3
    force_upcast: bool = False
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    lookup_from_codebook: bool = False

    @property
    def embed_dim(self) -> int:
        """Return the channels of an entry of the codebook."""
        return self.vq_embed_dim or self.latent_channels

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("num_vq_embeddings", self.num_vq_embeddings, 1)
        if self.vq_embed_dim is not None:
            check_int("vq_embed_dim", self.vq_embed_dim, 1)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, expected a number")
