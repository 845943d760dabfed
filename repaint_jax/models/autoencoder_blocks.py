"""The encoder and the decoder of diffusers' autoencoders, channels last.

Attribute names are those of diffusers' state dict, as in `blocks`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.autoencoder_config import AutoencoderConfig
from repaint_jax.models.blocks import Attention, Downsample2D, GroupNorm, Upsample2D


class ResnetBlock(nnx.Module):
    """Two 3x3 convolutions with a residual connection around them. There is no time embedding."""

    def __init__(self, c: AutoencoderConfig, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_channels, c.norm_num_groups, c.norm_eps)
        self.conv1 = nnx.Conv(in_channels, out_channels, (3, 3), rngs=rngs)
        self.norm2 = GroupNorm(out_channels, c.norm_num_groups, c.norm_eps)
        self.conv2 = nnx.Conv(out_channels, out_channels, (3, 3), rngs=rngs)
        self.conv_shortcut = (
            nnx.Conv(in_channels, out_channels, (1, 1), rngs=rngs) if in_channels != out_channels else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Level(nnx.Module):
    """A level of encoder or decoder: residual blocks, with attention after each or after none."""

    def __init__(
        self,
        c: AutoencoderConfig,
        kind: str,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock(c, width, out_channels, rngs=rngs) for width in widths])
        self.attentions = nnx.List(
            [_attention(c, out_channels, rngs) for _ in widths] if kind.startswith("Attn") else []
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions:
                x = self.attentions[layer](x)
        return x


class DownLevel(Level):
    """A level that ends with a strided convolution, unless it is the last."""

    def __init__(
        self,
        c: AutoencoderConfig,
        kind: str,
        in_channels: int,
        out_channels: int,
        last: bool,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(c, kind, in_channels, out_channels, c.layers_per_block, rngs=rngs)
        self.downsamplers = nnx.List([] if last else [Downsample2D(out_channels, 0, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = super().__call__(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpLevel(Level):
    """A level that ends with an upsampling, unless it is the last. It has one residual block more."""

    def __init__(
        self,
        c: AutoencoderConfig,
        kind: str,
        in_channels: int,
        out_channels: int,
        last: bool,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(c, kind, in_channels, out_channels, c.layers_per_block + 1, rngs=rngs)
        self.upsamplers = nnx.List([] if last else [Upsample2D(out_channels, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = super().__call__(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class MidLevel(nnx.Module):
    """The coarsest level: a residual block, attention and a residual block."""

    def __init__(self, c: AutoencoderConfig, *, rngs: nnx.Rngs):
        channels = c.block_out_channels[-1]
        self.resnets = nnx.List([ResnetBlock(c, channels, channels, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List([_attention(c, channels, rngs)] if c.mid_block_add_attention else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Encoder(nnx.Module):
    """Pictures [B, H, W, in_channels] to [B, H / factor, W / factor, out_channels]."""

    def __init__(self, c: AutoencoderConfig, out_channels: int, *, rngs: nnx.Rngs):
        widths = c.block_out_channels
        self.conv_in = nnx.Conv(c.in_channels, widths[0], (3, 3), rngs=rngs)
        last = len(widths) - 1
        inputs = (widths[0], *widths)
        self.down_blocks = nnx.List(
            [
                DownLevel(c, kind, inputs[level], widths[level], level == last, rngs=rngs)
                for level, kind in enumerate(c.down_block_types)
            ]
        )
        self.mid_block = MidLevel(c, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], c.norm_num_groups, c.norm_eps)
        self.conv_out = nnx.Conv(widths[-1], out_channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latents [B, h, w, latent_channels] to pictures [B, factor h, factor w, out_channels]."""

    def __init__(self, c: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths = c.block_out_channels[::-1]
        self.conv_in = nnx.Conv(c.latent_channels, widths[0], (3, 3), rngs=rngs)
        self.mid_block = MidLevel(c, rngs=rngs)
        last = len(widths) - 1
        inputs = (widths[0], *widths)
        self.up_blocks = nnx.List(
            [
                UpLevel(c, kind, inputs[level], widths[level], level == last, rngs=rngs)
                for level, kind in enumerate(c.up_block_types)
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], c.norm_num_groups, c.norm_eps)
        self.conv_out = nnx.Conv(widths[-1], c.out_channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Codebook(nnx.Module):
    """The quantiser of van den Oord et al. 2017 (arXiv 1711.00937, eq. 1 and 2)."""

    def __init__(self, num_entries: int, channels: int, *, rngs: nnx.Rngs):
        def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -1 / num_entries, 1 / num_entries)

        self.embedding = nnx.Embed(num_entries, channels, embedding_init=initial, rngs=rngs)

    def __call__(self, latents: jax.Array) -> jax.Array:  # [B, h, w, channels]
        """Replace each latent by the nearest entry. The gradient passes as if nothing were replaced."""
        codebook = self.embedding.embedding[...]
        entries = codebook.astype(jnp.float32)
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, where |z|^2 is the same for all entries. In the default
        # precision of accelerators the products would often name an entry that is not the nearest.
        products = jnp.einsum("bhwc,nc->bhwn", latents.astype(jnp.float32), entries, precision="highest")
        norms = jnp.square(entries).sum(-1)
        nearest = jnp.argmin(norms[None, None, None] - 2 * products, axis=-1)
        quantised = codebook.at[nearest].get(out_sharding=jax.typeof(latents).sharding)
        return latents + jax.lax.stop_gradient(quantised - latents)


def _attention(c: AutoencoderConfig, channels: int, rngs: nnx.Rngs) -> Attention:
    return Attention(c, channels, c.norm_num_groups, head_dim=None, rngs=rngs)
