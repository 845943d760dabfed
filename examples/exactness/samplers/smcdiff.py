"""SMCDiff: particles for inpainting (Trippe et al. 2023, arXiv 2206.04119).

For a mask and known pixels without noise, FPS-SMC (Dou and Song 2024) has the same transition.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from samplers.particles import log_normal, resample
from samplers.sampler import Sampler, ancestral, make_sampler, merge, predict, pure_noise

GRID = [
    {"levels": "dense", "populations": 1},
    {"levels": "dense", "populations": 8},
    {"levels": "even", "populations": 8},
]


def smcdiff(sigmas, populations: int = 1) -> Sampler:
    """Weigh particles by how well they predict one noised path of the known pixels (algorithm 1).

    The path goes from y plus noise of the first level down to y, as the noise that was added to y
    goes back, and is the same for all particles of a population. A particle's weight is the density of
    the path's next values under DDPM's step. The chains of a problem may be several populations.
    """
    return make_sampler("SMCDiff", _step_of(populations), sigmas, 1, _start_of(populations))


@cache
def _start_of(populations):
    def start(problem, draw, sigma, **_):
        x, _ = pure_noise(problem, draw, sigma)
        path = problem.image + sigma * _shared(populations, draw())
        return merge(problem.mask, path, x), jnp.zeros_like(x[:, 0])

    return start


@cache
def _step_of(populations):
    def step(problem, x, log_weights, draw, sigma, after):
        mean, std = ancestral(*predict(problem, x, sigma), sigma, after, 1.0)
        path, path_std = ancestral(problem.image, (x - problem.image) / sigma, sigma, after, 1.0)
        path = path + path_std * _shared(populations, draw())  # right in the known pixels
        fit = jnp.sum(problem.mask * log_normal(path, mean, jnp.maximum(std, 1e-6) ** 2), -1)
        log_weights = log_weights + jnp.where(std > 0, fit, 0.0)
        point = draw()
        split = [array.reshape(populations, -1, *array.shape[1:]) for array in (point, log_weights, mean)]
        resampled = jax.vmap(partial(resample, is_last=after == 0))(*split)
        log_weights, mean = (array.reshape(-1, *array.shape[2:]) for array in resampled)
        return merge(problem.mask, path, mean + std * draw()), log_weights

    return step


def _shared(populations: int, z: jax.Array) -> jax.Array:
    """Return noise that is the same in all particles of a population."""
    return jnp.repeat(z[:populations], len(z) // populations, 0)
