"""The latents of an autoencoder, as a latent diffusion model is inpainted with (arXiv 2112.10752).

A picture with a hole becomes latents with a mask, and filled latents become a picture. The known pixels of
that picture are those of the picture that was encoded.
"""

import dataclasses
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax import masks
from repaint_jax.models.autoencoder import Autoencoder, check_autoencoder
from repaint_jax.models.autoencoder_config import AutoencoderConfig
from repaint_jax.pictures.blending import blend, continued


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["graphdef", "config", "channels"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class LatentSpace:
    """An autoencoder as a pytree. Its latents have the scale that the diffusion model was trained with.

    Attributes:
        params: the autoencoder's parameters.
        graphdef: the autoencoder without them.
        config: the autoencoder's architecture, and the scale of its latents.
        channels: channels of the latents.
    """

    params: Any
    graphdef: Any
    config: AutoencoderConfig
    channels: int

    @classmethod
    def of(cls, autoencoder: Autoencoder) -> Self:
        """Split an autoencoder into parameters and functions.

        Raises:
            TypeError: it is no `AutoencoderKL` and no `VQModel`.
            ValueError: it makes pictures with other channels than those that it takes.
        """
        check_autoencoder(autoencoder)
        config = autoencoder.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"autoencoder takes pictures of {config.in_channels} channels and makes pictures of "
                f"{config.out_channels}, expected as many"
            )
        graphdef, params = nnx.split(autoencoder)
        return cls(params, graphdef, config, autoencoder.latent_channels)

    @property
    def factor(self) -> int:
        """Return the side of a latent's cell in pixels."""
        return self.config.factor

    def shape_of(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape [H, W, C] of the latents of images of a shape."""
        height, width, _ = image_shape
        return height // self.factor, width // self.factor, self.channels

    def autoencoder(self) -> Autoencoder:
        """Return the autoencoder as a module."""
        return nnx.merge(self.graphdef, self.params)

    @jax.jit
    def encode(self, images: jax.Array) -> jax.Array:
        """Return the model's latents [B, H/factor, W/factor, channels] of images [B, H, W, C]."""
        autoencoder = self.autoencoder()
        return autoencoder.scale_latents(autoencoder.encode(images))

    @jax.jit
    def encode_known(self, images: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the latents of the known pixels, and the mask of the latents that saw nothing else.

        Args:
            images: [B, H, W, C], floating, in [-1, 1].
            mask: [B, H, W, 1] of zeros and ones; 1 is known.

        Returns:
            Latents [B, H/factor, W/factor, channels], and their mask [B, H/factor, W/factor, 1].
        """
        # What is in the hole must not reach the latents. Normalisation and attention of an encoder see the
        # whole picture, and a smooth continuation of the known pixels disturbs them less than a blank.
        return self.encode(continued(images, mask)), masks.downsample(mask, self.factor)

    @jax.jit
    def decode(self, latents: jax.Array) -> jax.Array:
        """Return the images [..., H, W, C] of the model's latents, in [-1, 1]."""
        autoencoder = self.autoencoder()
        return jnp.clip(autoencoder.decode(autoencoder.unscale_latents(latents)), -1, 1)

    @jax.jit
    def fill(self, latents: jax.Array, images: jax.Array, mask: jax.Array) -> jax.Array:
        """Return images with decoded latents in their hole, and their known pixels as they are.

        The correction at the rim reaches one cell into the hole (docs/guides/latents.md has a measurement).
        """
        blended = blend(self.decode(latents), images, mask, reach=self.factor)
        return jnp.where(mask == 1, images, jnp.clip(blended, -1, 1))


def chain_inputs(
    space: LatentSpace | None, images: jax.Array, mask: jax.Array, *, whole: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return what a chain inpaints, and its mask: pictures themselves, or their latents.

    With `whole`, the latents also show what is in the hole.
    """
    if space is None:
        return images, mask
    if whole:
        return space.encode(images), masks.downsample(mask, space.factor)
    return space.encode_known(images, mask)


def chain_pictures(
    space: LatentSpace | None, samples: jax.Array, images: jax.Array, mask: jax.Array
) -> jax.Array:
    """Return the pictures of a chain's samples, with the known pixels of `images`."""
    return samples if space is None else space.fill(samples, images, mask)
