"""Show how inpainted pictures came to be: the clean pictures that were predicted on the way."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repaint_jax.pictures.images import save_picture
from repaint_jax.pictures.plots import tile

_COLUMNS, _FRAMES = 10, 48  # besides the picture with its hole and the result
_FIRST_FRAME_MS, _FRAME_MS, _LAST_FRAME_MS = 800, 80, 2000


def calls_to_show(path: Path, num_model_calls: int) -> tuple[int, ...]:
    """Choose model calls, spread evenly from the first to the last: more for a .gif than for a grid."""
    most = _FRAMES if path.suffix.lower() == ".gif" else _COLUMNS
    calls = np.linspace(0, num_model_calls - 1, min(most, num_model_calls))
    return tuple(int(call) for call in np.round(calls))


def save_previews(
    path: Path,
    masked: NDArray[np.uint8],
    calls: Sequence[int],
    previews: Sequence[Sequence[Image.Image]],
    results: Sequence[Image.Image],
) -> None:
    """Write a picture with a row for each result and a column for each call; a .gif has a frame for each.

    Args:
        path: the picture.
        masked: [H, W, 3], the picture with its hole, which comes first.
        calls: [n] numbers of model calls, from 0.
        previews: [n][num_results], what was predicted at these calls.
        results: [num_results], which come last.
    """
    predicted = [[np.asarray(picture.convert("RGB")) for picture in step] for step in [*previews, results]]
    steps = [[masked] * len(results), *predicted]
    titles = ["masked", *(f"call {call + 1}" for call in calls), "result"]
    if path.suffix.lower() != ".gif":
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
