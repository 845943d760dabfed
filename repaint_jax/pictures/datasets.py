"""Read sets of images from disk into memory, as uint8."""

import gzip
import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repaint_jax.files import StrPath
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, in_mode, rgb
from repaint_jax.pictures.images import open_image
from repaint_jax.sampling.checks import check_int

TRAIN_IDX_NAME = "train-images-idx3-ubyte.gz"
TEST_IDX_NAME = "t10k-images-idx3-ubyte.gz"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def read_images(
    folder: StrPath,
    image_size: int,
    *,
    grey: bool,
    idx_name: str = TRAIN_IDX_NAME,
    mixed: bool = False,
    background: Colour = DEFAULT_BACKGROUND,
) -> NDArray[np.uint8]:  # [N, H, W, C]
    """Read all images below a folder.

    Args:
        folder: a folder with an idx file named `idx_name`, or with pictures at any depth.
        image_size: the side of the images. Pictures are cropped to their central square and resized to it.
            Images of an idx file keep their size.
        grey: whether to read pictures as one channel instead of three.
        idx_name: the name of the idx file: the training or the test images of Fashion-MNIST.
        mixed: whether to shuffle the pictures, in an order that is always the same. The first pictures are
            then a fair sample of all. Otherwise they are sorted by name.
        background: the colour behind transparent pixels, see `colours.rgb`.

    Returns:
        The images, [N, H, W, C] uint8.

    Raises:
        ValueError: if the folder does not exist, has no images, or has images that cannot be read.
    """
    check_int("image_size", image_size, 1)
    rgb(background)  # raises if it is no colour
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if (folder / idx_name).is_file():
        return read_idx_images(folder / idx_name)
    names = picture_names(folder)
    if not names:
        raise ValueError(f"{folder} holds neither {idx_name} nor pictures ({', '.join(SUFFIXES)})")
    if mixed:
        names.sort(key=lambda name: hashlib.sha256(name_bytes(name)).digest())
    mode = "L" if grey else "RGB"
    pictures = (in_mode("image", open_image(folder / name), mode, background) for name in names)
    return np.stack([_central_square(picture, image_size) for picture in pictures])


def picture_names(folder: StrPath) -> list[str]:
    """Return the sorted names of all pictures at any depth, relative to the folder, without hidden ones."""
    folder = Path(folder)
    paths = [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.is_dir()
    ]
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def name_bytes(name: str) -> bytes:
    """Return the bytes of a file's name in UTF-8, which are the same on all systems if it is text."""
    return name.encode("utf-8", "surrogatepass" if os.name == "nt" else "surrogateescape")


def read_idx_images(path: StrPath) -> NDArray[np.uint8]:  # [N, H, W, 1]
    """Read an `*-images-idx3-ubyte.gz` file of the MNIST family."""
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes())
        magic, count, height, width = struct.unpack_from(">4i", data)
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is not a whole idx.gz file: {error}") from None
    if magic != 2051:
        raise ValueError(f"{path} is not an idx file of images: magic number {magic}, expected 2051")
    pixels = np.frombuffer(data, np.uint8, offset=16)
    if pixels.size != count * height * width:
        raise ValueError(f"{path} holds {pixels.size} pixels, expected {count} images of {height}x{width}")
    return pixels.reshape(count, height, width, 1)


def _central_square(image: Image.Image, side: int) -> NDArray[np.uint8]:
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    square = image.crop((left, top, left + shorter, top + shorter))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))
    return pixels[..., None] if pixels.ndim == 2 else pixels
