"""Convert pictures between colour modes: upright, through their ICC profile, on an opaque background."""

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from numbers import Integral
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps

DEFAULT_BACKGROUND = "white"

Colour = str | int | Sequence[int]

# What brings a picture of an EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_ICC_SPACES = {
    "L": b"GRAY",
    "LA": b"GRAY",
    "RGB": b"RGB ",
    "RGBA": b"RGB ",
    "CMYK": b"CMYK",
    "LAB": b"Lab ",
}


def in_mode(
    name: str, image: Image.Image, mode: str, background: Colour = DEFAULT_BACKGROUND
) -> Image.Image:
    """Convert a picture to a mode, as viewers show it.

    The picture is turned upright by its EXIF orientation. If its ICC profile describes the mode's kind of
    colours (grey or RGB), the pixel values and the profile are kept. Otherwise the picture is converted
    through the profile to sRGB, or as Pillow does if it has no valid profile.

    Args:
        name: the name of the picture in error messages.
        image: a picture with 8 bits per channel.
        mode: "L", "LA", "RGB" or "RGBA".
        background: the colour behind transparent pixels, see `rgb`. It is not used for "LA" and "RGBA".

    Returns:
        The picture. Its `info` is empty, or has the "icc_profile" of its pixel values.

    Raises:
        ValueError: if the picture has more bits, or the background is not a colour.
    """
    if is_deep(image):
        raise ValueError(f"{name} has mode {image.mode}, expected 8 bits per channel")
    image = upright(image)
    alpha = alpha_channel(image)
    picture, profile = _in_space(_opaque(image), image.info.get("icc_profile"), _ICC_SPACES[mode])
    if alpha is not None:
        picture.putalpha(alpha)
        if "A" not in mode:
            picture = _flattened(picture, background)
    picture = picture.convert(mode)
    picture.info = {} if profile is None else {"icc_profile": profile}
    return picture


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F"))


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture by its EXIF orientation, as viewers do. Damaged EXIF data is dropped."""
    image.load()
    with suppress(Exception):  # Pillow writes the EXIF data anew, and damaged data can raise anything
        return ImageOps.exif_transpose(image)
    turn = None
    with suppress(Exception):
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    turned = image.copy() if turn is None else image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(name, None)  # otherwise it would be turned again
    return turned


def alpha_channel(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel of an upright picture, or None if it has no transparency."""
    if not image.has_transparency_data:
        return None
    straight = image.convert("LA") if image.mode == "La" else image.convert("RGBA")
    return straight.getchannel("A")


def rgb(colour: Colour, name: str = "background") -> tuple[int, int, int]:
    """Return the red, green and blue of a colour.

    Args:
        colour: a colour as Pillow names it ("white", "#808080", "hsl(0, 100%, 50%)"), a grey level, or
            red, green and blue. Levels are integers from 0 to 255.
        name: the name of the colour in error messages.

    Raises:
        ValueError: if it is not such a colour, or is transparent.
    """
    levels: Any = colour
    if isinstance(colour, str):
        with suppress(ValueError):
            levels = ImageColor.getrgb(colour)
    elif isinstance(colour, Integral):
        levels = (colour,) * 3
    if len(np.shape(levels)) != 1 or len(levels) != 3 or not all(map(_is_level, levels)):
        raise ValueError(
            f"{name} is {colour!r}, expected an opaque colour such as 'white', '#808080' or (255, 255, 255)"
        )
    red, green, blue = map(int, levels)
    return red, green, blue


def _is_level(value: Any) -> bool:
    return isinstance(value, Integral) and 0 <= int(value) <= 255


def _opaque(image: Image.Image) -> Image.Image:
    """Convert a picture to "L", "RGB", "CMYK" or "LAB", without its alpha channel."""
    if image.mode in ("CMYK", "LAB"):
        return image.copy()
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _in_space(
    picture: Image.Image, profile: bytes | None, space: bytes
) -> tuple[Image.Image, bytes | None]:
    """Convert a picture without alpha to grey or RGB, and return it with the profile that fits it then."""
    if profile is not None and not _describes(profile, picture.mode):
        profile = None
    if profile is not None and _ICC_SPACES[picture.mode] == space:
        return picture, profile
    if profile is None and picture.mode != "LAB":
        return picture.convert("RGB" if picture.mode == "CMYK" else picture.mode), None
    source = ImageCms.createProfile("LAB") if profile is None else BytesIO(profile)
    converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # it is None only for conversions in place
    return converted, None


def _describes(profile: bytes, mode: str) -> bool:
    """Whether a profile is valid, and describes the colours of a mode."""
    try:
        ImageCms.ImageCmsProfile(BytesIO(profile))
    except (ImportError, OSError, ImageCms.PyCMSError):
        return False
    return profile[16:20] == _ICC_SPACES[mode]


def _flattened(picture: Image.Image, background: Colour) -> Image.Image:
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, rgb(background)), picture)
