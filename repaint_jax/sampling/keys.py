"""Random keys, and the noise drawn from them: one key for an array, or a vector of keys for a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.sampling.checks import check_int

_IMPLEMENTATION = "threefry2x32"


def check_seed(seed: int) -> None:
    """Raise if a value is not an integer from 0 to 2**32 - 1."""
    if isinstance(seed, int | np.integer) and not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")
    check_int("seed", seed, 0)


def seed_key(seed: int) -> jax.Array:
    """Make a key of the kind threefry2x32, even if another kind is JAX's default.

    With other kinds, a picture's noise can depend on the batch that it is in, and results can depend on the
    environment.
    """
    check_seed(seed)
    return jax.random.key(seed, impl=_IMPLEMENTATION)


def keys_of_data(data: jax.Array) -> jax.Array:
    """Make keys of the kind that `seed_key` makes from their raw data."""
    return jax.random.wrap_key_data(data, impl=_IMPLEMENTATION)


def working_dtype(dtype: Any) -> Any:
    """Return float32, or `dtype` if that is wider: half precision cannot hold the coefficients."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def gaussian(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw standard Gaussian noise; with a vector of keys, entry i of the leading axis uses key[i]."""
    if is_key_vector(key):
        if not shape or key.shape[0] != shape[0]:
            raise ValueError(
                f"key is a vector of {key.shape[0]} keys, expected one for each entry of the leading "
                f"axis of the image's shape {shape}"
            )
        return jax.vmap(lambda one: jax.random.normal(one, shape[1:], dtype))(key)
    return jax.random.normal(key, shape, dtype)


def is_key_vector(key: jax.Array) -> bool:
    """Return whether `key` is a vector of keys, not a single key (both may be new-style or old-style)."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key is {key!r}, expected a key such as jax.random.key(0), or a vector of keys")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ndim = key.ndim if typed else key.ndim - 1
    if not typed and key.dtype != np.uint32:
        raise TypeError(f"key has dtype {key.dtype}, expected a key such as jax.random.key(0)")
    if not typed and key.ndim and key.shape[-1:] != _raw_shape():
        raise ValueError(
            f"key has shape {key.shape} and dtype uint32, expected a key such as jax.random.key(0)"
        )
    if ndim not in (0, 1):
        raise ValueError(f"key has shape {key.shape}, expected a single key or a vector of keys")
    return ndim == 1


def _raw_shape() -> tuple[int, ...]:
    """Return the shape of an old-style key, which is of JAX's default kind."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def sample_keys(key: jax.Array, num_images: int, num_samples: int) -> jax.Array:
    """Make a key for each sample of each image.

    With a vector of keys, the keys of image i depend on key[i] alone.
    """
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))
    image_keys = key if is_key_vector(key) else fold_in_each(key, jnp.arange(num_images))
    if len(image_keys) != num_images:
        raise ValueError(
            f"key is a vector of {len(image_keys)} keys, expected one for each of {num_images} images"
        )
    per_sample = [fold_in(image_keys, sample) for sample in range(num_samples)]
    return jnp.stack(per_sample, axis=1).reshape(num_images * num_samples, *image_keys.shape[1:])


def window_keys(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Make a key for each of B windows, from the B keys of their pictures and the windows' numbers."""
    return jax.vmap(jax.random.fold_in)(keys, numbers)
