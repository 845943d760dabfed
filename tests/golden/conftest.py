"""Nothing here is a test: pytest must not import the recorders, which need torch, to look for doctests."""

collect_ignore = [
    "record_consistency_models.py",
    "record_autoencoders.py",
    "record_diffusers.py",
    "record_guided_diffusion.py",
    "record_schedulers.py",
    "replay.py",
    "weights.py",
]
