"""Inpainting in the latents of an autoencoder: the recipe of examples/08_latent.py and docs/faq.md.

The autoencoders here are linear and keep everything (2x2 pixels are 4 channels), the pixels' prior is a
Gaussian and the model its ideal denoiser in the latents. So what must come out is the pixels' own
posterior, in closed form and without a word of latents.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import repaint_jax as rp

HEIGHT, WIDTH, FACTOR = 4, 6, 2
SIZE = HEIGHT * WIDTH
PLACES = np.stack(np.indices((HEIGHT, WIDTH)), -1).reshape(SIZE, 2)
PRIOR_MEAN = 0.3 * np.sin(np.arange(SIZE))
PRIOR_COV = 0.25 * np.exp(-np.linalg.norm(PLACES[:, None] - PLACES, axis=-1) / 3)
IMAGE = np.random.default_rng(1).uniform(-1, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
ALIGNED = np.ones((HEIGHT, WIDTH, 1), np.float32)
ALIGNED[2:, 2:] = 0
ACROSS_CELLS = np.ones((HEIGHT, WIDTH, 1), np.float32)
ACROSS_CELLS[1:3, 3] = 0
N_SAMPLES = 3_000

SUMS_AND_DIFFERENCES = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2


def cells(pixels):  # [..., H, W, 1] -> [..., H/2, W/2, 4]
    split = pixels.reshape(*pixels.shape[:-3], HEIGHT // 2, 2, WIDTH // 2, 2)
    return split.swapaxes(-3, -2).reshape(*pixels.shape[:-3], HEIGHT // 2, WIDTH // 2, 4)


def encode(pixels):
    return cells(pixels) @ SUMS_AND_DIFFERENCES.T.astype(np.float32)


def decode(latents):
    split = (latents @ SUMS_AND_DIFFERENCES.astype(np.float32)).reshape(
        *latents.shape[:-3], HEIGHT // 2, WIDTH // 2, 2, 2
    )
    return split.swapaxes(-3, -2).reshape(*latents.shape[:-3], HEIGHT, WIDTH, 1)


def encode_overlapping(pixels):
    """Like a convolution of stride 2 that looks a pixel beyond its cell."""
    return encode(pixels) + encode(0.2 * (np.roll(pixels, 1, axis=-2) + np.roll(pixels, -1, axis=-3)))


@cache
def denoiser(scale):
    """The ideal noise prediction for latents times `scale`, an affine map for each training timestep."""
    encoder = encode(np.eye(SIZE, dtype=np.float32).reshape(SIZE, HEIGHT, WIDTH, 1)).reshape(SIZE, SIZE).T
    mean, cov = scale * encoder @ PRIOR_MEAN, scale**2 * encoder @ PRIOR_COV @ encoder.T
    maps = reference.epsilon_denoiser(mean, cov, reference.alphas_cumprod(reference.make_betas()))
    return tuple(jnp.asarray(values, jnp.float32) for values in maps)


def model_fn(params, sample, timestep):
    weight, bias = params
    flat = sample.reshape(len(sample), SIZE)
    product = jnp.matmul(flat, weight[timestep].T, precision="highest")
    return (product + bias[timestep][None]).reshape(sample.shape)


def fill(
    image, mask, *, scale=1.0, calls=24, n_samples=2, margin=0, encode=encode, latent_mask=None, blank=True
):
    """The recipe, [n, H, W, 1]."""
    config = rp.RePaintSchedulerConfig(clip_sample=False)
    state = rp.set_timesteps_for_budget(rp.create_state(config), calls)
    if latent_mask is None:
        latent_mask = rp.masks.downsample(mask, FACTOR, margin)
    latents = scale * encode(np.where(mask == 1, image, 0) if blank else image)
    latents = jnp.broadcast_to(latents, (n_samples, *latents.shape))
    filled = rp.inpaint(
        state, model_fn, denoiser(scale), latents, jnp.asarray(latent_mask)[None], jax.random.key(0)
    )
    return np.where(mask == 1, image, decode(np.asarray(filled) / scale))


def test_the_autoencoder_is_orthonormal_and_keeps_everything():
    np.testing.assert_allclose(decode(encode(IMAGE)), IMAGE, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encode(IMAGE)), np.linalg.norm(IMAGE), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])  # latents of a standard deviation of about 1/4 and 1
def test_on_whole_cells_the_pixels_have_their_posterior_within_sampling_error(scale):
    filled = fill(IMAGE, ALIGNED, scale=scale, calls=256, n_samples=N_SAMPLES).reshape(N_SAMPLES, SIZE)
    missing = ALIGNED.ravel() == 0
    posterior = reference.posterior(PRIOR_MEAN, PRIOR_COV, IMAGE.ravel(), ALIGNED.ravel())
    misfit = reference.gaussian_misfit(filled[:, missing], *posterior)
    shifted = posterior[0] + 0.2 * np.sqrt(np.diag(posterior[1])), posterior[1]
    assert reference.gaussian_misfit(filled[:, missing], *shifted) > reference.gaussian_misfit_limit(8)
    assert misfit < reference.gaussian_misfit_limit(missing.sum())
    np.testing.assert_array_equal(filled[:, ~missing], np.tile(IMAGE.ravel()[~missing], (N_SAMPLES, 1)))


def test_where_the_hole_cuts_cells_their_other_pixels_are_not_used_and_come_back_exactly():
    filled = fill(IMAGE, ACROSS_CELLS, calls=256, n_samples=N_SAMPLES).reshape(N_SAMPLES, SIZE)
    missing = ACROSS_CELLS.ravel() == 0
    of_whole_cells = np.repeat(np.repeat(rp.masks.downsample(ACROSS_CELLS, 2), 2, 0), 2, 1).ravel()
    mean, cov = reference.posterior(PRIOR_MEAN, PRIOR_COV, IMAGE.ravel(), of_whole_cells)
    hole = missing[of_whole_cells == 0]
    misfit = reference.gaussian_misfit(filled[:, missing], mean[hole], cov[np.ix_(hole, hole)])
    assert misfit < reference.gaussian_misfit_limit(missing.sum())
    np.testing.assert_array_equal(filled[:, ~missing], np.tile(IMAGE.ravel()[~missing], (N_SAMPLES, 1)))


def leaks(**options) -> bool:
    """Does the result depend on what was in the hole?"""
    other = np.where(ACROSS_CELLS == 1, IMAGE, -IMAGE + 3)
    hole = ACROSS_CELLS[..., 0] == 0
    results = [fill(image, ACROSS_CELLS, **options)[:, hole] for image in (IMAGE, other)]
    return not np.array_equal(*results)


def test_nothing_of_the_hole_s_content_leaks_into_the_result():
    assert not leaks(blank=False)
    assert leaks(blank=False, latent_mask=ACROSS_CELLS[::2, ::2])  # what nearest pixels would say


def test_an_encoder_that_looks_beyond_its_cell_leaks_without_a_margin():
    assert leaks(blank=False, encode=encode_overlapping)
    assert not leaks(blank=False, encode=encode_overlapping, margin=1)
    assert not leaks(encode=encode_overlapping)
