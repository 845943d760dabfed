"""Resumable inpainting of folders of pictures on many devices and hosts."""
