"""Masks for one picture: a file, transparent pixels, a box, a painted copy, or a mask of the paper.

All masks are PIL images of mode "L". White keeps a pixel, black inpaints it.
"""

import re
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from repaint_jax import masks
from repaint_jax.pictures.images import array_to_pil, grey_mask, open_image


def read_mask(words: str, image: Image.Image, key: jax.Array, *, invert: bool = False) -> Image.Image:
    """Make a mask from its description on the command line.

    Args:
        words: the description: the path of a mask's picture; "alpha" (see `transparent`);
            "box=LEFT,TOP,RIGHT,BOTTOM" (see `box`); "painted=PATH" (see `painted`); or one of
            `masks.NAMES`.
        image: the picture to inpaint.
        key: the key of a random mask.
        invert: whether to invert the mask, so that white inpaints and black keeps.

    Raises:
        ValueError: if the description is not valid, or the mask has no pixels to fill.
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
            f"mask is {words}, which keeps every pixel, expected a mask with pixels to inpaint"
        )
    return mask


def transparent(image: Image.Image) -> Image.Image:
    """Return a mask that inpaints the transparent pixels, such as those erased in a picture editor."""
    if not image.has_transparency_data:
        raise ValueError(f"mask is alpha, but the picture, of mode {image.mode}, has no transparency")
    return image.convert("RGBA").getchannel("A")


def box(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Return a mask that inpaints a box.

    Args:
        size: the width and height of the picture.
        left: the first column of the box.
        top: the first row of the box.
        right: the column after the last one of the box.
        bottom: the row after the last one of the box.

    Raises:
        ValueError: if the box is empty or not within the picture.
    """
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(
            f"box is {left},{top},{right},{bottom}, expected left < right and top < bottom within the "
            f"picture's {size[0]} x {size[1]} pixels"
        )
    mask = Image.new("L", size, 255)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), 0)
    return mask


def painted(image: Image.Image, painted_over: Image.Image) -> Image.Image:
    """Return a mask that inpaints the pixels where a copy of the picture was painted over.

    Any colour will do. The copy must be saved in a lossless format.

    Args:
        image: the picture.
        painted_over: the copy with the paint.

    Raises:
        ValueError: if the copy has another size, or no pixel differs.
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
