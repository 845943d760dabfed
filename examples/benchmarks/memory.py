"""Measure the memory that a compiled chain needs in addition to its arguments and results."""

from typing import Any

import jax
import jax.numpy as jnp
from bundled import PIPE, chain
from timing import Row, Rows


def temporary_bytes() -> Rows:
    """Compare the chain's temporary memory with a model call's, and over the number of calls."""
    arguments = PIPE.params, jnp.zeros((8, *PIPE.image_shape))

    def of(function: Any, *given: Any) -> int:
        return function.lower(*given).compile().memory_analysis().temp_size_in_bytes

    call = of(jax.jit(PIPE.model_fn), *arguments, jnp.int32(0))
    short, long = of(chain(64), *arguments), of(chain(4096), *arguments)
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
