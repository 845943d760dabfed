"""Double and halve the height and width of feature maps, [B, H, W, C].

Each function splits or merges one pair of axes at a time: JAX cannot tell the sharding of two at once on
explicit meshes.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def upsampled(x: jax.Array) -> jax.Array:
    """Double height and width by repeating pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def convolve_upsampled(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """Return `conv(upsampled(x))` for a 3x3 convolution, with 4/9 of the multiplications.

    Two of the three rows in a window are copies of the same row of x, and the same holds for columns. Each
    output pixel therefore depends on 2x2 pixels of x, through a 2x2 kernel of sums of rows and columns of
    the 3x3 kernel. The four output pixels of each pixel of x have four such kernels.
    """

    def halves(kernel: jax.Array, axis: int) -> list[tuple[jax.Array, tuple[int, int]]]:
        """Return kernel and padding for the outputs at even and at odd positions along an axis."""
        first, middle, last = jnp.split(kernel, 3, axis)
        even = jnp.concatenate([first, middle + last], axis)
        odd = jnp.concatenate([first + middle, last], axis)
        return [(even, (1, 0)), (odd, (0, 1))]

    batch, height, width, _ = x.shape
    rows = [
        jnp.stack(
            [
                jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), (above, beside), dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                for kernel, beside in halves(of_rows, 1)
            ],
            axis=3,
        ).reshape(batch, height, 2 * width, -1)
        for of_rows, above in halves(conv.kernel[...], 0)
    ]
    result = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)
    return result if conv.bias is None else result + conv.bias[None, None, None]


def downsampled(x: jax.Array) -> jax.Array:
    """Halve height and width by averaging pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width, channels)
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def fir_upsampled(x: jax.Array) -> jax.Array:
    """Double height and width with StyleGAN2's filter, as sums of shifted copies.

    Zeros are put between the pixels and around the picture, and each axis is convolved with
    [1, 3, 3, 1] / 4 (Karras et al. 2020, arXiv 1912.04958, `upfirdn2d`). Half of the products are with
    zeros: [1, 3] / 4 is left of the filter at even positions, and [3, 1] / 4 at odd ones. On a CPU,
    `jax.lax.conv_general_dilated` with a group for each channel takes 30 times as long.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padded = _padded(x, axis)
        before, after = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2))
        pairs = jnp.stack([before / 4 + 0.75 * x, 0.75 * x + after / 4], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def fir_downsampled(x: jax.Array) -> jax.Array:
    """Halve height and width with StyleGAN2's filter: each axis is convolved with [1, 3, 3, 1] / 8.

    Pixels around the picture are zeros. `fir_upsampled` has the source.
    """
    for axis in (1, 2):
        padded, stop = _padded(x, axis), x.shape[axis] - 1
        first, second, third, fourth = (
            jax.lax.slice_in_dim(padded, i, i + stop, stride=2, axis=axis) for i in range(4)
        )
        x = 0.375 * (second + third) + 0.125 * (first + fourth)
    return x


def _padded(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])
