"""Continuation into a hole and blending, against a direct float64 solution and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from repaint_jax.pictures.blending import blend, continued, faded

SHAPE = (12, 16, 2)
IMAGE = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
MASKS = {"box": np.ones((12, 16, 1), np.float32), "edge": np.ones((12, 16, 1), np.float32)}
MASKS["box"][3:9, 4:12] = 0
MASKS["edge"][5:, :7] = 0
MASKS["edge"][2, 10] = 0


@pytest.mark.parametrize("reach", [np.inf, 2.0])
@pytest.mark.parametrize("name", MASKS)
def test_a_hole_continues_the_known_pixels(name: str, reach: float) -> None:
    mask = MASKS[name]
    hidden = np.where(mask == 1, IMAGE, np.nan)
    result = continued(jnp.asarray(hidden)[None], jnp.asarray(mask)[None], reach)[0]
    np.testing.assert_allclose(result, reference.continued(IMAGE, mask, reach), atol=2e-3)
    np.testing.assert_array_equal(np.where(mask == 1, result, 0), np.where(mask == 1, IMAGE, 0))


def test_a_ramp_is_continued_as_itself() -> None:
    ramp = np.broadcast_to(np.linspace(-1, 1, 16, dtype=np.float32)[None, :, None], (12, 16, 1))
    mask = MASKS["box"]
    result = continued(jnp.asarray(ramp)[None], jnp.asarray(mask)[None])[0]
    np.testing.assert_allclose(result, ramp, atol=2e-3)


def test_a_picture_without_known_pixels_becomes_zero() -> None:
    nothing = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_array_equal(continued(jnp.full((2, 4, 4, 3), jnp.nan), nothing), 0)


def test_each_picture_of_a_batch_has_its_own_hole() -> None:
    masks = jnp.stack([jnp.asarray(mask) for mask in MASKS.values()])
    images = jnp.stack([jnp.asarray(IMAGE), -jnp.asarray(IMAGE)])
    both = jax.jit(continued)(images, masks)
    for one, image, mask in zip(both, images, masks, strict=True):
        np.testing.assert_allclose(one, continued(image[None], mask[None])[0], atol=1e-6)


def test_a_filling_that_is_off_by_a_constant_is_corrected_at_the_rim_and_kept_inside() -> None:
    mask = np.ones((1, 40, 40, 1), np.float32)
    mask[:, 4:36, 4:36] = 0
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 40, 40, 1)), jnp.float32)
    filling = images + 0.3
    result = np.asarray(blend(filling, images, jnp.asarray(mask), 2.0) - images)
    np.testing.assert_array_equal(result[mask == 1], 0)
    inside = result[0, 20, 4:20, 0]
    # On a straight rim the correction is .3 a^n after n pixels, with a + 1/a = 2 + 1/reach^2.
    a = (2.25 - np.sqrt(2.25**2 - 4)) / 2
    np.testing.assert_allclose(inside[:8], 0.3 * (1 - a ** np.arange(1, 9)), atol=5e-3)
    np.testing.assert_allclose(inside[-1], 0.3, atol=5e-3)


def test_a_filling_fades_into_the_images_by_their_weights() -> None:
    filling = np.random.default_rng(1).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    weights = np.random.default_rng(2).choice(np.float32([0, 0.25, 0.7, 1]), (2, 12, 16, 1))
    images = np.stack([IMAGE, -IMAGE])
    hidden = np.where(weights == 0, np.nan, images)
    result = np.asarray(faded(filling, hidden, weights))
    expected = weights.astype(np.float64) * images + (1 - weights.astype(np.float64)) * filling
    np.testing.assert_allclose(result, expected, atol=1e-6)
    for weight, source in ((0, filling), (1, images)):
        chosen = np.broadcast_to(weights == weight, result.shape)
        np.testing.assert_array_equal(result[chosen], source[chosen])
