"""Masks for one picture: a file, transparent pixels, a box, paint, a larger canvas, or one of the paper's.

All masks are PIL images of mode "L". White keeps a pixel, black inpaints it.
"""

import re
from pathlib import Path

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from repaint_jax import masks
from repaint_jax.pictures.colours import Colour, alpha_channel, in_mode, rgb, upright
from repaint_jax.pictures.holes import grown
from repaint_jax.pictures.images import array_to_pil, grey_mask, open_image
from repaint_jax.pictures.outpainting import check_margins, outpaint

# The largest difference of a copy that was saved with losses, as a mean over 5 x 5 pixels, in levels. For
# JPEG copies of 17 photographs and drawings, at qualities 75, 85 and 95, it was at most 36. Single pixels
# differed by up to 123 levels.
TOLERANCE = 40
ROUNDING = 8  # the largest difference, in levels, of a pixel that was not painted, next to paint
MIDDLE = 128  # levels
LARGEST_SHARE = 0.9  # of the picture

_OF_FILES = ("alpha", "painted")
_OF_NUMBERS = ("box", "outpaint")


def file_of_mask(words: str) -> tuple[str, Path | None]:
    """Divide the description of a mask into what precedes its file, and the file.

    >>> file_of_mask("mask.png") == ("", Path("mask.png"))
    True
    >>> file_of_mask("painted=copy.png") == ("painted=", Path("copy.png"))
    True
    >>> file_of_mask("half")
    ('half', None)
    """
    kind, equals, value = words.partition("=")
    if equals and kind in _OF_FILES:
        return f"{kind}=", Path(value)
    if words in ("alpha", *masks.NAMES) or (equals and kind in _OF_NUMBERS):
        return words, None
    return "", Path(words)


def picture_and_mask(
    words: str, image: Image.Image, key: jax.Array, *, invert: bool = False, colour: Colour | None = None
) -> tuple[Image.Image, Image.Image]:
    """Make a mask from its description on the command line.

    Args:
        words: the description: the path of a mask's picture; "alpha" for what is transparent in the
            picture, or "alpha=PATH" in another one; "box=LEFT,TOP,RIGHT,BOTTOM" (see `box`);
            "painted=PATH" (see `painted`); "outpaint=LEFT,TOP,RIGHT,BOTTOM" (see `outpaint`); or one of
            `masks.NAMES`.
        image: the picture to inpaint. It is turned upright.
        key: the key of a random mask.
        invert: whether to invert the mask, so that white inpaints and black keeps.
        colour: the colour that inpaints in the mask's picture, instead of black (see `of_colour`).

    Returns:
        The picture to inpaint, which outpainting enlarges, and its mask.

    Raises:
        ValueError: if the description is not valid.
    """
    check_description(words, invert=invert, colour=colour)
    image = upright(image)
    prefix, path = file_of_mask(words)
    kind = prefix.partition("=")[0]
    if kind == "outpaint":
        return outpaint(image, *_four_numbers(words))
    if kind == "box":
        mask = box(image.size, *_four_numbers(words))
    elif kind in masks.NAMES:
        mask = array_to_pil(2 * np.asarray(masks.by_name(kind, image.height, image.width, key)) - 1)
    elif kind == "alpha":
        mask = _transparent(words, image if path is None else open_image(path))
    elif path is None or not path.exists():
        raise ValueError(
            f"{path} does not exist, expected a picture, alpha, alpha=PATH, box=LEFT,TOP,RIGHT,BOTTOM, "
            f"outpaint=LEFT,TOP,RIGHT,BOTTOM, painted=PATH or one of {', '.join(masks.NAMES)}"
        )
    elif kind == "painted":
        mask = painted(image, open_image(path))
    else:
        mask = open_image(path) if colour is None else of_colour(open_image(path), colour)
    mask = grey_mask(mask)
    return image, ImageOps.invert(mask) if invert else mask


def check_description(words: str, *, invert: bool = False, colour: Colour | None = None) -> None:
    """Raise ValueError if `picture_and_mask` refuses its arguments for any picture."""
    prefix, _ = file_of_mask(words)
    kind = prefix.partition("=")[0]
    if colour is not None:
        rgb(colour, "mask_colour")
        if prefix:
            raise ValueError(f"mask_colour is {colour} and mask is {words}, expected a picture as the mask")
    if kind in _OF_NUMBERS:
        numbers = _four_numbers(words)
        if kind == "outpaint":
            check_margins(*numbers)
            if invert:
                raise ValueError(
                    f"invert_mask is True and mask is {words}, expected another mask to invert"
                )


def check_hole(words: str, mask: Image.Image, *, soft: bool = False) -> None:
    """Raise ValueError if a mask has no pixels to fill. In a soft mask grey counts."""
    if np.asarray(mask).min() >= (255 if soft else 128):
        raise ValueError(
            f"mask is {words}, which keeps every pixel, expected a mask with pixels to inpaint"
        )


def _four_numbers(words: str) -> tuple[int, int, int, int]:
    kind, _, value = words.partition("=")
    if not re.fullmatch(r"\d{1,9}(,\d{1,9}){3}", value, re.ASCII):
        raise ValueError(f"mask is {words}, expected {kind}=LEFT,TOP,RIGHT,BOTTOM in pixels")
    left, top, right, bottom = map(int, value.split(","))
    return left, top, right, bottom


def _transparent(words: str, picture: Image.Image) -> Image.Image:
    """Return a mask that inpaints transparent pixels, such as those erased in a picture editor."""
    alpha = alpha_channel(upright(picture))
    if alpha is None:
        raise ValueError(f"mask is {words}, but the picture, of mode {picture.mode}, has no transparency")
    return alpha


def of_colour(picture: Image.Image, colour: Colour) -> Image.Image:
    """Return a mask that inpaints the pixels of a colour.

    In a picture without losses, only pixels of exactly this colour are inpainted. If pixels of nearly this
    colour show that the picture was compressed, pixels are inpainted that differ by at most `TOLERANCE`
    levels, and their neighbours, up to two pixels away, that differ by less than `MIDDLE`.

    Args:
        picture: a picture with paint. What is transparent in it is kept.
        colour: the colour of the paint, which should be nowhere else in the picture.

    Raises:
        ValueError: if no pixel has the colour.
    """
    pixels = in_mode("mask", picture, "RGB")
    difference = _difference(pixels, Image.new("RGB", pixels.size, rgb(colour, "mask_colour")))
    exact = difference == 0
    slightly = (difference > 0) & (difference <= ROUNDING)
    inpainted = exact
    if slightly.sum() > 0.01 * exact.sum():
        inpainted = difference <= TOLERANCE
        inpainted |= _grown(inpainted) & (difference < MIDDLE)
    alpha = alpha_channel(upright(picture))
    if alpha is not None:
        inpainted &= np.asarray(alpha) >= 128
    if not inpainted.any():
        raise ValueError(
            f"mask_colour is {colour}, which no pixel of the mask has, expected that of its paint"
        )
    return Image.fromarray(np.where(inpainted, 0, 255).astype(np.uint8))


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
    return grown(changed[..., None], 2)[..., 0]
