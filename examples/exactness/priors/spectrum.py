"""A Gaussian prior of square pictures whose spectrum falls as that of natural images.

The variance of the cosine of frequency (f, g) is proportional to 1/(f^2 + g^2 + 1). The covariance is
diagonal in the orthonormal cosine transform, so the denoiser costs four products of small matrices at any
size. Linear functions of the posterior, such as means of blocks, have a Gaussian law in closed form, but
for systems of equations of the number of known pixels, which conjugate gradients solve.
"""

from typing import NamedTuple

import jax
import numpy as np
from scipy.fft import dctn, idctn
from scipy.sparse.linalg import LinearOperator, cg

VARIANCE = 0.25  # of a pixel, on average


class NaturalSpectrum(NamedTuple):
    """A Gaussian of mean 0 that is diagonal in the cosine transform."""

    cosines: np.ndarray  # [n, n], the orthonormal transform of a row
    eigenvalues: np.ndarray  # [n, n], variance of each coefficient

    def denoise(self, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
        """Return E[x0 | x] for x = signal x0 + noise z, [..., n n]."""
        side = len(self.cosines)
        pixels = sample.reshape(*sample.shape[:-1], side, side)
        gain = signal * self.eigenvalues / (signal**2 * self.eigenvalues + noise**2)
        coefficients = gain * (self.cosines @ pixels @ self.cosines.T)
        return (self.cosines.T @ coefficients @ self.cosines).reshape(sample.shape)

    def covariance(self, pixels: np.ndarray) -> np.ndarray:  # [n, n]
        """Return the covariance times an image, in float64."""
        return idctn(self.eigenvalues * dctn(pixels, norm="ortho"), norm="ortho")

    def sample(self, rng: np.random.Generator) -> np.ndarray:  # [n n]
        """Return an image of the prior."""
        coefficients = np.sqrt(self.eigenvalues) * rng.standard_normal(self.eigenvalues.shape)
        return idctn(coefficients, norm="ortho").ravel()

    def posterior_of(
        self, functionals: np.ndarray, image: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean [m] and covariance [m, m] of linear functions [m, n n] of the missing pixels."""
        shape = self.eigenvalues.shape
        images = functionals.reshape(-1, *shape)
        spread = np.array([self.covariance(one) for one in images])
        solved = np.array([self._solve(one, mask.reshape(shape)) for one in spread])
        mean = solved.reshape(len(images), -1) @ image
        covariance = np.einsum("aij,bij->ab", images, spread) - np.einsum("aij,bij->ab", solved, spread)
        return mean, (covariance + covariance.T) / 2

    def _solve(self, right: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [n, n], 0 where missing
        """Solve (M C M) u = M right. The inverse of C, cut to the known pixels, almost solves it."""
        size, shape = mask.size, mask.shape

        def inside(function):
            apply = lambda u: (mask * function(mask * u.reshape(shape))).ravel()  # noqa: E731
            return LinearOperator((size, size), matvec=apply, dtype=np.float64)

        def inverse(pixels):
            return idctn(dctn(pixels, norm="ortho") / self.eigenvalues, norm="ortho")

        solution, failed = cg(
            inside(self.covariance), (mask * right).ravel(), rtol=1e-8, maxiter=5000, M=inside(inverse)
        )
        if failed:
            raise RuntimeError(f"conjugate gradients did not converge on {shape} pixels")
        return solution.reshape(shape)


def natural_spectrum(side: int) -> NaturalSpectrum:
    """Return the prior of pictures of side x side pixels."""
    frequency = np.arange(side)
    eigenvalues = 1 / (frequency[:, None] ** 2 + frequency**2 + 1.0)
    eigenvalues *= VARIANCE / eigenvalues.mean()
    cosines = dctn(np.eye(side), axes=[0], norm="ortho")
    return NaturalSpectrum(cosines, eigenvalues)
