"""A classifier of noisy pictures, for guidance (Dhariwal and Nichol 2021, arXiv 2105.05233)."""

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.blocks import GroupNorm, attend
from repaint_jax.models.unet2d import Encoder2D
from repaint_jax.models.unet2d_config import UNet2DConfig


class AttentionPool2D(nnx.Module):
    """Attention pooling as in CLIP (Radford et al. 2021, arXiv 2103.00020).

    The query is the mean of all pixels. It attends to all pixels and to the mean.
    """

    def __init__(self, pixels: int, channels: int, heads: int, out_features: int, *, rngs: nnx.Rngs):
        self.positional_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (channels, pixels + 1)) / channels**0.5
        )
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, out_features, rngs=rngs)])
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, out_features]
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height * width, channels)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].T.astype(x.dtype)[None]
        q = self.to_q(x[:, :1]).reshape(batch, 1, self.heads, -1)
        k, v = (
            project(x).reshape(batch, height * width + 1, self.heads, -1)
            for project in (self.to_k, self.to_v)
        )
        return self.to_out[0](attend(q, k, v).reshape(batch, channels))


class UNet2DClassifier(Encoder2D):
    """A classifier with the down path and the middle block of a `UNet2D`, and attention pooling to logits.

    Call it with `sample`, [B, H, W, in_channels] or one image [H, W, in_channels], of size
    config.sample_size, and `timestep`, [] or [B]. It returns logits [B, out_channels], or [out_channels]
    for one image.

    Args:
        config: the architecture of the `UNet2D`. out_channels is the number of classes.
        rngs: random numbers for the initial parameters.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        channels = config.block_out_channels[-1]
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = config.height_and_width
        self.conv_norm_out = GroupNorm(channels, config.num_groups(channels), config.norm_eps)
        self.pool = AttentionPool2D(
            (height // factor) * (width // factor),
            channels,
            channels // (config.mid_head_dim or channels),
            config.out_channels,
            rngs=rngs,
        )

    def __call__(self, sample: jax.Array, timestep: jax.Array | int) -> jax.Array:
        x, timesteps, _ = self.batched(sample, timestep, None)
        x, _ = self.encode(x, self.embed(timesteps, None, x.dtype))
        logits = self.pool(jax.nn.silu(self.conv_norm_out(x)))
        return (logits if sample.ndim == 4 else logits[0]).astype(sample.dtype)
