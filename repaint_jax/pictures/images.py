"""Read and write pictures with 8 bits per channel, and convert them to and from arrays in [-1, 1]."""

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from repaint_jax.files import StrPath, check_not_lfs_pointer, warn, whole_file
from repaint_jax.pictures.colours import (
    DEFAULT_BACKGROUND,
    Colour,
    alpha_channel,
    in_mode,
    is_deep,
    upright,
)

Range = tuple[float, float]

MODEL_RANGE = (-1.0, 1.0)

_SINGLE_PICTURES = ("MPO", "PSD")  # formats whose further frames are views or layers of the picture
_HEADER_BYTES = 2**20
_LONG_TEXTS = (
    "Decompressed data too large",
    "Decompressed Data Too Large",
    "Too much memory used in text chunks",
)
_LONGEST_TEXTS = 2**28  # bytes
_TEXT_LIMITS = Lock()
_PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pil_mode(image_shape: tuple[int, int, int]) -> str:
    """Return the PIL mode of images of this shape, or raise ValueError if no mode has its channels."""
    channels = image_shape[-1]
    if channels not in _PIL_MODES:
        raise ValueError(f"PIL images have 1 to 4 channels, the model's have {channels}: use arrays")
    return _PIL_MODES[channels]


def open_image(path: StrPath) -> Image.Image:
    """Read a picture with 8 bits per channel, upright. It has the colours and transparency of the file.

    A UserWarning says so if the file has several frames or pages: the first one is read.

    Raises:
        ValueError: if the file cannot be read, or has more bits. The message is one sentence.
    """
    path = os.fspath(path)
    try:
        try:
            image, deep, frames = _read(path)
        except ValueError as error:
            if not any(words in str(error) for words in _LONG_TEXTS):
                raise
            with _texts_of_any_length():
                image, deep, frames = _read(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        check_not_lfs_pointer(Path(path))
        raise ValueError(f"{path} is not a picture that can be read") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None
    if deep or is_deep(image):
        raise ValueError(f"{path} has more than 8 bits per channel, expected 8")
    if frames > 1:
        warn(f"{path} has {frames} frames or pages, of which the first is used")
    return image


def _read(path: str) -> tuple[Image.Image, bool, int]:
    """Return an upright picture, whether it has more than 8 bits per channel, and how many frames."""
    with Image.open(path) as file:
        deep = _file_is_deep(file, path)
        frames = 1 if file.format in _SINGLE_PICTURES else getattr(file, "n_frames", 1)
        return upright(file), deep, frames


@contextmanager
def _texts_of_any_length() -> Iterator[None]:
    """Let Pillow read PNG files with long texts, such as the workflows that ComfyUI saves in them."""
    with _TEXT_LIMITS:  # they are global in Pillow
        before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _LONGEST_TEXTS
        try:
            yield
        finally:
            PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _file_is_deep(file: ImageFile.ImageFile, path: str) -> bool:
    """Whether Pillow would reduce the file's channels to 8 bits."""
    for tile in file.tile:
        codec, parameters = tile[0], cast(Any, tile[-1])
        if re.search(r"\w;16[BLN]", str(parameters)) or codec == "SGI16":
            return True
        if codec in ("ppm", "ppm_plain") and parameters[-1] > 255:  # the largest value
            return True
    if file.format not in ("AVIF", "JPEG2000"):
        return False
    with open(path, "rb") as raw:
        header = raw.read(_HEADER_BYTES)
    if file.format == "AVIF":
        bit_depths = re.search(rb"av1C..(.)", header, re.S)  # AV1-ISOBMFF, section 2.3.3
        return bit_depths is not None and bool(bit_depths[1][0] & 0x40)
    component = re.search(rb"\xff\x4f\xff\x51.{38}(.)", header, re.S)  # ISO 15444-1, section A.5.1
    return component is not None and component[1][0] & 0x7F > 7


def image_to_array(
    image: Any,
    image_shape: tuple[int, int, int],
    *,
    mask: NDArray[np.floating] | None = None,
    background: Colour = DEFAULT_BACKGROUND,
    input_range: Range = MODEL_RANGE,
) -> NDArray[np.float32]:
    """Convert a picture to an array [H, W, C] in [-1, 1].

    Args:
        image: a PIL image with 8 bits per channel, which is turned upright and converted between grey and
            colour, see `colours.in_mode`; a uint8 array, 0..255; or a floating array in `input_range`.
            Arrays are [H, W] or [H, W, C].
        image_shape: the expected shape [H, W, C].
        mask: the picture's mask, [H, W, 1]. Where it is 0, a floating array may hold anything, also NaN,
            and becomes 0. None means that all values matter.
        background: the colour behind the transparent pixels of a PIL image, see `colours.rgb`.
        input_range: the values of black and white in floating arrays.

    Raises:
        TypeError: if image is neither a PIL image nor an array of numbers.
        ValueError: if the size or the number of channels differs, or values are outside the range.
    """
    return in_model_range(image_pixels(image, image_shape, background), mask, input_range)


def image_pixels(
    image: Any, image_shape: tuple[int, int, int], background: Colour = DEFAULT_BACKGROUND
) -> NDArray[Any]:
    """Return the uint8 or floating pixels [H, W, C] of a picture as in `image_to_array`."""
    given_as_picture = isinstance(image, Image.Image)
    if given_as_picture:
        image = in_mode("image", image, pil_mode(image_shape), background)
    array = as_array("image", image)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape != image_shape:
        raise ValueError(
            f"image has shape {array.shape}, expected the model's {image_shape} (height, width, channels)"
            + ("; fit='crop' (--fit crop) takes any size" if given_as_picture else "")
        )
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"image has dtype {array.dtype}, expected uint8 or a floating dtype")
    return array


def in_model_range(
    pixels: NDArray[Any], mask: NDArray[np.floating] | None, input_range: Range, *, noisy: bool = False
) -> NDArray[np.float32]:
    """Convert pixels to [-1, 1], see `image_to_array`. Noisy ones may lie outside `input_range`."""
    if pixels.dtype == np.uint8:
        return uint8_to_array(pixels)
    low, high = checked_range(input_range)
    matters = np.ones(pixels.shape, bool) if mask is None else np.broadcast_to(mask > 0, pixels.shape)
    inside = np.isfinite(pixels) if noisy else (pixels >= low) & (pixels <= high)
    wrong = matters & ~inside  # true for NaN too
    if wrong.any():
        row, column, channel = np.argwhere(wrong)[0]
        allowed = "finite" if noisy else f"in [{low:g}, {high:g}]"
        raise ValueError(
            f"image has values that are not {allowed}: {pixels[row, column, channel]} in row {row}, column "
            f"{column}"
        )
    array = np.where(matters, pixels, low)
    if (low, high) != MODEL_RANGE:
        array = (array.astype(np.float64) - low) * (2 / (high - low)) - 1
        array = array if noisy else np.clip(array, -1, 1)
    return np.where(matters, array, 0).astype(np.float32)


def checked_range(input_range: Any) -> Range:
    """Return a range as two floats, or raise ValueError if it is not two finite, rising numbers."""
    values = as_array("input_range", input_range)
    if values.shape != (2,) or not -math.inf < values[0] < values[1] < math.inf:
        raise ValueError(
            f"input_range is {input_range!r}, expected the values of black and white, such as (0, 1)"
        )
    return float(values[0]), float(values[1])


def mask_to_array(
    mask: Any, image_shape: tuple[int, int, int], *, soft: bool = False
) -> NDArray[np.float32]:
    """Convert a mask to an array [H, W, 1] of zeros (inpaint) and ones (keep).

    Args:
        mask: a PIL image without transparent pixels, in which white keeps and black inpaints, and which is
            turned upright; or an array of shape [H, W] or [H, W, 1], bool, uint8 0..255 or floating in
            [0, 1]. Values are rounded at the middle of their range.
        image_shape: the shape [H, W, C] of the mask's image.
        soft: whether to keep values between 0 and 1 instead.

    Raises:
        TypeError: if mask is neither a PIL image nor an array of numbers.
        ValueError: if the size differs, values are outside the range, or pixels are transparent.
    """
    if isinstance(mask, Image.Image):
        mask = grey_mask(mask)
    array = as_array("mask", mask)
    if array.ndim == 2:
        array = array[..., None]
    expected = (*image_shape[:2], 1)
    if array.shape != expected:
        raise ValueError(f"mask has shape {array.shape}, expected {expected} (height, width, 1)")
    if array.dtype == np.uint8 and array.max(initial=0) == 1:
        raise ValueError("mask has dtype uint8 and no value above 1, expected 0 and 255, or dtype bool")
    if array.dtype == np.uint8:
        return (array / 255 if soft else array >= 128).astype(np.float32)
    if array.dtype != bool and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"mask has dtype {array.dtype}, expected bool, uint8 or a floating dtype")
    if not np.all((array >= 0) & (array <= 1)):
        raise ValueError("mask has values that are not in [0, 1]")
    return (array if soft else array >= 0.5).astype(np.float32)


def grey_mask(mask: Image.Image) -> Image.Image:
    """Convert a mask to mode "L", upright.

    Raises:
        ValueError: if pixels are transparent: their colour is invisible, so the mask would be ambiguous.
    """
    alpha = alpha_channel(mask)
    if alpha is not None and np.asarray(alpha).min(initial=255) < 255:
        raise ValueError(
            "mask has transparent pixels, expected black and white ones; to fill the transparent ones, "
            "give mask.convert('RGBA').getchannel('A'), or alpha=PICTURE on the command line"
        )
    return in_mode("mask", mask, "L")


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return a value as a NumPy array, or raise TypeError if it is no array of numbers."""
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # NumPy does not count it as a floating dtype
        array = array.astype(np.float32)
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise TypeError(f"{name} is {value!r}, expected a PIL image or an array of numbers")
    return array


def resize_together(
    images: Sequence[Any],
    masks: Sequence[Any],
    image_shape: tuple[int, int, int],
    background: Colour = DEFAULT_BACKGROUND,
    *,
    soft_masks: bool = False,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Resize pictures and their masks to the model's height and width. Proportions are not kept.

    A resized pixel is filled if any pixel to fill contributed to it. So removed content leaves no trace in
    the known pixels, and no hole is too small.

    Args:
        images: the PIL images.
        masks: one mask for all images, or one for each. Each image and its mask must have the same size, so
            that the mask covers the pixels it was drawn over.
        image_shape: the shape [H, W, C] of the model's images.
        background: the colour behind transparent pixels, see `colours.rgb`.
        soft_masks: whether masks keep values between black and white.

    Raises:
        TypeError: if an image or mask is not a PIL image.
        ValueError: if an image and its mask have different sizes.
    """
    for name, pictures in (("image", images), ("mask", masks)):
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise TypeError(f"{name} is a {type(picture).__name__}, expected a PIL image to be resized")
    # Convert before resizing: indices into a palette cannot be averaged.
    images = [in_mode("image", image, pil_mode(image_shape), background) for image in images]
    masks = [grey_mask(mask) for mask in masks]
    for image, mask in zip(images, itertools.cycle(masks), strict=False):
        if image.size != mask.size:
            raise ValueError(
                f"mask is of size {mask.size}, expected {image.size} as its image, to be resized with it"
            )
    size = image_shape[1::-1]
    return [resized(image, size) for image in images], [
        _resized_mask(mask, size, soft_masks) for mask in masks
    ]


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture to a width and height, with a filter that has no negative weights."""
    # In a mask, negative weights could cancel the share of pixels to fill.
    shrinks = picture.width >= size[0] and picture.height >= size[1]
    return picture.resize(size, Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR)


def _resized_mask(mask: Image.Image, size: tuple[int, int], soft: bool) -> Image.Image:
    missing = np.asarray(mask) < (1 if soft else 128)
    share = np.asarray(resized(Image.fromarray(missing.astype(np.float32)), size))
    known = np.asarray(resized(mask, size)) if soft else 255
    return Image.fromarray(np.where(share > 1e-6, 0, known).astype(np.uint8))


def uint8_to_array(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert values in 0..255 to [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def in_floats(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Convert pixels, uint8 or floating in [-1, 1], to float32 in [-1, 1]."""
    return uint8_to_array(pixels) if pixels.dtype == np.uint8 else pixels.astype(np.float32, copy=False)


def array_to_uint8(array: Any) -> NDArray[np.uint8]:
    """Convert values in [-1, 1] to 0..255, clipped. This inverts `image_to_array` exactly."""
    return np.round(np.clip((np.asarray(array, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def array_to_pil(array: Any) -> Image.Image:
    """Convert an array [H, W, C] in [-1, 1] to a PIL image."""
    return uint8_to_pil(array_to_uint8(array))


def uint8_to_pil(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert a uint8 array [H, W, C] to a PIL image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_picture(picture: Image.Image, path: StrPath, **options: Any) -> None:
    """Write a picture in the format of its suffix, with its ICC profile, completely or not at all.

    Args:
        picture: the picture.
        path: the file to write.
        options: options of Pillow's `Image.save`.
    """
    file_format = Image.registered_extensions()[Path(path).suffix.lower()]
    with whole_file(path) as unfinished:
        picture.save(unfinished, format=file_format, icc_profile=picture.info.get("icc_profile"), **options)
