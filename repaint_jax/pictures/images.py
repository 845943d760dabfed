"""Convert between pictures with 8 bits per channel and arrays in [-1, 1]."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from repaint_jax.files import whole_file

OUTPUT_TYPES = ("pil", "np", "jax")

_PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pil_mode(image_shape: tuple[int, int, int]) -> str:
    """Return the PIL mode of images of this shape, or raise ValueError if no mode has its channels."""
    channels = image_shape[-1]
    if channels not in _PIL_MODES:
        raise ValueError(f"PIL images have 1 to 4 channels, the model's have {channels}: use arrays")
    return _PIL_MODES[channels]


def open_image(path: str | Path) -> Image.Image:
    """Read a picture with 8 bits per channel.

    Raises:
        ValueError: if the file cannot be read, or has more bits. The message is one sentence.
    """
    try:
        file = Image.open(path)
        is_deep = any(re.search(r"\w;16[BLN]", str(tile)) for tile in file.tile)  # PIL makes it 8 bits
        image = ImageOps.exif_transpose(file)  # upright, as viewers show it
        image.load()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None
    if is_deep or _is_deep(image):
        raise ValueError(f"{path} has more than 8 bits per channel, expected 8")
    return image


def image_to_array(image: Any, image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Convert a picture to an array [H, W, C] in [-1, 1].

    Args:
        image: a PIL image with 8 bits per channel, which is converted between grey and colour and loses its
            transparency; a uint8 array, 0..255; or a floating array in [-1, 1]. Arrays are [H, W] or
            [H, W, C].
        image_shape: the expected shape [H, W, C].

    Raises:
        TypeError: if image is neither a PIL image nor an array of numbers.
        ValueError: if the size or the number of channels differs, or values are outside the range.
    """
    if isinstance(image, Image.Image):
        image = _converted("image", image, pil_mode(image_shape))
    array = _as_array("image", image)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape != image_shape:
        raise ValueError(
            f"image has shape {array.shape}, expected the model's {image_shape} (height, width, channels)"
            + ("; `resize` resizes it" if isinstance(image, Image.Image) else "")
        )
    if array.dtype == np.uint8:
        return uint8_to_array(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"image has dtype {array.dtype}, expected uint8 or a floating dtype")
    if not np.all((array >= -1) & (array <= 1)):  # false for NaN too
        raise ValueError("image has values that are not in [-1, 1]")
    return array.astype(np.float32)


def mask_to_array(mask: Any, image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Convert a mask to an array [H, W, 1] of zeros (inpaint) and ones (keep).

    Args:
        mask: a PIL image without transparent pixels, in which white keeps and black inpaints; or an array
            of shape [H, W] or [H, W, 1], bool, uint8 0..255 or floating in [0, 1]. Values are rounded at
            the middle of their range.
        image_shape: the shape [H, W, C] of the mask's image.

    Raises:
        TypeError: if mask is neither a PIL image nor an array of numbers.
        ValueError: if the size differs, values are outside the range, or pixels are transparent.
    """
    if isinstance(mask, Image.Image):
        mask = grey_mask(mask)
    array = _as_array("mask", mask)
    if array.ndim == 2:
        array = array[..., None]
    expected = (*image_shape[:2], 1)
    if array.shape != expected:
        raise ValueError(f"mask has shape {array.shape}, expected {expected} (height, width, 1)")
    if array.dtype == np.uint8 and array.max(initial=0) == 1:
        raise ValueError("mask has dtype uint8 and no value above 1, expected 0 and 255, or dtype bool")
    if array.dtype == np.uint8:
        return (array >= 128).astype(np.float32)
    if array.dtype != bool and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"mask has dtype {array.dtype}, expected bool, uint8 or a floating dtype")
    if not np.all((array >= 0) & (array <= 1)):
        raise ValueError("mask has values that are not in [0, 1]")
    return (array >= 0.5).astype(np.float32)


def grey_mask(mask: Image.Image) -> Image.Image:
    """Convert a mask to mode "L".

    Raises:
        ValueError: if pixels are transparent: their colour is invisible, so the mask would be ambiguous.
    """
    if mask.has_transparency_data and np.asarray(mask.convert("RGBA").getchannel("A")).min() < 255:
        raise ValueError("mask has transparent pixels, expected black and white ones")
    return _converted("mask", mask, "L")


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _converted(name: str, image: Image.Image, mode: str) -> Image.Image:
    if _is_deep(image):
        raise ValueError(f"{name} has mode {image.mode}, expected 8 bits per channel")
    return image.convert(mode)


def _as_array(name: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # NumPy does not count it as a floating dtype
        array = array.astype(np.float32)
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise TypeError(f"{name} is {value!r}, expected a PIL image or an array of numbers")
    return array


def resize_together(
    images: Sequence[Any], masks: Sequence[Any], image_shape: tuple[int, int, int]
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Resize pictures and their masks to the model's height and width. Proportions are not kept.

    A resized pixel is filled if any pixel to fill contributed to it. So removed content leaves no trace in
    the known pixels, and no hole is too small.

    Args:
        images: the PIL images.
        masks: one mask for all images, or one for each. Each image and its mask must have the same size, so
            that the mask covers the pixels it was drawn over.
        image_shape: the shape [H, W, C] of the model's images.

    Raises:
        TypeError: if an image or mask is not a PIL image.
        ValueError: if an image and its mask have different sizes.
    """
    height, width, _ = image_shape
    for name, pictures in (("image", images), ("mask", masks)):
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise TypeError(f"{name} is a {type(picture).__name__}, expected a PIL image to be resized")
    for image, mask in zip(images, itertools.cycle(masks), strict=False):
        if image.size != mask.size:
            raise ValueError(
                f"mask is of size {mask.size}, expected {image.size} as its image, to be resized with it"
            )

    def resized(picture: Image.Image) -> Image.Image:
        # Neither filter has negative weights. In a mask, these could cancel the share of pixels to fill.
        shrinks = picture.width >= width and picture.height >= height
        return picture.resize(
            (width, height), Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
        )

    def resized_mask(mask: Image.Image) -> Image.Image:
        missing = np.asarray(grey_mask(mask)) < 128
        share = np.asarray(resized(Image.fromarray(missing.astype(np.float32))))
        return Image.fromarray(np.where(share > 1e-6, 0, 255).astype(np.uint8))

    # Convert before resizing: indices into a palette cannot be averaged.
    return (
        [resized(_converted("image", image, pil_mode(image_shape))) for image in images],
        [resized_mask(mask) for mask in masks],
    )


def images_and_masks(
    image: Any, mask_image: Any, image_shape: tuple[int, int, int], *, resize: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Convert the inputs of a pipeline to images [N, H, W, C] in [-1, 1] and masks [N, H, W, 1].

    Args:
        image: a picture as in `image_to_array`, or a batch or list of them.
        mask_image: one mask as in `mask_to_array` for all pictures, or one for each.
        image_shape: the shape [H, W, C] of the model's images.
        resize: whether to resize PIL images and their masks to the model's size, see `resize_together`.
    """
    image_list, mask_list = _as_list("image", image), _as_list("mask_image", mask_image)
    if resize:
        image_list, mask_list = resize_together(image_list, mask_list, image_shape)
    images = np.stack([image_to_array(one, image_shape) for one in image_list])
    masks = np.stack([mask_to_array(one, image_shape) for one in mask_list])
    if len(masks) not in (1, len(images)):
        raise ValueError(
            f"mask_image has {len(masks)} masks, expected 1 or one for each of {len(images)} images"
        )
    return images, np.broadcast_to(masks, (len(images), *masks.shape[1:]))


def _as_list(name: str, pictures: Any) -> Sequence[Any]:
    if isinstance(pictures, Image.Image):
        return [pictures]
    if isinstance(pictures, str | Path):
        raise TypeError(f"{name} is {pictures!r}, expected a PIL image, an array or a list of them")
    if isinstance(pictures, Sequence) or np.ndim(pictures) == 4:
        if len(pictures) == 0:
            raise ValueError(f"{name} is empty, expected at least one picture")
        return pictures
    return [pictures]


def check_output_type(output_type: str, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError if it is not one of `OUTPUT_TYPES`, or "pil" for a shape without a PIL mode."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
    if output_type == "pil":
        pil_mode(image_shape)


def as_output(images: Any, output_type: str) -> Any:
    """Convert results [..., H, W, C] in [-1, 1] to one of `OUTPUT_TYPES`, as a pipeline returns them."""
    if output_type == "jax":
        return images
    if output_type == "np":
        return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
    if images.ndim > 4:
        return [as_output(batch, output_type) for batch in images]
    return [array_to_pil(one) for one in np.asarray(images)]


def uint8_to_array(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert values in 0..255 to [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1


def array_to_uint8(array: Any) -> NDArray[np.uint8]:
    """Convert values in [-1, 1] to 0..255, clipped. This inverts `image_to_array` exactly."""
    return np.round(np.clip((np.asarray(array, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def array_to_pil(array: Any) -> Image.Image:
    """Convert an array [H, W, C] in [-1, 1] to a PIL image."""
    return uint8_to_pil(array_to_uint8(array))


def uint8_to_pil(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert a uint8 array [H, W, C] to a PIL image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def colour_profile(image: Image.Image, image_shape: tuple[int, int, int]) -> bytes | None:
    """Return the ICC profile that a result needs so that its known pixels look the same as in the image.

    None if the image has no profile, or if the conversion between grey and colour makes it invalid.
    """
    is_grey = image.mode in ("1", "L", "LA")
    return image.info.get("icc_profile") if is_grey == (image_shape[-1] <= 2) else None


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture in the format of its suffix, completely or not at all.

    Args:
        picture: the picture.
        path: the file to write.
        options: options of Pillow's `Image.save`.
    """
    with whole_file(path) as unfinished:
        picture.save(unfinished, format=Image.registered_extensions()[path.suffix.lower()], **options)
