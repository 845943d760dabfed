"""Nothing here is a test: pytest must not import the recorder, which needs torch, to look for doctests."""

collect_ignore = ["record_diffusers.py", "replay.py"]
