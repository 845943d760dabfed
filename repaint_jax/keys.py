"""Random keys: one for a whole array, or a vector of them with a stream for each entry of a batch."""

import jax
import jax.numpy as jnp
import numpy as np


def gaussian(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw standard Gaussians; a vector of keys gives each entry of the leading axis its own stream."""
    if is_key_vector(key):
        if not shape or key.shape[0] != shape[0]:
            raise ValueError(
                f"key is a vector of {key.shape[0]} keys, expected one for each entry of the leading "
                f"axis of the image's shape {shape}"
            )
        return jax.vmap(lambda one: jax.random.normal(one, shape[1:], dtype))(key)
    return jax.random.normal(key, shape, dtype)


def is_key_vector(key: jax.Array) -> bool:
    """Tell a vector of keys from a single key, of the new or the old style."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key is {key!r}, expected a key such as jax.random.key(0), or a vector of keys")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ndim = key.ndim if typed else key.ndim - 1
    if not typed and key.dtype != np.uint32:
        raise TypeError(f"key has dtype {key.dtype}, expected a key such as jax.random.key(0)")
    if ndim not in (0, 1):
        raise ValueError(f"key has shape {key.shape}, expected a single key or a vector of keys")
    return ndim == 1
