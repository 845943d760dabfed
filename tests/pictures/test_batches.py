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


def test_a_hole_grows_before_its_pixels_stop_to_matter():
    image = np.full((6, 6, 3), -0.5)
    image[2, 2] = np.nan
    mask = np.ones((6, 6, 1))
    mask[3, 3] = 0
    with pytest.raises(ValueError, match=r"nan in row 2, column 2"):
        make_batch(image, mask, image.shape)
    batch = make_batch(image, mask, image.shape, grow_mask=1)
    assert np.argwhere(batch.masks[0, ..., 0] == 0).tolist() == [
        [row, column] for row in (2, 3, 4) for column in (2, 3, 4)
    ]
    assert batch.fades == [None]
    with pytest.raises(ValueError, match=r"nan in row 2, column 2"):
        make_batch(image, mask, image.shape, feather=1)


def test_the_rim_that_fades_lies_around_the_grown_hole_and_keeps_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 3), np.uint8)
    mask = np.ones((1, 9))
    mask[0, 2] = 0
    batch = make_batch(image, mask, image.shape, grow_mask=1, feather=3)
    np.testing.assert_allclose(batch.fades[0][0, :, 0], [0.25, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_array_equal(batch.masks[0, 0, :, 0], [0] * 7 + [1] * 2)
    np.testing.assert_allclose(batch.images[0], image / 127.5 - 1, atol=1e-6)


def test_a_hole_that_shrinks_to_nothing_is_refused_and_a_mask_without_one_is_not():
    image, hole = np.zeros((5, 5, 3), np.uint8), np.ones((5, 5))
    hole[2, :4] = 0  # a line that is one pixel wide
    with pytest.raises(ValueError, match="grow_mask is -1, which leaves nothing of the hole"):
        make_batch(image, hole, image.shape, grow_mask=-1)
    hole[:, 4] = 0
    hole[1:4, :4] = 0
    smaller = make_batch(image, hole, image.shape, grow_mask=-1).masks[0, ..., 0]
    assert np.argwhere(smaller == 0).tolist() == [[2, 0], [2, 1], [2, 2], [2, 3], [2, 4]]
    for value in (0, 1):
        whole = make_batch(image, np.full((5, 5), float(value)), image.shape, grow_mask=-2, feather=2)
        np.testing.assert_array_equal(whole.masks, value)
        np.testing.assert_array_equal(whole.fades, np.full((1, 5, 5, 1), value))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grow_mask": 1.5}, TypeError, r"grow_mask is 1\.5, expected an integer"),
        ({"feather": 1.5}, TypeError, r"feather is 1\.5, expected an integer"),
        ({"feather": -1}, ValueError, "feather is -1, expected an integer of at least 0"),
    ],
)
def test_numbers_of_pixels_that_are_none_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make_batch(np.zeros(SHAPE, np.uint8), KEEP, SHAPE, **options)
