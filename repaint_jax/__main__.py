"""`python -m repaint_jax` is `repaint-jax`."""

from repaint_jax.cli.main import run

run()
