"""Memory that a compiled chain takes beside its arguments and results."""

import jax
import jax.numpy as jnp
from timing import Row, Rows

import repaint_jax as rp


def temporary_bytes() -> Rows:
    """The chain's against a model call's, and over the number of calls."""
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    images = jnp.zeros((8, *pipe.image_shape))
    mask = rp.masks.half(*pipe.image_shape[:2])[None]

    def of(compiled: jax.stages.Compiled) -> int:
        return compiled.memory_analysis().temp_size_in_bytes

    def chain(num_model_calls: int) -> int:
        state = pipe.set_timesteps(num_model_calls=num_model_calls)
        lowered = jax.jit(rp.inpaint, static_argnums=1).lower(
            state, pipe.model_fn, pipe.params, images, mask, jax.random.key(0)
        )
        return of(lowered.compile())

    call = of(jax.jit(pipe.model_fn).lower(pipe.params, images, jnp.int32(0)).compile())
    short, long = chain(64), chain(4096)
    yield Row(
        "temporary memory of 64 calls, batch 8",
        "of a model call",
        short,
        call,
        short / call,
        "at most 1.1",
        "B",
    )
    yield Row("temporary memory of 4,096 calls", "of 64 calls", long, short, long / short, "1", "B")
