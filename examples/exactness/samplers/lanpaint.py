"""LanPaint: Langevin dynamics at each level (Zheng et al. 2025, arXiv 2502.03491), from the paper alone."""

from functools import cache

import jax.numpy as jnp
import numpy as np
from samplers.sampler import Sampler, make_sampler, merge, predict
from scipy.linalg import expm

GRID = [
    *(
        {"levels": "dense", "inner": inner, "length": length, "guidance": guidance}
        for inner in (1, 3)
        for length in (1.4, 2.8, 5.0)
        for guidance in (1.0, 4.0)
    ),
    {"levels": "even", "inner": 3, "length": 1.4, "guidance": 1.0},
]


def lanpaint(
    sigmas, inner: int = 5, length: float = 0.7, guidance: float = 1.0, friction: float = 2.0
) -> Sampler:
    """Run underdamped Langevin dynamics on all pixels at a level, then take an Euler step of the ODE.

    In units u = x/sigma, missing pixels feel the score, -eps. Known ones feel the guided score that goes
    both ways, -((1 + guidance)(u - y/sigma) - guidance eps). Over a step of `length` the force is the
    harmonic one of its own stiffness (1 in missing pixels, 1 + guidance in known ones) plus a constant,
    for which the damped oscillator is solved exactly. `inner` such steps cost a call each, the ODE's step
    one more.
    """
    cost = inner + 1
    sampler = make_sampler("LanPaint", _step_of(inner), sigmas, cost, _start, True, guidance=guidance)
    solutions = {
        name: np.broadcast_to(oscillator(stiffness, friction, length), (len(sigmas) - 1, 2, 4))
        for name, stiffness in (("missing", 1.0), ("known", 1.0 + guidance))
    }
    return sampler._replace(rows=sampler.rows | solutions)


def oscillator(stiffness: float, friction: float, length: float) -> np.ndarray:  # [2, 4]
    """Return the map of (u, v), with u from the rest, and a root of the covariance that is added.

    du = v dt, dv = -(stiffness u + friction v) dt + sqrt(2 friction) dW.
    """
    linear = expm(length * np.array([[0, 1], [-stiffness, -friction]]))
    at_rest = np.diag([1 / stiffness, 1.0])
    return np.concatenate([linear, np.linalg.cholesky(at_rest - linear @ at_rest @ linear.T)], 1)


def _start(problem, draw, sigma, **_):
    noise = sigma * draw()
    return merge(problem.mask, problem.image + noise, jnp.sqrt(1 + 1 / sigma**2) * noise), draw()


@cache
def _step_of(inner):
    def step(problem, x, velocity, draw, sigma, after, guidance, missing, known):
        mask, y = problem.mask, problem.image / sigma
        solution = merge(mask, known[..., None], missing[..., None])  # [2, 4, d]
        (from_u, from_v, root, _), (to_v, keep_v, cross, own) = solution
        for _ in range(inner):
            _, eps = predict(problem, x, sigma)
            u = x / sigma
            force = merge(mask, guidance * eps - (1 + guidance) * (u - y), -eps)
            rest = u + force / (1 + mask * guidance)
            offset, z, other = u - rest, draw(), draw()
            u = rest + from_u * offset + from_v * velocity + root * z
            velocity = to_v * offset + keep_v * velocity + cross * z + own * other
            x = sigma * u
        x0, eps = predict(problem, x, sigma)
        known = problem.image + after / sigma * (x - problem.image)
        return merge(mask, known, x0 + after * eps), velocity

    return step
