"""Embeddings of a text as the condition of a network: the recipe of docs/guides/text.md.

The network has the exact noise prediction of a Gaussian whose mean is that of the words' embeddings. Two
such Gaussians of one covariance, extrapolated by classifier-free guidance, are again a Gaussian. Missing
pixels given the known ones then have a mean and a variance in closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import repaint_jax as rp
from repaint_jax.models.guidance import ClassConditional, ClassifierFreeGuidance

COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])  # of two pixels
KNOWN = 0.7  # the first pixel
SAMPLES = 1500  # of each prompt
CONFIG = rp.RePaintSchedulerConfig(clip_sample=False)
STATE = rp.set_timesteps_for_budget(rp.create_state(CONFIG), 64)
IMAGES = jnp.full((2 * SAMPLES, 1, 2, 1), KNOWN)
MASK = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)


class GaussianNetwork(nnx.Module):
    """The noise prediction of N(mean of the embeddings, COVARIANCE)."""

    def __init__(self) -> None:
        variances, directions = np.linalg.eigh(COVARIANCE)
        self.variances = nnx.Param(jnp.asarray(variances, jnp.float32))
        self.directions = nnx.Param(jnp.asarray(directions, jnp.float32))
        self.abar = nnx.Param(jnp.asarray(STATE.alphas_cumprod))

    def __call__(
        self, sample: jax.Array, timestep: jax.Array, encoder_hidden_states: jax.Array
    ) -> jax.Array:  # [B, 1, 2, 1], [], [B, words, channels] -> [B, 1, 2, 1]
        TRACES.append(encoder_hidden_states.shape)
        abar, directions = self.abar[timestep], self.directions[...]
        mean = encoder_hidden_states.mean((1, 2))[:, None]
        along = (sample.reshape(-1, 2) - jnp.sqrt(abar) * mean) @ directions
        total = abar * self.variances[...] + 1 - abar
        return (jnp.sqrt(1 - abar) * along / total[None] @ directions.T).reshape(sample.shape)


TRACES: list[tuple[int, ...]] = []


def posterior(mean: float) -> tuple[float, float]:
    """Mean and variance of the second pixel given the first, of N([mean, mean], COVARIANCE)."""
    gain = COVARIANCE[1, 0] / COVARIANCE[0, 0]
    return mean + gain * (KNOWN - mean), COVARIANCE[1, 1] - gain * COVARIANCE[0, 1]


def embeddings(*means: float) -> jax.Array:
    """Three words of four channels whose mean is as given, for `SAMPLES` images each."""
    words = np.random.default_rng(0).normal(size=(3, 4))
    prompts = [words - words.mean() + mean for mean in means]
    return jnp.asarray(np.repeat(prompts, SAMPLES, axis=0), jnp.float32)


def missing_pixels(model_fn: rp.sampling.inpaint.ModelFn, params: object) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    filled = np.asarray(rp.inpaint(STATE, model_fn, params, IMAGES, MASK, keys))
    np.testing.assert_array_equal(filled[:, 0, 0, 0], np.float32(KNOWN))
    return filled[:, 0, 1, 0].reshape(2, SAMPLES)


def assert_samples_of(samples: np.ndarray, mean: float) -> None:
    expected_mean, variance = posterior(mean)
    assert samples.mean() == pytest.approx(expected_mean, abs=4 * np.sqrt(variance / SAMPLES) + 0.01)
    assert samples.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / SAMPLES) + 0.02)


def test_guided_prompts_of_a_batch_give_the_posterior_of_each_and_new_ones_compile_nothing() -> None:
    network, weights = rp.nnx_model_fn(GaussianNetwork())
    TRACES.clear()
    for means, null_mean, scale in (((0.5, -0.5), 0.1, 3.0), ((0.2, 0.9), -0.2, 1.5)):
        null = embeddings(null_mean, null_mean)
        params = (weights, embeddings(*means), null, scale)
        for samples, mean in zip(
            missing_pixels(ClassifierFreeGuidance(network), params), means, strict=True
        ):
            assert_samples_of(samples, null_mean + scale * (mean - null_mean))
    assert len(TRACES) == 1


def test_a_prompt_without_guidance_is_the_network_s_condition() -> None:
    network, weights = rp.nnx_model_fn(GaussianNetwork())
    first, second = missing_pixels(ClassConditional(network), (weights, embeddings(0.5, -0.5)))
    assert_samples_of(first, 0.5)
    assert_samples_of(second, -0.5)
