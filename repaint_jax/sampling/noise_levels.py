"""Beta schedules, and the ladders of timesteps that inference visits. NumPy, float64.

`alphas_cumprod[t]` (abar_t in the papers) is the share of the signal's variance that is left at training
timestep `t`: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) z (Ho et al. 2020, arXiv 2006.11239, eq. 4). Near
the clean end 1 - abar_t is tiny. This module therefore computes in float64. The scheduler rounds to float32
when it stores the values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

LAST_FLOW_TIME = 0.999  # at 1 there is no signal left

_MAX_COSINE_BETA = 0.999  # Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.2


def betas(
    schedule: str, num_train_timesteps: int, beta_start: float, beta_end: float
) -> NDArray[np.float64]:  # [num_train_timesteps]
    """Return the variance that each training step adds, for one of `BETA_SCHEDULES`."""
    if schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps)
    if schedule == "scaled_linear":
        return np.square(np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps))
    if schedule == "squaredcos_cap_v2":
        time = np.arange(num_train_timesteps + 1) / num_train_timesteps
        abar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - abar[1:] / abar[:-1], _MAX_COSINE_BETA)
    if schedule == "sigmoid":
        logits = np.linspace(-6, 6, num_train_timesteps)
        return beta_start + (beta_end - beta_start) / (1 + np.exp(-logits))
    raise ValueError(f"beta_schedule is {schedule!r}, expected one of {', '.join(BETA_SCHEDULES)}")


def alphas_cumprod(betas: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of 1 - beta over all training steps up to and including each step."""
    return np.cumprod(1 - np.asarray(betas, np.float64), dtype=np.float64)


def log_sigma(alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of sigma = sqrt((1 - abar)/abar), the ratio of noise to signal."""
    return 0.5 * np.log((1 - alphas_cumprod) / alphas_cumprod)


def betas_of_sigmas(sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the betas whose `log_sigma`s are the logarithms of these rising sigmas."""
    abar = 1 / (1 + sigmas**2)
    return 1 - abar / np.append(1.0, abar[:-1])


def karras_sigmas(
    sigma_min: float, sigma_max: float, rho: float, count: int
) -> NDArray[np.float64]:  # [count], rising
    """Return the noise levels of Karras et al. 2022 (arXiv 2206.00364), eq. 5, from the smallest on."""
    return np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), count) ** rho


def flow_sigmas(shift: float, count: int) -> NDArray[np.float64]:  # [count], rising
    """Return sigma = t/(1 - t) at even times t of a rectified flow, with the data at t = 0.

    Times up to 0.999 are even in t/(shift - (shift - 1) t), the timestep shift of Esser et al. 2024 (arXiv
    2403.03206), eq. 23: with a shift above 1 more of them are noisy.
    """
    last = LAST_FLOW_TIME / (shift - (shift - 1) * LAST_FLOW_TIME)
    even = np.linspace(last / count, last, count)
    times = shift * even / (1 + (shift - 1) * even)
    return times / (1 - times)


def ladder(
    spacing: str, num_train_timesteps: int, num_inference_steps: int
) -> NDArray[np.int64]:  # [num_inference_steps], increasing
    """Return the training timesteps that inference visits, from the cleanest to the noisiest.

    "leading" is 0, n, 2n, ... with n = num_train // num_inference, as in the code of DDPM and diffusers.
    "trailing" ends on the last training step, and "linspace" includes both ends (Lin et al. 2023,
    arXiv 2305.08891, table 2). The official RePaint code also uses "linspace".
    """
    if spacing == "leading":
        return np.arange(num_inference_steps) * (num_train_timesteps // num_inference_steps)
    if spacing == "trailing":
        stride = num_train_timesteps / num_inference_steps
        # Count down from the top, as diffusers does. This decides how halves are rounded.
        above = np.arange(num_train_timesteps, 0, -stride)[:num_inference_steps]
        return np.round(above[::-1]).astype(np.int64) - 1
    if spacing == "linspace":
        return np.round(np.linspace(0, num_train_timesteps - 1, num_inference_steps)).astype(np.int64)
    raise ValueError(f"timestep_spacing is {spacing!r}, expected one of {', '.join(TIMESTEP_SPACINGS)}")
