"""Windows around holes: where they lie, what the model sees, and how they are put back."""

import itertools

import numpy as np
import pytest

from repaint_jax.pictures.blending import smooth_continuation
from repaint_jax.pictures.windows import Canvas, Window, plan_windows, whole_window

SIZE = (32, 32)


def holes(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes of left, top, right, bottom."""
    hole = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        hole[top:bottom, left:right] = True
    return hole


RANDOM = np.random.default_rng(0)
SCATTERED = holes(300, 400, *((x, y, x + 5, y + 7) for x, y in RANDOM.integers(0, 290, (100, 2))))
RING = ~holes(300, 400, (12, 12, 388, 288))
CASES = {
    "one pixel": holes(300, 400, (200, 100, 201, 101)),
    "a corner": holes(300, 400, (380, 280, 400, 300)),
    "an edge": holes(300, 400, (0, 100, 10, 130)),
    "three": holes(300, 400, (10, 10, 90, 60), (200, 200, 203, 203), (330, 10, 400, 90)),
    "100": SCATTERED,
    "a thin line": holes(300, 400, (0, 150, 400, 153)),
    "a diagonal": np.eye(300, 400, dtype=bool),
    "every second row": np.arange(300 * 400).reshape(300, 400) // 400 % 2 == 0,
    "a ring": RING,
    "all": np.ones((300, 400), bool),
    "none": np.zeros((300, 400), bool),
    "smaller than the model": holes(20, 24, (3, 3, 9, 9)),
    "lower than the model": holes(20, 90, (30, 3, 45, 9)),
    "one row": holes(1, 100, (40, 0, 44, 1)),
    "one column": holes(100, 1, (0, 99, 1, 100)),
    "a picture of one pixel": holes(1, 1, (0, 0, 1, 1)),
}


def in_picture(window: Window, hole: np.ndarray) -> np.ndarray:
    """What the window fills, in the picture; raises if a pixel lies outside."""
    filled = np.zeros(hole.shape, int)
    rows, columns = np.nonzero(window.hole)
    assert (window.rows[rows] >= 0).all() and (window.columns[columns] >= 0).all()
    filled[window.rows[rows], window.columns[columns]] = 1
    return filled


@pytest.mark.parametrize("size", [SIZE, (16, 48)])
@pytest.mark.parametrize("name", CASES)
def test_every_pixel_to_fill_is_in_one_window_that_lies_in_the_picture(name: str, size) -> None:
    hole = CASES[name]
    windows = [window for windows in plan_windows(hole, size) for window in windows]
    np.testing.assert_array_equal(sum(in_picture(window, hole) for window in windows), hole)
    for window in windows:
        assert window.hole.any()
        (height, width), (model_height, model_width) = window.hole.shape, size
        assert abs(height * model_width - width * model_height) <= max(size)  # up to rounding
        for start, side, length in (
            (window.top, height, hole.shape[0]),
            (window.left, width, hole.shape[1]),
        ):
            assert 0 <= start <= length - side if side <= length else start <= 0 <= side + start - length
        if min(hole.shape) >= max(size):
            assert height >= model_height and width >= model_width


@pytest.mark.parametrize("context", [0, 0.25, 0.5, 1])
def test_a_window_shows_its_hole_with_context(context: float) -> None:
    hole = holes(300, 400, (100, 120, 160, 160))
    ((window,),) = plan_windows(hole, SIZE, context)
    margin = context * 60
    assert window.hole.shape[0] == window.hole.shape[1] == 60 + 2 * margin
    assert window.left == 100 - margin
    assert window.top == 140 - 30 - margin


def test_holes_close_to_each_other_share_a_window_and_others_do_not() -> None:
    assert [len(windows) for windows in plan_windows(CASES["three"], SIZE)] == [3]
    close = holes(300, 400, (200, 100, 204, 104), (212, 100, 216, 104), (205, 112, 208, 115))
    assert [len(windows) for windows in plan_windows(close, SIZE)] == [1]


@pytest.mark.parametrize("name", ["a thin line", "a diagonal", "a ring", "every second row"])
def test_windows_of_a_long_hole_overlap_in_passes_of_which_the_later_see_the_earlier(name: str) -> None:
    hole = CASES[name]
    passes = plan_windows(hole, SIZE)
    assert len(passes) > 1
    longest = max(max(window.hole.shape) for windows in passes for window in windows)
    assert longest < 160  # of 400: not the whole hole at once
    for windows in passes:  # no window of a pass reaches into another one of the same pass
        places = [(window.left, window.top, *window.hole.shape[::-1]) for window in windows]
        for (x, y, width, height), (x2, y2, *_) in itertools.combinations(places, 2):
            edges = (
                min(x, x2) == 0
                or max(x, x2) == 400 - width
                or min(y, y2) == 0
                or max(y, y2) == 300 - height
            )
            assert abs(x - x2) >= width - 1 or abs(y - y2) >= height - 1 or edges


# What the model sees


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (height, width, channels)).astype(np.float32)


def canvas(pixels: np.ndarray, hole: np.ndarray) -> Canvas:
    return Canvas(pixels, 1 - hole[..., None].astype(np.float32))


@pytest.mark.parametrize("box", [(10, 10, 13, 12), (0, 0, 30, 20), (60, 50, 80, 60)])
def test_known_pixels_of_a_scaled_window_do_not_depend_on_what_is_in_the_hole(box) -> None:
    hole = holes(60, 80, box)
    pixels = picture(60, 80)
    changed = np.where(hole[..., None], -pixels, pixels)
    ((window,),) = plan_windows(hole, (16, 16), 0.5)
    (image, mask), (other, same) = (canvas(one, hole).cut(window, (16, 16)) for one in (pixels, changed))
    np.testing.assert_array_equal(mask, same)
    np.testing.assert_array_equal(image[mask[..., 0] == 1], other[mask[..., 0] == 1])
    assert image.shape == (16, 16, 3)
    assert set(np.unique(mask)) <= {0, 1}
    assert (mask == 0).any()


def test_a_window_beyond_the_edges_is_mirrored() -> None:
    pixels = picture(1, 5)
    hole = holes(1, 5, (1, 0, 2, 1))
    image, mask = canvas(pixels, hole).cut(Window(-1, -2, np.zeros((4, 8), bool)), (4, 8))
    np.testing.assert_array_equal(image, np.repeat(pixels[:, [0, 0, 1, 2, 3, 4, 4, 3]], 4, axis=0))
    np.testing.assert_array_equal(mask[..., 0], np.tile([1, 1, 0, 1, 1, 1, 1, 1], (4, 1)))


def test_the_window_of_a_whole_picture_has_sides_that_the_network_takes() -> None:
    hole = holes(13, 21, (2, 2, 5, 5))
    window = whole_window(hole, 8)
    assert (window.left, window.top, window.hole.shape) == (0, 0, (16, 24))
    image, mask = canvas(picture(13, 21), hole).cut(window, (16, 24))
    np.testing.assert_array_equal(image[13:], image[12:9:-1])
    np.testing.assert_array_equal(mask[:, 21:], mask[:, 20:17:-1])


# Putting back


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_only_pixels_in_the_hole_change(name: str, dtype) -> None:
    hole = CASES[name]
    pixels = np.random.default_rng(2).integers(0, 256, (*hole.shape, 1), np.uint8)
    pixels = pixels if dtype == np.uint8 else (pixels / 127.5 - 1).astype(np.float32)
    one, before = canvas(pixels, hole), pixels.copy()
    for window in itertools.chain(*plan_windows(hole, SIZE)):
        one.put_back(window, np.zeros((*SIZE, 1), np.float32))
    np.testing.assert_array_equal(one.pixels[~hole], before[~hole])
    np.testing.assert_array_equal(pixels, before)
    assert one.pixels.dtype == dtype
    assert not one.hole.any()


def test_a_window_of_the_models_size_is_put_back_as_it_is() -> None:
    hole = holes(100, 100, (50, 50, 60, 62))
    ((window,),) = plan_windows(hole, SIZE)
    pixels, filling = picture(100, 100), picture(32, 32)
    one = canvas(pixels, hole)
    one.put_back(window, filling)
    whole = pixels.copy()
    whole[window.top : window.top + 32, window.left : window.left + 32] = filling
    np.testing.assert_array_equal(one.pixels[hole], whole[hole])


def test_a_copy_of_a_canvas_is_filled_separately() -> None:
    hole = holes(100, 100, (50, 50, 60, 62))
    ((window,),) = plan_windows(hole, SIZE)
    one = canvas(picture(100, 100), hole)
    other = one.copy()
    one.put_back(window, np.zeros((*SIZE, 3), np.float32))
    assert other.hole.any()
    np.testing.assert_array_equal(other.pixels, picture(100, 100))


# Seams


def jump(pixels: np.ndarray, hole: np.ndarray) -> float:
    """The mean absolute difference of neighbours of which one was filled."""
    down, across = hole[1:] != hole[:-1], hole[:, 1:] != hole[:, :-1]
    differences = [np.abs(np.diff(pixels, axis=0))[down], np.abs(np.diff(pixels, axis=1))[across]]
    return float(np.concatenate(differences).mean())


ROWS, COLUMNS = np.mgrid[0:240, 0:320].astype(np.float32)
SYNTHETIC = {
    "gradients": np.sin(COLUMNS / 60) * np.cos(ROWS / 45) * 0.8,
    "texture": 0.5 * np.sin(COLUMNS / 60) + 0.3 * np.sin(COLUMNS * 1.1) * np.sin(ROWS * 0.9),
    "text": np.where((COLUMNS % 7 < 2) & (ROWS % 12 < 8) & (COLUMNS // 35 % 3 > 0), -0.9, 0.8),
}


@pytest.mark.parametrize(
    ("name", "pasted", "most"), [("gradients", 20, 1), ("texture", 1.3, 1), ("text", 2, 1.1)]
)
def test_no_seam_shows_where_the_model_has_less_detail_and_other_brightness(name, pasted, most) -> None:
    # The model draws the true picture at its own resolution, but with less contrast and too bright below.
    pixels = SYNTHETIC[name].astype(np.float32)[..., None]
    hole = (ROWS - 110) ** 2 + (COLUMNS - 150) ** 2 < 60**2
    ((window,),) = plan_windows(hole, SIZE)
    drawn, _ = canvas(pixels, np.zeros_like(hole)).cut(window, SIZE)
    drawn = drawn * 0.8 + np.linspace(0.05, 0.2, 32, dtype=np.float32)[:, None]
    blended, plain = canvas(pixels, hole), canvas(np.zeros_like(pixels), np.ones_like(hole))
    blended.put_back(window, drawn)
    plain.put_back(window, drawn)  # without a known pixel there is nothing to match
    own = jump(pixels, hole)
    assert jump(np.where(hole[..., None], plain.pixels, pixels), hole) > pasted * own
    assert jump(blended.pixels, hole) < most * own


@pytest.mark.parametrize("shape", [(40, 40), (37, 53), (1, 20)])
def test_a_smooth_continuation_keeps_what_is_known_and_stays_within_it(shape) -> None:
    values = np.random.default_rng(3).uniform(-1, 1, (*shape, 2))
    known = np.random.default_rng(4).random(shape) < 0.1
    known[0, 0] = True
    result = smooth_continuation(values, known)
    np.testing.assert_array_equal(result[known], values[known])
    assert np.abs(result).max() <= np.abs(values[known]).max()
    constant = smooth_continuation(np.where(known, 0.3, np.nan)[..., None], known)
    np.testing.assert_allclose(constant, 0.3, rtol=1e-12)


def test_a_smooth_continuation_is_near_the_membrane() -> None:
    # The membrane of these rim values is the harmonic function x^2 - y^2 itself.
    rows, columns = np.mgrid[-1:1:65j, -1:1:65j]
    harmonic = (columns**2 - rows**2)[..., None]
    known = np.ones((65, 65), bool)
    known[8:57, 8:57] = False
    error = np.abs(smooth_continuation(harmonic, known) - harmonic)[~known]
    assert error.max() < 0.02 * np.ptp(harmonic[~known])
    assert error.mean() < 0.006 * np.ptp(harmonic[~known])
