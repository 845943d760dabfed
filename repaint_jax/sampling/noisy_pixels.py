"""Pixels that are known with noise: y = x_original + c n, with a standard Gaussian n and a known c.

Let X = x0 + s eps be the sample divided by its signal, so that s is its noise level. y has the law of a
pixel of X at the level s = c (SNIPS, Kawar et al. 2021, arXiv 2105.14951; DDRM, 2022, arXiv 2201.11793).
It is taken for that pixel. So the posterior of the image is the law of the diffusion given that pixel:

    s >= c      X = y + sqrt(s^2 - c^2) z. The pixel is known, and y has the place of the clean pixel.
    s < c       On the way down the pixel is free: given X at one level, y says no more about lower levels.
                On the way up it returns to y at the level c. So from a level t to a level s, renoising is a
                Brownian bridge, with the variance as its time:

                    X_s = (1 - w) X_t + w y + sqrt((1 - w) (s^2 - t^2)) z,   w = (s^2 - t^2)/(c^2 - t^2)

In a call whose level is above c and whose next level is below, the pixel starts from y at the level c. So
its own level is min(s, c). c = 0 is a pixel that is known exactly, and c = infinity a pixel to fill.

A hole that is filled starting from its content (`strength` below 1) is known with noise as well. The noised
content that the chain starts from is its y, and the noise level of the start is its c. Every chain adds
noise again, in jumps or in each call. Without the bridge, it would make the hole forget its content.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.sampling.checks import check_floating, check_noise


class Observation(NamedTuple):
    """What is known about the pixels of an image."""

    image: jax.Array  # y; any number where the mask is 0
    mask: jax.Array  # 1 where the pixel is known, 0 where nothing is known
    noise: jax.Array | None = None  # c, [] or of the mask's rank; None if all known pixels are exact


def bridge_weight(t_squared: jax.Array, s_squared: jax.Array, c_squared: jax.Array) -> jax.Array:
    """Return w, the share of the way to y that a pixel goes from a level t up to a level s <= c."""
    to_y = c_squared - t_squared
    return jnp.where(to_y > 0, (s_squared - t_squared) / jnp.where(to_y > 0, to_y, 1), 0)


def with_content_of_hole(
    observation: Observation, start: jax.Array, signal: jax.Array, noise: jax.Array
) -> Observation:
    """Return what is known in a chain that starts from the noised image.

    No pixel is freer than the noise of the start lets it be.

    Args:
        observation: what is known about the image.
        start: the sample that the chain starts from.
        signal: the signal of the level of the start, sqrt(abar).
        noise: the noise of that level, sqrt(1 - abar).
    """
    image, mask, c = jax.tree.map(lambda array: array.astype(start.dtype), observation)
    hole, s = mask == 0, noise / signal
    c = jnp.where(hole, s, jnp.zeros_like(mask) if c is None else jnp.minimum(c, s))
    return Observation(jnp.where(hole, start / signal, image), jnp.where(hole, 1, mask), c)


def noise_of_mask(
    mask: NDArray[np.floating], observation_noise: float
) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
    """Return the mask of the pixels that are known at all, and their noise c (a number if all have it).

    A soft mask's value m is the abar of the level at which its pixel is known, 1/(1 + c^2), as m in
    sqrt(m) y + sqrt(1 - m) z. So its c^2 is (1 - m)/m, to which the square of observation_noise is added.

    Args:
        mask: values in [0, 1]: 1 is known up to the observation noise, 0 not at all.
        observation_noise: the standard deviation of the noise of all known pixels.
    """
    known = (mask > 0).astype(np.float32)
    if np.array_equal(known, mask):
        return known, observation_noise
    m = np.where(mask > 0, mask, 1).astype(np.float64)
    return known, np.sqrt((1 - m) / m + observation_noise**2).astype(np.float32)


def checked_noise(observation_noise: Any, original_image: jax.Array) -> jax.Array | None:
    """Return c as an array, or None if it is the number 0; raise if it is neither a number nor an array."""
    if not isinstance(observation_noise, jax.Array | np.ndarray):
        number = check_noise("observation_noise", observation_noise)
        return None if number == 0 else jnp.float32(number)
    check_floating("observation_noise", jnp.asarray(observation_noise))
    shape, image_shape = observation_noise.shape, jnp.shape(original_image)
    fits = len(shape) == len(image_shape) and all(
        m in (1, n) for m, n in zip(shape, image_shape, strict=True)
    )
    if shape and not fits:
        raise ValueError(
            f"observation_noise has shape {shape}, expected a number, or the rank of original_image's "
            f"{image_shape} with each axis equal or 1"
        )
    return jnp.asarray(observation_noise)
