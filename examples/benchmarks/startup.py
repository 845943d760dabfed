"""Measure the work before the first call: imports and compilation."""

import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from bundled import PIPE, chain
from timing import Row, Rows, alternately


def imports() -> Rows:
    """Compare `import repaint_jax` with the import of its dependencies."""

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    times = alternately(lambda: run("import repaint_jax"), lambda: run("import jax, flax.nnx"), seconds=20)
    yield Row("`import repaint_jax`", "`import jax, flax.nnx`", *times, "below 1.3")


def compilation() -> Rows:
    """Compare the compile times of a long and a short chain."""

    def compile_chain(num_model_calls: int) -> None:
        jax.clear_caches()
        chain(num_model_calls).lower(PIPE.params, jnp.zeros((1, *PIPE.image_shape))).compile()

    times = alternately(lambda: compile_chain(4096), lambda: compile_chain(64), seconds=20)
    yield Row("compilation of 4,096 calls", "of 64 calls", *times, "1")


def first_picture() -> Rows:
    """Compare the command line's first picture with and without JAX's persistent compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "repaint_jax", "demo", "-o", f"{folder}/demo.png"]

        def run(**environment: str) -> None:
            subprocess.run(command, check=True, capture_output=True, env={**uncached, **environment})

        uncached = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        times = alternately(lambda: run(**cache), run, at_least=3)
    yield Row("`repaint-jax demo`, compilation cached", "not cached", *times)
