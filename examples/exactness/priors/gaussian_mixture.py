"""A mixture of Gaussians whose covariances have the same eigenvectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from priors.posterior import Posterior, normalised


class GaussianMixture(NamedTuple):
    """A mixture of Gaussians with the same eigenvectors."""

    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, d]
    eigenvalues: np.ndarray  # [K, d], eigenvalues of the covariances
    eigenvectors: np.ndarray  # [d, d], one in each column

    def denoise(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return E[x0 | x] for x = signal x0 + noise z, [..., d]."""
        centred, variance = self._centred(signal, noise, sample)
        shares = jax.nn.softmax(self._logits(centred, variance))
        shrunk = signal * self.eigenvalues / variance * centred
        return jnp.einsum("...k,...kd->...d", shares, shrunk) @ self.eigenvectors.T + shares @ self.means

    def responsibilities(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return the probability of each component given x, [..., K]."""
        return jax.nn.softmax(self._logits(*self._centred(signal, noise, sample)))

    def _centred(self, signal, noise, sample):
        """Return x less each component's mean, and its variance, along the eigenvectors."""
        rotated = (sample @ self.eigenvectors)[..., None, :]
        centred = rotated - signal * (self.means @ self.eigenvectors)  # [..., K, d]
        return centred, signal**2 * self.eigenvalues + noise**2

    def _logits(self, centred, variance):
        misfit = jnp.sum(centred**2 / variance + jnp.log(variance), -1)
        return jnp.log(self.weights) - misfit / 2

    def conditionals(
        self, image: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights [K], means [K, m] and covariances [K, m, m] of the missing pixels."""
        known, missing = mask == 1, mask == 0
        covariances = (self.eigenvectors * self.eigenvalues[:, None]) @ self.eigenvectors.T
        log_weights, means, conditional = [], [], []
        for weight, mean, covariance in zip(self.weights, self.means, covariances, strict=True):
            seen, cross = covariance[np.ix_(known, known)], covariance[np.ix_(known, missing)]
            gain = np.linalg.solve(seen, cross).T
            difference = image[known] - mean[known]
            means.append(mean[missing] + gain @ difference)
            conditional.append(covariance[np.ix_(missing, missing)] - gain @ cross)
            misfit = difference @ np.linalg.solve(seen, difference) + np.linalg.slogdet(seen)[1]
            log_weights.append(np.log(weight) - misfit / 2)
        return normalised(np.array(log_weights)), np.array(means), np.array(conditional)

    def posterior(self, image: np.ndarray, mask: np.ndarray) -> Posterior:
        """Return the posterior of the missing pixels."""
        weights, means, covariances = self.conditionals(image, mask)
        return Posterior(weights, lambda rng, k, n: rng.multivariate_normal(means[k], covariances[k], n))
