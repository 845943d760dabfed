"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), as diffusers' `UNet2DModel`.

Channels last, in Flax NNX. Attribute names are those of diffusers' state dict, so that a path such as
`down_blocks.0.resnets.1.norm1` is at once the module here and the key in a checkpoint.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.checks import check_int
from repaint_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """Architecture of a `UNet2D`: the fields and defaults of diffusers' `UNet2DModel`."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
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
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    add_attention: bool = True

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read diffusers' `unet/config.json`; an option that is not supported is refused by name."""
        fields = {field.name for field in dataclasses.fields(cls)}
        for name, value in config.items():
            if name in fields or name.startswith("_"):
                continue
            if name not in _FIXED_OPTIONS:
                raise ValueError(f"unet config: unknown option {name}={value!r}")
            if value not in _FIXED_OPTIONS[name]:
                expected = " or ".join(map(repr, _FIXED_OPTIONS[name]))
                raise ValueError(f"unet config: {name} is {value!r}, only {expected} is supported")
        known = {name: value for name, value in config.items() if name in fields}
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(**known)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a `config.json` file."""
        return cls.from_dict(read_json(path))

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The pictures' size, which the file leaves out at times."""
        if self.sample_size is None:
            raise ValueError("the model's config has no sample_size, expected its height and width")
        size = self.sample_size
        return size if isinstance(size, tuple) else (size, size)

    def to_dict(self) -> dict[str, Any]:
        """Write diffusers' `unet/config.json`."""
        return {"_class_name": "UNet2DModel", **dataclasses.asdict(self)}

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
            check_int(name, getattr(self, name), 1)
        if self.sample_size is not None:
            if len(self.height_and_width) != 2:
                raise ValueError(f"sample_size is {self.sample_size}, expected a side or height and width")
            for side in self.height_and_width:
                check_int("sample_size", side, 1)
        if len(self.down_block_types) != len(self.block_out_channels):
            raise ValueError(
                f"down_block_types has {len(self.down_block_types)} entries, expected one for each of "
                f"the {len(self.block_out_channels)} block_out_channels"
            )
        if len(self.up_block_types) != len(self.block_out_channels):
            raise ValueError(
                f"up_block_types has {len(self.up_block_types)} entries, expected one for each of "
                f"the {len(self.block_out_channels)} block_out_channels"
            )
        for name, kinds, supported in (
            ("down_block_types", self.down_block_types, ("DownBlock2D", "AttnDownBlock2D")),
            ("up_block_types", self.up_block_types, ("UpBlock2D", "AttnUpBlock2D")),
        ):
            for kind in kinds:
                if kind not in supported:
                    raise ValueError(f"{name} has {kind!r}, expected one of {', '.join(supported)}")
        for channels in self.block_out_channels:
            check_int("block_out_channels", channels, 1)
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels has {channels}, expected a multiple of "
                    f"norm_num_groups={self.norm_num_groups}"
                )
        attended = [
            channels
            for kinds, widths in (
                (self.down_block_types, self.block_out_channels),
                (self.up_block_types, self.block_out_channels[::-1]),
                (("Attn",), self.block_out_channels[-1:] if self.add_attention else ()),
            )
            for kind, channels in zip(kinds, widths, strict=False)
            if kind.startswith("Attn")
        ]
        if self.attention_head_dim is not None:
            check_int("attention_head_dim", self.attention_head_dim, 1)
            for channels in attended:
                if channels % self.attention_head_dim:
                    raise ValueError(
                        f"attention_head_dim is {self.attention_head_dim}, expected a divisor of the "
                        f"{channels} channels that a block with attention has"
                    )
        if self.time_embedding_type != "positional":
            raise ValueError(
                f"time_embedding_type is {self.time_embedding_type!r}, only 'positional' is supported"
            )
        if self.act_fn not in ("silu", "swish"):
            raise ValueError(f"act_fn is {self.act_fn!r}, expected 'silu'")


# Options of diffusers' file that have one supported meaning here.
_FIXED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "time_embedding_dim": (None,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "num_train_timesteps": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
}


def timestep_embedding(
    timesteps: jax.Array,  # [B]
    dim: int,
    flip_sin_to_cos: bool,
    freq_shift: float,
) -> jax.Array:  # [B, dim]
    """Sinusoidal embedding of Vaswani et al. 2017 (arXiv 1706.03762, section 3.5)."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494) in float32 whatever the input's dtype.

    Sums are taken per channel first and per group afterwards: the first reduction then runs along the
    array's layout, which is most of the cost.
    """

    def __init__(self, channels: int, num_groups: int, eps: float):
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.num_groups, self.eps = num_groups, eps

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, ..., C]
        wide = x.astype(jnp.float32)
        pixels = tuple(range(1, x.ndim - 1))

        def group_mean(channel_mean: jax.Array) -> jax.Array:  # [B, C] -> [B, C]
            groups = channel_mean.reshape(channel_mean.shape[0], self.num_groups, -1)
            mean = jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape)
            return mean.reshape(channel_mean.shape)

        mean = group_mean(wide.mean(pixels))
        centred = wide - jnp.expand_dims(mean, pixels)
        variance = group_mean(jnp.square(centred).mean(pixels))
        gain = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        return (centred * jnp.expand_dims(gain, pixels) + self.bias[...]).astype(x.dtype)


class ResnetBlock2D(nnx.Module):
    """Two 3x3 convolutions with the time embedding added between them, and a residual.

    As in DDPM the last convolution starts at zero, so that an untrained block is the identity.
    """

    def __init__(
        self, c: UNet2DConfig, in_channels: int, out_channels: int, scale: float, *, rngs: nnx.Rngs
    ):
        self.norm1 = GroupNorm(in_channels, c.norm_num_groups, c.norm_eps)
        self.conv1 = nnx.Conv(in_channels, out_channels, (3, 3), rngs=rngs)
        self.time_emb_proj = nnx.Linear(c.block_out_channels[0] * 4, out_channels, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, c.norm_num_groups, c.norm_eps)
        self.dropout = nnx.Dropout(c.dropout) if c.dropout else None
        self.conv2 = nnx.Conv(
            out_channels, out_channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        self.conv_shortcut = (
            nnx.Conv(in_channels, out_channels, (1, 1), rngs=rngs) if in_channels != out_channels else None
        )
        self.scale = scale

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = h + self.time_emb_proj(jax.nn.silu(time))[:, None, None, :]
        h = jax.nn.silu(self.norm2(h))
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.conv2(h)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.scale


class Attention(nnx.Module):
    """Self-attention over all pixels, with a group norm before it and a residual around it."""

    def __init__(self, c: UNet2DConfig, channels: int, scale: float, *, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(channels, c.norm_num_groups, c.norm_eps)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List(
            [nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)]
        )
        self.heads = channels // (c.attention_head_dim or channels)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = self.group_norm(x).reshape(batch, height * width, channels)
        q, k, v = (
            project(h).reshape(batch, height * width, self.heads, -1)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        h = jax.nn.dot_product_attention(q, k, v).reshape(batch, height * width, channels)
        return (x + self.to_out[0](h).reshape(x.shape)) / self.scale


class Downsample2D(nnx.Module):
    """Halve height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int, padding: int, *, rngs: nnx.Rngs):
        # padding 0 is DDPM's: one row of zeros below and one column of zeros to the right.
        pads = (padding, padding) if padding else (0, 1)
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=(2, 2), padding=(pads, pads), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class DownBlock(nnx.Module):
    """A level on the way down; returns its result and what the way up will concatenate."""

    def __init__(
        self,
        c: UNet2DConfig,
        in_channels: int,
        out_channels: int,
        attention: bool,
        last: bool,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (c.layers_per_block - 1)
        self.resnets = nnx.List([ResnetBlock2D(c, width, out_channels, 1.0, rngs=rngs) for width in widths])
        self.attentions = nnx.List(
            [Attention(c, out_channels, 1.0, rngs=rngs) for _ in widths] if attention else []
        )
        self.downsamplers = nnx.List(
            [] if last else [Downsample2D(out_channels, c.downsample_padding, rngs=rngs)]
        )

    def __call__(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[layer](x)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """The coarsest level: resnet, attention, resnet."""

    def __init__(self, c: UNet2DConfig, *, rngs: nnx.Rngs):
        channels, scale = c.block_out_channels[-1], c.mid_block_scale_factor
        self.resnets = nnx.List([ResnetBlock2D(c, channels, channels, scale, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([Attention(c, channels, scale, rngs=rngs)] if c.add_attention else [])

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, time)


class UpBlock(nnx.Module):
    """A level on the way up; each resnet takes one of the way down's results beside its input."""

    def __init__(
        self,
        c: UNet2DConfig,
        in_channels: int,
        skip_channels: Sequence[int],
        out_channels: int,
        attention: bool,
        last: bool,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nnx.List(
            [
                ResnetBlock2D(c, width + skip, out_channels, 1.0, rngs=rngs)
                for width, skip in zip(widths, skip_channels, strict=True)
            ]
        )
        self.attentions = nnx.List(
            [Attention(c, out_channels, 1.0, rngs=rngs) for _ in widths] if attention else []
        )
        self.upsamplers = nnx.List([] if last else [Upsample2D(out_channels, rngs=rngs)])

    def __call__(self, x: jax.Array, skips: list[jax.Array], time: jax.Array) -> jax.Array:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), time)
            if self.attentions:
                x = self.attentions[layer](x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class TimestepEmbedding(nnx.Module):
    """Two linear layers between the sinusoids and the resnets."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(in_features, features, rngs=rngs)
        self.linear_2 = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


class UNet2D(nnx.Module):
    """U-Net with the architecture, names and defaults of diffusers' `UNet2DModel`.

    Call it with `sample` [B, H, W, in_channels] (or one image [H, W, in_channels]), floating, and
    `timestep`, an integer or an int array of shape [] or [B]; it returns an array of the sample's shape
    and dtype with `out_channels` channels. H and W must be divisible by two to the number of
    downsamplings, len(block_out_channels) - 1. The arithmetic is in the parameters' dtype; norms are in
    float32.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        widths = c.block_out_channels
        self.conv_in = nnx.Conv(c.in_channels, widths[0], (3, 3), rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], widths[0] * 4, rngs=rngs)

        down_blocks, skip_channels, channels = [], [widths[0]], widths[0]
        for level, (kind, width) in enumerate(zip(c.down_block_types, widths, strict=True)):
            last = level == len(widths) - 1
            attention = kind == "AttnDownBlock2D"
            down_blocks.append(DownBlock(c, channels, width, attention, last, rngs=rngs))
            skip_channels += [width] * (c.layers_per_block + (not last))
            channels = width
        self.down_blocks = nnx.List(down_blocks)
        self.mid_block = MidBlock(c, rngs=rngs)

        up_blocks = []
        for level, (kind, width) in enumerate(zip(c.up_block_types, widths[::-1], strict=True)):
            last = level == len(widths) - 1
            attention = kind == "AttnUpBlock2D"
            skips = [skip_channels.pop() for _ in range(c.layers_per_block + 1)]
            up_blocks.append(UpBlock(c, channels, skips, width, attention, last, rngs=rngs))
            channels = width
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = GroupNorm(channels, c.norm_num_groups, c.norm_eps)
        self.conv_out = nnx.Conv(
            channels, c.out_channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, sample: jax.Array, timestep: jax.Array | int) -> jax.Array:
        c = self.config
        multiple = 2 ** (len(c.block_out_channels) - 1)
        height, width, channels = sample.shape[-3:] if sample.ndim in (3, 4) else (1, 1, None)
        if channels != c.in_channels or height % multiple or width % multiple:
            raise ValueError(
                f"sample has shape {sample.shape}, expected [B, H, W, {c.in_channels}] or "
                f"[H, W, {c.in_channels}] with H and W multiples of {multiple}"
            )
        x = (sample if sample.ndim == 4 else sample[None]).astype(self.conv_in.kernel.dtype)
        if c.center_input_sample:
            x = 2 * x - 1
        timesteps = jnp.broadcast_to(jnp.asarray(timestep), x.shape[:1])
        sinusoids = timestep_embedding(timesteps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
        time = self.time_embedding(sinusoids.astype(x.dtype))

        x = self.conv_in(x)
        skips = [x]
        for down_block in self.down_blocks:
            x, new_skips = down_block(x, time)
            skips += new_skips
        x = self.mid_block(x, time)
        for up_block in self.up_blocks:
            x = up_block(x, skips, time)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        return (x if sample.ndim == 4 else x[0]).astype(sample.dtype)
