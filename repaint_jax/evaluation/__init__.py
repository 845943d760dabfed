"""Scores of inpainted pictures whose holes are known."""
