"""A contact sheet of a run over a folder: pictures with their holes, and results, side by side."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from repaint_jax.folder.results import Result, is_there
from repaint_jax.pictures.colours import in_mode
from repaint_jax.pictures.fillings import Filling
from repaint_jax.pictures.images import open_image, save_picture, uint8_to_pil
from repaint_jax.pictures.plots import show_hole, tile

MOST_PICTURES = 40
_SIDE = 160  # of a tile, in pixels


def save_sheet(path: Path, results: Sequence[Result], read: Callable[[str], Filling]) -> None:
    """Draw a row for each picture that has a result, up to MOST_PICTURES of them, evenly spaced.

    Args:
        path: the picture to write.
        results: the results of a run, those of a picture next to each other.
        read: a function that reads the picture of a name, with its hole.
    """
    there = [result for result in results if is_there(result.path)]
    of_picture = [list(group) for _, group in groupby(there, key=lambda result: result.name)]
    chosen = np.linspace(0, len(of_picture) - 1, min(len(of_picture), MOST_PICTURES)).round().astype(int)
    rows = []
    for number in chosen:
        image, mask, _ = read(of_picture[number][0].name).original()
        pictures = [uint8_to_pil(show_hole(image, mask))]
        pictures += [open_image(result.path) for result in of_picture[number]]
        rows.append([np.asarray(_thumbnail(picture)) for picture in pictures])
    if rows:
        samples = max(map(len, rows)) - 1
        titles = ["hole", *(f"sample {i + 1}" if samples > 1 else "result" for i in range(samples))]
        save_picture(tile(rows, titles, [_title(of_picture[number][0].name) for number in chosen]), path)


def _thumbnail(picture: Image.Image) -> Image.Image:
    in_colour = in_mode("image", picture, "RGB")
    enlarged = max(picture.size) < _SIDE
    method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return ImageOps.pad(in_colour, (_SIDE, _SIDE), method, color="white")


def _title(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"
