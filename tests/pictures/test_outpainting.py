"""Larger canvases, against NumPy's padding and the pixels that Pillow shows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

import repaint_jax as rp

MARGINS = (2, 1, 3, 4)  # left, top, right, bottom
ROWS_AND_COLUMNS = ((1, 4), (2, 3))
RNG = np.random.default_rng(0)
RGBA = Image.fromarray(RNG.integers(0, 256, (4, 5, 4), np.uint8))
KNOWN = np.pad(np.full((4, 5), 255, np.uint8), ROWS_AND_COLUMNS)


def padded(array: np.ndarray) -> np.ndarray:
    return np.pad(array, (*ROWS_AND_COLUMNS, *[(0, 0)] * (array.ndim - 2)), mode="edge")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"])
def test_an_opaque_picture_keeps_its_mode_and_its_pixels_and_continues_its_edge(mode: str):
    if mode == "I;16":
        picture = Image.fromarray(RNG.integers(0, 2**16, (4, 5)).astype(np.uint16))
    else:
        picture = Image.frombytes("LAB", (5, 4), RNG.bytes(60)) if mode == "LAB" else RGBA.convert(mode)
    larger, mask = rp.outpaint(picture, *MARGINS)
    assert (larger.mode, mask.mode) == (mode, "L")
    np.testing.assert_array_equal(np.asarray(larger), padded(np.asarray(picture)))
    np.testing.assert_array_equal(np.asarray(mask), KNOWN)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_a_transparent_picture_keeps_its_alpha_channel_and_what_is_new_is_opaque(mode: str):
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    picture = RGBA.convert(straight).convert(mode)
    larger, mask = rp.outpaint(picture, *MARGINS)
    assert larger.mode == straight
    expected = padded(np.asarray(picture.convert(straight)))
    expected[..., -1][KNOWN == 0] = 255
    np.testing.assert_array_equal(np.asarray(larger), expected)
    np.testing.assert_array_equal(np.asarray(mask), KNOWN)


def test_a_palette_stays_unless_it_is_transparent():
    palette = RGBA.convert("RGB").quantize(7)
    larger, _ = rp.outpaint(palette, *MARGINS)
    assert larger.mode == "P" and larger.getpalette() == palette.getpalette()
    np.testing.assert_array_equal(
        np.asarray(larger.convert("RGB")), padded(np.asarray(palette.convert("RGB")))
    )
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    larger, _ = rp.outpaint(palette, *MARGINS)
    assert larger.mode == "RGBA"
    alpha = np.asarray(larger)[..., 3]
    assert alpha[0, 0] == 255 and alpha[1, 2] == 0


def test_a_turned_picture_is_enlarged_as_viewers_show_it_and_keeps_its_profile():
    picture = Image.fromarray(RNG.integers(0, 256, (3, 5), np.uint8))
    turned = picture.rotate(90, expand=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.info.update(exif=exif.tobytes(), icc_profile=b"profile")
    larger, _ = rp.outpaint(turned, 1, 0, 0, 0)
    assert larger.size == (6, 3) and larger.info["icc_profile"] == b"profile"
    np.testing.assert_array_equal(np.asarray(larger)[:, 1:], np.asarray(picture))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (2, 4, 5, 3), (1, 1), (1, 7, 1)])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_arrays_grow_with_masks_of_their_rank(shape, kind):
    image = kind(RNG.uniform(-1, 1, shape).astype(np.float32))
    larger, mask = rp.outpaint(image, *MARGINS)
    batch = (slice(None),) if len(shape) == 4 else ()
    height, width = shape[-3:-1] if len(shape) > 2 else shape
    inside = (*batch, slice(1, 1 + height), slice(2, 2 + width))
    assert type(larger) is type(image) and isinstance(mask, type(image))
    assert larger.dtype == mask.dtype == np.float32 and mask.ndim == image.ndim
    assert larger.shape[len(batch) : len(batch) + 2] == (height + 5, width + 5)
    np.testing.assert_array_equal(larger[inside], image)
    assert float(mask[inside].min()) == 1 and mask.sum() == height * width
    assert np.isfinite(larger).all()


def test_its_results_go_into_inpaint_and_through_jit():
    image = jnp.full((2, 4, 5, 3), 0.5)
    larger, mask = jax.jit(lambda image: rp.outpaint(image, *MARGINS))(image)
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    filled = rp.inpaint(state, lambda _, x, t: 0 * x, None, larger, mask, jax.random.key(0))
    np.testing.assert_array_equal(filled[:, 1:5, 2:7], image)


@pytest.mark.parametrize(
    ("image", "margins", "error", "message"),
    [
        (RGBA, (-1, 0, 0, 2), ValueError, "left is -1, expected an integer of at least 0"),
        (RGBA, (1, 2.0, 0, 2), TypeError, "top is 2.0, expected an integer"),
        (RGBA, (1, 0, True, 2), TypeError, "right is True, expected an integer"),
        (RGBA, (0, 0, 0, "9"), TypeError, "bottom is '9', expected an integer"),
        (
            RGBA,
            (0, 0, 0, 0),
            ValueError,
            "left, top, right, bottom are 0, expected at least one of them above 0",
        ),
        (
            RGBA,
            (10**9, 0, 0, 0),
            ValueError,
            "outpaint makes a picture of 1000000005 x 4 pixels, expected at most "
            f"{Image.MAX_IMAGE_PIXELS} pixels",
        ),
        (
            np.ones((4, 5)),
            (0, 10**9, 0, 0),
            ValueError,
            "outpaint makes a picture of 5 x 1000000004 pixels",
        ),
        (np.ones((0, 5, 3)), MARGINS, ValueError, "image is of 5 x 0 pixels, expected at least one pixel"),
        (np.ones(4), MARGINS, TypeError, "image has shape (4,), expected a PIL image, or an array [H, W]"),
        ("a.png", MARGINS, TypeError, "image is a str, expected a PIL image, or an array [H, W]"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(image, margins, error, message: str):
    with pytest.raises(error, match=re.escape(message)):
        rp.outpaint(image, *margins)
