"""The blocks of NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H), as diffusers' Skip blocks.

A small image runs along the levels beside the features, as in StyleGAN2 (Karras et al. 2020, arXiv
1912.04958, section 4.1). On the down path it is the network's input, which each level reduces and adds to
its features. On the up path it is the network's output, which each level enlarges and adds to. Sums of
two branches are divided by sqrt(2).
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.blocks import Attention, GroupNorm, ResnetBlock2D
from repaint_jax.models.resampling import fir_downsampled, fir_upsampled
from repaint_jax.models.unet2d_config import (
    SKIP_ATTENTION_GROUPS,
    SKIP_IMAGE_CHANNELS,
    UNet2DConfig,
    skip_block_groups,
    skip_up_groups,
)

SCALE = math.sqrt(2)


class SkipDownBlock(nnx.Module):
    """A level of the down path, with the network's input at the level's size.

    It returns its result, the image, and the skip connections for the up path.
    """

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
        self.resnets = nnx.List(
            [_resnet(c, width, out_channels, skip_block_groups(width), rngs=rngs) for width in widths]
        )
        self.attentions = nnx.List(
            [_attention(c, out_channels, head_dim, rngs) for _ in widths]
            if kind == "AttnSkipDownBlock2D"
            else []
        )
        self.resnet_down = None if last else _resampler(c, out_channels, "fir_down", rngs)
        self.skip_conv = None if last else nnx.Conv(SKIP_IMAGE_CHANNELS, out_channels, (1, 1), rngs=rngs)

    def __call__(
        self, x: jax.Array, image: jax.Array, time: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[layer](x)
            skips.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            image = fir_downsampled(image)
            x = self.resnet_down(x, time) + self.skip_conv(image)
            skips.append(x)
        return x, image, skips


class SkipUpBlock(nnx.Module):
    """A level of the up path, which adds to the network's output.

    It returns its result and the image, which is None before the first level that adds to it. The last
    level only enlarges the image. The network adds it to the result of its last convolution.
    """

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
        self.resnets = nnx.List(
            [
                _resnet(c, width + skip, out_channels, skip_up_groups(kind, width, skip), rngs=rngs)
                for width, skip in zip(widths, skip_channels, strict=True)
            ]
        )
        self.attentions = nnx.List(
            [_attention(c, out_channels, head_dim, rngs)] if kind == "AttnSkipUpBlock2D" else []
        )
        self.resnet_up = None if last else _resampler(c, out_channels, "fir_up", rngs)
        self.skip_norm = (
            None if last else GroupNorm(out_channels, skip_block_groups(out_channels), c.norm_eps)
        )
        # Zeros, so that an untrained network's output is zero.
        self.skip_conv = (
            None
            if last
            else nnx.Conv(
                out_channels, SKIP_IMAGE_CHANNELS, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
            )
        )

    def __call__(
        self, x: jax.Array, image: jax.Array | None, skips: list[jax.Array], time: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        for resnet in self.resnets:
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), time)
        for attention in self.attentions:
            x = attention(x)
        if image is not None:
            image = fir_upsampled(image)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            part = self.skip_conv(jax.nn.silu(self.skip_norm(x)))
            image = part if image is None else image + part
            x = self.resnet_up(x, time)
        return x, image


def _resnet(
    c: UNet2DConfig, in_channels: int, out_channels: int, groups: int, *, rngs: nnx.Rngs
) -> ResnetBlock2D:
    num_groups = groups, skip_block_groups(out_channels)
    return ResnetBlock2D(c, in_channels, out_channels, scale=SCALE, num_groups=num_groups, rngs=rngs)


def _resampler(
    c: UNet2DConfig, channels: int, resample: Literal["fir_up", "fir_down"], rngs: nnx.Rngs
) -> ResnetBlock2D:
    num_groups = (skip_block_groups(channels),) * 2
    return ResnetBlock2D(
        c, channels, channels, scale=SCALE, resample=resample, num_groups=num_groups, rngs=rngs
    )


def _attention(c: UNet2DConfig, channels: int, head_dim: int | None, rngs: nnx.Rngs) -> Attention:
    return Attention(c, channels, SKIP_ATTENTION_GROUPS, head_dim=head_dim, scale=SCALE, rngs=rngs)
