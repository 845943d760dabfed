"""SMCDiff: particles for inpainting (Trippe et al. 2023, arXiv 2206.04119).

For a mask and known pixels without noise, FPS-SMC (Dou and Song 2024) has the same transition.
"""

import jax.numpy as jnp
from samplers.particles import log_normal, resample
from samplers.sampler import Sampler, ancestral, make_sampler, merge, predict, pure_noise

GRID = [{"levels": "even"}, {"levels": "dense"}]


def smcdiff(sigmas) -> Sampler:
    """Weigh particles by how well they predict one noised path of the known pixels (algorithm 1).

    The path goes from y plus noise of the first level down to y, as the noise that was added to y
    goes back, and is the same for all particles. A particle's weight is the density of the path's next
    values under DDPM's step.
    """
    return make_sampler("SMCDiff", _step, sigmas, 1, _start)


def _start(problem, draw, sigma, **_):
    x, _ = pure_noise(problem, draw, sigma)
    path = problem.image + sigma * draw()[:1]
    return merge(problem.mask, path, x), jnp.zeros_like(x[:, 0])


def _step(problem, x, log_weights, draw, sigma, after):
    mean, std = ancestral(*predict(problem, x, sigma), sigma, after, 1.0)
    path, path_std = ancestral(problem.image, (x[:1] - problem.image) / sigma, sigma, after, 1.0)
    path = path + path_std * draw()[:1]
    fit = jnp.sum(problem.mask * log_normal(path, mean, jnp.maximum(std, 1e-6) ** 2), -1)
    log_weights = log_weights + jnp.where(std > 0, fit, 0.0)
    log_weights, mean = resample(draw, after == 0, log_weights, mean)
    return merge(problem.mask, path, mean + std * draw()), log_weights
