"""Holes that grow, shrink and fade, against SciPy's morphology and a loop over all pairs of pixels."""

import numpy as np
import pytest
from scipy import ndimage

from repaint_jax import masks
from repaint_jax.pictures.holes import fading, grown

SQUARE = np.ones((3, 3), bool)


def places(*pixels: tuple[int, int], shape: tuple[int, int] = (9, 12)) -> np.ndarray:
    hole = np.zeros(shape, bool)
    for row, column in pixels:
        hole[row, column] = True
    return hole


HOLES = {
    "one pixel": places((4, 5)),
    "corner": places((0, 0)),
    "other corner": places((8, 11)),
    "edge": places(*((row, 11) for row in range(3, 8))),
    "thin lines": places(*((4, column) for column in range(12)), *((row, 3) for row in range(9))),
    "nothing": places(),
    "everything": ~places(),
    "all but one": ~places((2, 2)),
    "specks": np.random.default_rng(0).random((9, 12)) < 0.1,
    "blobs": ndimage.binary_dilation(np.random.default_rng(1).random((9, 12)) < 0.05, SQUARE),
    "one row": places((0, 4), (0, 5), shape=(1, 12)),
    "one column": places((0, 0), (8, 0), shape=(9, 1)),
    "a single pixel": places((0, 0), shape=(1, 1)),
}
each_hole = pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)


def distance_to(hole: np.ndarray) -> np.ndarray:
    """The larger of the distances in rows and columns to the nearest pixel of a hole, by a loop."""
    distance = np.full(hole.shape, np.inf)
    rows, columns = np.indices(hole.shape)
    for row, column in np.argwhere(hole):
        distance = np.minimum(distance, np.maximum(abs(rows - row), abs(columns - column)))
    return distance


@each_hole
@pytest.mark.parametrize("pixels", [0, 1, 2, 5, 100])
def test_a_hole_grows_and_shrinks_as_scipy_dilates_and_erodes(hole: np.ndarray, pixels: int):
    larger, smaller = hole, hole
    if pixels:
        larger = ndimage.binary_dilation(hole, SQUARE, pixels)
        smaller = ndimage.binary_erosion(hole, SQUARE, pixels, border_value=1)
    np.testing.assert_array_equal(grown(hole, pixels), larger)
    np.testing.assert_array_equal(grown(hole, -pixels), smaller)


@each_hole
@pytest.mark.parametrize("pixels", [-2, -1, 0, 1, 3, 50])
def test_masks_of_arrays_grow_as_those_of_pictures(hole: np.ndarray, pixels: int):
    mask = np.where(hole, 0, 1)[..., None].astype(np.float32)
    found = masks.grow(mask, pixels)
    expected = np.where(grown(hole, pixels), 0, 1)[..., None]
    np.testing.assert_array_equal(found, expected.astype(np.float32), strict=True)


@each_hole
@pytest.mark.parametrize("width", [0, 1, 4, 30])
def test_weights_rise_with_the_distance_from_the_hole(hole: np.ndarray, width: int):
    expected = np.minimum(distance_to(hole) / (width + 1), 1)
    weights = fading(hole, width)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_array_equal(weights == 1, expected == 1)
    np.testing.assert_array_equal(weights == 0, hole)
    mask = np.where(hole, 0, 1)[..., None].astype(np.float32)
    np.testing.assert_allclose(masks.feather(mask, width)[..., 0], weights, rtol=1e-6)
