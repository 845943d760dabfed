"""Transparency, colour profiles and EXIF orientation: what a picture looks like is what the model gets."""

import icc_profiles as profiles
import numpy as np
import pytest
from PIL import ExifTags, Image

from repaint_jax.pictures.colours import alpha_channel, in_mode, rgb, upright
from repaint_jax.pictures.images import image_to_array, mask_to_array, resize_together


def pixel(mode: str, colour, profile: bytes | None = None) -> Image.Image:
    picture = Image.new(mode, (1, 1), colour)
    if profile is not None:
        picture.info["icc_profile"] = profile
    return picture


def seen(picture: Image.Image, mode: str, background="white"):
    """The pixel of a picture in another mode, and its profile there."""
    converted = in_mode("image", picture, mode, background)
    assert converted.mode == mode
    return converted.getpixel((0, 0)), converted.info.get("icc_profile")


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "PA", "P"])
def test_hidden_colours_are_not_seen(mode: str):
    hidden = pixel("RGBA", (0, 0, 0, 0)).convert(mode)
    assert hidden.has_transparency_data
    assert seen(hidden, "RGB") == ((255, 255, 255), None)
    assert seen(hidden, "L") == (255, None)
    assert seen(hidden, "RGB", "#0080ff") == ((0, 128, 255), None)


def test_partial_transparency_is_a_mixture():
    assert seen(pixel("RGBA", (255, 0, 0, 51)), "RGB")[0] == (255, 204, 204)
    assert seen(pixel("LA", (0, 51)), "L")[0] == 204
    assert seen(pixel("LA", (0, 51)).convert("La"), "L")[0] == 204
    assert seen(pixel("LA", (0, 51)), "L", background=100)[0] == 80
    assert seen(pixel("LA", (0, 51)), "RGB", background=(100, 0, 200))[0] == (80, 0, 160)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_transparent_colour_of_a_png_or_gif_is_transparent(mode: str):
    picture = Image.new("L", (1, 1)).convert(mode)
    picture.info["transparency"] = (0, 0, 0) if mode == "RGB" else picture.getpixel((0, 0))
    assert seen(picture, "L") == (255, None)


def test_models_of_an_alpha_channel_get_it():
    assert seen(pixel("RGBA", (200, 100, 50, 7)), "RGBA")[0] == (200, 100, 50, 7)
    assert seen(pixel("LA", (200, 7)), "RGBA")[0] == (200, 200, 200, 7)
    assert seen(pixel("RGB", (9, 9, 9)), "LA")[0] == (9, 255)


def test_the_alpha_channel_is_found():
    assert alpha_channel(pixel("RGB", 0)) is None
    for picture in (pixel("RGBA", (1, 2, 3, 77)), pixel("LA", (1, 77)), pixel("LA", (1, 77)).convert("La")):
        assert alpha_channel(picture).getpixel((0, 0)) == 77


@pytest.mark.parametrize(
    "background", ["nothing", "rgba(0, 0, 0, 9)", (1, 2), (1, 2, 256), 1.5, -1, None, ""]
)
def test_what_is_no_opaque_colour_is_refused(background):
    with pytest.raises(ValueError, match=r"background is .*, expected an opaque colour such as 'white'"):
        rgb(background)


def test_colours_may_be_names_codes_and_levels():
    expected = {"gray": 128, "#f00": (255, 0, 0), np.uint8(7): 7, (1, np.int64(2), 3): (1, 2, 3)}
    for background, levels in expected.items():
        assert rgb(background) == (levels if isinstance(levels, tuple) else (levels,) * 3)
    assert rgb([1, 2, 3]) == rgb(np.array([1, 2, 3])) == (1, 2, 3)


# Colour profiles


@pytest.mark.parametrize(
    ("picture", "mode", "expected"),
    [
        # A third of the lightness is gone: L* = 66.7 has the luminance 0.362, which sRGB writes as 162.
        (pixel("CMYK", (255, 0, 0, 0), profiles.CMYK), "RGB", (162, 162, 162)),
        (pixel("CMYK", (255, 0, 0, 0), profiles.CMYK), "L", 162),
        (pixel("CMYK", (255, 0, 0, 0)), "RGB", (0, 255, 255)),
        (pixel("CMYK", (255, 0, 0, 0), b"no profile"), "RGB", (0, 255, 255)),
        (pixel("CMYK", (255, 0, 0, 0), profiles.SRGB), "RGB", (0, 255, 255)),
        # L* = 50.2 has the luminance 0.186, which sRGB writes as 119.
        (pixel("LAB", (128, 128, 128), profiles.LAB), "RGB", (119, 119, 119)),
        (pixel("LAB", (128, 128, 128)), "RGB", (119, 119, 119)),
        (pixel("LAB", (128, 128, 128)), "L", 119),
        # The luminance 0.502 is 188 in sRGB.
        (pixel("L", 128, profiles.LINEAR_GREY), "RGB", (188, 188, 188)),
        (pixel("RGB", (255, 0, 0), profiles.SRGB), "L", 76),
        (pixel("RGB", (255, 0, 0), profiles.LINEAR_GREY), "L", 76),
    ],
)
def test_colours_of_another_kind_are_converted_through_the_profile_which_is_dropped(
    picture, mode: str, expected
):
    assert seen(picture, mode) == (expected, None)


@pytest.mark.parametrize("alpha", [False, True])
def test_a_profile_of_the_same_kind_stays_with_the_values_as_they_are(alpha: bool):
    for picture, mode, profile in (
        (pixel("RGB", (200, 100, 50)), "RGB", profiles.SRGB),
        (pixel("P", 0), "RGB", profiles.SRGB),
        (pixel("YCbCr", (9, 128, 128)), "RGB", profiles.SRGB),
        (pixel("L", 128), "L", profiles.LINEAR_GREY),
        (pixel("1", 1), "L", profiles.LINEAR_GREY),
    ):
        expected = picture.convert(mode).getpixel((0, 0))
        if alpha:
            picture = picture.convert(mode)
            picture.putalpha(255)
        picture.info["icc_profile"] = profile
        assert seen(picture, mode) == (expected, profile)


def test_alpha_survives_the_conversion_through_a_profile():
    picture = pixel("LA", (128, 77), profiles.LINEAR_GREY)
    assert seen(picture, "RGBA") == ((188, 188, 188, 77), None)


@pytest.mark.parametrize("profile", [b"", b"no profile", profiles.SRGB[:200], profiles.CMYK])
def test_a_profile_that_is_damaged_or_of_other_colours_is_dropped(profile: bytes):
    assert seen(pixel("RGB", (1, 2, 3), profile), "RGB") == ((1, 2, 3), None)


def test_lab_is_read_by_all_that_reads_pictures():
    picture, mask = Image.new("LAB", (2, 2), (128, 128, 128)), Image.new("LAB", (2, 2), (255, 128, 128))
    np.testing.assert_allclose(image_to_array(picture, (2, 2, 3)), 119 / 127.5 - 1, atol=1e-6)
    assert mask_to_array(mask, (2, 2, 3)).all()
    ((resized,), _) = resize_together([picture], [mask], (1, 1, 1))
    assert resized.getpixel((0, 0)) == 119


# EXIF


def turned() -> Image.Image:
    """A picture of two columns, of which the EXIF data say that the left is up."""
    picture = Image.fromarray(np.array([[0, 255]] * 3, np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.info["exif"] = exif.tobytes()
    return picture


def test_pictures_and_masks_are_turned_upright_wherever_they_come_in():
    expected = np.array([[0] * 3, [255] * 3], np.uint8)
    np.testing.assert_array_equal(np.asarray(upright(turned())), expected)
    np.testing.assert_array_equal(np.asarray(in_mode("image", turned(), "L")), expected)
    np.testing.assert_array_equal(image_to_array(turned(), (2, 3, 1))[..., 0], expected / 127.5 - 1)
    np.testing.assert_array_equal(mask_to_array(turned(), (2, 3, 1))[..., 0], expected == 255)
    (image,), (mask,) = resize_together([turned()], [turned()], (2, 3, 1))
    np.testing.assert_array_equal(np.asarray(image), expected)
    np.testing.assert_array_equal(np.asarray(mask), expected)


def test_a_picture_is_turned_once():
    once = in_mode("image", turned(), "RGB")
    assert in_mode("image", once, "L").size == once.size == (3, 2)
