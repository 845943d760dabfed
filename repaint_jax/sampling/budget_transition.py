"""The step of a call budget, the default: one noise level a call, no jumps, each draw of noise used twice.

RePaint jumps up and down between the noise levels to make the pixels to fill agree with the known pixels.
The chain here goes down once, and makes most of its calls at the levels where known and missing pixels
inform each other. At each level it denoises the missing pixels further than the next level needs, and then
adds noise again. Let a and p be the abar of a call's level and of the next call's level, s and s' their
sigma = sqrt((1 - abar)/abar), x the sample, m the mask, z the call's Gaussian noise, and z_prev the noise
of the previous call:

    x0      = clip((x - sqrt(1 - a) eps) / sqrt(a)),   eps = (x - sqrt(a) x0) / sqrt(1 - a)
    A^2     = 2 sqrt(s'/s) max(0, s'/s - 1/3)
    unknown = sqrt(p) (x0 + min(s', s/3) eps + s A (z_prev + z)/2)
    known   = sqrt(p) (y + s' (B eps + sqrt(1 - B^2) z)),   y = x_original + G (x_original - x0)
    x       = m known + (1 - m) unknown

If s' = s, the update of the missing pixels is a step of overdamped Langevin dynamics, of length s^2 A^2/2
along the score -eps/s. With white noise, the bias of their variance would be of first order in that length.
With half of each of two successive draws, the scheme of Leimkuhler and Matthews 2013 (arXiv 1203.5428), it
is of second order.

If s' < s, the best power of s'/s in A^2 depends on the content of the missing pixels:

    1      Details get exactly the noise of s', because the prediction is right about them. Shapes that are
           wide compared with s get too little noise.
    0      Wide shapes get enough noise. Details get too much, and the next call mistakes it for texture.
    1/2    is between the two, and gave the best results in measurements.

The known pixels get back a share B of the noise that the model predicts in them, as in DDNM (Wang et al.
2023, arXiv 2212.00490). They are also moved beyond the original by a share G of the difference between the
original and the prediction. Consider a Gaussian prior and B = 1. At the fixed point, the prediction agrees
with the original in the known pixels, and the score of the missing pixels is the score of the posterior at
every noise level. RePaint, which has B = G = 0, has this property only in the limit of small s. G speeds up
the convergence to the fixed point. It is stable below 1.

A known pixel at the limit of the clip range has no fixed point, because all predictions lie on one side of
it. B would move such a pixel further and further out, to values that no network was trained on, and the
network's output for them would spoil the missing pixels. So B = G = 0 at such a pixel if s' is below the
limit. If s' is above the limit, predictions lie far inside the range and the pixel still gives much
information, so B and G keep their values.

The last call goes from the smallest noise level to the clean image. Its step assumes that eps is constant
along the way, but eps falls to 0 with sigma, so that half of the step is too much. If three or more calls
are at the smallest level, this is the only error of that step, and the chain corrects it. The last call but
one goes to the clean image. The last call runs the model once more, on that image and at the smallest s,
and adds s/2 eps to the missing pixels.

A pixel that is known with noise c (`noisy_pixels`) is known at the levels s' >= c. There y has the place of
the original, and the place of x0 has what the model predicts for the pixel at the level c, x0 + c^2/s eps.
This leaves of the predicted noise s eps the share (e/s)^2, with e = sqrt(s^2 - c^2):

    known   = sqrt(p) (y + G (y - x0 - c^2/s eps) + e' (B e/s eps + sqrt(1 - B^2) z))

With that, the fixed point is the posterior's again. At the levels s' < c, the pixel is filled like a
missing one, but returns to y by the bridge. Let u = min(s, c), and let X be y if s >= c, and otherwise
x/sqrt(a):

    d       = min(1/3, (s'/u)^2)
    A^2     = 2 sqrt(s'/u) (s'/u - d)
    w       = (s'^2 - d u^2)/(c^2 - d u^2)
    known   = sqrt(p) ((1 - w) (x0 + d (X - x0)) + w y + sqrt(1 - w) u A (z_prev + z)/2)

For a Gaussian prior, x0 + d (X - x0) has the mean of the level sqrt(d) u, so the bridge starts there, and
the mean of the pixel is exact. If s' = s, this is a step of Langevin dynamics as well, along the score of
the posterior, -eps/s + (y - X)/(c^2 - s^2), of the length (1 - w) s^2 A^2/2. The bound (s'/u)^2 keeps w
from being negative. In calls that go to the clean image, the pixel is a missing one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.noisy_pixels import bridge_weight
from repaint_jax.sampling.prediction import predict, split_model_output

_DENOISE_TO = 1 / 3  # share of sigma that is left before noise is added again
_FEEDBACK = 0.95  # B
_CORRECTION = 0.5  # G


class CallCoefficients(NamedTuple):
    """Coefficients of a model call. Every field is [num_model_calls] in a state, and [] in a step."""

    timestep: jax.Array  # int32, the model's timestep argument
    signal: jax.Array  # sqrt(a)
    noise: jax.Array  # sqrt(1 - a)
    next_signal: jax.Array  # sqrt(p)
    next_noise: jax.Array  # sqrt(p) s'
    direction: jax.Array  # sqrt(p) min(s', s/3); 3/2 s in a last call that corrects the one before
    renoising: jax.Array  # sqrt(p) s A/2, the weight of each of the two draws of noise
    correction: jax.Array  # G; 0 in a call that goes to the clean image


def budget_transition(
    config: RePaintSchedulerConfig,
    row: CallCoefficients,
    model_output: jax.Array,
    sample: jax.Array,
    previous_z: jax.Array,
    original_image: jax.Array,
    mask: jax.Array,
    z: jax.Array,
    observation_noise: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Take the sample to the next noise level.

    Returns:
        The sample and pred_original_sample. The `z` of this call is the `previous_z` of the next call.
    """
    row, sample, previous_z, original_image, mask, c = jax.tree.map(
        lambda array: jnp.asarray(array, z.dtype),
        (row, sample, previous_z, original_image, mask, observation_noise),
    )
    prediction, _ = split_model_output(config, model_output, sample)
    x0, eps = predict(config, row, prediction, sample, noise_of_clipped=True)
    unknown = row.next_signal * x0 + row.direction * eps + row.renoising * (previous_z + z)
    in_reach = _in_reach(config, row, original_image)
    feedback, correction = in_reach * _FEEDBACK, in_reach * row.correction
    if c is None:
        y = original_image + correction * (original_image - x0)
        known = row.next_signal * y + row.next_noise * (feedback * eps + jnp.sqrt(1 - feedback**2) * z)
    else:
        s, next_s = row.noise / row.signal, row.next_noise / row.next_signal
        e, next_e = (jnp.sqrt(jnp.maximum(level**2 - c**2, 0)) for level in (s, next_s))
        y = original_image + correction * (original_image - x0 - c**2 / s * eps)
        given = y + next_e * (feedback * e / s * eps + jnp.sqrt(1 - feedback**2) * z)
        x = jnp.where(s >= c, original_image, sample / row.signal)
        free = _returning_to_y(s, next_s, x, x0, original_image, c, (previous_z + z) / 2)
        known = jnp.where(next_s > 0, row.next_signal * free, unknown)
        known = jnp.where(next_s >= c, row.next_signal * given, known)
    return mask * known + (1 - mask) * unknown, x0


def _returning_to_y(
    s: jax.Array,
    next_s: jax.Array,
    x: jax.Array,
    x0: jax.Array,
    y: jax.Array,
    c: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """Return the pixels that are known with noise c over their signal, at the level s' < c."""
    c = jnp.where(c > 0, c, 1)  # a pixel with c = 0 is always known
    u, next_s = jnp.minimum(s, c), jnp.minimum(next_s, c)
    ratio = next_s / u
    d = jnp.minimum(_DENOISE_TO, ratio**2)
    amplitude = jnp.sqrt(2 * jnp.sqrt(ratio) * (ratio - d))
    w = bridge_weight(d * u**2, next_s**2, c**2)
    return (1 - w) * (x0 + d * (x - x0)) + w * y + jnp.sqrt(1 - w) * u * amplitude * noise


def _in_reach(
    config: RePaintSchedulerConfig, row: CallCoefficients, original_image: jax.Array
) -> jax.Array:
    """Return 1 for pixels whose original value the prediction can reach, and 0 for the others."""
    if not config.clip_sample:
        return jnp.ones_like(original_image)
    limit = config.clip_sample_range
    in_reach = (jnp.abs(original_image) < limit) | (row.next_noise >= limit * row.next_signal)
    return in_reach.astype(original_image.dtype)


def call_coefficients(config: RePaintSchedulerConfig, timesteps: NDArray[np.int64]) -> CallCoefficients:
    """Compute the coefficients of calls at the given timesteps in float64, and store them as float32."""
    a = noise_levels.alphas_cumprod(config.betas)[timesteps]
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
        direction[-1] = 1.5 * sigma[-1]  # the result must be clean + s/2 eps, and x0 is clean - s eps

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
