"""A reverse step of RePaint, and the jump that may follow it (Lugmayr et al. 2022, arXiv 2201.09865).

A ladder of T inference steps gives T + 1 noise levels. Level k has abar = alphas_cumprod[ladder[k]]. Level
-1 is the clean image, with abar = 1. A reverse step takes the sample from level k to level k - 1. An undo
step (line 10 in the paper) takes it from level k - 1 to level k. Let a and p be the abar of levels k and
k - 1, x the sample, m the mask, and z and z' standard Gaussians:

    x0      = clip((x - sqrt(1 - a) eps) / sqrt(a))                                pred_original_sample
    s2      = eta^2 (1 - p)/(1 - a) (1 - a/p)                                      DDIM, eq. 16
    unknown = sqrt(p) x0 + sqrt(1 - p - s2) eps + sqrt(s2) z                       line 7
    known   = sqrt(p) x_original + sqrt(1 - p) z'                                  line 5
    x       = m known + (1 - m) unknown                                            line 8

Line 5, as printed in the paper, scales the noise by 1 - p. The correct factor is the square root.

A pixel that is known with noise c (`noisy_pixels`) is known at the levels whose s = sqrt((1 - p)/p) is at
least c, with y in the place of x_original and the noise sqrt(s^2 - c^2) in that of s. Below c it takes the
step of DDPM, with eta = 1: it starts from y, and would have no spread without fresh noise. Jumps take it up
by the bridge.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.noisy_pixels import bridge_weight
from repaint_jax.sampling.prediction import predict, split_model_output


class LevelCoefficients(NamedTuple):
    """Coefficients of a step from or to a level. Every field is [T] in a state, and [] in a step."""

    timestep: jax.Array  # int32, the model's timestep argument
    signal: jax.Array  # sqrt(a)
    noise: jax.Array  # sqrt(1 - a)
    prev_signal: jax.Array  # sqrt(p)
    prev_noise_variance: jax.Array  # 1 - p
    direction: jax.Array  # sqrt(1 - p - s2)
    variance_share: jax.Array  # eta^2; 0 in the step to the clean image
    variance_small: jax.Array  # (1 - p)/(1 - a) (1 - a/p); at level 0 the value of level 1
    variance_large: jax.Array  # 1 - a/p
    known_share: jax.Array  # 1; 0 if the step puts in no known pixels (a jump after it overrides this)
    undo_variance: jax.Array  # 1 - a/p, the variance that an undo step up to this level adds


def reverse_transition(
    config: RePaintSchedulerConfig,
    row: LevelCoefficients,
    jump_variance: jax.Array,
    model_output: jax.Array,
    sample: jax.Array,
    original_image: jax.Array,
    mask: jax.Array,
    z: jax.Array,
    observation_noise: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Take a reverse step and the jump that follows it, with one draw of Gaussian noise for both.

    The result of the step is a mean plus independent noise in each pixel, of variance 1 - p with weight m
    and of variance s2 with weight 1 - m. A jump of any length keeps a share q of that variance and adds
    1 - q (`jump_variance`). Step and jump are therefore one draw of variance
    q (m^2 (1 - p) + (1 - m)^2 s2) + 1 - q.

    Returns:
        The sample after the jump, and pred_original_sample.
    """
    row, jump_variance, sample, original_image, mask, c = jax.tree.map(
        lambda array: jnp.asarray(array, z.dtype),
        (row, jump_variance, sample, original_image, mask, observation_noise),
    )
    prediction, variance_fraction = split_model_output(config, model_output, sample)
    variance = _step_variance(config, row, variance_fraction)
    x0, eps = predict(config, row, prediction, sample, config.use_clipped_model_output)

    # known_region="before_model" leaves out the known pixels in the last step only. No jump follows that.
    known_weight = mask * jnp.where(jump_variance > 0, 1, row.known_share)
    unknown = row.prev_signal * x0 + row.direction * eps
    if c is not None:
        # Step and jump differ for known and missing pixels, so they are made before the merge.
        known, known_variance = _known_with_noise(row, jump_variance, sample, x0, original_image, c)
        kept, unknown = 1 - jump_variance, jnp.sqrt(1 - jump_variance) * unknown
        unknown_variance = kept * variance * (1 - known_weight) ** 2 + jump_variance * (1 - known_weight**2)
        std = _safe_sqrt(known_weight**2 * known_variance + unknown_variance)
        return known_weight * known + (1 - known_weight) * unknown + std * z, x0
    mean = known_weight * row.prev_signal * original_image + (1 - known_weight) * unknown
    if config.undo == "diffusers":  # it uses one noise tensor for both parts
        known_std, unknown_std = jnp.sqrt(row.prev_noise_variance), _safe_sqrt(variance)
        step_variance = (known_weight * known_std + (1 - known_weight) * unknown_std) ** 2
    else:
        step_variance = known_weight**2 * row.prev_noise_variance + (1 - known_weight) ** 2 * variance
    std = _safe_sqrt((1 - jump_variance) * step_variance + jump_variance)
    return jnp.sqrt(1 - jump_variance) * mean + std * z, x0


def _known_with_noise(
    row: LevelCoefficients,
    jump_variance: jax.Array,
    sample: jax.Array,
    x0: jax.Array,
    y: jax.Array,
    c: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of the pixels that are known with noise c, after the step and the jump."""
    signal = jnp.sqrt(1 - jump_variance) * row.prev_signal  # after the jump
    s2, prev_s2, c2 = (row.noise / row.signal) ** 2, row.prev_noise_variance / row.prev_signal**2, c**2
    next_s2 = (1 - signal**2) / signal**2
    t2, u2 = jnp.minimum(prev_s2, c2), jnp.minimum(s2, c2)  # squared levels of the pixel
    # The step from u to t, the bridge from t to c, and fresh noise above c.
    share = t2 / jnp.where(u2 > 0, u2, 1)
    stepped = x0 + share * (jnp.where(s2 >= c2, y, sample / row.signal) - x0)
    stepped = jnp.where(prev_s2 >= c2, y, stepped)
    w = bridge_weight(t2, jnp.minimum(next_s2, c2), c2)
    variance = (1 - w) ** 2 * t2 * (1 - share) + (1 - w) * (jnp.minimum(next_s2, c2) - t2)
    variance = variance + jnp.maximum(next_s2 - c2, 0)
    return signal * ((1 - w) * stepped + w * y), signal**2 * variance


def level_coefficients(config: RePaintSchedulerConfig, ladder: np.ndarray) -> LevelCoefficients:
    """Compute the coefficients of all levels in float64, and store them as float32."""
    abar = noise_levels.alphas_cumprod(config.betas)
    a = abar[ladder]
    p = np.append(1.0, a[:-1])
    beta = 1 - a / p
    variance_small = (1 - p) / (1 - a) * beta
    s2 = config.eta**2 * variance_small
    to_clean = np.arange(len(ladder)) == 0

    def store(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    return LevelCoefficients(
        timestep=jnp.asarray(ladder, jnp.int32),
        signal=store(np.sqrt(a)),
        noise=store(np.sqrt(1 - a)),
        prev_signal=store(np.sqrt(p)),
        prev_noise_variance=store(1 - p),
        direction=store(np.sqrt(np.maximum(1 - p - s2, 0))),
        variance_share=store(np.where(to_clean, 0.0, config.eta**2)),
        variance_small=store(np.where(to_clean, np.append(variance_small, beta)[1], variance_small)),
        variance_large=store(beta),
        known_share=store(np.where(to_clean & (config.known_region == "before_model"), 0.0, 1.0)),
        undo_variance=store(undo_variance(config, ladder)),
    )


def undo_variance(config: RePaintSchedulerConfig, ladder: np.ndarray) -> np.ndarray:
    """Return the variance that an undo step up to each level adds."""
    betas = config.betas
    if config.undo == "diffusers":
        # diffusers uses betas[t .. t+n-1] with t = t_last, although the sample is n training steps below t.
        n = config.num_train_timesteps // len(ladder)
        used = np.minimum(ladder[:, None] + np.arange(n), len(betas) - 1)
        return 1 - np.prod(1 - betas[used], axis=1)
    abar = noise_levels.alphas_cumprod(betas)[ladder]
    return 1 - abar / np.append(1.0, abar[:-1])


def _step_variance(
    config: RePaintSchedulerConfig, row: LevelCoefficients, fraction: jax.Array | None
) -> jax.Array:
    """Return the variance of a reverse step's noise."""
    if fraction is None:
        fixed = {"fixed_small": row.variance_small, "fixed_large": row.variance_large}
        return row.variance_share * fixed[config.variance_type]
    ratio = row.variance_large / row.variance_small
    return row.variance_share * row.variance_small * ratio ** ((fraction + 1) / 2)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """Return the square root, with a gradient of 0 instead of infinity at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
