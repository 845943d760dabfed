"""Networks, their checkpoints, and adapters from Flax modules to `model_fn`."""

from repaint_jax.models.adapters import linen_model_fn, nnx_model_fn
from repaint_jax.models.autoencoder import AutoencoderKL, VQModel
from repaint_jax.models.autoencoder_checkpoints import load_autoencoder, save_autoencoder
from repaint_jax.models.autoencoder_config import AutoencoderKLConfig, VQModelConfig
from repaint_jax.models.check import check_model
from repaint_jax.models.checkpoints import load_unet2d, save_unet2d
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.denoisers import (
    denoiser_model_fn,
    edm_model_fn,
    flow_model_fn,
    score_model_fn,
)
from repaint_jax.models.unet2d import UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "UNet2D",
    "UNet2DClassifier",
    "UNet2DConfig",
    "VQModel",
    "VQModelConfig",
    "check_model",
    "denoiser_model_fn",
    "edm_model_fn",
    "flow_model_fn",
    "linen_model_fn",
    "load_autoencoder",
    "load_unet2d",
    "nnx_model_fn",
    "save_autoencoder",
    "save_unet2d",
    "score_model_fn",
]
