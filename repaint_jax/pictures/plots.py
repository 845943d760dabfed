"""Grids of pictures, with titles."""

from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from repaint_jax.pictures.colours import in_mode
from repaint_jax.pictures.images import array_to_uint8, uint8_to_pil

HOLE_COLOUR = (222, 120, 60)  # does not occur in grey pictures, and is easy to see in colour ones
_MARGIN = 6
_HEADER = 24
_SHORTEST_SIDE = 96  # the shortest side of a tile; smaller pictures are enlarged by a whole factor
_LONGEST_SIDE = 512  # larger pictures are reduced


def show_hole(image: NDArray[np.floating], mask: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Paint the pixels to inpaint in one colour.

    Args:
        image: the image, [H, W, C] in [-1, 1].
        mask: the mask, [H, W, 1]. Pixels with the value 0 are painted.

    Returns:
        The painted image, [H, W, 3] uint8.
    """
    pixels = np.asarray(in_mode("image", uint8_to_pil(array_to_uint8(image)), "RGB"))
    return np.where(np.asarray(mask)[..., :1] == 0, HOLE_COLOUR, pixels).astype(np.uint8)


def inpainting_grid(
    originals: NDArray[np.floating],
    masks: NDArray[np.floating],
    samples: NDArray[np.floating],
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Draw originals, masked originals and samples side by side.

    Args:
        originals: the originals, [rows, H, W, C] in [-1, 1].
        masks: the masks, [rows, H, W, 1], 0 where pixels were inpainted.
        samples: the samples, [rows, n, H, W, C] in [-1, 1].
        row_titles: a title for each row, such as the name of its mask.
    """
    rows = [
        [array_to_uint8(original), show_hole(original, mask), *array_to_uint8(row)]
        for original, mask, row in zip(originals, masks, samples, strict=True)
    ]
    titles = ["original", "masked", *(f"sample {i + 1}" for i in range(samples.shape[1]))]
    return tile(rows, titles, row_titles)


def tile(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Draw pictures in rows and columns, with titles above and to the left.

    Args:
        rows: the pictures of each row, [H, W, C] uint8, all of the same size.
        column_titles: a title for each column.
        row_titles: a title for each row.
    """
    height, width = rows[0][0].shape[:2]
    scale = min(max(1, -(-_SHORTEST_SIDE // min(height, width))), _LONGEST_SIDE / max(height, width))
    height, width = (max(1, round(side * scale)) for side in (height, width))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    font = ImageFont.load_default(size=14)
    left = max((int(font.getlength(title)) for title in row_titles), default=-_MARGIN) + 2 * _MARGIN
    top = _HEADER if column_titles else _MARGIN
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB", (left + columns * (width + _MARGIN), top + len(rows) * (height + _MARGIN)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(column_titles):
        x = left + column * (width + _MARGIN) + width // 2
        draw.text((x, top // 2), title, "black", font, anchor="mm")
    for row, title in enumerate(row_titles):
        y = top + row * (height + _MARGIN) + height // 2
        draw.text((left - _MARGIN, y), title, "black", font, anchor="rm")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            in_colour = in_mode("image", uint8_to_pil(picture), "RGB")
            place = (left + column * (width + _MARGIN), top + row * (height + _MARGIN))
            canvas.paste(in_colour.resize((width, height), resampling), place)
    return canvas


def square_grid(images: NDArray[np.floating] | jax.Array) -> Image.Image:
    """Draw images [N, H, W, C] in [-1, 1] in a grid that is as square as possible."""
    pixels = array_to_uint8(images)
    columns = int(np.ceil(np.sqrt(len(pixels))))
    return tile([list(pixels[i : i + columns]) for i in range(0, len(pixels), columns)])
