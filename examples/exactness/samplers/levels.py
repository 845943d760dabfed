"""Noise levels for samplers: those of DDPM in even steps, and those of the call budget."""

import numpy as np

import repaint_jax as rp
from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.budget_schedule import budget_timesteps

_LOG_SIGMA = noise_levels.log_sigma(noise_levels.alphas_cumprod(rp.RePaintSchedulerConfig().betas))


def even(count: int) -> np.ndarray:  # [count + 1], falling to 0
    """Return sigmas at evenly spaced training timesteps of the linear betas."""
    timesteps = np.round(np.linspace(len(_LOG_SIGMA) - 1, 0, count)).astype(int)
    return np.append(np.exp(_LOG_SIGMA[timesteps]), 0.0)


def dense(count: int) -> np.ndarray:  # [count + 1], falling to 0
    """Return the levels of a call budget, which are densest at the sigmas of images' content."""
    fine = np.linspace(_LOG_SIGMA[0], _LOG_SIGMA[-1], 16000)
    timesteps = budget_timesteps(1 / (1 + np.exp(2 * fine)), count)
    sigmas = np.exp(fine[timesteps])
    # A budget ends with calls at one level; other samplers go down between them.
    last = np.searchsorted(-sigmas, -sigmas[-1])
    if last > 0 and len(sigmas) - last > 1:
        sigmas[last - 1 :] = np.geomspace(sigmas[last - 1], sigmas[-1], len(sigmas) - last + 1)
    return np.append(sigmas, 0.0)


LEVELS = {"even": even, "dense": dense}
