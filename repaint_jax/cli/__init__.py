"""The command line, `repaint-jax`, and the web app."""
