"""Put a filling into the hole of a picture so that no seam shows."""

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

_ITERATIONS = 200  # enough for a relative residual of 1e-3 with a reach of up to some 50 pixels


def blend(filling: jax.Array, images: jax.Array, mask: jax.Array, reach: float) -> jax.Array:
    """Return images with a filling in their holes, corrected so that it meets the known pixels.

    The known pixels of `filling` differ a little from those of the images. The difference is carried on
    into the hole, where it falls to 1/e within `reach` pixels of a straight rim: it solves the screened
    Poisson equation (1/reach^2 - Laplace) d = 0 with the known differences as boundary values (after Perez
    et al. 2003, "Poisson image editing").

    Args:
        filling: [B, H, W, C], floating, of the whole picture.
        images: [B, H, W, C].
        mask: [B, H, W, 1] of zeros and ones; 1 is known and comes back as it is.
        reach: in pixels, positive.

    Returns:
        [B, H, W, C], of the images' dtype.
    """
    hole = (1 - mask).astype(filling.dtype)
    known = jnp.where(mask == 1, images - filling, 0)

    def neighbours(d: jax.Array) -> jax.Array:
        """Return the sum of the four neighbours, with mirrored edges."""
        padded = jnp.pad(d, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]

    def operator(d: jax.Array) -> jax.Array:
        return jnp.where(hole == 1, (4 + 1 / reach**2) * d - neighbours(hole * d), d)

    difference, _ = cg(operator, hole * neighbours(known), tol=1e-3, maxiter=_ITERATIONS)
    return jnp.where(mask == 1, images, (filling + difference).astype(images.dtype))
