"""RePaint's chains and the call budget, with the library's own transitions.

Samples are scaled as the library has them, sqrt(abar) x0 + sqrt(1 - abar) z, with the model's own abar in
float64.
"""

import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from samplers.sampler import Sampler

import repaint_jax as rp
from repaint_jax.sampling.budget_transition import budget_transition
from repaint_jax.sampling.repaint_transition import reverse_transition


def resampling(name: str, config: rp.RePaintSchedulerConfig, *schedule: int) -> Sampler:
    """Return RePaint with the arguments of `set_timesteps`: T, jump_length, jump_n_sample."""
    with warnings.catch_warnings(action="ignore"):  # 64 steps warn that they start at 945 of 1000
        state = rp.set_timesteps(rp.create_state(config), *schedule)
    return _sampler(name, state, _resampling)


def call_budget(config: rp.RePaintSchedulerConfig, num_model_calls: int) -> Sampler:
    """Return the call budget, the default of the library."""
    state = rp.set_timesteps_for_budget(rp.create_state(config), num_model_calls)
    return _sampler("call budget", state, _budget)


def white_renoising(config: rp.RePaintSchedulerConfig, num_model_calls: int) -> Sampler:
    """Return RePaint's own update on the noise levels of the budget: denoise, then add white noise."""
    budget = call_budget(config, num_model_calls)
    _, signal, noise, next_signal, next_noise, *_ = budget.rows["coefficients"]
    below = np.exp(-6.5 / num_model_calls**0.5) * next_signal * noise / signal
    coefficients = (
        *budget.rows["coefficients"][:5],
        np.minimum(below, next_noise),
        np.sqrt(np.maximum(next_noise**2 - below**2, 0)),
    )
    rows = budget.rows | {"coefficients": coefficients}
    return budget._replace(name="levels alone", step=_step(_white_renoising, config), rows=rows)


def _sampler(name: str, state: rp.RePaintSchedulerState, transition: Any) -> Sampler:
    coefficients = jax.tree.map(np.asarray, state.schedule.rows())
    abar = np.cumprod(1 - state.config.betas)  # in float64; the state's own is rounded
    abar = abar[jax.tree.leaves(coefficients)[0]]
    rows = {"signal": np.sqrt(abar), "noise": np.sqrt(1 - abar), "coefficients": coefficients}
    is_affine = not state.config.clip_sample
    return Sampler(name, _start, _step(transition, state.config), rows, state.num_model_calls, is_affine)


def _start(problem, draw, **_):
    start = draw()
    return start, jnp.zeros_like(start)


@cache
def _step(transition, config):
    def step(problem, x, previous_z, draw, signal, noise, coefficients):
        eps = (x - signal * problem.prior.denoise(signal, noise, x)) / noise
        z = draw()
        return transition(config, coefficients, eps, x, previous_z, problem.image, problem.mask, z), z

    return step


def _resampling(config, row, eps, x, previous_z, image, mask, z):
    return reverse_transition(config, *row, eps, x, image, mask, z)[0]


def _budget(config, row, *arrays):
    return budget_transition(config, row, *arrays)[0]


def _white_renoising(config, row, eps, x, previous_z, image, mask, z):
    _, signal, noise, next_signal, next_noise, below, renoising = row
    x0 = (x - noise * eps) / signal
    unknown = next_signal * x0 + below * eps + renoising * z
    return mask * (next_signal * image + next_noise * z) + (1 - mask) * unknown
