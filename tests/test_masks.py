"""The masks of the RePaint paper, at its size of 256 pixels and at small ones."""

from functools import partial

import jax
import numpy as np
import pytest

from repaint_jax import masks

FIXED = (masks.half, masks.expand, masks.alternating_lines, masks.super_resolution)
RANDOM = (masks.wide, masks.narrow)
NUM_KEYS = 24


@pytest.fixture(scope="module")
def strokes() -> dict[str, np.ndarray]:
    """Many wide and narrow masks of 64 x 80 pixels; the last key is the first."""
    keys = jax.random.split(jax.random.key(0), NUM_KEYS)
    keys = keys.at[-1].set(keys[0])
    return {
        make.__name__: np.asarray(jax.jit(partial(jax.lax.map, partial(make, 64, 80)))(keys))
        for make in RANDOM
    }


@pytest.mark.parametrize("make", FIXED)
@pytest.mark.parametrize("shape", [(16, 16), (5, 8), (1, 1)])
def test_fixed_masks_are_zeros_and_ones_with_one_channel(make, shape: tuple[int, int]):
    mask = make(*shape)
    assert (mask.shape, mask.dtype) == ((*shape, 1), np.float32)
    assert set(np.unique(mask)) <= {0.0, 1.0}


def test_half_keeps_the_left_half():
    mask = np.asarray(masks.half(256, 256))
    assert (mask[:, :128] == 1).all()
    assert (mask[:, 128:] == 0).all()


def test_expand_keeps_the_central_64_by_64_of_256():
    mask = np.asarray(masks.expand(256, 256))
    assert mask.sum() == 64 * 64
    assert (mask[96:160, 96:160] == 1).all()


def test_alternating_lines_keeps_every_second_row():
    mask = np.asarray(masks.alternating_lines(256, 256))
    assert (mask[0::2] == 1).all()
    assert (mask[1::2] == 0).all()


def test_super_resolution_keeps_every_second_pixel_in_both_directions():
    mask = np.asarray(masks.super_resolution(256, 256))
    assert (mask[::2, ::2] == 1).all()
    assert mask.sum() == 128 * 128


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_strokes_are_zeros_and_ones_that_follow_their_key(strokes, name: str):
    drawn = strokes[name]
    assert (drawn.shape, drawn.dtype) == ((NUM_KEYS, 64, 80, 1), np.float32)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_array_equal(drawn[0], drawn[-1])
    assert len(np.unique(drawn, axis=0)) == NUM_KEYS - 1


def test_wide_strokes_remove_more_than_narrow_ones_and_both_leave_something(strokes):
    wide, narrow = (1 - strokes[name].mean((1, 2, 3)) for name in ("wide", "narrow"))
    assert wide.mean() > narrow.mean() + 0.1
    for share in (wide, narrow):
        assert share.min() > 0
        assert share.max() < 0.9


def test_feathered_edges_rise_with_the_distance_from_the_hole():
    mask = np.ones((9, 9, 1), np.float32)
    mask[4, 2] = 0
    rows, columns = np.indices((9, 9))
    distance = np.maximum(abs(rows - 4), abs(columns - 2))[..., None]
    np.testing.assert_allclose(masks.feather(mask, 2), np.minimum(distance / 3, 1), rtol=1e-6)
    np.testing.assert_array_equal(masks.feather(mask, 0), mask)
    with pytest.raises(ValueError, match="radius is -1, expected an integer of at least 0"):
        masks.feather(mask, -1)


@pytest.mark.parametrize("margin", [0, 1, 2])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_latent_is_known_where_its_cell_and_those_around_are(factor: int, margin: int):
    masks_of_pixels = np.random.default_rng(0).random((3, 16, 24, 1)) < 0.98
    rows, columns = 16 // factor, 24 // factor
    expected = np.ones((3, rows, columns, 1), np.float32)
    for i, row, column, _ in np.argwhere(~masks_of_pixels):
        top, left = row // factor, column // factor
        near_rows = slice(max(top - margin, 0), top + margin + 1)
        near_columns = slice(max(left - margin, 0), left + margin + 1)
        expected[i, near_rows, near_columns] = 0
    found = jax.jit(masks.downsample, static_argnums=(1, 2))(
        masks_of_pixels.astype(np.float32), factor, margin
    )
    np.testing.assert_array_equal(found, expected, strict=True)


def test_the_mask_of_latents_keeps_its_dtype():
    mask = masks.half(8, 8).astype(jax.numpy.bfloat16)
    assert masks.downsample(mask, 2, 1).dtype == jax.numpy.bfloat16


@pytest.mark.parametrize(
    ("mask", "arguments", "error", "message"),
    [
        (np.ones((8, 9, 1)), (4,), ValueError, r"mask has shape \(8, 9, 1\), .* multiples of factor=4"),
        (np.ones((0, 8, 1)), (4,), ValueError, r"mask has shape \(0, 8, 1\), .* multiples of factor=4"),
        (np.ones((8, 8)), (4,), ValueError, r"\(8, 8\), expected \(..., height, width, 1\)"),
        (np.ones((8, 8, 3)), (4,), ValueError, r"\(8, 8, 3\), expected \(..., height, width, 1\)"),
        (np.ones((8, 8, 1), bool), (4,), TypeError, "mask has dtype bool, expected a floating dtype"),
        (np.ones((8, 8, 1)), (0,), ValueError, "factor is 0, expected an integer of at least 1"),
        (np.ones((8, 8, 1)), (2.0,), TypeError, "factor is 2.0, expected an integer"),
        (np.ones((8, 8, 1)), (4, -1), ValueError, "margin is -1, expected an integer of at least 0"),
    ],
)
def test_downsample_refuses(mask, arguments, error: type, message: str):
    with pytest.raises(error, match=message):
        masks.downsample(mask, *arguments)


def test_masks_and_soft_edges_refuse():
    with pytest.raises(ValueError, match=r"mask has shape \(8, 8\), expected \(..., height, width, 1\)"):
        masks.feather(np.ones((8, 8), np.float32), 2)
    with pytest.raises(TypeError, match=r"height is 8\.5, expected an integer"):
        masks.half(8.5, 8)
    with pytest.raises(ValueError, match="width is -8, expected an integer of at least 1"):
        masks.wide(8, -8, jax.random.key(0))
    with pytest.raises(TypeError, match="key has dtype int32, expected a key"):
        masks.wide(8, 8, 0)


@pytest.mark.parametrize("pixels", [-1, 0, 2])
def test_masks_of_a_batch_grow_under_jit_in_their_dtype(pixels: int):
    both = np.stack([masks.half(8, 8), masks.expand(8, 8)]).astype(jax.numpy.bfloat16)
    larger = jax.jit(masks.grow, static_argnums=1)(both, pixels)
    assert larger.dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(larger[0, :, : 4 - pixels], 1)
    np.testing.assert_array_equal(larger[0, :, 4 - pixels :], 0)
    kept = 2 * max(1 - pixels, 0)
    assert larger[1].sum() == kept**2


def test_grow_refuses():
    with pytest.raises(TypeError, match=r"pixels is 1\.0, expected an integer"):
        masks.grow(np.ones((8, 8, 1)), 1.0)
    with pytest.raises(ValueError, match=r"\(8, 8\), expected \(..., height, width, 1\)"):
        masks.grow(np.ones((8, 8)), 1)


def test_soft_edges_of_a_batch_are_those_of_each_mask():
    both = np.stack([masks.half(8, 8), masks.expand(8, 8)])
    for soft, mask in zip(masks.feather(both, 2), both, strict=True):
        np.testing.assert_array_equal(soft, masks.feather(mask, 2))
