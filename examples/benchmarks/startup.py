"""What happens before the first call: imports and compilation."""

import os
import statistics
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from timing import Row, Rows, alternately, timed

import repaint_jax as rp


def imports() -> Rows:
    """`import repaint_jax` against the import of what it needs."""

    def run(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    times = alternately(lambda: run("import repaint_jax"), lambda: run("import jax, flax.nnx"), seconds=20)
    yield Row("`import repaint_jax`", "`import jax, flax.nnx`", *times, "below 1.3")


def compilation() -> Rows:
    """Compile time over the number of calls."""
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    image, mask = jnp.zeros(pipe.image_shape), rp.masks.half(*pipe.image_shape[:2])

    def compile_chain(num_model_calls: int) -> None:
        state = pipe.set_timesteps(num_model_calls=num_model_calls)
        jax.clear_caches()
        jax.jit(rp.inpaint, static_argnums=1).lower(
            state, pipe.model_fn, pipe.params, image, mask, jax.random.key(0)
        ).compile()

    times = alternately(lambda: compile_chain(4096), lambda: compile_chain(64), seconds=20)
    yield Row("compilation of 4,096 calls", "of 64 calls", *times, "1")


def first_picture() -> Rows:
    """The command line's first picture, without and with JAX's persistent compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "repaint_jax", "demo", "-o", f"{folder}/demo.png"]

        def run(cache: dict[str, str]) -> float:
            return timed(
                lambda: subprocess.run(
                    command, check=True, capture_output=True, env={**os.environ, **cache}
                )
            )

        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        run(cache)
        pairs = [(run(cache), run({})) for _ in range(3)]
    warm, cold = (statistics.median(times) for times in zip(*pairs, strict=True))
    yield Row("`repaint-jax demo`, compilation cached", "not cached", warm, cold, warm / cold)
