"""Fill pictures in rounds: those of the model's size at once, others window by window.

Both kinds have the same methods. A round is a list of rows for a chain: `cut` makes its inputs, and `put`
takes its results.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.pictures.batches import Batch, Look, as_output, make_batch, make_canvases, with_look
from repaint_jax.pictures.blending import faded
from repaint_jax.pictures.images import array_to_uint8, in_floats, uint8_to_pil
from repaint_jax.pictures.windows import DEFAULT_CONTEXT, Canvas, Window, plan_windows, whole_window
from repaint_jax.sampling.checks import check_choice, check_noise, check_number

FITS = ("exact", "resize", "crop", "native")
PICTURE_OPTIONS = (
    "fit",
    "context",
    "background",
    "keep_alpha",
    "input_range",
    "grow_mask",
    "feather",
    "soft_mask",
)  # of `make_filling`
WINDOWS_AT_ONCE = 16  # in a batch of a chain, so that any number of windows fits the memory


class Row(NamedTuple):
    """A row of a chain."""

    result: int  # the number of the result that it belongs to
    window: int | None = None  # the number of the window in the picture; None is the whole picture


class Filling(Protocol):
    """The results of pictures, `num_samples` for each, adjacent."""

    num_pictures: int
    num_rounds: int

    def copy(self) -> Self:
        """Return the same as it is now, to go on with separately."""

    def rounds(self) -> Iterator[Sequence[Row]]:
        """Yield the rows of each round; put in its results before the next."""

    def cut(self, rows: Sequence[Row]) -> tuple[Any, Any]:
        """Return the images [rows, h, w, C] and masks [rows, h, w, 1] that the model sees."""

    def put(self, rows: Sequence[Row], samples: jax.Array) -> None:
        """Take the chain's results [rows, h, w, C]."""

    def original(self) -> tuple[NDArray[np.float32], NDArray[np.float32], bytes | None]:
        """Return the first picture [H, W, C] in [-1, 1], its mask [H, W, 1] and its ICC profile."""

    def check_output(self, output_type: str) -> None:
        """Raise ValueError if the results cannot be returned as this type."""

    def output(self, output_type: str) -> Any:
        """Return the results as a pipeline does, see `as_output`."""


class WholePictures:
    """Pictures of the model's size, filled in one round."""

    num_rounds = 1

    def __init__(self, batch: Batch, num_samples: int):
        self.num_pictures = len(batch.images)
        self._batch, self._num_samples = batch, num_samples
        self._samples: Any = None

    def copy(self) -> "WholePictures":
        new = WholePictures(self._batch, self._num_samples)
        new._samples = self._samples
        return new

    def rounds(self) -> Iterator[Sequence[Row]]:
        yield [Row(result) for result in range(self.num_pictures * self._num_samples)]

    def cut(self, rows: Sequence[Row]) -> tuple[Any, Any]:
        pictures = np.array([row.result // self._num_samples for row in rows])
        return self._batch.images[pictures], self._batch.masks[pictures]

    def put(self, rows: Sequence[Row], samples: jax.Array) -> None:
        fades = [fade for fade in self._batch.fades if fade is not None]
        if fades:
            images, _ = self.cut(rows)
            weights = np.stack(fades)[[row.result // self._num_samples for row in rows]]
            samples = faded(samples, jnp.asarray(images), jnp.asarray(weights))
        self._samples = samples

    def original(self) -> tuple[NDArray[np.float32], NDArray[np.float32], bytes | None]:
        return self._batch.images[0], self._batch.masks[0], self._batch.looks[0].profile

    def check_output(self, output_type: str) -> None:
        pass

    def output(self, output_type: str) -> Any:
        return as_output(self._samples, output_type, self._batch.looks)


class WindowedPictures:
    """Pictures of any size, filled window by window.

    Args:
        canvases: the pictures.
        plans: the windows of each picture, in passes, see `plan_windows`.
        size: the height and width of what the model sees.
        looks: the looks of the pictures.
        num_samples: the number of results of each picture.
        rows_at_once: the number of windows in a round.
    """

    def __init__(
        self,
        canvases: Sequence[Canvas],
        plans: Sequence[Sequence[Sequence[Window]]],
        size: tuple[int, int],
        looks: Sequence[Look],
        num_samples: int,
        rows_at_once: int,
    ):
        self.num_pictures = len(canvases)
        self._originals = canvases
        self._canvases = [canvas.copy() for canvas in canvases for _ in range(num_samples)]
        self._size, self._looks, self._num_samples = size, looks, num_samples
        self._windows = [[window for windows in plan for window in windows] for plan in plans]
        passes: list[list[Row]] = [[] for _ in range(max(map(len, plans), default=0))]
        for result in range(len(self._canvases)):
            numbers = itertools.count()
            for rows, windows in zip(passes, plans[result // num_samples], strict=False):
                rows.extend(Row(result, next(numbers)) for _ in windows)
        self._rounds = [
            rows[start : start + rows_at_once]
            for rows in passes
            for start in range(0, len(rows), rows_at_once)
        ]
        self.num_rounds = len(self._rounds)

    def copy(self) -> "WindowedPictures":
        new = object.__new__(WindowedPictures)
        new.__dict__.update(self.__dict__, _canvases=[canvas.copy() for canvas in self._canvases])
        return new

    def rounds(self) -> Iterator[Sequence[Row]]:
        yield from self._rounds

    def cut(self, rows: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cuts = [self._canvases[row.result].cut(self._window(row), self._size) for row in rows]
        images, masks = zip(*cuts, strict=True)
        return np.stack(images), np.stack(masks)

    def put(self, rows: Sequence[Row], samples: jax.Array) -> None:
        for row, sample in zip(rows, np.asarray(samples, np.float32), strict=True):
            self._canvases[row.result].put_back(self._window(row), sample)

    def _window(self, row: Row) -> Window:
        assert row.window is not None
        return self._windows[row.result // self._num_samples][row.window]

    def original(self) -> tuple[NDArray[np.float32], NDArray[np.float32], bytes | None]:
        return *self._originals[0].whole(), self._looks[0].profile

    def check_output(self, output_type: str) -> None:
        if output_type != "pil":
            sizes = [canvas.pixels.shape[:2] for canvas in self._canvases]
            _check_one_size(sizes, f"output_type={output_type!r}, or 'pil'")

    def output(self, output_type: str) -> Any:
        pixels = [canvas.faded() for canvas in self._canvases]
        if output_type == "pil":
            pictures = (
                uint8_to_pil(one if one.dtype == np.uint8 else array_to_uint8(one)) for one in pixels
            )
            return [with_look(one, self._looks[i // self._num_samples]) for i, one in enumerate(pictures)]
        images = np.stack([in_floats(one) for one in pixels])
        return as_output(jnp.asarray(images) if output_type == "jax" else images, output_type, self._looks)


def make_filling(
    image: Any,
    mask_image: Any,
    image_shape: tuple[int, int, int],
    *,
    multiple: int,
    check_memory: Callable[[tuple[int, int, int]], None],
    num_samples: int = 1,
    fit: str = "exact",
    context: float = DEFAULT_CONTEXT,
    observation_noise: float = 0.0,
    **of_pictures: Any,
) -> Filling:
    """Convert the pictures and masks that a pipeline takes.

    Args:
        image: the pictures, see `make_batch`.
        mask_image: their masks.
        image_shape: the shape [H, W, C] of the model's images.
        multiple: what the sides of a picture must be a multiple of for the network.
        check_memory: a function that raises MemoryError for shapes that are too large for the network.
        num_samples: the number of results for each picture.
        fit: one of `FITS`.
        context: of the windows, see `plan_windows`.
        observation_noise: the standard deviation of the noise in known pixels. Above 0 they change, too.
        of_pictures: see `make_batch`.

    Raises:
        ValueError: if a value is out of range, or pictures and masks do not fit the model or each other.
        MemoryError: if the pictures' own size is too large.
    """
    check_choice("fit", fit, FITS)
    if not 0 <= check_number("context", context) < math.inf:
        raise ValueError(f"context is {context!r}, expected a number from 0 on")
    noisy = check_noise("observation_noise", observation_noise) > 0
    if noisy and fit == "crop":
        raise ValueError(
            f"observation_noise is {observation_noise}, expected 0 with fit='crop': the pixels "
            "around windows stay as they are"
        )
    of_pictures["noisy"] = noisy
    if fit in ("exact", "resize"):
        batch = make_batch(image, mask_image, image_shape, resize=fit == "resize", **of_pictures)
        return WholePictures(batch, num_samples)
    canvases, looks = make_canvases(image, mask_image, image_shape, **of_pictures)
    height, width, channels = image_shape
    if fit == "crop":
        plans = [plan_windows(canvas.hole, (height, width), context) for canvas in canvases]
        return WindowedPictures(canvases, plans, (height, width), looks, num_samples, WINDOWS_AT_ONCE)
    windows = [whole_window(canvas.hole | noisy, multiple) for canvas in canvases]
    sizes = [window.hole.shape for window in windows]
    _check_one_size(sizes, "fit='native'")
    height, width = sizes[0]
    check_memory((height, width, channels))
    plans = [[[window]] for window in windows]
    return WindowedPictures(canvases, plans, (height, width), looks, num_samples, 1)


def _check_one_size(sizes: Sequence[tuple[int, ...]], reason: str) -> None:
    different = sorted(set(sizes))
    if len(different) > 1:
        raise ValueError(
            "image has pictures of {} x {} and of {} x {} pixels, expected one size with {}".format(
                *different[0], *different[1], reason
            )
        )
