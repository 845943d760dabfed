"""Draw the clean pictures that the model predicted during the chain."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repaint_jax.files import StrPath
from repaint_jax.pictures.colours import in_mode
from repaint_jax.pictures.images import save_picture
from repaint_jax.pictures.plots import tile

_COLUMNS, _FRAMES = 10, 48  # without the masked picture and the result
_FIRST_FRAME_MS, _FRAME_MS, _LAST_FRAME_MS = 800, 80, 2000


def calls_to_show(path: StrPath, num_model_calls: int) -> tuple[int, ...]:
    """Choose model calls, evenly spaced from the first to the last. A .gif has more than a grid."""
    most = _FRAMES if Path(path).suffix.lower() == ".gif" else _COLUMNS
    calls = np.linspace(0, num_model_calls - 1, min(most, num_model_calls))
    return tuple(int(call) for call in np.round(calls))


def save_previews(
    path: StrPath,
    masked: NDArray[np.uint8],
    calls: Sequence[int],
    previews: Sequence[Sequence[Image.Image]],
    results: Sequence[Image.Image],
) -> None:
    """Write a grid with a row for each result and a column for each call, or a .gif with a frame for each.

    Args:
        path: the picture to write.
        masked: the picture with its hole, [H, W, 3]. It comes first.
        calls: the numbers of n model calls, from 0.
        previews: the pictures predicted at these calls, [n][num_results].
        results: the results, [num_results]. They come last.
    """
    predicted = [
        [np.asarray(in_mode("image", picture, "RGB")) for picture in step] for step in [*previews, results]
    ]
    steps = [[masked] * len(results), *predicted]
    titles = ["masked", *(f"call {call + 1}" for call in calls), "result"]
    if Path(path).suffix.lower() != ".gif":
        pictures = [tile(list(zip(*steps, strict=True)), titles)]
    else:
        pictures = [tile([step], [title]) for step, title in zip(steps, titles, strict=True)]
    first, *others = pictures
    animation = {
        "save_all": True,
        "append_images": others,
        "duration": [_FIRST_FRAME_MS, *[_FRAME_MS] * len(calls), _LAST_FRAME_MS],
        "loop": 0,
    }
    save_picture(first, path, **(animation if others else {}))
