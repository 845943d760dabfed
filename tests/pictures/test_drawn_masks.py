"""Masks that are painted, cut out, a box, a file, or one of the paper's by its name."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from repaint_jax import masks
from repaint_jax.pictures.drawn_masks import read_mask

KEY = jax.random.key(0)
SIZE = (6, 4)  # width, height


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8))


def hole(mask: Image.Image) -> np.ndarray:
    """Say where a mask inpaints: [H, W], of a mask that is black and white."""
    assert (mask.mode, mask.size) == ("L", SIZE)
    values = np.asarray(mask)
    assert set(np.unique(values)) <= {0, 255}
    return values == 0


def test_a_box_has_its_pixels(picture):
    expected = np.zeros(SIZE[::-1], bool)
    expected[1:3, 2:6] = True
    np.testing.assert_array_equal(hole(read_mask("box=2,1,6,3", picture, KEY)), expected)


def test_what_is_transparent_is_inpainted(picture):
    alpha = Image.new("L", SIZE, 255)
    alpha.putpixel((3, 2), 0)
    picture.putalpha(alpha)
    assert np.argwhere(hole(read_mask("alpha", picture, KEY))).tolist() == [[2, 3]]


def test_what_was_painted_over_is_inpainted(picture, tmp_path: Path):
    copy = picture.copy()
    copy.paste((255, 0, 255), (1, 1, 3, 2))
    copy.save(tmp_path / "copy.png")
    mask = read_mask(f"painted={tmp_path / 'copy.png'}", picture, KEY)
    assert np.argwhere(hole(mask)).tolist() == [[1, 1], [1, 2]]


def test_a_file_is_taken_as_it_is_and_inverted_on_request(picture, tmp_path: Path):
    path = str(tmp_path / "mask.png")
    mask = Image.new("L", SIZE, 255)
    mask.putpixel((0, 0), 0)
    mask.save(path)
    assert np.argwhere(hole(read_mask(path, picture, KEY))).tolist() == [[0, 0]]
    np.testing.assert_array_equal(
        hole(read_mask(path, picture, KEY, invert=True)), ~hole(read_mask(path, picture, KEY))
    )


@pytest.mark.parametrize("name", masks.NAMES)
def test_the_paper_s_masks_go_by_their_names(picture, name: str):
    make = getattr(masks, name)
    expected = make(4, 6, KEY) if name in ("wide", "narrow") else make(4, 6)
    np.testing.assert_array_equal(hole(read_mask(name, picture, KEY)), np.asarray(expected)[..., 0] == 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("alpha", "mask is alpha, but the picture, of mode RGB, has no transparency"),
        ("box", "box does not exist, expected a picture, alpha, box=LEFT,TOP,RIGHT,BOTTOM"),
        ("box=1,2,3", "mask is box=1,2,3, expected box=LEFT,TOP,RIGHT,BOTTOM in pixels"),
        ("box=0,0,7,4", r"box is 0,0,7,4, expected left < right .* within the picture's 6 x 4 pixels"),
        ("box=3,0,3,4", "box is 3,0,3,4, expected left < right"),
        ("painted=same.png", "the painted picture is the picture itself"),
        ("painted=small.png", r"the painted picture is of size \(1, 1\), expected the picture's \(6, 4\)"),
        ("painted=nowhere.png", "nowhere.png does not exist"),
        ("halves", "halves does not exist"),
        ("erased.png", "mask has transparent pixels, expected black and white ones"),
        (
            "white.png",
            "mask is white.png, which keeps every pixel, expected a mask with pixels to inpaint",
        ),
    ],
)
def test_what_is_no_mask_is_refused(picture, tmp_path: Path, monkeypatch, words: str, message: str):
    monkeypatch.chdir(tmp_path)
    picture.save("same.png")
    Image.new("L", (1, 1)).save("small.png")
    Image.new("L", (6, 4), 255).save("white.png")
    Image.new("LA", (6, 4), (255, 0)).save("erased.png")
    with pytest.raises(ValueError, match=message):
        read_mask(words, picture, KEY)


def test_names_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match="mask name is 'halves', expected one of half, expand"):
        masks.by_name("halves", 4, 6, KEY)
