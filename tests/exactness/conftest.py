"""The modules of examples/exactness, which promote dtypes and ranks as JAX does by default."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "exactness"))


@pytest.fixture(autouse=True)
def float64_and_promotion() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
