"""`python -m repaint_jax` is `repaint-jax`."""

import sys

from repaint_jax.cli import main

sys.exit(main())
