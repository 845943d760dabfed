"""diffusers' `AutoencoderKL` and `VQModel`: the autoencoders of latent diffusion (arXiv 2112.10752)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models.autoencoder_blocks import Codebook, Decoder, Encoder
from repaint_jax.models.autoencoder_config import AutoencoderConfig, AutoencoderKLConfig, VQModelConfig
from repaint_jax.models.tiling import in_windows
from repaint_jax.sampling.checks import check_floating, check_int, described, kind_of


class Autoencoder(nnx.Module):
    """What both autoencoders share: checks, axes, dtypes and the scaling of latents."""

    encoder: Encoder
    decoder: Decoder

    def __init__(self, config: AutoencoderConfig, kind: type[AutoencoderConfig]):
        if not isinstance(config, kind):
            raise TypeError(f"config is {described(config)}, expected a {kind.__name__}")
        self.config = config

    @property
    def factor(self) -> int:
        """Return the side of a latent in pixels."""
        return self.config.factor

    @property
    def latent_channels(self) -> int:
        """Return the number of channels of the latents."""
        return self.config.latent_channels

    def encode(self, images: jax.Array, tile: int | None = None) -> jax.Array:
        """Return the latents of images, not scaled; see `scale_latents`.

        Args:
            images: [..., H, W, in_channels], floating, with values in [-1, 1]. H and W must be multiples of
                `factor`.
            tile: side in pixels of overlapping windows that are encoded one after the other and blended, so
                that a large image needs no more memory than a window. It must be a multiple of `factor`,
                and at least twice as much. Use the side of the training's images, or more. The result
                differs, because norms and attention see a window instead of the whole image: with a small
                trained autoencoder and tiles of half an image's side, decoded pixels differed by 0.03
                (root mean square, range [-1, 1]). None encodes the whole image at once.

        Returns:
            [..., H / factor, W / factor, latent_channels], of the images' dtype. Those of an
            `AutoencoderKL` are the mean of the distribution of latents, not a draw from it. Those of a
            `VQModel` are what its quantiser gets.
        """
        images = _checked("images", images, self.config.in_channels, self.factor)
        return self._applied(self._encode, images, tile, self.factor, 1)

    def decode(self, latents: jax.Array, tile: int | None = None) -> jax.Array:
        """Return the images of latents that are not scaled; see `unscale_latents`.

        Args:
            latents: [..., h, w, latent_channels], floating. A `VQModel` first replaces each by the nearest
                entry of its codebook.
            tile: see `encode`; also in pixels.

        Returns:
            [..., factor h, factor w, out_channels], of the latents' dtype. Values can lie outside [-1, 1].
        """
        latents = _checked("latents", latents, self.latent_channels, 1)
        return self._applied(self._decode, latents, tile, 1, self.factor)

    def _encode(self, x: jax.Array) -> jax.Array:  # [B, H, W, in_channels]
        raise NotImplementedError

    def _decode(self, x: jax.Array) -> jax.Array:  # [B, h, w, latent_channels]
        raise NotImplementedError

    def scale_latents(self, latents: jax.Array) -> jax.Array:
        """Return (latents - shift) * scale: what a diffusion model of these latents gets."""
        shift, scale = self._shift_and_scale(latents)
        return (latents - shift) * scale

    def unscale_latents(self, latents: jax.Array) -> jax.Array:
        """Return latents / scale + shift, the inverse of `scale_latents`: what `decode` gets."""
        shift, scale = self._shift_and_scale(latents)
        return latents / scale + shift

    def _shift_and_scale(self, latents: jax.Array) -> list[jax.Array]:
        axes = range(latents.ndim - 1)
        values = self.config.latents_shift_and_scale
        return [jnp.expand_dims(jnp.asarray(value, latents.dtype), axes) for value in values]

    def _applied(
        self,
        function: Callable[[jax.Array], jax.Array],
        array: jax.Array,
        tile: int | None,
        in_cell: int,
        out_cell: int,
    ) -> jax.Array:
        """Apply a function of a batch, in the dtype of the parameters, to [..., H, W, C]."""
        batch = array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])
        batch = batch.astype(self.encoder.conv_in.kernel.dtype)
        if tile is None:
            result = function(batch)
        elif check_int("tile", tile, 2 * self.factor) % self.factor:
            raise ValueError(
                f"tile is {tile}, expected a multiple of {self.factor}, a latent's side in pixels"
            )
        else:
            result = in_windows(function, batch, tile // self.factor, in_cell, out_cell)
        return result.reshape(*array.shape[:-3], *result.shape[1:]).astype(array.dtype)


class AutoencoderKL(Autoencoder):
    """Autoencoder with the architecture, names and defaults of diffusers' `AutoencoderKL`.

    Args:
        config: the architecture.
        rngs: random numbers for the initial parameters.
    """

    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        super().__init__(config, AutoencoderKLConfig)
        channels = config.latent_channels
        self.encoder = Encoder(config, 2 * channels, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = (
            nnx.Conv(2 * channels, 2 * channels, (1, 1), rngs=rngs) if config.use_quant_conv else None
        )
        self.post_quant_conv = (
            nnx.Conv(channels, channels, (1, 1), rngs=rngs) if config.use_post_quant_conv else None
        )

    def _encode(self, x: jax.Array) -> jax.Array:
        x = self.encoder(x)
        if self.quant_conv is not None:
            x = self.quant_conv(x)
        return x[..., : self.latent_channels]  # the rest are logarithms of variances

    def _decode(self, x: jax.Array) -> jax.Array:
        return self.decoder(x if self.post_quant_conv is None else self.post_quant_conv(x))


class VQModel(Autoencoder):
    """Autoencoder with the architecture and names of diffusers' `VQModel`, whose latents are quantised.

    Args:
        config: the architecture.
        rngs: random numbers for the initial parameters.
    """

    config: VQModelConfig

    def __init__(self, config: VQModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, VQModelConfig)
        channels, embed_dim = config.latent_channels, config.embed_dim
        self.encoder = Encoder(config, channels, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = nnx.Conv(channels, embed_dim, (1, 1), rngs=rngs)
        self.quantize = Codebook(config.num_vq_embeddings, embed_dim, rngs=rngs)
        self.post_quant_conv = nnx.Conv(embed_dim, channels, (1, 1), rngs=rngs)

    @property
    def latent_channels(self) -> int:
        """Return the number of channels of the latents, which are those of the codebook's entries."""
        return self.config.embed_dim

    def _encode(self, x: jax.Array) -> jax.Array:
        return self.quant_conv(self.encoder(x))

    def _decode(self, x: jax.Array) -> jax.Array:
        return self.decoder(self.post_quant_conv(self.quantize(x)))


def _checked(name: str, array: jax.Array, channels: int, multiple: int) -> jax.Array:
    check_floating(name, array)
    shape = array.shape
    fits = len(shape) >= 3 and shape[-1] == channels and 0 not in shape
    if not fits or any(side % multiple for side in shape[-3:-1]):
        sides = f" with H and W multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name} has shape {shape}, expected [..., H, W, {channels}]{sides}")
    return jnp.asarray(array)


def check_autoencoder(autoencoder: object) -> None:
    """Raise a TypeError if something is neither an `AutoencoderKL` nor a `VQModel`."""
    if not isinstance(autoencoder, AutoencoderKL | VQModel):
        raise TypeError(
            f"autoencoder is {kind_of(autoencoder)}, expected an AutoencoderKL or a VQModel, or its "
            "folder or repository"
        )
