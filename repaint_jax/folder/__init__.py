"""Folders of pictures, inpainted on many devices and hosts, resumable."""
