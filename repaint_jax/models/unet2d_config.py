"""The architecture of a `UNet2D`, and its file, diffusers' `unet/config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from repaint_jax.files import read_config
from repaint_jax.sampling.checks import check_int

DOWN_BLOCK_TYPES = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCK_TYPES = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "act_fn": ("silu", "swish"),
}


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Architecture of a `UNet2D`, with the fields and defaults of diffusers' `UNet2DModel`."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Make a config from the content of diffusers' `unet/config.json`.

        Raises:
            ValueError: an option is unknown or not supported. The message names it.
            TypeError: an option has the wrong type.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        known: dict[str, Any] = {k: v for k, v in config.items() if not k.startswith("_")}
        for name in known:
            if name not in fields:
                raise ValueError(f"unet config: unknown option {name}={known[name]!r}")
        known.update({k: tuple(v) for k, v in known.items() if isinstance(v, list)})
        return cls(**known)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a `config.json` file."""
        return read_config(path, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of diffusers' `unet/config.json` as a dict."""
        return {"_class_name": "UNet2DModel", **dataclasses.asdict(self)}

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Return height and width of the pictures, or raise if the config has no sample_size."""
        if self.sample_size is None:
            raise ValueError("the model's config has no sample_size, expected its height and width")
        size = self.sample_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def time_embed_dim(self) -> int:
        """Return the length of the embedding of timestep and class that the resnets get."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def mid_attention_groups(self) -> int | None:
        """Return the number of groups in the group norm of the middle block's attention.

        If attn_norm_num_groups is None, this is norm_num_groups, or None (no norm) with scale-shift norms.
        """
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups

    @property
    def is_class_conditional(self) -> bool:
        """Return whether the model needs class labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
            check_int(name, getattr(self, name), 1)
        for name in (
            "time_embedding_dim",
            "attn_norm_num_groups",
            "attention_head_dim",
            "num_class_embeds",
            "num_train_timesteps",
        ):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        for name in ("freq_shift", "downsample_padding"):
            check_int(name, getattr(self, name), 0)
        for name in ("center_input_sample", "flip_sin_to_cos", "add_attention"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected true or false")
        for name in ("mid_block_scale_factor", "norm_eps", "dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, expected a number that is not negative")
        for name in ("down_block_types", "up_block_types", "block_out_channels"):
            if not isinstance(getattr(self, name), tuple):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected a list")
        if self.sample_size is not None:
            if len(self.height_and_width) != 2:
                raise ValueError(f"sample_size is {self.sample_size}, expected a side or height and width")
            for side in self.height_and_width:
                check_int("sample_size", side, 1)
        for name, supported in _CHOICES.items():
            if getattr(self, name) not in supported:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, supported))}"
                )
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty, expected the channels of each level")
        self._check_blocks("down_block_types", DOWN_BLOCK_TYPES)
        self._check_blocks("up_block_types", UP_BLOCK_TYPES)
        self._check_channels()
        if self.time_embedding_type == "positional" and (
            self.block_out_channels[0] % 2 or self.freq_shift >= self.block_out_channels[0] // 2
        ):
            raise ValueError(
                f"block_out_channels has {self.block_out_channels[0]} first and freq_shift is "
                f"{self.freq_shift}, expected an even number of channels and freq_shift below half of it"
            )
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError("num_train_timesteps is None, expected the rows of the learned time embedding")

    def _check_blocks(self, name: str, supported: tuple[str, ...]) -> None:
        # Files from before diffusers 0.5 have the prefix UNetRes in the names of blocks.
        kinds = tuple(str(kind).removeprefix("UNetRes") for kind in getattr(self, name))
        object.__setattr__(self, name, kinds)
        if len(kinds) != len(self.block_out_channels):
            raise ValueError(
                f"{name} has {len(kinds)} entries, expected one for each of "
                f"the {len(self.block_out_channels)} block_out_channels"
            )
        for kind in kinds:
            if kind not in supported:
                raise ValueError(f"{name} has {kind!r}, expected one of {', '.join(supported)}")

    def _check_channels(self) -> None:
        widths = self.block_out_channels
        for channels in widths:
            check_int("block_out_channels", channels, 1)
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, expected a multiple of "
                    f"norm_num_groups={self.norm_num_groups}"
                )
        if self.attn_norm_num_groups is not None and widths[-1] % self.attn_norm_num_groups:
            raise ValueError(
                f"attn_norm_num_groups is {self.attn_norm_num_groups}, expected a divisor of the "
                f"{widths[-1]} channels in the middle"
            )
        attended = [
            width for kind, width in zip(self.down_block_types, widths, strict=True) if "Attn" in kind
        ]
        attended += [
            width for kind, width in zip(self.up_block_types, widths[::-1], strict=True) if "Attn" in kind
        ]
        if self.add_attention and self.mid_block_type is not None:
            attended.append(widths[-1])
        for channels in attended:
            if self.attention_head_dim is not None and channels % self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim is {self.attention_head_dim}, expected a divisor of the "
                    f"{channels} channels that a block with attention has"
                )
