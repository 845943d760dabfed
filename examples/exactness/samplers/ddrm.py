"""DDRM: denoising diffusion restoration models (Kawar et al. 2022, arXiv 2201.11793)."""

import jax.numpy as jnp
from samplers.sampler import Sampler, make_sampler, merge, predict, pure_noise

GRID = [{"levels": "dense", "eta": eta} for eta in (0.5, 0.85, 1.0)] + [{"levels": "even", "eta": 0.85}]


def ddrm(sigmas, eta: float = 0.85, eta_b: float = 1.0) -> Sampler:
    """Treat known and missing pixels, the singular directions of a mask, by eq. 4, 7 and 8.

    Missing pixels keep a share sqrt(1 - eta^2) of the predicted noise. Known ones are
    (1 - eta_b) x0 + eta_b y plus noise of the whole level, since y has none.
    """
    return make_sampler("DDRM", _step, sigmas, 1, _start, is_affine=True, eta=eta, eta_b=eta_b)


def _start(problem, draw, sigma, **_):
    x, memory = pure_noise(problem, draw, sigma)
    return merge(problem.mask, problem.image + sigma * draw(), x), memory


def _step(problem, x, memory, draw, sigma, after, eta, eta_b):
    x0, eps = predict(problem, x, sigma)
    z = draw()
    unknown = x0 + after * (jnp.sqrt(1 - eta**2) * eps + eta * z)
    known = (1 - eta_b) * x0 + eta_b * problem.image + after * z
    return merge(problem.mask, known, unknown), memory
