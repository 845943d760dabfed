"""The architecture of a `UNet2D`, and its file, diffusers' `unet/config.json`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from repaint_jax.files import StrPath, read_config
from repaint_jax.models.config_options import check_block_types, known_options, make_tuples
from repaint_jax.sampling.checks import check_choice, check_int

SKIP_DOWN_BLOCK_TYPES = ("SkipDownBlock2D", "AttnSkipDownBlock2D")
SKIP_UP_BLOCK_TYPES = ("SkipUpBlock2D", "AttnSkipUpBlock2D")
DOWN_BLOCK_TYPES = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", *SKIP_DOWN_BLOCK_TYPES)
UP_BLOCK_TYPES = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", *SKIP_UP_BLOCK_TYPES)
SKIP_ATTENTION_GROUPS = 32
SKIP_IMAGE_CHANNELS = 3

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "act_fn": ("silu", "swish"),
}

# What diffusers' EMAModel writes into the config of averaged weights.
_EMA_OPTIONS = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma"),
    *("power", "collected_params"),
)


def skip_block_groups(channels: int) -> int:
    """Return the number of groups of a group norm in a Skip block's resnet."""
    return min(channels // 4, 32)


def skip_up_groups(kind: str, channels: int, skip_channels: int) -> int:
    """Return the number of groups of the first norm of a resnet in a Skip block of the up path.

    diffusers divides the channels of the skip connection alone if the block has attention.
    """
    if kind == "AttnSkipUpBlock2D":
        return min(channels + skip_channels // 4, 32)
    return skip_block_groups(channels + skip_channels)


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Architecture of a `UNet2D`, with the fields and defaults of diffusers' `UNet2DModel`.

    Two fields can hold more than diffusers' can, for the networks of guided-diffusion. diffusers refuses to
    load a folder that needs them.

    Attributes:
        attention_head_dim: channels of an attention head; None means one head of all channels. A tuple has
            one number for each level of block_out_channels, or one for each down block followed by one for
            each up block. The middle block has that of the last down block.
        norm_num_groups: groups of the norms outside of Skip blocks. None means min(channels // 4, 32), for
            a model of Skip blocks alone.
        time_proj_dim: length of the timestep's sinusoidal embedding; None means block_out_channels[0].
    """

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
    attention_head_dim: int | tuple[int, ...] | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    # Not in `repr`, from which digests of recorded scores are made: the shapes of the weights tell it.
    time_proj_dim: int | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Make a config from the content of diffusers' `unet/config.json`.

        Options of an `EMAModel` and unknown options that are off (null or false) are ignored.

        Raises:
            ValueError: an option is unknown or not supported. The message names it.
            TypeError: an option has the wrong type.
        """
        return cls(**known_options(cls, config, "unet", _EMA_OPTIONS))

    @classmethod
    def from_file(cls, path: StrPath) -> Self:
        """Read a `config.json` file."""
        return read_config(path, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of diffusers' `unet/config.json` as a dict."""
        fields = dataclasses.asdict(self)
        if self.time_proj_dim is None:
            del fields["time_proj_dim"]  # diffusers warns about options that it does not know
        return {"_class_name": "UNet2DModel", **fields}

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
    def head_dims(self) -> tuple[int | None, ...]:
        """Return the channels of a head in each down block and then in each up block; None means all."""
        levels, given = len(self.block_out_channels), self.attention_head_dim
        if not isinstance(given, tuple):
            return (given,) * (2 * levels)
        return given if len(given) == 2 * levels else given + given[::-1]

    @property
    def mid_head_dim(self) -> int | None:
        """Return the channels of a head in the middle block; None means all."""
        return self.head_dims[len(self.block_out_channels) - 1]

    @property
    def mid_attention_groups(self) -> int | None:
        """Return the number of groups in the group norm of the middle block's attention.

        If attn_norm_num_groups is None, this is `num_groups`, or None (no norm) with scale-shift norms.
        """
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.num_groups(self.block_out_channels[-1])
        return self.attn_norm_num_groups

    @property
    def up_block_channels(self) -> list[tuple[int, list[int], int]]:
        """Return for each up block the channels of its input, of its skip connections and of its output."""
        widths = self.block_out_channels
        skips = [widths[0]]
        for level, width in enumerate(widths):
            skips += [width] * (self.layers_per_block + (level < len(widths) - 1))
        inputs = (widths[-1], *widths[:0:-1])
        return [
            (channels, [skips.pop() for _ in range(self.layers_per_block + 1)], width)
            for channels, width in zip(inputs, widths[::-1], strict=True)
        ]

    def num_groups(self, channels: int) -> int:
        """Return the number of groups of a group norm outside of Skip blocks."""
        return skip_block_groups(channels) if self.norm_num_groups is None else self.norm_num_groups

    @property
    def is_class_conditional(self) -> bool:
        """Return whether the model needs class labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    def __post_init__(self) -> None:
        make_tuples(self)
        for name in ("in_channels", "out_channels", "layers_per_block"):
            check_int(name, getattr(self, name), 1)
        for name in (
            "time_embedding_dim",
            "time_proj_dim",
            "norm_num_groups",
            "attn_norm_num_groups",
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
            check_choice(name, getattr(self, name), supported)
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty, expected the channels of each level")
        self._check_blocks("down_block_types", DOWN_BLOCK_TYPES)
        self._check_blocks("up_block_types", UP_BLOCK_TYPES)
        self._check_skip_blocks()
        self._check_channels()
        name = "block_out_channels" if self.time_proj_dim is None else "time_proj_dim"
        length = self.time_proj_dim or self.block_out_channels[0]
        if self.time_embedding_type == "positional" and (length % 2 or self.freq_shift >= length // 2):
            raise ValueError(
                f"{name} has {length} first and freq_shift is {self.freq_shift}, expected an even number "
                "of channels and freq_shift below half of it"
            )
        if self.time_embedding_type == "fourier" and self.time_proj_dim is not None:
            raise ValueError(f"time_proj_dim is {self.time_proj_dim}, expected None for fourier embeddings")
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError("num_train_timesteps is None, expected the rows of the learned time embedding")

    def _check_blocks(self, name: str, supported: tuple[str, ...]) -> None:
        # Files from before diffusers 0.5 have the prefix UNetRes in the names of blocks.
        kinds = tuple(str(kind).removeprefix("UNetRes") for kind in getattr(self, name))
        object.__setattr__(self, name, kinds)
        check_block_types(name, kinds, supported, len(self.block_out_channels))

    def _check_skip_blocks(self) -> None:
        """Check that the image of Skip blocks has its channels, and at each of them the level's size."""
        down, up = self.down_block_types, self.up_block_types
        paths = (
            ("down_block_types", down[-2::-1], SKIP_DOWN_BLOCK_TYPES, "in_channels", "before"),
            ("up_block_types", up, SKIP_UP_BLOCK_TYPES, "out_channels", "after"),
        )
        for name, kinds, skip_kinds, option, where in paths:
            # The last block of a path has no convolution to or from the image.
            start = next((i for i, kind in enumerate(kinds[: len(down) - 1]) if kind in skip_kinds), None)
            if start is None:
                continue
            if getattr(self, option) != SKIP_IMAGE_CHANNELS:
                raise ValueError(
                    f"{option} is {getattr(self, option)}, expected {SKIP_IMAGE_CHANNELS}: "
                    f"{name} has {kinds[start]}"
                )
            for kind in kinds[start:]:
                if kind not in skip_kinds:
                    raise ValueError(
                        f"{name} has {kind} {where} {kinds[start]}, expected Skip blocks there"
                    )
        ordinary = next((kind for kind in down + up if "Skip" not in kind), None)
        if self.norm_num_groups is None and ordinary is not None:
            raise ValueError(f"norm_num_groups is None, expected the groups of the norms in {ordinary}")

    def _check_channels(self) -> None:
        widths = self.block_out_channels
        for channels in widths:
            check_int("block_out_channels", channels, 1)
        for place, channels, groups in self._norms():
            if groups > 0 and channels % groups == 0:
                continue
            if channels in widths and groups == self.norm_num_groups and "Skip" not in place:
                raise ValueError(
                    f"block_out_channels has {channels}, expected a multiple of norm_num_groups={groups}"
                )
            raise ValueError(
                f"block_out_channels is {widths}, expected channels that group norms can divide: "
                f"{place} has {channels} in {groups} groups"
            )
        if self.attn_norm_num_groups is not None and widths[-1] % self.attn_norm_num_groups:
            raise ValueError(
                f"attn_norm_num_groups is {self.attn_norm_num_groups}, expected a divisor of the "
                f"{widths[-1]} channels in the middle"
            )
        self._check_heads()

    def _norms(self) -> Iterator[tuple[str, int, int]]:
        """Yield the place, channels and groups of group norms, but for that of the middle attention."""
        widths = self.block_out_channels
        yield "the output", widths[0], self.num_groups(widths[0])
        if self.mid_block_type is not None:
            yield self.mid_block_type, widths[-1], self.num_groups(widths[-1])
        for kind, before, width in zip(self.down_block_types, (widths[0], *widths), widths, strict=False):
            groups = skip_block_groups if kind in SKIP_DOWN_BLOCK_TYPES else self.num_groups
            for channels in (before, width):
                yield kind, channels, groups(channels)
            if kind == "AttnSkipDownBlock2D":
                yield kind, width, SKIP_ATTENTION_GROUPS
        for kind, (channels, skips, width) in zip(self.up_block_types, self.up_block_channels, strict=True):
            is_skip = kind in SKIP_UP_BLOCK_TYPES
            inputs = [channels] + [width] * (len(skips) - 1)
            for before, skip in zip(inputs, skips, strict=True):
                total = before + skip
                yield kind, total, skip_up_groups(kind, before, skip) if is_skip else self.num_groups(total)
            yield kind, width, skip_block_groups(width) if is_skip else self.num_groups(width)
            if kind == "AttnSkipUpBlock2D":
                yield kind, width, SKIP_ATTENTION_GROUPS

    def _check_heads(self) -> None:
        widths, given = self.block_out_channels, self.attention_head_dim
        for head_dim in given if isinstance(given, tuple) else (given,):
            if given is not None:
                check_int("attention_head_dim", head_dim, 1)
        if isinstance(given, tuple) and len(given) not in (len(widths), 2 * len(widths)):
            raise ValueError(
                f"attention_head_dim has {len(given)} entries, expected one number, or one for each of the "
                f"{len(widths)} levels, or one for each of the {2 * len(widths)} down and up blocks"
            )
        kinds = self.down_block_types + self.up_block_types
        blocks = list(zip(kinds, widths + widths[::-1], self.head_dims, strict=True))
        if self.add_attention and self.mid_block_type is not None:
            blocks.append(("AttnMidBlock", widths[-1], self.mid_head_dim))
        for kind, channels, head_dim in blocks:
            if "Attn" in kind and head_dim is not None and channels % head_dim:
                raise ValueError(
                    f"attention_head_dim is {given}, expected a divisor of the {channels} channels that a "
                    "block with attention has"
                )
