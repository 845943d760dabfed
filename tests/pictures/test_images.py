"""Between pictures of 8 bits and arrays in [-1, 1]."""

import re
import struct
import warnings
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from repaint_jax.pictures.images import (
    array_to_pil,
    array_to_uint8,
    image_to_array,
    mask_to_array,
    open_image,
    resize_together,
)

GREY, COLOUR = (2, 3, 1), (2, 3, 3)
BYTES = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)


def shaped(values, dtype=np.float32) -> np.ndarray:
    """An array [2, 3, 1] that holds the values given, and zeros."""
    array = np.zeros(6, dtype)
    array[: len(values)] = values
    return array.reshape(GREY)


# Images


def test_bytes_become_values_from_minus_one_to_one_and_come_back_exactly():
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    array = image_to_array(every_byte, (16, 16, 1))
    assert array.dtype == np.float32
    assert (array.min(), array.max()) == (-1, 1)
    np.testing.assert_array_equal(array_to_uint8(array), every_byte)


def test_pictures_and_arrays_with_or_without_channel_axis_are_the_same_image():
    expected = (BYTES.astype(np.float32) / 127.5 - 1)[..., None]
    for image in (Image.fromarray(BYTES), BYTES, BYTES[..., None], expected, expected[..., 0]):
        np.testing.assert_array_equal(image_to_array(image, GREY), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_pictures_are_converted_between_grey_and_colour(mode: str, shape):
    array = image_to_array(Image.new("L", (3, 2), 200).convert(mode), shape)
    np.testing.assert_array_equal(array, np.full(shape, 200 / 127.5 - 1, np.float32))


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_models_of_transparency_take_it(mode: str, channels: int):
    picture = Image.new("RGBA", (3, 2), (200, 200, 200, 50)).convert(mode)
    array = image_to_array(picture, (2, 3, channels))
    np.testing.assert_array_equal(np.asarray(array_to_pil(array)), np.asarray(picture))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_floating_arrays_are_taken_as_they_are(dtype):
    array = image_to_array(shaped([-1, 0, 0.5, 1], dtype), GREY)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, shaped([-1, 0, 0.5, 1]))


def test_image_in_is_not_changed_by_what_is_done_to_the_array():
    image = shaped([0.5])
    image_to_array(image, GREY)[:] = 1
    assert image[0, 0, 0] == 0.5


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (BYTES.T, "image has shape (3, 2, 1), expected the model's (2, 3, 1) (height, width, channels)"),
        (Image.new("L", (2, 3)), "image has shape (3, 2, 1), expected the model's (2, 3, 1)"),
        (np.zeros(COLOUR, np.uint8), "image has shape (2, 3, 3), expected the model's (2, 3, 1)"),
        (np.zeros((1, 2, 3, 1)), "image has shape (1, 2, 3, 1), expected the model's (2, 3, 1)"),
        (np.zeros((0, 3, 1)), "image has shape (0, 3, 1), expected"),
        (shaped([1], np.int64), "image has dtype int64, expected uint8 or a floating dtype"),
        (shaped([1], bool), "image has dtype bool, expected uint8 or a floating dtype"),
        (shaped([1], complex), "image has dtype complex128, expected uint8 or a floating dtype"),
        (shaped([1.01]), "image has values that are not in [-1, 1]"),
        (shaped([np.nan]), "image has values that are not in [-1, 1]"),
        (shaped([-np.inf]), "image has values that are not in [-1, 1]"),
        (Image.new("I;16", (3, 2)), "image has mode I;16, expected 8 bits per channel"),
        (Image.new("F", (3, 2)), "image has mode F, expected 8 bits per channel"),
    ],
)
def test_images_of_another_kind_are_refused(image, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        image_to_array(image, GREY)


@pytest.mark.parametrize("value", ["shoe.png", None, 0.5])
@pytest.mark.parametrize(("read", "name"), [(image_to_array, "image"), (mask_to_array, "mask")])
def test_what_is_no_picture_is_refused_as_such(read, name: str, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} is {value!r}, expected"):
        read(value, GREY)


# Masks


def test_white_and_one_and_true_keep_and_the_rest_is_inpainted():
    keep = np.array([[1, 0, 0], [0, 1, 1]], bool)
    for mask in (
        keep,
        keep[..., None],
        keep.astype(np.float32),
        keep.astype(jnp.bfloat16),
        keep.astype(np.float64)[..., None],
        255 * keep.astype(np.uint8),
        Image.fromarray(255 * keep.astype(np.uint8)),
        Image.fromarray(keep),
        Image.fromarray(255 * keep.astype(np.uint8)).convert("RGB"),
        Image.fromarray(255 * keep.astype(np.uint8)).convert("RGBA"),
    ):
        array = mask_to_array(mask, COLOUR)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, keep[..., None])


def test_masks_are_rounded_in_the_middle_of_their_range():
    np.testing.assert_array_equal(mask_to_array(BYTES, GREY)[..., 0], [[0, 0, 0], [1, 1, 1]])
    halves = shaped([0.0, 0.49, 0.5, 1.0])
    np.testing.assert_array_equal(mask_to_array(halves, GREY).ravel(), [0, 0, 1, 1, 0, 0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (BYTES.T, "mask has shape (3, 2, 1), expected (2, 3, 1) (height, width, 1)"),
        (Image.new("L", (2, 3)), "mask has shape (3, 2, 1), expected (2, 3, 1)"),
        (np.zeros(COLOUR, np.uint8), "mask has shape (2, 3, 3), expected (2, 3, 1)"),
        (shaped([1], np.int64), "mask has dtype int64, expected bool, uint8 or a floating dtype"),
        (shaped([1], np.uint8), "mask has dtype uint8 and no value above 1, expected 0 and 255"),
        (shaped([1.5]), "mask has values that are not in [0, 1]"),
        (shaped([-1]), "mask has values that are not in [0, 1]"),
        (shaped([np.nan]), "mask has values that are not in [0, 1]"),
        (Image.new("I;16", (3, 2)), "mask has mode I;16, expected 8 bits per channel"),
    ],
)
def test_masks_of_another_kind_are_refused(mask, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        mask_to_array(mask, COLOUR)


# Files and output


def test_pictures_out_are_clipped_and_have_the_channels_of_the_array():
    grey = array_to_pil(shaped([-2, -1, 0, 1, 2]))
    assert (grey.mode, grey.size) == ("L", (3, 2))
    assert np.asarray(grey).ravel().tolist() == [0, 0, 128, 255, 255, 128]
    assert array_to_pil(np.zeros(COLOUR)).mode == "RGB"


def test_images_and_masks_are_resized_to_the_height_and_width_of_the_model():
    images, masks = [Image.new("P", (40, 30))] * 2, [Image.new("1", (40, 30))]
    for shape, mode in ((GREY, "L"), (COLOUR, "RGB")):
        resized_images, resized_masks = resize_together(images, masks, shape)
        assert [(one.size, one.mode) for one in resized_images] == [((3, 2), mode)] * 2
        assert [(one.size, one.mode) for one in resized_masks] == [((3, 2), "L")]


@pytest.mark.parametrize("side", [280, 100, 33, 28, 20, 7])
def test_what_is_to_vanish_leaves_no_trace_in_known_pixels_of_any_size(side: int):
    pixels, keep = np.full((side, side), 100, np.uint8), np.full((side, side), 255, np.uint8)
    hole = slice(side // 3, side // 3 + max(1, side // 5))
    pixels[hole, hole], keep[hole, hole] = 255, 0
    ((image,), (mask,)) = resize_together([Image.fromarray(pixels)], [Image.fromarray(keep)], (28, 28, 1))
    known = np.asarray(mask) == 255
    assert np.isin(np.asarray(mask), [0, 255]).all()
    assert 0.5 < known.mean() < 1
    np.testing.assert_array_equal(np.asarray(image)[known], 100)


def test_no_hole_is_too_small_to_be_resized():
    keep = np.full((2800, 2800), 255, np.uint8)
    keep[1234, 567] = 0
    _, (mask,) = resize_together([Image.new("L", (2800, 2800))], [Image.fromarray(keep)], (28, 28, 1))
    assert (np.asarray(mask) == 0).any()


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (BYTES, Image.new("L", (3, 2)), "image is a ndarray, expected a PIL image to be resized"),
        (Image.new("L", (3, 2)), BYTES, "mask is a ndarray, expected a PIL image to be resized"),
        (
            Image.new("L", (4, 4)),
            Image.new("L", (4, 5)),
            "mask is of size (4, 5), expected (4, 4) as its image",
        ),
        (Image.new("F", (4, 4)), Image.new("L", (4, 4)), "image has mode F, expected 8 bits per channel"),
        (
            Image.new("L", (4, 4)),
            Image.new("I;16", (4, 4)),
            "mask has mode I;16, expected 8 bits per channel",
        ),
    ],
)
def test_pictures_that_cannot_be_resized_together_are_refused(image, mask, message: str):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        resize_together([image], [mask], GREY)


def test_written_picture_is_read_back(tmp_path: Path):
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), BYTES)


def test_a_turned_photograph_is_read_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: its left is up
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 4)


def test_files_that_are_no_pictures_are_refused_in_one_sentence(tmp_path: Path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(BYTES).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    for name, message in (
        ("missing.png", "does not exist"),
        ("text.png", "is not a picture that can be read"),
        ("empty.png", "is not a picture that can be read"),
        ("cut.png", "is not a picture that can be read"),
        (".", "is not a picture that can be read"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / name))} {message}"):
            open_image(tmp_path / name)


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG file of 2 x 2 pixels with 16 bits for each channel, which Pillow cannot write in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = 2 * (b"\0" + 2 * channels * b"\x80\xff")
    head = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_files_of_16_bits_are_refused_in_every_colour_type(tmp_path: Path, colour_type: int, channels: int):
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(colour_type, channels))
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits per channel, expected 8"):
        open_image(path)


def test_a_bitmap_of_16_bits_a_pixel_is_read(tmp_path: Path):
    head = struct.pack("<2sIHHI", b"BM", 54 + 8, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
    (tmp_path / "small.bmp").write_bytes(head + bytes(8))
    assert open_image(tmp_path / "small.bmp").mode == "RGB"


def test_masks_with_transparent_pixels_are_refused():
    erased = Image.new("RGBA", (3, 2), (255, 255, 255, 255))
    assert mask_to_array(erased, (2, 3, 1)).all()
    erased.putpixel((1, 1), (255, 255, 255, 0))
    with pytest.raises(ValueError, match="mask has transparent pixels, expected black and white ones"):
        mask_to_array(erased, (2, 3, 1))
    with pytest.raises(ValueError, match="mask has transparent pixels"):
        resize_together([erased], [erased], (2, 3, 1))


def test_16_bit_files_that_pillow_reduces_are_refused(tmp_path: Path):
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(12))
    (tmp_path / "plain.ppm").write_bytes(b"P3 1 1 1023\n0 512 1023\n")
    (tmp_path / "ten.ppm").write_bytes(b"P6 2 1 1023\n" + bytes(12))
    head = struct.pack(">hBBHHHH", 474, 0, 2, 3, 2, 2, 3)
    (tmp_path / "deep.sgi").write_bytes(head.ljust(512, b"\0") + bytes(2 * 2 * 2 * 3))
    for suffix, patches in (
        # the depth of the first component; high_bitdepth in av1C, and the depths in pixi
        (".jp2", {b"\xff\x4f\xff\x51": {42: 15}}),
        (".avif", {b"av1C": {6: 0x40}, b"pixi": {9: 10, 10: 10, 11: 10}}),
    ):
        if suffix in Image.registered_extensions():
            Image.new("RGB", (16, 16)).save(tmp_path / f"deep{suffix}")
            content = bytearray((tmp_path / f"deep{suffix}").read_bytes())
            for marker, values in patches.items():
                for offset, value in values.items():
                    content[content.index(marker) + offset] = value
            (tmp_path / f"deep{suffix}").write_bytes(content)
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=rf"{path.name} has more than 8 bits per channel, expected 8"):
            open_image(path)


def test_8_bit_files_of_these_formats_are_read(tmp_path: Path):
    for suffix in {".ppm", ".sgi", ".jp2", ".avif"} & set(Image.registered_extensions()):
        Image.new("RGB", (16, 16), "white").save(tmp_path / f"a{suffix}")
        assert np.asarray(open_image(tmp_path / f"a{suffix}")).min() > 250
    (tmp_path / "plain.ppm").write_bytes(b"P3 1 1 15\n0 7 15\n")
    assert open_image(tmp_path / "plain.ppm").getpixel((0, 0)) == (0, 119, 255)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_of_an_animation_is_taken_with_a_word_and_the_file_is_closed(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "white")]
    path = tmp_path / f"moving{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with pytest.warns(UserWarning, match=rf"moving\{suffix} has 3 frames or pages, of which the first"):
            image = open_image(path)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_the_second_view_of_a_phone_s_picture_is_passed_over_in_silence(tmp_path: Path):
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (8, 8)).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (8, 8)


def test_damaged_exif_data_are_passed_over(tmp_path: Path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    assert open_image(tmp_path / "a.png").size == (4, 2)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"a\.png is a pointer of Git LFS"):
        open_image(tmp_path / "a.png")


# What may stand under the hole, and ranges


def test_anything_may_stand_under_the_hole():
    image, mask = shaped([0.5, np.nan, np.inf, -np.inf, 7, 1e300], np.float64), shaped([1])
    np.testing.assert_array_equal(image_to_array(image, GREY, mask=mask), shaped([0.5]))
    with pytest.raises(
        ValueError, match=re.escape("image has values that are not in [-1, 1]: nan in row 0")
    ):
        image_to_array(image, GREY, mask=shaped([1, 1]))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-0.5, 0.5), (0.0, np.float32(1))])
def test_floating_arrays_may_have_another_range(low, high):
    values = np.linspace(low, high, 6).reshape(GREY)
    for dtype in (np.float32, np.float64):
        array = image_to_array(values.astype(dtype), GREY, input_range=(low, high))
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, np.linspace(-1, 1, 6).reshape(GREY), atol=1e-6)
        assert (array.min(), array.max()) == (-1, 1)
    with pytest.raises(ValueError, match=r"image has values that are not in \[.*\]: .* in row 1, column 2"):
        image_to_array(shaped([0, 0, 0, 0, 0, 300]), GREY, input_range=(low, high))


@pytest.mark.parametrize("input_range", [(1, 0), (0, 0), (0, 1, 2), (0, np.inf), (np.nan, 1), None, "01"])
def test_what_is_no_range_is_refused(input_range):
    with pytest.raises((TypeError, ValueError), match=r"input_range is .*, expected"):
        image_to_array(shaped([0]), GREY, input_range=input_range)
