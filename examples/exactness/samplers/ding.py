"""DING: decoupled inpainting guidance (Moufad et al. 2025, arXiv 2512.18365)."""

import jax.numpy as jnp
from samplers.sampler import Sampler, ancestral, make_sampler, merge, predict

GRID = [{"levels": "dense", "eta": eta} for eta in (0.3, 0.7, 1.0)] + [{"levels": "even", "eta": 1.0}]


def ding(sigmas, eta: float = 1.0, noise: float = 1e-3) -> Sampler:
    """Draw the next sample from its law given y, with a likelihood whose noise comes from elsewhere.

    A proxy z is drawn as DDIM would draw the next sample, N(mean, std^2). The likelihood of y given a
    sample x' at the next level is N(y; x' - sigma' eps(z), noise^2): the prediction of x', but for the
    noise, which is that of z. The product of both Gaussians is known. A step costs two calls.
    """
    return make_sampler("DING", _step, sigmas, 2, is_affine=True, eta=eta, variance=noise**2)


def ding_delayed(sigmas, eta: float = 1.0, noise: float = 1e-3) -> Sampler:
    """Take as noise that of the level before, eps(x), which costs no call of its own."""
    rows = {"eta": eta, "variance": noise**2}
    return make_sampler("DING, delayed", _delayed_step, sigmas, 1, is_affine=True, **rows)


def _step(problem, x, memory, draw, sigma, after, eta, variance):
    x0, eps = predict(problem, x, sigma)
    mean, std = ancestral(x0, eps, sigma, after, eta)
    _, proxy_eps = predict(problem, mean + std * draw(), jnp.maximum(after, 1e-4))
    return _product(problem, mean, std, proxy_eps, after, variance, draw), memory


def _delayed_step(problem, x, memory, draw, sigma, after, eta, variance):
    x0, eps = predict(problem, x, sigma)
    mean, std = ancestral(x0, eps, sigma, after, eta)
    return _product(problem, mean, std, eps, after, variance, draw), memory


def _product(problem, mean, std, eps, after, variance, draw):
    share = std**2 / (std**2 + variance)
    z = draw()
    seen = problem.image + after * eps
    known = mean + share * (seen - mean) + jnp.sqrt(share * variance) * z
    known = jnp.where(after > 0, known, problem.image)  # y itself has no noise
    return merge(problem.mask, known, mean + std * z)
