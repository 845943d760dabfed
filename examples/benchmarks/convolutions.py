"""Compare 3x3 convolutions, the largest part of a network's arithmetic, with other ways to compute them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from timing import Row, Rows, alternately, ready

SHAPES = (  # batch, side, channels
    (4, 128, 24),
    (8, 28, 32),
    (8, 14, 64),
    (4, 32, 128),
    (1, 32, 256),
    (1, 256, 128),
)


def over_other_ways() -> Rows:
    """Compare `lax.conv_general_dilated` with the rate of a large matrix product, and with other ways."""
    size = 1024
    matrix, product = jnp.ones((size, size)), jax.jit(jnp.dot)
    for batch, side, channels in SHAPES:
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, side, side, channels)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, channels, channels)), jnp.float32)
        call = partial(ready, jax.jit(convolve), x, kernel)
        what = f"convolution of {batch} x {side} x {side} x {channels}"
        mine, of_product, ratio = alternately(call, partial(ready, product, matrix, matrix), seconds=2)
        share = 9 * x.size * channels / size**3  # of the product's operations
        yield Row(
            what,
            "its operations at the rate of a matrix product",
            mine,
            of_product * share,
            ratio / share,
        )
        expected = convolve(x, kernel)
        for name, way in (
            ("nine products of shifted images", shifted_products),
            ("one product of patches", product_of_patches),
            ("Winograd's F(2x2, 3x3)", winograd),
        ):
            np.testing.assert_allclose(way(x, kernel), expected, atol=1e-5 * float(abs(expected).max()))
            yield Row(what, name, *alternately(call, partial(ready, jax.jit(way), x, kernel), seconds=2))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return sum(
        image @ kernel[row, column]
        for row, images in enumerate(shifted(x, 3))
        for column, image in enumerate(images)
    )


def product_of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = jnp.concatenate([image for images in shifted(x, 3) for image in images], axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute two results of a row or column from 4 products, not 6 (Lavin and Gray, arXiv 1509.09308)."""
    of_kernel = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
    kernels = jnp.einsum("ia,jb,abco->ijco", of_kernel, of_kernel, kernel)

    def of_input(d: list) -> list:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    def of_result(m: list) -> list:
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    tiles = [[image[:, ::2, ::2] for image in images] for images in shifted(x, 4)]
    by_column = [of_input(column) for column in zip(*tiles, strict=True)]
    inputs = [of_input(row) for row in zip(*by_column, strict=True)]
    products = [[inputs[i][j] @ kernels[i, j] for j in range(4)] for i in range(4)]
    by_column = [of_result(column) for column in zip(*products, strict=True)]
    results = [of_result(row) for row in zip(*by_column, strict=True)]
    rows = [jnp.stack(row, axis=3) for row in results]
    return jnp.stack(rows, axis=2).reshape(*x.shape[:-1], -1)


def shifted(x: jax.Array, size: int) -> list[list[jax.Array]]:
    """Return the shifted images for each position in a window, from (-1, -1) on."""
    _, height, width, _ = x.shape
    end = size - 2
    padded = jnp.pad(x, ((0, 0), (1, end), (1, end), (0, 0)))
    return [
        [padded[:, row : row + height, column : column + width] for column in range(size)]
        for row in range(size)
    ]
