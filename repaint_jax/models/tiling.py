"""Run an encoder or a decoder in overlapping windows, so that the memory it needs has a bound."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling.carry_types import with_type_of_output


def in_windows(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, window: int, in_cell: int, out_cell: int
) -> jax.Array:
    """Apply a function to square windows of an array, one after the other, and blend the results.

    Sides are counted in cells: a cell is a latent, or the pixels of one. Neighbouring windows overlap by at
    least a quarter of a window. There, the weight of a result falls linearly towards its window's edge. It
    is zero near the edge, where the results of convolutions depend on their padding.

    Args:
        function: maps [B, h in_cell, w in_cell, C] to [B, h out_cell, w out_cell, D], for any h and w.
        x: [B, H in_cell, W in_cell, C].
        window: side of a window in cells, at least 2.
        in_cell: side of a cell of x.
        out_cell: side of a cell of the result.

    Returns:
        [B, H out_cell, W out_cell, D].
    """
    batch, height, width, channels = x.shape
    rows, row_weights = _windows(height // in_cell, window, out_cell)
    columns, column_weights = _windows(width // in_cell, window, out_cell)
    if len(rows) == len(columns) == 1:
        return function(x)
    in_shape = (batch, min(window * in_cell, height), min(window * in_cell, width), channels)
    out = jax.eval_shape(function, jax.ShapeDtypeStruct(in_shape, x.dtype))

    def add_window(total: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        i, j = place
        row, column = jnp.asarray(rows)[i], jnp.asarray(columns)[j]
        piece = jax.lax.dynamic_slice(x, (0, row * in_cell, column * in_cell, 0), in_shape)
        down, across = jnp.asarray(row_weights)[i], jnp.asarray(column_weights)[j]
        weighted = function(piece) * down[None, :, None, None] * across[None, None, :, None]
        corner = (0, row * out_cell, column * out_cell, 0)
        before = jax.lax.dynamic_slice(total, corner, out.shape)
        return jax.lax.dynamic_update_slice(total, before + weighted, corner), None

    places = np.indices((len(rows), len(columns))).reshape(2, -1)
    out_sides = (height // in_cell * out_cell, width // in_cell * out_cell)
    # Made from x, because on explicit meshes the result has the batch's sharding.
    zeros = jnp.zeros_like(x[:, :1, :1, :1], jnp.float32)
    total = jnp.broadcast_to(zeros, (batch, *out_sides, out.shape[-1]))
    total = with_type_of_output(add_window, total, tuple(jnp.asarray(places[:, 0])))
    total, _ = jax.lax.scan(add_window, total, tuple(jnp.asarray(places)))
    return total.astype(out.dtype)


def _windows(side: int, window: int, out_cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the cells at which windows start along an axis, and the weights of each window's results.

    The weights [windows, window * out_cell] of all windows at a place add up to 1.
    """
    size, overlap = min(window, side), max(1, window // 4)
    num_windows = max(1, math.ceil((side - overlap) / (window - overlap)))
    starts = np.round(np.linspace(0, side - size, num_windows)).astype(np.int64)
    from_start = np.arange(size * out_cell) + 0.5
    distance = np.minimum(from_start, from_start[::-1]) / (overlap * out_cell)  # 1 where the overlap ends
    ramp = np.clip(2 * distance - 0.5, 1e-9, 1)  # not 0: no other window has the edges of the picture
    total = np.zeros(side * out_cell)
    places = [slice(start * out_cell, (start + size) * out_cell) for start in starts]
    for place in places:
        total[place] += ramp
    return starts, np.stack([ramp / total[place] for place in places]).astype(np.float32)
