"""Scores of inpainted pictures whose original pixels are known."""
