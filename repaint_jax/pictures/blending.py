"""Continue known pixels smoothly into a hole, and put a filling into it so that no seam shows."""

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

_ITERATIONS = 200  # of conjugate gradients: information goes one pixel further with each


def continued(images: jax.Array, mask: jax.Array, reach: float = float("inf")) -> jax.Array:
    """Return images whose holes continue the known pixels.

    The values in the hole solve the screened Poisson equation (1/reach^2 - Laplace) x = 0 with the known
    pixels as boundary values: they fall to 1/e of them within `reach` pixels of a straight rim.

    Args:
        images: [B, H, W, C], floating. What is in the hole does not matter.
        mask: [B, H, W, 1] of zeros and ones; 1 is known and comes back as it is.
        reach: in pixels, positive. Infinity makes the smoothest continuation, a membrane.

    Returns:
        [B, H, W, C]. A hole without a known pixel becomes 0.
    """
    # Each picture has a solution of its own, whatever its batch.
    return jax.vmap(lambda image, its_mask: _continued(image, its_mask, reach))(images, mask)


def _continued(image: jax.Array, mask: jax.Array, reach: float) -> jax.Array:  # [H, W, C], [H, W, 1]
    known = jnp.where(mask == 1, image, 0)
    hole = (1 - mask).astype(image.dtype)

    def neighbours(x: jax.Array) -> jax.Array:
        """Return the sum of each pixel's four neighbours, with mirrored edges."""
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
        return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]

    def operator(x: jax.Array) -> jax.Array:
        return jnp.where(mask == 1, x, (4 + 1 / reach**2) * x - neighbours(hole * x))

    inside, _ = cg(operator, hole * neighbours(known), tol=1e-3, maxiter=_ITERATIONS)
    return jnp.where(mask == 1, image, inside)


def faded(filling: jax.Array, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Return a filling that fades into the images around it.

    Args:
        filling: [..., H, W, C], floating.
        images: [..., H, W, C]. What is where the weight is 0 does not matter.
        weights: [..., H, W, 1] in [0, 1], of the images, as `holes.fading` makes them. Where the weight is
            1, the images come back as they are.

    Returns:
        [..., H, W, C], of the images' dtype.
    """
    between = (filling + weights * (images - filling)).astype(images.dtype)
    return jnp.where(weights == 1, images, jnp.where(weights == 0, filling, between))


def blend(filling: jax.Array, images: jax.Array, mask: jax.Array, reach: float) -> jax.Array:
    """Return images with a filling in their holes, corrected so that it meets the known pixels.

    A filling that was decoded from latents differs a little from the images also where they are known. The
    difference is continued into the hole and added there (after Pérez et al. 2003, "Poisson image editing",
    where the reach is infinite).

    Args:
        filling: [B, H, W, C], floating, of the whole picture.
        images: [B, H, W, C]. What is in the hole does not matter.
        mask: [B, H, W, 1] of zeros and ones; 1 is known and comes back as it is.
        reach: how far the correction reaches into the hole, in pixels.

    Returns:
        [B, H, W, C], of the images' dtype.
    """
    corrected = filling + continued(images.astype(filling.dtype) - filling, mask, reach)
    return jnp.where(mask == 1, images, corrected.astype(images.dtype))
