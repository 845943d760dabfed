"""Networks, their checkpoints, and adapters from Flax modules to `model_fn`."""

from repaint_jax.models.adapters import linen_model_fn, nnx_model_fn
from repaint_jax.models.checkpoints import load_unet2d, save_unet2d
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.unet2d import UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig

__all__ = [
    "UNet2D",
    "UNet2DClassifier",
    "UNet2DConfig",
    "linen_model_fn",
    "load_unet2d",
    "nnx_model_fn",
    "save_unet2d",
]
