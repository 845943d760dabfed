"""What a pipeline takes, as arrays, and its results with the look of their pictures."""

import warnings

import icc_profiles as profiles
import numpy as np
import pytest
from PIL import Image

from repaint_jax.pictures.batches import as_output, check_output_type, make_batch

SHAPE = (2, 2, 3)
KEEP = np.array([[True, False], [True, True]])


def opaque_and_clear() -> Image.Image:
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 255))
    picture.putpixel((1, 1), (0, 0, 0, 0))
    return picture


def test_one_background_for_a_whole_batch():
    pictures = [opaque_and_clear(), Image.new("RGB", (2, 2), (10, 20, 30))]
    images, masks, *_ = make_batch(pictures, KEEP, SHAPE)
    np.testing.assert_array_equal(images[0, 1, 1], [1, 1, 1])
    np.testing.assert_array_equal(images[0, 0], images[1, 0])
    assert masks.shape == (2, 2, 2, 1)
    mask = Image.fromarray(KEEP)
    images, *_ = make_batch(pictures, mask, SHAPE, background="black", resize=True)
    np.testing.assert_array_equal(images[0, 1, 1], [-1, -1, -1])
    with pytest.raises(ValueError, match="background is 'clear', expected an opaque colour"):
        make_batch(np.zeros(SHAPE, np.uint8), KEEP, SHAPE, background="clear")


def test_results_take_over_profile_and_alpha_of_their_own_picture():
    pictures = [opaque_and_clear(), Image.new("RGB", (2, 2))]
    pictures[1].info["icc_profile"] = profiles.SRGB
    looks = make_batch(pictures, KEEP, SHAPE, keep_alpha=True).looks
    results = np.zeros((3, 4, *SHAPE), np.float32)  # three calls, two samples of each picture
    for call in as_output(results, "pil", looks):
        assert [one.mode for one in call] == ["RGBA", "RGBA", "RGB", "RGB"]
        assert [one.info.get("icc_profile") for one in call] == [None, None, profiles.SRGB, profiles.SRGB]
        np.testing.assert_array_equal(np.asarray(call[1])[..., 3], [[255, 255], [255, 0]])
    assert all(look.alpha is None for look in make_batch(pictures, KEEP, SHAPE).looks)


def test_alpha_is_resized_with_its_picture():
    picture = opaque_and_clear().resize((8, 8), Image.Resampling.NEAREST)
    (look,) = make_batch(picture, Image.new("L", (8, 8)), SHAPE, resize=True, keep_alpha=True).looks
    np.testing.assert_allclose(np.asarray(look.alpha), [[255, 255], [255, 0]], atol=30)


def test_alpha_belongs_to_pil_results():
    check_output_type("pil", SHAPE, keep_alpha=True)
    with pytest.raises(
        ValueError, match="output_type is 'np', expected 'pil' together with keep_alpha=True"
    ):
        check_output_type("np", SHAPE, keep_alpha=True)


BRIGHT = np.full(SHAPE, 0.5, np.float32)


@pytest.mark.parametrize("image", [BRIGHT, [BRIGHT, BRIGHT], np.stack([BRIGHT, np.zeros(SHAPE)])])
def test_floating_images_without_a_negative_value_are_told_of(image):
    with pytest.warns(
        UserWarning, match=r"image has no value below 0, .* give input_range=\(0, 1\)"
    ) as told:
        make_batch(image, KEEP, SHAPE)
    assert [one.filename for one in told] == [__file__], "the caller's line"


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        (BRIGHT, KEEP, {"input_range": (-1, 1)}),
        (BRIGHT, KEEP, {"input_range": (0, 1)}),
        (BRIGHT, np.zeros((2, 2)), {}),
        ([BRIGHT, -BRIGHT], KEEP, {}),
        (np.full(SHAPE, 200, np.uint8), KEEP, {}),
        (Image.new("RGB", (2, 2), "white"), KEEP, {}),
    ],
)
def test_other_images_are_not(image, mask, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_batch(image, mask, SHAPE, **options)


def test_what_is_under_the_hole_says_nothing_about_the_range():
    image = np.where(KEEP[..., None], BRIGHT, -1)
    with pytest.warns(UserWarning, match="image has no value below 0"):
        make_batch(image, KEEP, SHAPE)


def test_each_image_has_the_hole_of_its_own_mask():
    images = np.full((2, *SHAPE), -0.5)
    images[0, 0, 1], images[1, 1, 0] = np.nan, np.inf
    other = np.array([[True, True], [False, True]])
    batch = make_batch(images, [KEEP, other], SHAPE)
    assert np.isfinite(batch.images).all()
    with pytest.raises(ValueError, match=r"not in \[-1, 1\]: inf in row 1, column 0"):
        make_batch(images, KEEP, SHAPE)
