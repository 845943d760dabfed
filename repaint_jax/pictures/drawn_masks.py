"""Masks for one picture: a file, transparent pixels, a box, a painted copy, or a mask of the paper.

All masks are PIL images of mode "L". White keeps a pixel, black inpaints it.
"""

import re
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from repaint_jax import masks
from repaint_jax.pictures.colours import alpha_channel, in_mode, upright
from repaint_jax.pictures.images import array_to_pil, grey_mask, open_image

# The largest difference of a copy that was saved with losses, as a mean over 5 x 5 pixels, in levels. For
# JPEG copies of 17 photographs and drawings, at qualities 75, 85 and 95, it was at most 36. Single pixels
# differed by up to 123 levels.
TOLERANCE = 40
ROUNDING = 8  # the largest difference, in levels, of a pixel that was not painted, next to paint
LARGEST_SHARE = 0.9  # of the picture


def read_mask(
    words: str, image: Image.Image, key: jax.Array, *, invert: bool = False, soft: bool = False
) -> Image.Image:
    """Make a mask from its description on the command line.

    Args:
        words: the description: the path of a mask's picture; "alpha" (see `transparent`);
            "box=LEFT,TOP,RIGHT,BOTTOM" (see `box`); "painted=PATH" (see `painted`); or one of
            `masks.NAMES`.
        image: the picture to inpaint. It is turned upright.
        key: the key of a random mask.
        invert: whether to invert the mask, so that white inpaints and black keeps.
        soft: whether grey counts: only white keeps a pixel exactly.

    Raises:
        ValueError: if the description is not valid, or the mask has no pixels to fill.
    """
    image = upright(image)
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
    if np.asarray(mask).min() >= (255 if soft else 128):
        raise ValueError(
            f"mask is {words}, which keeps every pixel, expected a mask with pixels to inpaint"
        )
    return mask


def transparent(image: Image.Image) -> Image.Image:
    """Return a mask that inpaints the transparent pixels, such as those erased in a picture editor."""
    alpha = alpha_channel(upright(image))
    if alpha is None:
        raise ValueError(f"mask is alpha, but the picture, of mode {image.mode}, has no transparency")
    return alpha


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

    In a copy without losses, every pixel that differs is inpainted. If many pixels differ slightly, the
    copy was rounded or compressed. Then pixels are inpainted where the mean difference of the 5 x 5 pixels
    around them is above `TOLERANCE` levels. This finds no paint of a few single pixels.

    Args:
        image: the picture.
        painted_over: the copy, with paint of a colour that differs clearly.

    Raises:
        ValueError: if the copy has another size, no part of it differs, or nearly all of it does.
    """
    original, copy = in_mode("image", image, "RGB"), in_mode("painted", painted_over, "RGB")
    if copy.size != original.size:
        raise ValueError(
            f"the painted picture is of size {copy.size}, expected the picture's {original.size}"
        )
    difference = _difference(original, copy)
    changed = difference > 0
    if _has_losses(difference):
        changed = _changed_despite_losses(original, copy, difference)
    if not changed.any() or difference.max() <= TOLERANCE:
        raise ValueError(
            "the painted picture is the picture itself, expected one that was painted over in a colour "
            f"that differs by more than {TOLERANCE} levels"
        )
    if changed.mean() > LARGEST_SHARE:
        raise ValueError(
            f"the painted picture differs from the picture in {changed.mean():.0%} of its pixels, expected "
            f"a copy that was painted over in at most {LARGEST_SHARE:.0%}"
        )
    return Image.fromarray(np.where(changed, 0, 255).astype(np.uint8))


def _difference(one: Image.Image, other: Image.Image) -> NDArray[np.uint8]:  # [H, W]
    """Return the largest difference of the channels of each pixel."""
    return np.asarray(ImageChops.difference(one, other)).max(-1)


def _has_losses(difference: NDArray[np.uint8]) -> bool:
    """Whether many pixels differ slightly that are not near paint."""
    near_paint = _grown(difference > TOLERANCE)
    slightly = (difference > 0) & (difference <= ROUNDING) & ~near_paint
    return bool(slightly.sum() > 0.2 * (difference > TOLERANCE).sum())


def _changed_despite_losses(
    original: Image.Image, copy: Image.Image, difference: NDArray[np.uint8]
) -> NDArray[np.bool_]:  # [H, W]
    mean = ImageFilter.BoxBlur(2)  # errors of compression have a mean near 0, paint has not
    paint = _difference(original.filter(mean), copy.filter(mean)) > TOLERANCE
    inside = ~_grown(~paint)
    return (_grown(paint) & (difference > ROUNDING)) | inside


def _grown(changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow an area by two pixels to each side."""
    return np.asarray(Image.fromarray(changed.astype(np.uint8)).filter(ImageFilter.MaxFilter(5))) > 0
