"""Grow and shrink holes, and let their rims fade: `masks.grow` and `masks.feather` for pictures in files.

These functions are NumPy's, because pictures have many sizes, and each size would compile again in JAX.
"""

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
    weights = np.where(holes, 0, 1).astype(np.float32)
    for distance in range(1, min(width, max(holes.shape[-3:-1])) + 1):
        larger = _near(holes, 1)
        weights[larger & ~holes] = distance / (width + 1)
        holes = larger
    return weights


def _near(places: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return where a place is at most some pixels away, in rows and in columns."""
    for axis in (-3, -2):
        places = np.moveaxis(places, axis, 0)
        pixels_here, reach = min(pixels, len(places)), 0
        while reach < pixels_here:
            step = min(reach + 1, pixels_here - reach)  # a longer one would leave gaps at the edge
            larger = places.copy()
            larger[step:] |= places[:-step]
            larger[:-step] |= places[step:]
            places, reach = larger, reach + step
        places = np.moveaxis(places, 0, axis)
    return places
