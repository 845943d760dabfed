"""The six masks of the RePaint paper (section 5), larger holes, soft edges, and masks of latents.

1 keeps a pixel, and 0 inpaints it. Every mask is [height, width, 1] float32, and broadcasts over channels
and batch. Values between 0 and 1 blend in `inpaint` (the last equation of `repaint_transition` and of
`budget_transition`); the pipeline rounds them (`pictures.images.mask_to_array`).
"""

from functools import partial

import jax
import jax.numpy as jnp

from repaint_jax.sampling.checks import check_floating, check_int
from repaint_jax.sampling.keys import is_key_vector


def half(height: int, width: int) -> jax.Array:
    """Keep the left half."""
    return _mask(height, width, jnp.arange(width)[None, :] < width // 2)


def expand(height: int, width: int) -> jax.Array:
    """Keep the central quarter of each side."""

    def central(length: int) -> jax.Array:
        kept = max(length // 4, 1)
        first = (length - kept) // 2
        return (jnp.arange(length) >= first) & (jnp.arange(length) < first + kept)

    return _mask(height, width, central(height)[:, None] & central(width)[None, :])


def alternating_lines(height: int, width: int) -> jax.Array:
    """Keep every second row."""
    return _mask(height, width, jnp.arange(height)[:, None] % 2 == 0)


def super_resolution(height: int, width: int) -> jax.Array:
    """Keep every second pixel of every second row."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return _mask(height, width, (rows % 2 == 0) & (columns % 2 == 0))


def wide(height: int, width: int, key: jax.Array) -> jax.Array:
    """Remove a few thick free-form strokes."""
    return _strokes(height, width, key, strokes=2, bends=4, length=0.4, thickness=(0.15, 0.3))


def narrow(height: int, width: int, key: jax.Array) -> jax.Array:
    """Remove several thin free-form strokes."""
    return _strokes(height, width, key, strokes=4, bends=5, length=0.35, thickness=(0.03, 0.08))


_FIXED = {
    "half": half,
    "expand": expand,
    "alternating_lines": alternating_lines,
    "super_resolution": super_resolution,
}
_RANDOM = {"wide": wide, "narrow": narrow}
NAMES = (*_FIXED, *_RANDOM)


def by_name(name: str, height: int, width: int, key: jax.Array) -> jax.Array:
    """Return the mask with one of the names in NAMES.

    Args:
        name: one of NAMES.
        height: height of the mask.
        width: width of the mask.
        key: a key; only "wide" and "narrow" use it.

    Raises:
        ValueError: the name is unknown.
    """
    if name in _FIXED:
        return _FIXED[name](height, width)
    if name in _RANDOM:
        return _RANDOM[name](height, width, key)
    raise ValueError(f"mask name is {name!r}, expected one of {', '.join(NAMES)}")


def grow(mask: jax.Array, pixels: int) -> jax.Array:
    """Grow the hole of a mask, or shrink it.

    Args:
        mask: [..., height, width, 1], floating, of zeros and ones.
        pixels: the number of pixels by which the hole grows to each side, also diagonally. If it is
            negative, the hole shrinks: from its rim, but not from the edge of the picture, beyond which
            nothing is known.

    Returns:
        The mask, of the mask's shape and dtype. A hole that is at most 2n pixels wide is gone after it
        shrank by n.

    >>> mask = jnp.ones((1, 6, 1)).at[0, 2].set(0)
    >>> grow(mask, 1)[0, :, 0].tolist()
    [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    >>> bool((grow(mask, -1) == 1).all())
    True
    """
    _check_mask(mask)
    check_int("pixels", pixels, None)
    window = 2 * min(abs(pixels), max(jnp.shape(mask)[-3:-1])) + 1
    mask = jnp.asarray(mask)
    return _smallest(mask, window, 1, "SAME") if pixels >= 0 else 1 - _smallest(1 - mask, window, 1, "SAME")


def feather(mask: jax.Array, radius: int) -> jax.Array:
    """Soften the edges of a mask: the values of kept pixels near the hole fall towards 0.

    Args:
        mask: [..., height, width, 1], floating, of zeros and ones. The hole stays 0.
        radius: width of the soft edge in pixels. At a distance d <= radius from the hole the result is
            d / (radius + 1), and further away it is 1. d is the larger of the distances in rows and in
            columns.

    Returns:
        The soft mask, of the mask's shape and dtype.
    """
    _check_mask(mask)
    check_int("radius", radius, 0)
    eroded = [jnp.asarray(mask)]
    for _ in range(radius):
        eroded.append(_smallest(eroded[-1], 3, 1, "SAME"))
    return jnp.mean(jnp.stack(eroded), axis=0)


def downsample(mask: jax.Array, factor: int, margin: int = 0) -> jax.Array:
    """Turn a mask of pixels into a mask of latents, for a model that works on latents.

    A latent is known only if all pixels of its cell are known. A latent that was encoded from a part of the
    hole would tell the model what was there.

    Args:
        mask: [..., H, W, 1], floating, of zeros and ones.
        factor: side of a latent's cell in pixels. It must divide H and W.
        margin: number of further latents around the hole that are also unknown. An encoder that looks
            beyond its cell sees the hole from latents nearby too. Set the margin to the number of latents
            that the encoder looks beyond its cell, and no latent that saw the hole is kept.

    Returns:
        The mask of latents, [..., H / factor, W / factor, 1], of the mask's dtype.

    Raises:
        ValueError: factor does not divide H and W, or the mask has a wrong shape.
        TypeError: an argument has the wrong type or dtype.

    >>> downsample(half(8, 12), 4)[..., 0].tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    _check_mask(mask)
    check_int("factor", factor, 1)
    check_int("margin", margin, 0)
    shape = jnp.shape(mask)
    if 0 in shape or shape[-3] % factor or shape[-2] % factor:
        raise ValueError(f"mask has shape {shape}, expected sides that are multiples of factor={factor}")
    known = _smallest(jnp.asarray(mask), factor, factor, "VALID")
    return _smallest(known, 2 * margin + 1, 1, "SAME")


def _smallest(mask: jax.Array, side: int, stride: int, padding: str) -> jax.Array:
    """Return the smallest value in each square window."""
    for axis in (-3, -2):  # a square's smallest value is that of its columns' smallest ones
        window, strides = [1] * mask.ndim, [1] * mask.ndim
        window[axis], strides[axis] = side, stride
        mask = jax.lax.reduce_window(mask, jnp.inf, jax.lax.min, window, strides, padding)
    return mask


def _check_mask(mask: jax.Array) -> None:
    check_floating("mask", mask)
    shape = jnp.shape(mask)
    if len(shape) < 3 or shape[-1] != 1:
        raise ValueError(f"mask has shape {shape}, expected (..., height, width, 1)")


def _mask(height: int, width: int, keep: jax.Array) -> jax.Array:
    for name, side in (("height", height), ("width", width)):
        check_int(name, side, 1)
    return jnp.broadcast_to(keep, (height, width)).astype(jnp.float32)[..., None]


# Compiled as one function, because compiling each operation alone would take longer than running it.
@partial(jax.jit, static_argnames=("height", "width", "strokes", "bends", "length", "thickness"))
def _strokes(
    height: int,
    width: int,
    key: jax.Array,
    *,
    strokes: int,
    bends: int,
    length: float,
    thickness: tuple[float, float],
) -> jax.Array:
    """Draw random polylines. Lengths and thicknesses are shares of the shorter side."""
    if is_key_vector(key):
        raise ValueError(f"key is a vector of {len(key)} keys, expected one")
    side = min(height, width)
    start_key, angle_key, length_key, thickness_key = jax.random.split(key, 4)
    corner = jnp.array([[[height, width]]], jnp.float32)  # [1, 1, 2]
    start = jax.random.uniform(start_key, (strokes, 1, 2), jnp.float32) * corner
    # The heading is a random walk, so that a stroke bends instead of going back over itself.
    turns = jax.random.normal(angle_key, (strokes, bends), jnp.float32).at[:, 0].multiply(10.0)
    headings = jnp.cumsum(turns, axis=1)
    lengths = side * length * jax.random.uniform(length_key, (strokes, bends, 1), jnp.float32, minval=0.3)
    legs = lengths * jnp.stack([jnp.sin(headings), jnp.cos(headings)], axis=-1)
    vertices = jnp.concatenate([start, start + jnp.cumsum(legs, axis=1)], axis=1)
    vertices = jnp.clip(vertices, 0, corner)
    radius = side * jax.random.uniform(
        thickness_key, (strokes, 1), jnp.float32, minval=thickness[0] / 2, maxval=thickness[1] / 2
    )

    sides = (jnp.arange(side, dtype=jnp.float32) for side in (height, width))
    rows, columns = jnp.meshgrid(*sides, indexing="ij")
    pixels = jnp.stack([rows, columns], axis=-1) + 0.5  # [H, W, 2], centres
    # [1, 1, strokes, bends, 2]
    begin, leg = vertices[None, None, :, :-1], jnp.diff(vertices, axis=1)[None, None]
    offset = pixels[:, :, None, None] - begin  # [H, W, strokes, bends, 2]
    along = jnp.sum(offset * leg, axis=-1) / jnp.maximum(jnp.sum(leg**2, axis=-1), 1e-6)
    nearest = jnp.clip(along, 0, 1)[..., None] * leg
    distance = jnp.linalg.norm(offset - nearest, axis=-1)
    return _mask(height, width, jnp.all(distance > jnp.maximum(radius, 0.5)[None, None], axis=(2, 3)))
