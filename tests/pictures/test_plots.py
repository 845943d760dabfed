"""Pictures made of pictures."""

import numpy as np
import pytest

from repaint_jax.pictures.plots import HOLE_COLOUR, inpainting_grid, show_hole


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_models_of_every_kind_of_picture_are_shown_with_their_holes(channels: int):
    image = np.zeros((8, 8, channels), np.float32)
    mask = np.ones((8, 8, 1), np.float32)
    mask[2, 3] = 0
    shown = show_hole(image, mask)
    assert shown.shape == (8, 8, 3) and tuple(shown[2, 3]) == HOLE_COLOUR
    shown[2, 3] = shown[0, 0]
    assert (shown == (128 if channels in (1, 3) else 191)).all(), "half transparent on white"
    grid = inpainting_grid(image[None], mask[None], image[None, None].repeat(2, 1), ["a row"])
    assert grid.mode == "RGB" and grid.width > 4 * 96
