"""Masks for one picture, as people make them: painted, cut out, a box, a file, or one of the paper's.

All are PIL images of mode "L" and of the picture's size: white keeps a pixel, black inpaints it.
"""

import re
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from repaint_jax import masks
from repaint_jax.pictures.images import array_to_pil, grey_mask, open_image


def read_mask(words: str, image: Image.Image, key: jax.Array, *, invert: bool = False) -> Image.Image:
    """Make the mask of a picture that is described by words.

    Args:
        words: the path of a picture of the mask; "alpha", "box=LEFT,TOP,RIGHT,BOTTOM" or "painted=PATH",
            see the functions below; or one of `masks.NAMES`.
        image: the picture to inpaint.
        key: of a random mask.
        invert: white inpaints and black keeps.

    Raises:
        ValueError: the words describe no mask, or one without a hole.
    """
    kind, equals, value = words.partition("=")
    if words == "alpha":
        mask = transparent(image)
    elif kind == "box" and equals:
        if not re.fullmatch(r"\d+,\d+,\d+,\d+", value):
            raise ValueError(f"mask is {words}, expected box=LEFT,TOP,RIGHT,BOTTOM in pixels")
        left, top, right, bottom = map(int, value.split(","))
        mask = box(image.size, left, top, right, bottom)
    elif kind == "painted" and equals:
        mask = painted(image, open_image(value))
    elif words in masks.NAMES:
        mask = array_to_pil(2 * np.asarray(masks.by_name(words, image.height, image.width, key)) - 1)
    elif Path(words).exists():
        mask = open_image(words)
    else:
        raise ValueError(
            f"{words} does not exist, expected a picture, alpha, box=LEFT,TOP,RIGHT,BOTTOM, painted=PATH "
            f"or one of {', '.join(masks.NAMES)}"
        )
    mask = grey_mask(mask)
    if invert:
        mask = ImageOps.invert(mask)
    if np.asarray(mask).min() >= 128:
        raise ValueError(
            f"mask is {words}, which keeps every pixel, expected one that leaves some to inpaint"
        )
    return mask


def transparent(image: Image.Image) -> Image.Image:
    """Inpaint what is transparent: the hole was cut out, or rubbed out, in a picture editor."""
    if not image.has_transparency_data:
        raise ValueError(f"mask is alpha, but the picture, of mode {image.mode}, has no transparency")
    return image.convert("RGBA").getchannel("A")


def box(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Inpaint a box of a picture of this width and height; right and bottom are beyond its last pixel."""
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(
            f"box is {left},{top},{right},{bottom}, expected left < right and top < bottom within the "
            f"picture's {size[0]} x {size[1]} pixels"
        )
    mask = Image.new("L", size, 255)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), 0)
    return mask


def painted(image: Image.Image, painted_over: Image.Image) -> Image.Image:
    """Inpaint where a copy of the picture was painted over, in whatever colour.

    The copy must have been saved in a lossless format.
    """
    if painted_over.size != image.size:
        raise ValueError(
            f"the painted picture is of size {painted_over.size}, expected the picture's {image.size}"
        )
    difference = ImageChops.difference(image.convert("RGB"), painted_over.convert("RGB"))
    changed = np.asarray(difference).any(-1)
    if not changed.any():
        raise ValueError("the painted picture is the picture itself, expected one that was painted over")
    return Image.fromarray(np.where(changed, 0, 255).astype(np.uint8))
