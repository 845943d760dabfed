"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, appendix B), as diffusers' `UNet2DModel`.

With Skip blocks and Fourier embeddings it is NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.blocks import (
    DownBlock,
    GaussianFourierProjection,
    GroupNorm,
    MidBlock,
    TimestepEmbedding,
    Timesteps,
    UpBlock,
)
from repaint_jax.models.skip_blocks import SkipDownBlock, SkipUpBlock
from repaint_jax.models.unet2d_config import SKIP_DOWN_BLOCK_TYPES, SKIP_UP_BLOCK_TYPES, UNet2DConfig
from repaint_jax.sampling.checks import described


class Encoder2D(nnx.Module):
    """The down path of a `UNet2D`, its middle block, and the embedding of timestep and class."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, UNet2DConfig):
            raise TypeError(f"config is {described(config)}, expected a UNet2DConfig")
        c = self.config = config
        widths = c.block_out_channels
        self.conv_in = nnx.Conv(c.in_channels, widths[0], (3, 3), rngs=rngs)
        self.time_proj = _time_proj(c, rngs)
        features = self.time_proj.features
        self.time_embedding = TimestepEmbedding(features, c.time_embed_dim, rngs=rngs)
        self.class_embedding = _class_embedding(c, features, rngs)

        channels = widths[0]
        down_blocks: list[DownBlock | SkipDownBlock] = []
        for level, (kind, width) in enumerate(zip(c.down_block_types, widths, strict=True)):
            last = level == len(widths) - 1
            block = SkipDownBlock if kind in SKIP_DOWN_BLOCK_TYPES else DownBlock
            head_dim = c.head_dims[level]
            down_blocks.append(block(c, kind, channels, width, last, head_dim=head_dim, rngs=rngs))
            channels = width
        self.down_blocks = nnx.List(down_blocks)
        self.mid_block = MidBlock(c, rngs=rngs) if c.mid_block_type is not None else None

    def embed(
        self, timesteps: jax.Array, class_labels: jax.Array | None, dtype: Any
    ) -> jax.Array:  # [B] -> [B, time_embed_dim]
        """Embed timesteps and, if the model is class-conditional, classes."""
        embedding = self.time_embedding(self.time_proj(timesteps).astype(dtype))
        if not self.config.is_class_conditional:
            if class_labels is not None:
                raise ValueError("class_labels is given, but the model is not class-conditional")
            return embedding
        if class_labels is None:
            raise ValueError("class_labels is None, expected labels: the model is class-conditional")
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).astype(dtype)
        if self.class_embedding is not None:
            class_labels = self.class_embedding(class_labels)
        return embedding + class_labels.astype(dtype)

    def encode(
        self, x: jax.Array, embedding: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:  # [B, H, W, in_channels]
        """Return the result of the middle block, and the skip connections from finest to coarsest."""
        if self.config.center_input_sample:
            x = 2 * x - 1
        image, x = x, self.conv_in(x)
        skips = [x]
        for down_block in self.down_blocks:
            if isinstance(down_block, SkipDownBlock):
                x, image, new_skips = down_block(x, image, embedding)
            else:
                x, new_skips = down_block(x, embedding)
            skips += new_skips
        if self.mid_block is not None:
            x = self.mid_block(x, embedding)
        return x, skips

    def batched(
        self, sample: jax.Array, timestep: jax.Array | float, class_labels: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Check the input, add a batch axis to a single image, and broadcast timesteps and labels."""
        channels = self.config.in_channels
        multiple = 2 ** (len(self.config.block_out_channels) - 1)
        is_picture = sample.ndim in (3, 4) and sample.shape[-1] == channels
        if not is_picture or any(side % multiple for side in sample.shape[-3:-1]):
            raise ValueError(
                f"sample has shape {sample.shape}, expected [B, H, W, {channels}] or "
                f"[H, W, {channels}] with H and W multiples of {multiple}"
            )
        x = (sample if sample.ndim == 4 else sample[None]).astype(self.conv_in.kernel.dtype)
        timesteps = jnp.broadcast_to(jnp.asarray(timestep), x.shape[:1])
        if class_labels is not None:
            features = (self.config.time_embed_dim,) if self.config.class_embed_type == "identity" else ()
            class_labels = jnp.broadcast_to(jnp.asarray(class_labels), (len(x), *features))
        return x, timesteps, class_labels


class UNet2D(Encoder2D):
    """U-Net with the architecture, names and defaults of diffusers' `UNet2DModel`.

    Call it with these arguments:

    - `sample`: [B, H, W, in_channels], or one image [H, W, in_channels], floating. H and W must be
      divisible by 2^n, where n = len(block_out_channels) - 1 is the number of downsamplings.
    - `timestep`: a number, or an array of shape [] or [B]. It may be a fraction, as EDM networks have it,
      unless the time embedding is "learned". With the embedding "fourier" it is the noise level, positive.
    - `class_labels`: only for a class-conditional model. Integers, [] or [B]; with class_embed_type
      "identity", vectors [B, time_embed_dim].

    It returns an array of the sample's shape and dtype, with `out_channels` channels. The arithmetic is in
    the dtype of the parameters, and the norms are in float32.

    Args:
        config: the architecture.
        rngs: random numbers for the initial parameters.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c, levels = config, len(config.block_out_channels)
        up_blocks: list[UpBlock | SkipUpBlock] = []
        for level, (kind, channels) in enumerate(zip(c.up_block_types, c.up_block_channels, strict=True)):
            block = SkipUpBlock if kind in SKIP_UP_BLOCK_TYPES else UpBlock
            last, head_dim = level == levels - 1, c.head_dims[levels + level]
            up_blocks.append(block(c, kind, *channels, last, head_dim=head_dim, rngs=rngs))
        self.up_blocks = nnx.List(up_blocks)
        width = c.block_out_channels[0]
        self.conv_norm_out = GroupNorm(width, c.num_groups(width), c.norm_eps)
        self.conv_out = nnx.Conv(
            width, c.out_channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(
        self, sample: jax.Array, timestep: jax.Array | float, class_labels: Any = None
    ) -> jax.Array:
        x, timesteps, class_labels = self.batched(sample, timestep, class_labels)
        embedding = self.embed(timesteps, class_labels, x.dtype)
        x, skips = self.encode(x, embedding)
        image: jax.Array | None = None
        for up_block in self.up_blocks:
            if isinstance(up_block, SkipUpBlock):
                x, image = up_block(x, image, skips, embedding)
            else:
                x = up_block(x, skips, embedding)
        x = self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        if image is not None:
            x = x + image
        if self.config.time_embedding_type == "fourier":  # the timestep of such models is the noise level
            x = x.astype(jnp.float32) / timesteps.astype(jnp.float32)[:, None, None, None]
        return (x if sample.ndim == 4 else x[0]).astype(sample.dtype)


def _time_proj(c: UNet2DConfig, rngs: nnx.Rngs) -> GaussianFourierProjection | nnx.Embed | Timesteps:
    if c.time_embedding_type == "fourier":
        return GaussianFourierProjection(c, rngs=rngs)
    if c.time_embedding_type == "learned" and c.num_train_timesteps is not None:
        return nnx.Embed(c.num_train_timesteps, c.time_proj_dim or c.block_out_channels[0], rngs=rngs)
    return Timesteps(c)


def _class_embedding(
    c: UNet2DConfig, features: int, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array] | None:
    if c.class_embed_type == "timestep":
        return TimestepEmbedding(features, c.time_embed_dim, rngs=rngs)
    if c.class_embed_type is None and c.num_class_embeds is not None:
        return nnx.Embed(c.num_class_embeds, c.time_embed_dim, rngs=rngs)
    return None
