"""Time per picture over the batch size."""

from functools import partial

import jax.numpy as jnp
from bundled import PIPE, chain
from timing import Row, Rows, alternately, ready


def per_picture() -> Rows:
    """A picture in a batch against a picture alone."""
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
