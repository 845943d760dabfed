"""TDS: the twisted diffusion sampler (Wu et al. 2023, arXiv 2306.17775)."""

import jax.numpy as jnp
from samplers.particles import log_normal, resample
from samplers.sampler import Sampler, ancestral, make_sampler, merge, predict_and_pull, pure_noise

GRID = [{"levels": "dense", "spread": v} for v in (0.1, 0.3, 1.0)] + [{"levels": "even", "spread": 1.0}]


def tds(sigmas, spread: float = 1.0) -> Sampler:
    """Move particles by DDPM's step with guidance, and weigh them so that the target stays exact.

    The twisting function is N(y; x0(x), v sigma^2/(v + sigma^2)) in the known pixels, with v the spread
    of the data. Its gradient guides, and a weight has the quotient of the twists and of the transitions
    without and with guidance (algorithm 1). In the last step y replaces the known pixels. A step costs a
    call and a product, 3.
    """
    return make_sampler("TDS", _step, sigmas, 3, _start, spread=spread)


def _start(problem, draw, sigma, **_):
    x, _ = pure_noise(problem, draw, sigma)
    return x, jnp.zeros_like(x[:, 0])


def _step(problem, x, log_weights, draw, sigma, after, spread):
    x0, pull = predict_and_pull(problem, x, sigma)
    variance = sigma**2 * spread / (sigma**2 + spread)
    residual = problem.mask * (problem.image - x0)
    guidance = sigma**2 / variance * pull(residual)  # sigma^2 times the gradient of the twist
    twist = jnp.sum(problem.mask * log_normal(problem.image, x0, variance), -1)
    log_weights = log_weights + twist
    resampled = resample(draw(), log_weights, x, x0, guidance, twist, is_last=after == 0)
    log_weights, x, x0, guidance, twist = resampled

    mean, std = ancestral(x0, (x - x0) / sigma, sigma, after, 1.0)
    guided, _ = ancestral(x0 + guidance, (x - x0 - guidance) / sigma, sigma, after, 1.0)
    after_x = guided + std * draw()
    floor = jnp.maximum(std, 1e-6) ** 2
    quotient = jnp.sum(log_normal(after_x, mean, floor) - log_normal(after_x, guided, floor), -1)
    log_weights = log_weights + quotient - twist
    return jnp.where(after > 0, after_x, merge(problem.mask, problem.image, x0)), log_weights
