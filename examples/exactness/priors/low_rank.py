"""A mixture of Gaussians of low rank, with the same white noise in all: mixtures of probabilistic PCA.

Tipping and Bishop 1999, "Mixtures of probabilistic principal component analysers". Component k is
m_k + U_k diag(sqrt(v_k)) z + sqrt(w) z', with orthonormal columns of U_k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from priors.posterior import Posterior, normalised


class LowRankMixture(NamedTuple):
    """A mixture of low-rank Gaussians plus white noise."""

    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, d]
    factors: np.ndarray  # [K, d, r], orthonormal columns U_k
    variances: np.ndarray  # [K, r], v_k
    white: np.ndarray  # [], w

    def denoise(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return E[x0 | x] for x = signal x0 + noise z, [..., d]."""
        coordinates, white, variance = self._project(signal, noise, sample)
        shares = jax.nn.softmax(self._logits(signal, white, variance, coordinates, sample))
        # E[x0 | x, k] = m_k + g (x - a m_k) + h U_k U_k^T (x - a m_k), a gain across the factors and an
        # extra one along them
        gain = signal * self.white / white
        extra = signal * (self.variances + self.white) / variance - gain
        along = shares[..., None] * extra * coordinates
        return gain * sample + (1 - gain * signal) * (shares @ self.means) + self._expand(along)

    def responsibilities(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return the probability of each component given x, [..., K]."""
        coordinates, white, variance = self._project(signal, noise, sample)
        return jax.nn.softmax(self._logits(signal, white, variance, coordinates, sample))

    def _project(self, signal, noise, sample):
        """Return U_k^T (x - a m_k), and the variances of x across and along the factors."""
        count, size, rank = self.factors.shape
        columns = jnp.swapaxes(jnp.asarray(self.factors), 0, 1).reshape(size, count * rank)
        along = (sample @ columns).reshape(*sample.shape[:-1], count, rank)
        centre = jnp.einsum("kd,kdr->kr", self.means, self.factors)
        white = signal**2 * self.white + noise**2
        return along - signal * centre, white, signal**2 * self.variances + white

    def _expand(self, along):
        count, size, rank = self.factors.shape
        rows = jnp.swapaxes(jnp.asarray(self.factors), 1, 2).reshape(count * rank, size)
        return along.reshape(*along.shape[:-2], count * rank) @ rows

    def _logits(self, signal, white, variance, coordinates, sample):
        # |x - a m_k|^2, less |x|^2, which all components have.
        squared = signal**2 * jnp.sum(self.means**2, -1) - 2 * signal * (sample @ self.means.T)
        misfit = squared / white + jnp.sum(
            coordinates**2 * (1 / variance - 1 / white) + jnp.log(variance / white), -1
        )
        return jnp.log(self.weights) - misfit / 2

    def sample(self, rng: np.random.Generator) -> np.ndarray:  # [d]
        """Return an image of the prior."""
        k = rng.choice(len(self.weights), p=self.weights)
        along = self.factors[k] @ (
            np.sqrt(self.variances[k]) * rng.standard_normal(self.variances[k].shape)
        )
        return self.means[k] + along + np.sqrt(self.white) * rng.standard_normal(len(along))

    def posterior(self, image: np.ndarray, mask: np.ndarray) -> Posterior:
        """Return the posterior of the missing pixels: again low-rank Gaussians plus white noise."""
        known, missing = mask == 1, mask == 0
        loadings = self.factors * np.sqrt(self.variances)[:, None]  # W_k, with z ~ N(0, 1)
        log_weights, coordinates = [], []
        for weight, mean, loading in zip(self.weights, self.means, loadings, strict=True):
            seen, difference = loading[known], image[known] - mean[known]
            precision = np.eye(seen.shape[1]) + seen.T @ seen / self.white
            centre = np.linalg.solve(precision, seen.T @ difference / self.white)
            misfit = difference @ (difference - seen @ centre) / self.white
            log_weights.append(np.log(weight) - (misfit + np.linalg.slogdet(precision)[1]) / 2)
            coordinates.append((centre, np.linalg.inv(precision)))

        def draw(rng: np.random.Generator, component: int, count: int) -> np.ndarray:
            z = rng.multivariate_normal(*coordinates[component], count)
            white = np.sqrt(self.white) * rng.standard_normal((count, missing.sum()))
            return self.means[component, missing] + z @ loadings[component, missing].T + white

        return Posterior(normalised(np.array(log_weights)), draw)
