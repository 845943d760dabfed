"""The bundled network on one device and `inpaint` with it, which most parts measure."""

from collections.abc import Callable
from typing import Any

import jax

import repaint_jax as rp
from repaint_jax.sampling.devices import use_every_core

use_every_core()
PIPE = rp.RePaintPipeline.from_pretrained("bundled")
MASK = rp.masks.half(*PIPE.image_shape[:2])[None]


def chain(num_model_calls: int) -> Callable[[Any, jax.Array], jax.Array]:
    """Return a jitted `chain(params, images)` with a call budget."""
    state = PIPE.set_timesteps(num_model_calls=num_model_calls)

    @jax.jit
    def inpaint(params: Any, images: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(images))
        return rp.inpaint(state, PIPE.model_fn, params, images, MASK, keys)

    return inpaint
