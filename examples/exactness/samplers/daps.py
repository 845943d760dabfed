"""DAPS: decoupled annealing posterior sampling (Zhang et al. 2025, arXiv 2407.01521)."""

from functools import cache
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from samplers.sampler import Sampler, make_sampler, merge, predict

GRID = [
    *({"levels": "dense", "ode_steps": count, "scale": r} for count in (2, 5) for r in (0.5, 1.0)),
    {"levels": "even", "ode_steps": 5, "scale": 1.0},
]


def daps(sigmas, ode_steps: int = 5, scale: float = 1.0) -> Sampler:
    """Solve the ODE to a clean image, draw x0 around it given y, and add noise of the next level.

    The paper draws by Langevin dynamics from N(x0; the ODE's image, r^2) p(y | x0), with r in proportion
    to sigma. For a mask and y without noise that law is known: y in the known pixels, and the first
    factor in the others. Here r = scale sigma/sqrt(1 + sigma^2), which does not exceed the data's
    spread. A step costs a call for each step of the ODE.
    """
    return make_sampler("DAPS", _step_of(ode_steps), sigmas, ode_steps, is_affine=True, scale=scale)


@cache
def _step_of(ode_steps):
    shares = np.append(np.geomspace(1, 1e-2, ode_steps), 0.0)

    def step(problem, x, memory, draw, sigma, after, scale):
        for share, next_share in pairwise(shares):
            x0, eps = predict(problem, x, float(share) * sigma)
            x = x0 + float(next_share) * sigma * eps
        x = x + scale * sigma / jnp.sqrt(1 + sigma**2) * draw()
        return merge(problem.mask, problem.image, x) + after * draw(), memory

    return step
