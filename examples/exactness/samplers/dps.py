"""DPS: diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687)."""

import jax.numpy as jnp
import numpy as np
from samplers.sampler import Sampler, ancestral, make_sampler, predict_and_pull

GRID = [
    *({"levels": "dense", "zeta": zeta} for zeta in (0.3, 1.0, 3.0, 10.0)),
    {"levels": "even", "zeta": 1.0},
]


def dps(sigmas, zeta: float = 1.0) -> Sampler:
    """Take DDPM's step, then go down the gradient of the distance of the prediction to y.

    The paper's samples are scaled by sqrt(abar): algorithm 1 subtracts zeta times the gradient of
    |y - A x0(x)| by the scaled sample. A step costs a call and a product, 3.
    """
    weights = zeta * np.sqrt((1 + sigmas[:-1] ** 2) * (1 + sigmas[1:] ** 2))
    sampler = make_sampler("DPS", _step, sigmas, 3)
    return sampler._replace(rows=sampler.rows | {"weight": weights})


def _step(problem, x, memory, draw, sigma, after, weight):
    x0, pull = predict_and_pull(problem, x, sigma)
    residual = problem.mask * (problem.image - x0)
    distance = jnp.linalg.norm(residual, axis=-1, keepdims=True)
    towards_y = pull(residual / jnp.maximum(distance, 1e-9))
    mean, std = ancestral(x0, (x - x0) / sigma, sigma, after, 1.0)
    return mean + std * draw() + weight * towards_y, memory
