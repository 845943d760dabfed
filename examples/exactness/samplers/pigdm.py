"""PiGDM: pseudoinverse-guided diffusion models (Song et al. 2023, openreview 9_gsMA8MRKQ)."""

import numpy as np
from samplers.sampler import Sampler, ancestral, make_sampler, predict_and_pull

GRID = [
    *({"levels": "dense", "eta": eta, "scale": scale} for eta in (0.3, 1.0) for scale in (0.5, 1.0)),
    {"levels": "even", "eta": 1.0, "scale": 1.0},
]


def pigdm(sigmas, eta: float = 1.0, scale: float = 1.0) -> Sampler:
    """Take DDIM's step, and add the gradient of a Gaussian likelihood of y (algorithm 1).

    x0 given x is taken as N(x0(x), r^2), with r^2 = sigma^2/(1 + sigma^2), and the guidance is weighed
    by r^2, which cancels if y has no noise. The paper's samples are scaled by sqrt(abar). A step costs a
    call and a product, 3.
    """
    sampler = make_sampler("PiGDM", _step, sigmas, 3, is_affine=True, eta=eta)
    weight = scale * np.sqrt(1 + sigmas[1:] ** 2)
    return sampler._replace(rows=sampler.rows | {"weight": weight})


def _step(problem, x, memory, draw, sigma, after, eta, weight):
    x0, pull = predict_and_pull(problem, x, sigma)
    guidance = pull(problem.mask * (problem.image - x0))
    mean, std = ancestral(x0, (x - x0) / sigma, sigma, after, eta)
    return mean + std * draw() + weight * guidance, memory
