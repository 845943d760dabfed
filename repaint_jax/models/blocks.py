"""The layers and blocks of U-Nets: norms, residual blocks, attention, and the levels built from them.

The modules use Flax NNX, with channels last. Attribute names are those of diffusers' state dict: a path
such as `down_blocks.0.resnets.1.norm1` names both a module here and a key in a checkpoint.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.autoencoder_config import AutoencoderConfig
from repaint_jax.models.resampling import (
    convolve_upsampled,
    downsampled,
    fir_downsampled,
    fir_upsampled,
    upsampled,
)
from repaint_jax.models.unet2d_config import UNet2DConfig


class Timesteps(nnx.Module):
    """Sinusoidal embedding of Vaswani et al. 2017 (arXiv 1706.03762, section 3.5)."""

    def __init__(self, c: UNet2DConfig):
        self.features = c.time_proj_dim or c.block_out_channels[0]
        self.flip_sin_to_cos, self.freq_shift = c.flip_sin_to_cos, c.freq_shift

    def __call__(self, timesteps: jax.Array) -> jax.Array:  # [B] -> [B, features]
        half = self.features // 2
        numbers = jnp.arange(half, dtype=jnp.float32)
        frequencies = jnp.exp(-math.log(10000.0) * numbers / (half - self.freq_shift))
        angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
        waves = [jnp.sin(angles), jnp.cos(angles)]
        return jnp.concatenate(waves[::-1] if self.flip_sin_to_cos else waves, axis=-1)


class GaussianFourierProjection(nnx.Module):
    """Sinusoidal embedding of the noise level's logarithm, with random frequencies.

    Song et al., arXiv 2011.13456.
    """

    def __init__(self, c: UNet2DConfig, *, rngs: nnx.Rngs):
        self.features = 2 * c.block_out_channels[0]
        self.weight = nnx.Param(16 * jax.random.normal(rngs.params(), (c.block_out_channels[0],)))

    def __call__(self, timesteps: jax.Array) -> jax.Array:  # [B] -> [B, features]
        frequencies = jax.lax.stop_gradient(self.weight[...].astype(jnp.float32))
        # The products are in the order of diffusers, since rounding moves an angle of hundreds by 3e-5.
        angles = 2 * math.pi * (jnp.log(timesteps.astype(jnp.float32))[:, None] * frequencies[None])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494), computed in float32 for every input dtype.

    The module sums over the pixels of each channel first, and then over the channels of each group. The
    first sum, which is most of the cost, then runs along the array's memory layout.
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
        gain = self.scale[...].astype(jnp.float32)[None] * jax.lax.rsqrt(variance + self.eps)
        bias = jnp.expand_dims(self.bias[...].astype(jnp.float32), range(x.ndim - 1))
        return (centred * jnp.expand_dims(gain, pixels) + bias).astype(x.dtype)


class ResnetBlock2D(nnx.Module):
    """Two 3x3 convolutions with the time embedding between them and a residual connection around them.

    `resample` is applied before the first convolution and to the residual, which then passes a 1x1
    convolution if `resample` filters. `num_groups` are those of the two norms; None means those of the
    config. As in DDPM, the last convolution is initialised with zeros, so an untrained block is the
    identity.
    """

    def __init__(
        self,
        c: UNet2DConfig,
        in_channels: int,
        out_channels: int,
        *,
        scale: float = 1.0,
        resample: Literal["up", "down", "fir_up", "fir_down"] | None = None,
        num_groups: tuple[int, int] | None = None,
        rngs: nnx.Rngs,
    ):
        first_groups, second_groups = num_groups or (c.num_groups(in_channels), c.num_groups(out_channels))
        self.scale_shift = c.resnet_time_scale_shift == "scale_shift"
        self.norm1 = GroupNorm(in_channels, first_groups, c.norm_eps)
        self.conv1 = nnx.Conv(in_channels, out_channels, (3, 3), rngs=rngs)
        self.time_emb_proj = nnx.Linear(c.time_embed_dim, out_channels * (1 + self.scale_shift), rngs=rngs)
        self.norm2 = GroupNorm(out_channels, second_groups, c.norm_eps)
        self.dropout = nnx.Dropout(c.dropout) if c.dropout else None
        self.conv2 = nnx.Conv(
            out_channels, out_channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        has_shortcut = in_channels != out_channels or resample in ("fir_up", "fir_down")
        self.conv_shortcut = (
            nnx.Conv(in_channels, out_channels, (1, 1), rngs=rngs) if has_shortcut else None
        )
        self.scale, self.resample = scale, resample

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        h = jax.nn.silu(self.norm1(x))
        if self.resample == "up":
            x, h = upsampled(x), convolve_upsampled(self.conv1, h)
        elif self.resample == "down":
            x, h = downsampled(x), self.conv1(downsampled(h))
        elif self.resample == "fir_up":
            x, h = fir_upsampled(x), self.conv1(fir_upsampled(h))
        elif self.resample == "fir_down":
            x, h = fir_downsampled(x), self.conv1(fir_downsampled(h))
        else:
            h = self.conv1(h)
        embedding = self.time_emb_proj(jax.nn.silu(time))[:, None, None, :]
        if self.scale_shift:
            gain, shift = jnp.split(embedding, 2, axis=-1)
            h = self.norm2(h) * (1 + gain) + shift
        else:
            h = self.norm2(h + embedding)
        h = jax.nn.silu(h)
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.conv2(h)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.scale


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:  # each [B, pixels, heads, channels]
    """Compute scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    Logits and softmax are in float32. This function replaces `jax.nn.dot_product_attention`, whose products
    run along strided axes if there are several heads. On a CPU they take 2 to 5 times as long at 1024
    pixels.
    """
    q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
    logits = jnp.einsum("bnqc,bnkc->bnqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(q.shape[-1])).astype(v.dtype)
    return (weights @ v).swapaxes(1, 2)


class Attention(nnx.Module):
    """Self-attention over all pixels, with a group norm before it and a residual connection around it."""

    def __init__(
        self,
        c: UNet2DConfig | AutoencoderConfig,
        channels: int,
        num_groups: int | None,
        *,
        head_dim: int | None,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.group_norm = GroupNorm(channels, num_groups, c.norm_eps) if num_groups else None
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List(
            [nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)]
        )
        self.heads = channels // (head_dim or channels)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (
            project(h).reshape(batch, height * width, self.heads, -1)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        h = attend(q, k, v).reshape(batch, height * width, channels)
        return (x + self.to_out[0](h).reshape(x.shape)) / self.scale


class Downsample2D(nnx.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int, padding: int, *, rngs: nnx.Rngs):
        # padding 0 means DDPM's padding: one row of zeros below and one column of zeros to the right.
        pads = (padding, padding) if padding else (0, 1)
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=(2, 2), padding=(pads, pads), rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Double height and width with nearest-neighbour upsampling, then apply a 3x3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        return convolve_upsampled(self.conv, x)


class DownBlock(nnx.Module):
    """A level of the down path. It returns its result and the skip connections for the up path."""

    def __init__(
        self,
        c: UNet2DConfig,
        kind: str,
        in_channels: int,
        out_channels: int,
        last: bool,
        *,
        head_dim: int | None,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (c.layers_per_block - 1)
        groups = c.num_groups(out_channels)
        self.resnets = nnx.List([ResnetBlock2D(c, width, out_channels, rngs=rngs) for width in widths])
        self.attentions = nnx.List(
            [Attention(c, out_channels, groups, head_dim=head_dim, rngs=rngs) for _ in widths]
            if kind == "AttnDownBlock2D"
            else []
        )
        # diffusers' DownBlock2D always uses a convolution and ignores downsample_type.
        by_resnet = kind == "ResnetDownsampleBlock2D" or (
            kind == "AttnDownBlock2D" and c.downsample_type == "resnet"
        )
        downsamplers: list[nnx.Module] = []
        if by_resnet and not last:
            downsamplers.append(ResnetBlock2D(c, out_channels, out_channels, resample="down", rngs=rngs))
        elif not last:
            downsamplers.append(Downsample2D(out_channels, c.downsample_padding, rngs=rngs))
        self.downsamplers = nnx.List(downsamplers)

    def __call__(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[layer](x)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, time)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """The coarsest level: a resnet, attention and a resnet."""

    def __init__(self, c: UNet2DConfig, *, rngs: nnx.Rngs):
        channels, scale = c.block_out_channels[-1], c.mid_block_scale_factor
        groups = c.mid_attention_groups
        self.resnets = nnx.List(
            [ResnetBlock2D(c, channels, channels, scale=scale, rngs=rngs) for _ in range(2)]
        )
        self.attentions = nnx.List(
            [Attention(c, channels, groups, head_dim=c.mid_head_dim, scale=scale, rngs=rngs)]
            if c.add_attention
            else []
        )

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x, time)


class UpBlock(nnx.Module):
    """A level of the up path. Each resnet takes its input and one skip connection of the down path."""

    def __init__(
        self,
        c: UNet2DConfig,
        kind: str,
        in_channels: int,
        skip_channels: Sequence[int],
        out_channels: int,
        last: bool,
        *,
        head_dim: int | None,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        groups = c.num_groups(out_channels)
        self.resnets = nnx.List(
            [
                ResnetBlock2D(c, width + skip, out_channels, rngs=rngs)
                for width, skip in zip(widths, skip_channels, strict=True)
            ]
        )
        self.attentions = nnx.List(
            [Attention(c, out_channels, groups, head_dim=head_dim, rngs=rngs) for _ in widths]
            if kind == "AttnUpBlock2D"
            else []
        )
        by_resnet = kind == "ResnetUpsampleBlock2D" or (
            kind == "AttnUpBlock2D" and c.upsample_type == "resnet"
        )
        upsamplers: list[nnx.Module] = []
        if by_resnet and not last:
            upsamplers.append(ResnetBlock2D(c, out_channels, out_channels, resample="up", rngs=rngs))
        elif not last:
            upsamplers.append(Upsample2D(out_channels, rngs=rngs))
        self.upsamplers = nnx.List(upsamplers)

    def __call__(self, x: jax.Array, skips: list[jax.Array], time: jax.Array) -> jax.Array:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), time)
            if self.attentions:
                x = self.attentions[layer](x)
        for upsample in self.upsamplers:
            x = upsample(x, time)
        return x


class TimestepEmbedding(nnx.Module):
    """Two linear layers between the sinusoidal embedding and the resnets."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(in_features, features, rngs=rngs)
        self.linear_2 = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))
