"""Measure the time per picture over the batch size and the number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
from bundled import PIPE, chain
from timing import Row, Rows, alternately, ready

import repaint_jax as rp


def per_picture() -> Rows:
    """Compare a picture in a batch with a picture alone."""
    inpaint = chain(16)
    alone_arguments = PIPE.params, jnp.zeros((1, *PIPE.image_shape))
    for batch in (4, 16, 64):
        arguments = PIPE.params, jnp.zeros((batch, *PIPE.image_shape))
        together, alone, ratio = alternately(
            partial(ready, inpaint, *arguments), partial(ready, inpaint, *alone_arguments), seconds=4
        )
        yield Row(
            f"a picture in a batch of {batch}", "a picture alone", together / batch, alone, ratio / batch
        )


def per_device() -> Rows:
    """Compare a batch divided among one device per core, as in the commands, with one device."""
    devices = jax.local_device_count()
    if devices == 1:
        return
    inpaint = chain(16)
    for batch in (devices, 16 * devices):
        images = jnp.zeros((batch, *PIPE.image_shape))
        yield Row(
            f"{batch} pictures, on {devices} devices of a core",
            f"on one device of {devices} cores",
            *alternately(
                partial(ready, inpaint, rp.replicate(PIPE.params), rp.shard_batch(images)),
                partial(ready, inpaint, PIPE.params, images),
                seconds=4,
            ),
        )
