"""The six masks of the RePaint paper (section 5), and soft edges: 1 keeps a pixel, 0 inpaints it.

Every mask is [height, width, 1] float32, to be broadcast over channels and batch.
"""

import jax
import jax.numpy as jnp

from repaint_jax.checks import check_int


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
    """Return the mask that one of NAMES stands for; the fixed ones do not use the key."""
    if name in _FIXED:
        return _FIXED[name](height, width)
    if name in _RANDOM:
        return _RANDOM[name](height, width, key)
    raise ValueError(f"name is {name!r}, expected one of {', '.join(NAMES)}")


def feather(mask: jax.Array, radius: int) -> jax.Array:
    """Soften the edges of a mask: kept pixels near the hole fade to it.

    Args:
        mask: [height, width, 1] of zeros and ones. The hole stays 0.
        radius: pixels that fade; at distance d <= radius from the hole, the larger of the distances in
            rows and columns, the result is d / (radius + 1), beyond it 1.
    """
    check_int("radius", radius, 0)
    eroded = [
        jax.lax.reduce_window(mask, jnp.inf, jax.lax.min, (2 * k + 1, 2 * k + 1, 1), (1, 1, 1), "SAME")
        for k in range(radius + 1)
    ]
    return jnp.mean(jnp.stack(eroded), axis=0)


def _mask(height: int, width: int, keep: jax.Array) -> jax.Array:
    return jnp.broadcast_to(keep, (height, width)).astype(jnp.float32)[..., None]


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
    """Draw random polylines; lengths and thicknesses are shares of the shorter side."""
    side = min(height, width)
    start_key, angle_key, length_key, thickness_key = jax.random.split(key, 4)
    start = jax.random.uniform(start_key, (strokes, 1, 2)) * jnp.array([height, width])
    # A heading that wanders, so that a stroke bends instead of going back over itself.
    turns = jax.random.normal(angle_key, (strokes, bends)).at[:, 0].multiply(10.0)
    headings = jnp.cumsum(turns, axis=1)
    lengths = side * length * jax.random.uniform(length_key, (strokes, bends, 1), minval=0.3)
    legs = lengths * jnp.stack([jnp.sin(headings), jnp.cos(headings)], axis=-1)
    vertices = jnp.concatenate([start, start + jnp.cumsum(legs, axis=1)], axis=1)
    vertices = jnp.clip(vertices, 0, jnp.array([height, width]))
    radius = side * jax.random.uniform(
        thickness_key, (strokes, 1), minval=thickness[0] / 2, maxval=thickness[1] / 2
    )

    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    pixels = jnp.stack([rows, columns], axis=-1) + 0.5  # [H, W, 2], centres
    begin, leg = vertices[:, :-1], jnp.diff(vertices, axis=1)  # [strokes, bends, 2]
    offset = pixels[:, :, None, None] - begin  # [H, W, strokes, bends, 2]
    along = jnp.sum(offset * leg, axis=-1) / jnp.maximum(jnp.sum(leg**2, axis=-1), 1e-6)
    nearest = jnp.clip(along, 0, 1)[..., None] * leg
    distance = jnp.linalg.norm(offset - nearest, axis=-1)
    return _mask(height, width, jnp.all(distance > jnp.maximum(radius, 0.5), axis=(2, 3)))
