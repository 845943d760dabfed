"""Time per picture over the batch size."""

from functools import partial

import jax
import jax.numpy as jnp
from timing import Row, Rows, alternately, ready

import repaint_jax as rp


def per_picture() -> Rows:
    """A picture in a batch against a picture alone."""
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    state = pipe.set_timesteps(num_model_calls=16)
    mask = rp.masks.half(*pipe.image_shape[:2])[None]

    @jax.jit
    def chain(images: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(images))
        return rp.inpaint(state, pipe.model_fn, pipe.params, images, mask, keys)

    picture = jnp.zeros((1, *pipe.image_shape))
    for batch in (4, 16, 64):
        pictures = jnp.zeros((batch, *pipe.image_shape))
        together, alone, ratio = alternately(
            partial(ready, chain, pictures), partial(ready, chain, picture), seconds=4
        )
        yield Row(
            f"a picture in a batch of {batch}", "a picture alone", together / batch, alone, ratio / batch
        )
