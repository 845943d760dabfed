"""What the web app computes: pictures for the browser, masks, windows and fillings. It knows no gradio.

The browser only gets reduced pictures. The server keeps the picture at full resolution, and fills the part
of it that has the holes.
"""

import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from repaint_jax.files import StrPath
from repaint_jax.pictures.batches import make_canvases
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, in_mode
from repaint_jax.pictures.images import (
    grey_mask,
    open_image,
    pil_mode,
    resize_together,
    resized,
)
from repaint_jax.pictures.plots import HOLE_COLOUR, show_hole
from repaint_jax.pictures.windows import DEFAULT_CONTEXT, plan_windows
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.keys import seed_key

CANVAS_SIDE = 1280  # of the editor
SHOWN_SIDE = 1000  # of results, while and after they are computed
MAX_MODEL_CALLS = 5000  # of a chain with RePaint's own schedule; the paper's setting has 2,410
MAX_PIXELS = 50_000_000

_SMALL_SIDE = 400  # smaller pictures are enlarged
_CUTS_SHOWN = 8
_SECONDS_BETWEEN_PREVIEWS = 0.25
_BOX_COLOUR = (0, 160, 255)
_NO_PAINT = "nothing is painted: paint over the pixels to fill"

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Task(NamedTuple):
    """What is filled: the part of a picture that the pipeline gets.

    Attributes:
        picture: the whole picture, in the model's colours.
        mask: its mask, mode "L": 0 is filled, 255 kept.
        part: the box of the part.
        fit: how the pipeline treats the part.
        context: of the windows, as for a call of the pipeline.
    """

    picture: Image.Image
    mask: Image.Image
    part: Box
    fit: str
    context: float

    def before(self) -> Image.Image:
        """Return the part as it is in the picture."""
        return self.picture.crop(self.part)

    def whole(self, filled: Image.Image) -> Image.Image:
        """Return the whole picture with a filled part."""
        picture = self.picture.copy()
        picture.paste(filled, self.part[:2])
        return picture


class Results(NamedTuple):
    """The results of a task: its part, filled in several ways."""

    task: Task
    parts: Sequence[Image.Image]

    def whole(self, number: int) -> Image.Image:
        """Return a result at full resolution."""
        return self.task.whole(self.parts[min(number, len(self.parts) - 1)])


class Progress(NamedTuple):
    """What a running chain shows."""

    pictures: Sequence[Image.Image]  # of the task's part; none at the start
    calls_done: int
    num_model_calls: int
    remark: str
    results: Results | None = None  # at the end


def read_picture(path: StrPath) -> Image.Image:
    """Read an uploaded picture at its own size, upright.

    Raises:
        ValueError: if the file is not a picture, or has more than MAX_PIXELS pixels.
    """
    name = Path(path).name
    width = height = 0
    unreadable = (Image.DecompressionBombError, OSError, SyntaxError, ValueError)  # refused below
    with suppress(*unreadable), Image.open(path) as header:
        width, height = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels, expected at most {MAX_PIXELS:,}")
    try:
        return open_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name)) from None


def read_mask(path: StrPath, size: tuple[int, int]) -> Image.Image:
    """Read an uploaded mask of a picture: black is filled, white is kept.

    Args:
        path: the file.
        size: the picture's width and height. Masks of the same proportions are resized to it.

    Returns:
        The mask, mode "L", of zeros and 255.

    Raises:
        ValueError: if the file is not a picture, has other proportions, or fills nothing.
    """
    name = Path(path).name
    mask = grey_mask(read_picture(path))
    width, height = size
    # One pixel more or less, because reduced sizes are rounded.
    if abs(mask.width * height - mask.height * width) > max(mask.width, mask.height, width, height):
        raise ValueError(
            f"{name} has {mask.width} x {mask.height} pixels, expected the picture's {width} x {height} or "
            "its proportions"
        )
    mask = _threshold(resized(mask, size) if mask.size != size else mask)
    if mask.getextrema()[0] == 255:
        raise ValueError(f"{name} has no black pixels, expected a mask that is black where to fill")
    return mask


def in_colours_of(
    pipe: RePaintPipeline, picture: Image.Image, background: Colour = DEFAULT_BACKGROUND
) -> Image.Image:
    """Convert a picture to the model's colours."""
    return in_mode("picture", picture, pil_mode(pipe.image_shape), background)


def fitted(picture: Image.Image, smallest: int = _SMALL_SIDE, largest: int = SHOWN_SIDE) -> Image.Image:
    """Enlarge small pictures by a whole factor, and reduce large ones, for the browser."""
    size = fitted_size(picture.size, smallest, largest)
    if max(size) < max(picture.size):
        return resized(picture, size)
    return picture.resize(size, Image.Resampling.NEAREST)


def fitted_size(size: tuple[int, int], smallest: int, largest: int) -> tuple[int, int]:
    """Multiply a size by the largest whole number that keeps its longer side within smallest.

    A size whose longer side is above largest is reduced to it.
    """
    longer = max(size)
    if longer > largest:
        return max(1, round(size[0] * largest / longer)), max(1, round(size[1] * largest / longer))
    factor = max(1, smallest // longer)
    return size[0] * factor, size[1] * factor


def canvas_of(picture: Image.Image) -> Image.Image:
    """Return a picture as the editor shows it."""
    return fitted(picture, CANVAS_SIDE, CANVAS_SIDE)


def paint_of(mask: Image.Image) -> Image.Image:
    """Return the editor's paint for a mask: RGBA, opaque where any pixel is filled."""
    size = fitted_size(mask.size, CANVAS_SIDE, CANVAS_SIDE)
    paint = Image.new("RGBA", size, (*HOLE_COLOUR, 0))
    paint.putalpha(Image.fromarray(np.uint8(255) * _painted_for(mask, size)))
    return paint


def mask_of(
    layers: Sequence[Image.Image], size: tuple[int, int], uploaded: Image.Image | None = None
) -> Image.Image:
    """Return the mask of the editor's paint. It is black where at least half of a pixel is painted.

    Args:
        layers: the editor's layers, RGBA pictures of the canvas, opaque where painted.
        size: the width and height of the mask.
        uploaded: a mask of this size, whose paint the editor was given. Where the paint was not changed,
            the mask has its pixels.

    Raises:
        ValueError: if nothing is painted.
    """
    mask = np.full(size[::-1], 255, np.uint8)
    for layer in layers:
        alpha = layer.getchannel("A")
        shrinks = alpha.width >= size[0]
        alpha = alpha.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
        mask[np.asarray(alpha) >= 128] = 0
    if uploaded is not None:
        canvas = fitted_size(size, CANVAS_SIDE, CANVAS_SIDE)
        paint = np.zeros(canvas[::-1], bool)
        for layer in layers:
            paint |= np.asarray(layer.getchannel("A").resize(canvas, Image.Resampling.NEAREST)) >= 128
        changed = Image.fromarray(paint != _painted_for(uploaded, canvas))
        same = ~np.asarray(changed.resize(size, Image.Resampling.NEAREST))
        mask[same] = np.asarray(uploaded)[same]
    if mask.all():
        raise ValueError(_NO_PAINT)
    return Image.fromarray(mask)


def make_task(
    pipe: RePaintPipeline,
    picture: Image.Image | None,
    layers: Sequence[Image.Image],
    uploaded: Image.Image | None = None,
    *,
    fit: str = "crop",
    context: float = DEFAULT_CONTEXT,
    background: Colour = DEFAULT_BACKGROUND,
) -> Task:
    """Return what is to be filled.

    Args:
        pipe: the model.
        picture: the picture at full resolution, in any colours.
        layers: the editor's layers, see `mask_of`.
        uploaded: an uploaded mask, see `mask_of`.
        fit: "crop", "resize" or "native", as for a call of the pipeline. With "resize", the picture of the
            task and its results have the model's size.
        context: of the windows.
        background: the colour behind transparent pixels.

    Raises:
        ValueError: if there is no picture, or nothing is painted.
    """
    if picture is None:
        raise ValueError("there is no picture: upload one")
    if context is None:
        raise ValueError("context is None, expected a number from 0 on")
    picture = in_colours_of(pipe, picture, background)
    mask = mask_of(layers, picture.size, uploaded)
    if fit == "resize":
        (picture,), (mask,) = resize_together([picture], [mask], pipe.image_shape)
    part = (0, 0, *picture.size)
    if fit == "crop" and max(picture.size) > SHOWN_SIDE:
        part = _part_with_windows(np.asarray(mask) == 0, pipe.image_shape[:2], context)
    return Task(picture, mask, part, fit, context)


def windows_shown(pipe: RePaintPipeline, task: Task) -> list[tuple[Image.Image, str]]:
    """Return pictures of what the model will see, with captions.

    The first is the whole picture, reduced, with boxes around the windows. The others are windows at the
    model's size.
    """
    picture = fitted(task.picture.convert("RGB"))
    picture.paste(HOLE_COLOUR, mask=fitted(task.mask).point(lambda value: 255 - value))
    part, mask = task.before(), task.mask.crop(task.part)
    if task.fit != "crop":
        return [(picture, f"the model sees the whole picture, {part.width} x {part.height} pixels")]
    ((canvas,), _) = make_canvases(part, mask, pipe.image_shape)
    height, width, _ = pipe.image_shape
    windows = list(chain(*plan_windows(canvas.hole, (height, width), task.context)))
    draw, scale = ImageDraw.Draw(picture), picture.width / task.picture.width
    cuts = []
    for number, window in enumerate(windows):
        rows, columns = window.hole.shape
        left, top = window.left + task.part[0], window.top + task.part[1]
        box = np.array([left, top, left + columns, top + rows]) * scale
        box = np.clip(box, 0, (picture.width - 1, picture.height - 1) * 2)
        draw.rectangle(tuple(map(float, box)), outline=_BOX_COLOUR, width=3)
        if number < _CUTS_SHOWN:
            seen = Image.fromarray(show_hole(*canvas.cut(window, (height, width))))
            cuts.append((fitted(seen), f"{columns} x {rows} pixels"))
    count = "1 window" if len(windows) == 1 else f"{len(windows):,} windows"
    return [(picture, f"{count}, seen at {width} x {height}"), *cuts]


def fill(
    pipe: RePaintPipeline,
    task: Task,
    num_model_calls: int,
    num_samples: int,
    seed: int,
    class_label: int | None,
    own_schedule: bool,
    num_inference_steps: int | None,
    jump_length: int | None,
    jump_n_sample: int | None,
    eta: float | None,
) -> Iterator[Progress]:
    """Run the chains of a task, and yield what they have reached a few times a second.

    Args:
        pipe: the model.
        task: what to fill.
        num_model_calls: the call budget of a chain.
        num_samples: the number of results.
        seed: the seed of the noise.
        class_label: the class label. It is used only with a class-conditional model.
        own_schedule: whether to use RePaint's own schedule instead of the call budget.
        num_inference_steps: the number of inference steps T of RePaint's own schedule.
        jump_length: the number of inference steps that a jump goes back.
        jump_n_sample: the number of passes through each stretch of jump_length steps.
        eta: the share of DDPM's noise in a step.

    Raises:
        ValueError: if the seed or the schedule is not valid.
    """
    key = seed_key(seed)
    schedule: dict[str, Any] = {"num_model_calls": num_model_calls}
    if own_schedule:
        schedule = {
            "num_inference_steps": num_inference_steps,
            "jump_length": jump_length,
            "jump_n_sample": jump_n_sample,
            "eta": eta,
        }
    state = pipe.set_timesteps(**schedule)
    calls = state.num_model_calls or 0
    if calls > MAX_MODEL_CALLS:
        raise ValueError(f"this schedule has {calls:,} model calls, expected at most {MAX_MODEL_CALLS:,}")
    yield Progress([], 0, calls, "preparing the network")
    watching = pipe.watch(
        task.before(),
        task.mask.crop(task.part),
        state=state,
        key=key,
        num_samples=num_samples,
        fit=task.fit,
        context=task.context,
        class_labels=class_label if pipe.is_class_conditional else None,
    )
    started = next_time = -np.inf
    for watched in watching:
        done, total = watched.calls_done, watched.num_model_calls
        now = time.perf_counter()
        if done == 1:
            started = now
        if done == total:
            remark = "1 result" if num_samples == 1 else f"{num_samples} results"
            results = Results(task, watched.images)
            yield Progress(_for_browser(watched.images), total, total, remark, results)
        elif now >= next_time:
            left = (total - done) * (now - started) / max(done - 1, 1)
            remark = f"about {left:.0f} s left" if done > 1 else "started"
            yield Progress(_for_browser(watched.images), done, total, remark)
            took = time.perf_counter() - now
            next_time = now + took + max(_SECONDS_BETWEEN_PREVIEWS, 4 * took)  # previews of large parts


def compared(results: Results, number: int) -> tuple[Image.Image, Image.Image]:
    """Return the part before and after filling, for the browser."""
    after = results.parts[min(number, len(results.parts) - 1)]
    before, after = _for_browser([results.task.before(), after])
    return before, after


def write_png(picture: Image.Image, path: StrPath) -> None:
    """Write a picture as a PNG, with its ICC profile. It is compressed quickly."""
    picture.save(path, compress_level=1)


def write_zip(results: Results, path: StrPath) -> None:
    """Write all results at full resolution as PNGs in a ZIP archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(len(results.parts)):
            with archive.open(f"result-{number + 1}.png", "w") as file:
                results.whole(number).save(file, "PNG", compress_level=1)


def prepare(pipe: RePaintPipeline, num_samples: int) -> None:
    """Compile the default chain, so that the first visitor does not wait for it."""
    picture, hole = np.zeros(pipe.image_shape, np.uint8), np.zeros(pipe.image_shape[:2], bool)
    label = 0 if pipe.is_class_conditional else None
    key: jax.Array = seed_key(0)
    next(pipe.watch(picture, hole, key=key, num_samples=num_samples, fit="crop", class_labels=label))


def _for_browser(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [fitted(one).convert("RGB") for one in pictures]


def _threshold(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 if value >= 128 else 0)


def _painted_for(mask: Image.Image, canvas: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where the canvas is painted for a mask: where any pixel is filled."""
    hole = mask.point(lambda value: 0 if value else 255)
    shrinks = canvas[0] < mask.width
    scaled = hole.resize(canvas, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
    return np.asarray(scaled) > 0


def _part_with_windows(hole: NDArray[np.bool_], size: tuple[int, ...], context: float) -> Box:
    """Return the part of a picture that has all windows, no smaller than what is shown."""
    windows = list(chain(*plan_windows(hole, (size[0], size[1]), context)))
    ends = []
    for axis, length in enumerate(hole.shape):
        starts = [(window.top, window.left)[axis] for window in windows]
        stops = [start + one.hole.shape[axis] for start, one in zip(starts, windows, strict=True)]
        first, last = max(min(starts), 0), min(max(stops), length)
        missing = max(min(SHOWN_SIDE, length) - (last - first), 0)
        first = min(max(first - missing // 2, 0), length - (last - first) - missing)
        ends.append((first, max(last, first + min(SHOWN_SIDE, length))))
    (top, bottom), (left, right) = ends
    return left, top, right, bottom
