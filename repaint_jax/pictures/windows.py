"""Windows around the holes of a picture: what a model of a fixed size sees of it.

A window has the model's proportions. It holds a hole with some context, and is scaled to the model's size.
Holes that are too long for one window are divided among several, which are filled in passes: a later pass
sees what the earlier ones have filled.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from repaint_jax.pictures.blending import smooth_continuation
from repaint_jax.pictures.images import array_to_uint8, in_floats, resized

DEFAULT_CONTEXT = 0.25  # measured in docs/guides/sizes.md
_LONGEST = 3  # a hole that is this many times longer than it is thick gets several windows
_PARTS = 8  # holes that are closer than this share of a window's side are one


class Window(NamedTuple):
    """A part of a picture, and the pixels that are filled when the model sees it."""

    left: int  # negative where the window begins beyond the picture, which is mirrored there
    top: int
    hole: NDArray[np.bool_]  # [height, width] of the window

    @property
    def rows(self) -> NDArray[np.int_]:
        """The picture's rows in the window, some of which may be beyond its edges."""
        return self.top + np.arange(self.hole.shape[0])

    @property
    def columns(self) -> NDArray[np.int_]:
        """The picture's columns in the window."""
        return self.left + np.arange(self.hole.shape[1])


class Canvas:
    """A picture of any size whose holes are filled window by window.

    Args:
        pixels: [H, W, C], uint8, or floating in [-1, 1]. They are not changed.
        mask: [H, W, 1] in [0, 1]. Pixels below 1 are filled, those above 0 from what is there.
        fade: the picture's weights in what `faded` returns, [H, W, 1], or None.
    """

    def __init__(
        self,
        pixels: NDArray[Any],
        mask: NDArray[np.floating],
        fade: NDArray[np.float32] | None = None,
    ):
        self.pixels = self._original = pixels
        self._fade = fade
        self._mask = mask[..., 0]
        self._shared = True  # with other canvases, until the first window is put back

    @property
    def hole(self) -> NDArray[np.bool_]:
        """The pixels that are still to be filled, [H, W]."""
        return self._mask < 1

    def copy(self) -> "Canvas":
        """Return a canvas of its own with the same pixels."""
        self._shared = True
        new = object.__new__(Canvas)
        new.__dict__.update(self.__dict__)
        return new

    def faded(self) -> NDArray[Any]:
        """Return the pixels, in which what was filled fades into the picture."""
        if self._fade is None or self.pixels is self._original:
            return self.pixels
        between = (self._fade > 0) & (self._fade < 1)
        rows, columns, _ = np.nonzero(between)
        weights = self._fade[rows, columns]
        filled, before = (in_floats(pixels[rows, columns]) for pixels in (self.pixels, self._original))
        mixed = filled + weights * (before - filled)
        result = self.pixels.copy()
        result[rows, columns] = array_to_uint8(mixed) if result.dtype == np.uint8 else mixed
        return result

    def whole(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the picture [H, W, C] in [-1, 1] and its mask [H, W, 1]."""
        return in_floats(self.pixels), self._mask[..., None].astype(np.float32)

    def cut(self, window: Window, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the model sees of a window, as an image [*size, C] in [-1, 1] and a mask [*size, 1].

        A pixel is unknown if any unknown pixel contributes to it.
        """
        seen = np.ix_(*(_mirrored(*of_side) for of_side in self._sides(window)))
        image = resized_array(in_floats(self.pixels[seen]), size)
        mask = self._mask[seen][..., None]
        unknown, soft = resized_array(mask == 0, size), resized_array(mask, size)
        return image, np.where(unknown > 1e-6, 0, np.where(soft > 1 - 1e-6, 1, soft)).astype(np.float32)

    def put_back(self, window: Window, filling: NDArray[np.float32]) -> None:
        """Fill the window's hole with what the model made of it, [h, w, C] in [-1, 1].

        The filling is scaled to the window's size. Its difference from the known pixels, which have finer
        detail, is continued smoothly into the hole and added there, so that no seam shows. Pixels that are
        softly known keep their detail: they change by what the model changed of them.
        """
        if self._shared:  # large pictures are copied only once they change
            self.pixels, self._mask, self._shared = self.pixels.copy(), self._mask.copy(), False
        (rows, height), (columns, width) = self._sides(window)
        inside = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        hole = window.hole[inside]
        rows, columns = rows[rows >= 0], columns[columns >= 0]
        part = np.s_[rows[0] : rows[0] + hole.shape[0], columns[0] : columns[0] + hole.shape[1]]
        known, before = self._mask[part] == 1, in_floats(self.pixels[part])
        filled = resized_array(filling, window.hole.shape)[inside]
        if known.any() and window.hole.shape != filling.shape[:2]:
            filled = filled + smooth_continuation(before - filled, known)
        soft = hole & (self._mask[part] > 0)
        if soft.any():
            seen, _ = self.cut(window, filling.shape[:2])
            changes = resized_array(filling - seen, window.hole.shape)[inside]
            filled = np.where(soft[..., None], before + changes, filled)
        filled = np.clip(filled, -1, 1)[hole]
        self.pixels[part][hole] = array_to_uint8(filled) if self.pixels.dtype == np.uint8 else filled
        self._mask[part][hole] = 1

    def _sides(self, window: Window) -> tuple[tuple[NDArray[np.int_], int], tuple[NDArray[np.int_], int]]:
        height, width = self._mask.shape
        return (window.rows, height), (window.columns, width)


def plan_windows(
    hole: NDArray[np.bool_], size: tuple[int, int], context: float = DEFAULT_CONTEXT
) -> list[list[Window]]:
    """Return windows that fill the holes of a picture, in passes.

    A window is no smaller than the model's size, unless the picture is. It is moved inside the picture
    where that is large enough.

    Args:
        hole: the pixels to fill, [H, W].
        size: the model's height and width.
        context: what a window shows on each side of its hole, as a share of the hole's longer side.
    """
    of_height, of_width = (picture / model for picture, model in zip(hole.shape, size, strict=True))
    # The scale of a window is its side over the model's.
    whole = max(of_height, of_width)  # shows the whole picture
    smallest = min(1.0, whole)
    passes: list[list[Window]] = [[] for _ in range(4)]
    groups = sorted(_groups(hole, smallest * min(size)), key=lambda group: -max(group.pixels.shape))
    margins = np.array([context * max(group.pixels.shape) for group in groups])
    shown = np.array([group.box for group in groups]).reshape(-1, 4)  # with their context
    shown = shown + margins[:, None] * (-1, -1, 1, 1)
    shown = np.clip(shown, 0, (hole.shape[1], hole.shape[0]) * 2)
    taken = np.zeros(len(groups), bool)
    for number, group in enumerate(groups):
        if taken[number]:
            continue
        scale = min(max(smallest, _scale(group.pixels.shape, margins[number], size)), whole)
        thin = max(smallest, _scale_of_thickness(hole, group, context, size))
        if scale > _LONGEST * thin:
            taken[number] = True
            for turn, window in _tiles(group, thin, size, hole.shape):
                passes[turn].append(window)
            continue
        left, top, height, width = _place(group.box, scale, size, hole.shape)
        # The window also fills other holes that it shows with their context.
        begin, end = (left, top), (left + width, top + height)
        fits = ~taken & (shown[:, :2] >= begin).all(1) & (shown[:, 2:] <= end).all(1)
        fits[number] = True
        filled = np.zeros((height, width), bool)
        for other in np.flatnonzero(fits):
            _mark(filled, groups[other], left, top)
        taken |= fits
        passes[0].append(Window(left, top, filled))
    return [windows for windows in passes if windows]


def whole_window(hole: NDArray[np.bool_], multiple: int) -> Window:
    """Return a window that shows a picture as it is, with sides that are multiples of a number."""
    return Window(0, 0, np.pad(hole, [(0, -length % multiple) for length in hole.shape]))


class _Group(NamedTuple):
    """Pixels to fill that are close to each other."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    pixels: NDArray[np.bool_]  # [bottom - top, right - left]


def _groups(hole: NDArray[np.bool_], side: float) -> Iterator[_Group]:
    cell = max(1, math.ceil(side / _PARTS))
    padded = np.pad(hole, [(0, -length % cell) for length in hole.shape])
    cells = padded.reshape(padded.shape[0] // cell, cell, padded.shape[1] // cell, cell).any((1, 3))
    labels, _ = ndimage.label(cells, np.ones((3, 3)))
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        top, left = rows.start * cell, columns.start * cell
        part = hole[top : rows.stop * cell, left : columns.stop * cell]
        own = (labels[rows, columns] == label).repeat(cell, 0).repeat(cell, 1)
        own = own[: part.shape[0], : part.shape[1]] & part
        (first_row, *_, last_row), (first_column, *_, last_column) = (
            (*along, *along) for along in (np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0)))
        )
        top, left = top + int(first_row), left + int(first_column)
        own = own[first_row : last_row + 1, first_column : last_column + 1]
        yield _Group((left, top, left + own.shape[1], top + own.shape[0]), own)


def _scale(shape: tuple[int, ...], margin: float, size: tuple[int, int]) -> float:
    """Return how many times the model's size a window must have to show a hole and its context."""
    return max((length + 2 * margin) / of_model for length, of_model in zip(shape, size, strict=True))


def _scale_of_thickness(
    hole: NDArray[np.bool_], group: _Group, context: float, size: tuple[int, int]
) -> float:
    """Return the scale at which a window shows known pixels around any part of a hole."""
    left, top, right, bottom = group.box
    part = hole[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
    if part.all():
        return math.inf
    farthest = int(ndimage.distance_transform_cdt(part, "chessboard").max())
    thickness = 2 * farthest - 1
    return _scale((thickness, thickness), context * thickness, size)


def _place(
    box: tuple[int, int, int, int], scale: float, size: tuple[int, int], shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Return left, top, height and width of a window around a box, inside the picture if it fits."""
    sides = [math.ceil(scale * length - 1e-9) for length in size]
    starts = []
    for side, length, first, last in zip(sides, shape, (box[1], box[0]), (box[3], box[2]), strict=True):
        start = (first + last - side) // 2
        starts.append((length - side) // 2 if side > length else min(max(start, 0), length - side))
    return starts[1], starts[0], sides[0], sides[1]


def _tiles(
    group: _Group, scale: float, size: tuple[int, int], shape: tuple[int, ...]
) -> Iterator[tuple[int, Window]]:
    """Divide a hole among windows that overlap, each with the number of its pass."""
    left, top, right, bottom = group.box
    # Each window fills a cell of half its sides. Those of one pass do not overlap.
    cell_height, cell_width = (max(1, math.ceil(scale * length / 2)) for length in size)
    for row, first in enumerate(range(top, bottom, cell_height)):
        for column, start in enumerate(range(left, right, cell_width)):
            end, stop = min(first + cell_height, bottom), min(start + cell_width, right)
            pixels = group.pixels[first - top : end - top, start - left : stop - left]
            if not pixels.any():
                continue
            x, y, height, width = _place((start, first, stop, end), scale, size, shape)
            filled = np.zeros((height, width), bool)
            _mark(filled, _Group((start, first, stop, end), pixels), x, y)
            yield 2 * (row % 2) + column % 2, Window(x, y, filled)


def _mark(filled: NDArray[np.bool_], group: _Group, left: int, top: int) -> None:
    x, y, right, bottom = group.box
    filled[y - top : bottom - top, x - left : right - left] |= group.pixels


def _mirrored(positions: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Return the positions inside a side of this length that positions beyond its ends mirror."""
    positions = positions % (2 * length)
    return np.where(positions < length, positions, 2 * length - 1 - positions)


def resized_array(array: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize an array [h, w, C] to another height and width."""
    array = array.astype(np.float32)
    if array.shape[:2] == tuple(size):
        return array
    channels = [
        resized(Image.fromarray(channel), (size[1], size[0])) for channel in np.moveaxis(array, -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
