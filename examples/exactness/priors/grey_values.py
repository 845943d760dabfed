"""A mixture of laws of independent pixels, each of which takes one of a few grey values.

Two values, -1 and 1, make pixels that are all at the clip limit. A Gaussian that is clipped to [-1, 1] and
rounded to grey values has some of its mass there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from priors.posterior import Posterior, normalised


class GreyValues(NamedTuple):
    """A mixture of products of discrete laws of pixels."""

    weights: np.ndarray  # [K]
    values: np.ndarray  # [G], the grey values
    laws: np.ndarray  # [K, d, G], the probability of each value; all positive

    def denoise(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return E[x0 | x] for x = signal x0 + noise z, [..., d]."""
        fit = self._fit(signal, noise, sample)
        evidence = jnp.einsum("...dg,kdg->...kd", fit, self.laws)
        mean = jnp.einsum("...dg,kdg->...kd", fit, self.laws * self.values) / evidence
        return jnp.einsum("...k,...kd->...d", self._shares(evidence), mean)

    def responsibilities(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return the probability of each component given x, [..., K]."""
        fit = self._fit(signal, noise, sample)
        return self._shares(jnp.einsum("...dg,kdg->...kd", fit, self.laws))

    def _fit(self, signal, noise, sample):
        """Return the likelihood of each grey value of each pixel, over that of the best, [..., d, G]."""
        exponent = -((sample[..., None] - signal * self.values) ** 2) / (2 * noise**2)
        return jnp.exp(exponent - jnp.max(exponent, -1, keepdims=True))

    def _shares(self, evidence):
        return jax.nn.softmax(jnp.log(self.weights) + jnp.log(evidence).sum(-1))

    def posterior(self, image: np.ndarray, mask: np.ndarray) -> Posterior:
        """Return the posterior of the missing pixels. The known ones have grey values."""
        known, missing = np.flatnonzero(mask == 1), np.flatnonzero(mask == 0)
        seen = np.abs(image[known, None] - self.values).argmin(-1)
        weights = normalised(np.log(self.weights) + np.log(self.laws[:, known, seen]).sum(-1))

        def draw(rng: np.random.Generator, component: int, count: int) -> np.ndarray:
            return self._draw(rng, component, count)[:, missing]

        return Posterior(weights, draw)

    def sample(self, rng: np.random.Generator) -> np.ndarray:  # [d]
        """Return an image of the prior."""
        return self._draw(rng, rng.choice(len(self.weights), p=self.weights), 1)[0]

    def _draw(self, rng: np.random.Generator, component: int, count: int) -> np.ndarray:
        passed = self.laws[component].cumsum(-1)[:, :-1]  # [d, G - 1]
        return self.values[(rng.random((count, len(passed), 1)) > passed).sum(-1)]
