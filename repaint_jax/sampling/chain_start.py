"""What a chain starts from, the noise that it draws, and what it knows of the image."""

from typing import Any

import jax
import jax.numpy as jnp

from repaint_jax.sampling.checks import check_like_image
from repaint_jax.sampling.keys import gaussian, is_key_vector
from repaint_jax.sampling.noisy_pixels import Observation, with_content_of_hole
from repaint_jax.sampling.scheduler import RePaintSchedulerState


def noise_of_chain(key: jax.Array, index: jax.Array | int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw the chain's noise number `index`: 0 is the start, and i + 1 belongs to model call i."""
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if is_key_vector(key) else jax.random.fold_in
    return gaussian(fold_in(key, index), shape, dtype)


def check_initial_sample(
    state: RePaintSchedulerState, initial_sample: jax.Array | None, original_image: jax.Array
) -> None:
    """Raise if there is an initial sample, but not of the image's shape or not for this state."""
    if initial_sample is None:
        return
    if state.starts_from_image:
        raise ValueError(
            "initial_sample is given and state has a strength below 1, expected only one of them: the "
            "chain of such a state starts from the noised image"
        )
    check_like_image("initial_sample", initial_sample, original_image)


def first_sample(state: RePaintSchedulerState, image: jax.Array, key: jax.Array) -> jax.Array:
    """Return the sample that a chain starts from: noise or, with a strength below 1, the noised image."""
    if state.starts_from_image:
        return _noised_image(state, image, key)
    return noise_of_chain(key, 0, image.shape, image.dtype)


@jax.jit  # so that it is rounded alike inside and outside of a chain's program
def _noised_image(state: RePaintSchedulerState, image: jax.Array, key: jax.Array) -> jax.Array:
    signal, noise = (level.astype(image.dtype) for level in _level_of_start(state))
    return signal * image + noise * noise_of_chain(key, 0, image.shape, image.dtype)


def known_to_chain(
    state: RePaintSchedulerState, known: Observation, key: jax.Array, dtype: Any
) -> Observation:
    """Return what is known, and with a strength below 1 the content of the hole, too."""
    if not state.starts_from_image:
        return known
    signal, noise = (level.astype(dtype) for level in _level_of_start(state))
    return with_content_of_hole(known, first_sample(state, known.image.astype(dtype), key), signal, noise)


def _level_of_start(state: RePaintSchedulerState) -> tuple[jax.Array, jax.Array]:
    """Return sqrt(abar) and sqrt(1 - abar) of the level that a chain starts from."""
    first = jnp.asarray(state.timesteps)[0]
    return jnp.sqrt(state.alphas_cumprod[first]), state.sqrt_one_minus_alphas_cumprod[first]
