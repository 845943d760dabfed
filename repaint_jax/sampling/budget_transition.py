"""A chain for a budget of model calls: one noise level a call, no jumps, noise that is used twice.

RePaint goes up and down between the levels to let known and missing pixels find each other. Here the chain
goes down once and dwells where that happens: at each level the missing pixels are denoised, further than
the next level asks for, and renoised. With a and p the abar of a call's level and of the next one, s and s'
their sigma = sqrt((1 - abar)/abar), x the sample, m the mask and z the call's Gaussian, z_prev that of the
call before:

    x0      = clip((x - sqrt(1 - a) eps) / sqrt(a)),   eps = (x - sqrt(a) x0) / sqrt(1 - a)
    A^2     = 2 sqrt(s'/s) max(0, s'/s - 1/3)
    unknown = sqrt(p) (x0 + min(s', s/3) eps + s A (z_prev + z)/2)
    known   = sqrt(p) (y + s' (B eps + sqrt(1 - B^2) z)),   y = x_original + G (x_original - x0)
    x       = m known + (1 - m) unknown

Where s' = s the missing pixels make a step of overdamped Langevin dynamics, of length s^2 A^2/2 along the
score -eps/s. White noise would bias their variance in the first order of that length; half of each of two
successive noises, the scheme of Leimkuhler and Matthews 2013 (arXiv 1203.5428), does so in the second.

Where s' < s, what the power of s'/s in A^2 should be depends on what is painted:

    1      leaves details, which the prediction gets right, with just the noise that s' says,
           and shapes that are wide against s with too little
    0      leaves wide shapes enough, and details too much, which the next call takes for texture
    1/2    lies between, and measured best

The known pixels get a share B of the noise back that the model itself sees in them, as in DDNM (Wang et al.
2023, arXiv 2212.00490), and are moved beyond the original by a share G of what the prediction lacks. For a
Gaussian prior the fixed point of B = 1, where the prediction agrees with the known pixels, makes the score
of the missing ones that of the posterior itself, at every level; RePaint, with B = G = 0, has it only
in the limit of small s. G hastens the way to the fixed point, and is stable below 1.

A pixel at the limit of the clip range has no fixed point, since predictions lie on one side of it: B would
drive it further and further out, to where no network was trained, and what a network makes of that falls
upon the missing pixels. So B = G = 0 at such a pixel once s' is below the limit; above it predictions lie
far inside, and there is much to learn from the pixel.

The last call goes from the smallest level to clean as if eps kept its value on the way; but it falls to 0
with sigma, and half of that step is too much. Where three calls or more are at that level this is all that
is wrong with it: the last but one then goes to clean, and the last one, the model called once more at the
smallest s on that image, adds s/2 eps to the missing pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling import noise
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.prediction import predict, split_model_output

_DENOISE_TO = 1 / 3  # of sigma, before the noise comes back
_FEEDBACK = 0.95  # B
_CORRECTION = 0.5  # G


class CallCoefficients(NamedTuple):
    """What a model call needs. Every field is [num_model_calls] in a state, and [] in a step."""

    timestep: jax.Array  # int32, what the model is told
    signal: jax.Array  # sqrt(a)
    noise: jax.Array  # sqrt(1 - a)
    next_signal: jax.Array  # sqrt(p)
    next_noise: jax.Array  # sqrt(p) s'
    direction: jax.Array  # sqrt(p) min(s', s/3); in a last call that corrects, 3/2 s
    renoising: jax.Array  # sqrt(p) s A/2, the weight of each of the two noises
    correction: jax.Array  # G, and 0 in a call that goes to clean


def budget_transition(
    config: RePaintSchedulerConfig,
    row: CallCoefficients,
    model_output: jax.Array,
    sample: jax.Array,
    previous_z: jax.Array,
    original_image: jax.Array,
    mask: jax.Array,
    z: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Take the sample to the next level.

    Returns:
        The sample and pred_original_sample; the next call's `previous_z` is this one's `z`.
    """
    row, sample, previous_z, original_image, mask = jax.tree.map(
        lambda array: jnp.asarray(array, z.dtype),
        (row, sample, previous_z, original_image, mask),
    )
    prediction, _ = split_model_output(config, model_output, sample)
    x0, eps = predict(config, row, prediction, sample, noise_of_clipped=True)
    unknown = row.next_signal * x0 + row.direction * eps + row.renoising * (previous_z + z)
    in_reach = _in_reach(config, row, original_image)
    y = original_image + in_reach * row.correction * (original_image - x0)
    feedback = in_reach * _FEEDBACK
    known = row.next_signal * y + row.next_noise * (feedback * eps + jnp.sqrt(1 - feedback**2) * z)
    return mask * known + (1 - mask) * unknown, x0


def _in_reach(
    config: RePaintSchedulerConfig, row: CallCoefficients, original_image: jax.Array
) -> jax.Array:
    """Say at which known pixels predictions can agree with the original: 1, elsewhere 0."""
    if not config.clip_sample:
        return jnp.ones_like(original_image)
    limit = config.clip_sample_range
    in_reach = (jnp.abs(original_image) < limit) | (row.next_noise >= limit * row.next_signal)
    return in_reach.astype(original_image.dtype)


def call_coefficients(config: RePaintSchedulerConfig, timesteps: NDArray[np.int64]) -> CallCoefficients:
    """Compute the coefficients of calls at these timesteps in float64, and store them as float32."""
    a = noise.alphas_cumprod(config.betas)[timesteps]
    p = np.append(a[1:], 1.0)
    sigma, next_sigma = (np.sqrt((1 - level) / level) for level in (a, p))
    ends_with_correction = timesteps[-3] == timesteps[-1]
    if ends_with_correction:
        next_sigma[-2] = 0
    ratio = next_sigma / sigma
    denoised = np.minimum(ratio, _DENOISE_TO)
    amplitude = np.sqrt(2 * np.sqrt(ratio) * (ratio - denoised))
    direction = sigma * denoised
    if ends_with_correction:
        direction[-1] = 1.5 * sigma[-1]  # x0 is clean - s eps, and clean + s/2 eps is wanted

    def store(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    return CallCoefficients(
        timestep=jnp.asarray(timesteps, jnp.int32),
        signal=store(np.sqrt(a)),
        noise=store(np.sqrt(1 - a)),
        next_signal=store(np.sqrt(p)),
        next_noise=store(np.sqrt(p) * next_sigma),
        direction=store(np.sqrt(p) * direction),
        renoising=store(np.sqrt(p) * sigma * amplitude / 2),
        correction=store(np.where(next_sigma == 0, 0.0, _CORRECTION)),
    )
