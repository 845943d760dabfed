"""DDNM: denoising diffusion null-space model (Wang et al. 2023, arXiv 2212.00490)."""

import jax.numpy as jnp
from samplers.sampler import Sampler, make_sampler, merge, predict

GRID = [{"levels": "dense", "eta": eta} for eta in (0.3, 0.85, 1.0)] + [{"levels": "even", "eta": 0.85}]


def ddnm(sigmas, eta: float = 0.85) -> Sampler:
    """Put the known pixels into each prediction, and go to the next level with DDIM's step.

    With x0' = A^+ y + (I - A^+ A) x0 (eq. 13), a share eta of the next level's noise is new, the rest
    is the noise that the model predicted.
    """
    return make_sampler("DDNM", _step, sigmas, 1, is_affine=True, eta=eta)


def _step(problem, x, memory, draw, sigma, after, eta):
    x0, eps = predict(problem, x, sigma)
    x0 = merge(problem.mask, problem.image, x0)
    return x0 + after * (jnp.sqrt(1 - eta**2) * eps + eta * draw()), memory
