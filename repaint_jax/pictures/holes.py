"""Grow and shrink holes, and let their rims fade: `masks.grow` and `masks.feather` for pictures in files.

These functions are NumPy's, because pictures have many sizes, and each size would compile again in JAX.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def grown(holes: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return holes that are larger by a number of pixels to each side, or smaller if it is negative.

    Args:
        holes: [..., H, W, 1], true in the hole.
        pixels: the number of pixels. A hole does not shrink from the edge of the picture.
    """
    return ~_near(~holes, -pixels) if pixels < 0 else _near(holes, pixels)


def fading(holes: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
    """Return weights that are 0 in the holes and rise to 1 around them.

    Args:
        holes: [..., H, W, 1], true in the hole.
        width: the number of pixels around a hole with weights between 0 and 1. At a distance d from the
            hole the weight is d / (width + 1). d is the larger of the distances in rows and in columns.
    """
    steps = np.zeros(holes.shape, np.int32)
    for larger in _ever_larger(holes, width):
        steps += ~larger
    return (steps / (width + 1)).astype(np.float32)


def _ever_larger(holes: NDArray[np.bool_], times: int) -> Iterator[NDArray[np.bool_]]:
    yield holes
    for _ in range(times):
        holes = _near(holes, 1)
        yield holes


def _near(places: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return where a place is at most some pixels away, in rows and in columns."""
    for axis in (-3, -2):
        length = places.shape[axis]
        before = np.zeros_like(np.take(places, [0], axis), np.int32)
        counts = np.concatenate([before, np.cumsum(places, axis, dtype=np.int32)], axis)
        each = np.arange(length)
        reach = min(pixels, length)
        first, end = np.maximum(each - reach, 0), np.minimum(each + reach + 1, length)
        places = np.take(counts, end, axis) > np.take(counts, first, axis)
    return places
