"""`python -m repaint_jax` is `repaint-jax`."""

from repaint_jax.cli import run

run()
