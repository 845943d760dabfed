"""Enlarge the canvas of pictures, with masks that fill what is new."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from repaint_jax.pictures.colours import alpha_channel, upright
from repaint_jax.sampling.checks import check_int


def outpaint(image: Any, left: int, top: int, right: int, bottom: int) -> tuple[Any, Any]:
    """Enlarge a picture to each side, and make the mask that fills what is new.

    The new pixels continue the picture's edge. What they hold matters only to samplers that start from it.

    Args:
        image: a PIL image, or an array [H, W], [H, W, C] or [B, H, W, C]. A PIL image is turned upright by
            its EXIF orientation. It keeps its mode, and becomes RGBA if a palette or key colour makes it
            transparent; new pixels are opaque.
        left: the number of new columns on the left side.
        top: the number of new rows at the top.
        right: the number of new columns on the right side.
        bottom: the number of new rows at the bottom.

    Returns:
        The larger picture, of the same kind and dtype, and its mask, 1 for the picture and 0 for what is
        new. For PIL images the mask is one of mode "L", with 255 for 1. For arrays it is float32,
        [H', W'], [H', W', 1] or [1, H', W', 1], a JAX array if the image is one.

    Raises:
        TypeError: if image is no picture, or a number is not an integer.
        ValueError: if a number is negative, all are 0, or the larger picture has more pixels than Pillow
            reads without a warning (`PIL.Image.MAX_IMAGE_PIXELS`).

    >>> image, mask = outpaint(np.full((1, 2, 3), 0.5), 1, 0, 2, 0)
    >>> image.shape, mask[..., 0].tolist()
    ((1, 5, 3), [[0.0, 1.0, 1.0, 0.0, 0.0]])
    """
    check_margins(left, top, right, bottom)
    if isinstance(image, Image.Image):
        return _outpaint_pil(upright(image), left, top, right, bottom)
    if not isinstance(image, np.ndarray | jax.Array) or not 2 <= image.ndim <= 4:
        kind = f"has shape {image.shape}" if hasattr(image, "shape") else f"is a {type(image).__name__}"
        raise TypeError(
            f"image {kind}, expected a PIL image, or an array [H, W], [H, W, C] or [B, H, W, C]"
        )
    rows = 0 if image.ndim == 2 else image.ndim - 3  # the axis of the rows
    height, width = image.shape[rows : rows + 2]
    _check_size(width, height, left + right, top + bottom)
    pads = [(0, 0)] * image.ndim
    pads[rows], pads[rows + 1] = (top, bottom), (left, right)
    ones = np.ones((*[1] * rows, height, width, *[1] * (image.ndim - rows - 2)), np.float32)
    if isinstance(image, jax.Array):
        return jnp.pad(image, pads, mode="edge"), jnp.pad(ones, pads)
    return np.pad(image, pads, mode="edge"), np.pad(ones, pads)


def check_margins(left: int, top: int, right: int, bottom: int) -> None:
    """Raise if these numbers of pixels do not enlarge a picture, see `outpaint`."""
    margins = {"left": left, "top": top, "right": right, "bottom": bottom}
    for name, margin in margins.items():
        check_int(name, margin, 0)
    if not any(margins.values()):
        raise ValueError(f"{', '.join(margins)} are 0, expected at least one of them above 0")


def _check_size(width: int, height: int, more_columns: int, more_rows: int) -> None:
    if 0 in (width, height):
        raise ValueError(f"image is of {width} x {height} pixels, expected at least one pixel")
    columns, rows, largest = width + more_columns, height + more_rows, Image.MAX_IMAGE_PIXELS
    if largest is not None and columns * rows > largest:
        raise ValueError(
            f"outpaint makes a picture of {columns} x {rows} pixels, expected at most {largest} pixels"
        )


def _outpaint_pil(
    image: Image.Image, left: int, top: int, right: int, bottom: int
) -> tuple[Image.Image, Image.Image]:
    width, height = image.size
    _check_size(width, height, left + right, top + bottom)
    if image.has_transparency_data and "A" not in image.getbands():
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    around = (-left, -top, width + right, height + bottom)
    canvas = image.crop(around)
    columns, rows = canvas.size
    for inner, strip in (
        ((left, 0, left + 1, rows), (0, 0, left, rows)),
        ((left + width - 1, 0, left + width, rows), (left + width, 0, columns, rows)),
        ((0, top, columns, top + 1), (0, 0, columns, top)),
        ((0, top + height - 1, columns, top + height), (0, top + height, columns, rows)),
    ):
        size = strip[2] - strip[0], strip[3] - strip[1]
        if 0 not in size:
            canvas.paste(canvas.crop(inner).resize(size, Image.Resampling.NEAREST), strip)
    alpha = alpha_channel(image)
    if alpha is not None:
        opaque = Image.new("L", canvas.size, 255)
        opaque.paste(alpha, (left, top))
        canvas.putalpha(opaque)
    return canvas, Image.new("L", image.size, 255).crop(around)
