"""Convert what a pipeline takes, pictures and masks, to arrays, and its results to what it returns."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repaint_jax.files import warn
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, alpha_channel, in_mode, rgb, upright
from repaint_jax.pictures.images import (
    MODEL_RANGE,
    Range,
    array_to_pil,
    checked_range,
    image_pixels,
    in_model_range,
    mask_to_array,
    pil_mode,
    resize_together,
    resized,
)
from repaint_jax.sampling.checks import check_choice, check_flag

OUTPUT_TYPES = ("pil", "np", "jax")


class Look(NamedTuple):
    """What the results of a picture take over from it, apart from its known pixels."""

    profile: bytes | None = None  # the ICC profile of the pixel values
    alpha: Image.Image | None = None  # the alpha channel, of the model's size


class Batch(NamedTuple):
    """Pictures and their masks."""

    images: NDArray[np.float32]  # [N, H, W, C] in [-1, 1]
    masks: NDArray[np.float32]  # [N, H, W, 1] of zeros and ones; soft ones have values between them
    looks: Sequence[Look]  # [N]


# of `make_batch`
PICTURE_OPTIONS = ("resize", "background", "keep_alpha", "input_range", "soft_mask")


def make_batch(
    image: Any,
    mask_image: Any,
    image_shape: tuple[int, int, int],
    *,
    resize: bool = False,
    background: Colour = DEFAULT_BACKGROUND,
    keep_alpha: bool = False,
    input_range: Range | None = None,
    soft_mask: bool = False,
    noisy: bool = False,
    whole: bool = False,
) -> Batch:
    """Convert the pictures and masks that a pipeline takes.

    Args:
        image: a picture as in `image_to_array`, or a batch or list of them.
        mask_image: one mask as in `mask_to_array` for all pictures, or one for each.
        image_shape: the shape [H, W, C] of the model's images.
        resize: whether to resize PIL images and their masks to the model's size, see `resize_together`.
        background: the colour behind transparent pixels, see `colours.rgb`.
        keep_alpha: whether the looks include the alpha channels of PIL images.
        input_range: the values of black and white in floating arrays. If None, these are -1 and 1, and a
            UserWarning tells of arrays without a negative value.
        soft_mask: whether masks keep values between 0 and 1.
        noisy: whether floating arrays may have finite values outside the range.
        whole: whether what is in the hole matters, too.
    """
    check_flag("soft_mask", soft_mask)
    rgb(background)  # raises if it is no colour
    model_range = MODEL_RANGE if input_range is None else checked_range(input_range)
    images, masks = _as_list("image", image), _as_list("mask_image", mask_image)
    alphas = [_alpha(one, image_shape) if keep_alpha else None for one in images]
    images = [_in_model_mode(one, image_shape, background) for one in images]
    looks = [Look(_profile(one), alpha) for one, alpha in zip(images, alphas, strict=True)]
    if resize:
        images, masks = resize_together(images, masks, image_shape, background, soft_masks=soft_mask)
    pixels = [image_pixels(one, image_shape) for one in images]
    holes = np.stack([mask_to_array(mask, image_shape, soft=soft_mask) for mask in masks])
    if len(holes) not in (1, len(pixels)):
        raise ValueError(
            f"mask_image has {len(holes)} masks, expected 1 or one for each of {len(pixels)} images"
        )
    holes = np.broadcast_to(holes, (len(pixels), *holes.shape[1:]))
    arrays = [
        in_model_range(one, None if whole else hole, model_range, noisy=noisy)
        for one, hole in zip(pixels, holes, strict=True)
    ]
    if input_range is None:
        is_floating = [one.dtype != np.uint8 for one in pixels]
        _warn_if_none_is_negative(np.stack(arrays)[is_floating], holes[is_floating])
    return Batch(np.stack(arrays), holes, looks)


def _in_model_mode(image: Any, image_shape: tuple[int, int, int], background: Colour) -> Any:
    """Convert a PIL image; return arrays as they are."""
    if not isinstance(image, Image.Image):
        return image
    return in_mode("image", image, pil_mode(image_shape), background)


def _profile(image: Any) -> bytes | None:
    return image.info.get("icc_profile") if isinstance(image, Image.Image) else None


def _alpha(image: Any, image_shape: tuple[int, int, int]) -> Image.Image | None:
    alpha = alpha_channel(upright(image)) if isinstance(image, Image.Image) else None
    return None if alpha is None else resized(alpha, image_shape[1::-1])


def _warn_if_none_is_negative(images: NDArray[np.floating], masks: NDArray[np.floating]) -> None:
    known = images[np.broadcast_to(masks > 0, images.shape)]
    if known.size and known.min() >= 0:
        warn(
            "image has no value below 0, and black is -1: give input_range=(0, 1) for images in [0, 1], or "
            "input_range=(-1, 1) for bright images in [-1, 1]"
        )


def _as_list(name: str, pictures: Any) -> Sequence[Any]:
    if isinstance(pictures, Image.Image):
        return [pictures]
    if isinstance(pictures, str | os.PathLike):
        raise TypeError(f"{name} is {pictures!r}, expected a PIL image, an array or a list of them")
    if isinstance(pictures, Sequence) or np.ndim(pictures) == 4:
        if len(pictures) == 0:
            raise ValueError(f"{name} is empty, expected at least one picture")
        return pictures
    return [pictures]


def check_output_type(
    output_type: str, image_shape: tuple[int, int, int], keep_alpha: bool = False
) -> None:
    """Check the kind of a pipeline's output.

    Raises:
        ValueError: if it is not one of `OUTPUT_TYPES`, "pil" for a shape without a PIL mode, or not "pil"
            although the alpha channel is wanted.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "pil":
        pil_mode(image_shape)
    elif keep_alpha:
        raise ValueError(f"output_type is {output_type!r}, expected 'pil' together with keep_alpha=True")


def as_output(images: Any, output_type: str, looks: Sequence[Look]) -> Any:
    """Convert results to one of `OUTPUT_TYPES`, as a pipeline returns them.

    Args:
        images: the results, [..., N, H, W, C] in [-1, 1].
        output_type: the kind of the output.
        looks: the looks of M pictures, of which each has N / M adjacent results.
    """
    if output_type == "jax":
        return images
    if output_type == "np":
        return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
    if images.ndim > 4:
        return [as_output(batch, output_type, looks) for batch in images]
    num_samples = len(images) // len(looks)
    return [
        with_look(array_to_pil(one), looks[i // num_samples]) for i, one in enumerate(np.asarray(images))
    ]


def with_look(picture: Image.Image, look: Look) -> Image.Image:
    """Give a result the ICC profile and the alpha channel of its picture."""
    if look.alpha is not None:
        picture.putalpha(look.alpha)
    if look.profile is not None:
        picture.info["icc_profile"] = look.profile
    return picture
