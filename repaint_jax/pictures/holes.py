"""Grow and shrink holes, and let their rims fade: `masks.grow` and `masks.feather` for pictures in files.

These functions are NumPy's, because pictures have many sizes, and each size would compile again in JAX.
Distances are the larger of those in rows and in columns.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def grown(hole: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return a hole that is larger by a number of pixels to each side, or smaller if it is negative.

    Args:
        hole: [H, W], true in the hole.
        pixels: the number of pixels. A hole does not shrink from the edge of the picture.
    """
    return _distance(~hole) > -pixels if pixels < 0 else _distance(hole) <= pixels


def fading(hole: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
    """Return weights [H, W] that are 0 in the hole and rise to 1 around it.

    Args:
        hole: [H, W], true in the hole.
        width: the number of pixels around a hole with weights between 0 and 1. At a distance d from the
            hole the weight is d / (width + 1).
    """
    return np.minimum(_distance(hole) / (width + 1), 1).astype(np.float32)


def _distance(places: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return the distance of each pixel to the nearest place."""
    if not places.any():
        return np.full(places.shape, np.inf)
    return ndimage.distance_transform_cdt(~places, "chessboard").astype(np.float64)
