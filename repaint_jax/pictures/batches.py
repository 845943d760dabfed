"""Convert what a pipeline takes, pictures and masks, to arrays, and its results to what it returns."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repaint_jax.files import warn
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, alpha_channel, in_mode, rgb, upright
from repaint_jax.pictures.holes import fading, grown
from repaint_jax.pictures.images import (
    MODEL_RANGE,
    Range,
    array_to_pil,
    checked_range,
    image_pixels,
    in_floats,
    in_model_range,
    mask_to_array,
    pil_mode,
    resize_together,
    resized,
)
from repaint_jax.pictures.windows import Canvas
from repaint_jax.sampling.checks import check_choice, check_flag, check_int

OUTPUT_TYPES = ("pil", "np", "jax")


class Look(NamedTuple):
    """What the results of a picture take over from it, apart from its known pixels."""

    profile: bytes | None = None  # the ICC profile of the pixel values
    alpha: Image.Image | None = None  # the alpha channel, of the result's size


Fade = NDArray[np.float32] | None  # [H, W, 1]: a picture's weights in its results


class Batch(NamedTuple):
    """Pictures and their masks."""

    images: NDArray[np.float32]  # [N, H, W, C] in [-1, 1]
    masks: NDArray[np.float32]  # [N, H, W, 1] of zeros and ones; soft ones have values between them
    looks: Sequence[Look]  # [N]
    fades: Sequence[Fade]  # [N]


def make_batch(
    image: Any,
    mask_image: Any,
    image_shape: tuple[int, int, int],
    *,
    resize: bool = False,
    background: Colour = DEFAULT_BACKGROUND,
    keep_alpha: bool = False,
    soft_mask: bool = False,
    **checks: Any,
) -> Batch:
    """Convert the pictures and masks that a pipeline takes, to the model's size.

    Args:
        image: a picture as in `image_to_array`, or a batch or list of them.
        mask_image: one mask as in `mask_to_array` for all pictures, or one for each.
        image_shape: the shape [H, W, C] of the model's images.
        resize: whether to resize PIL images and their masks to the model's size, see `resize_together`.
        background: the colour behind transparent pixels, see `colours.rgb`.
        keep_alpha: whether the looks include the alpha channels of PIL images.
        soft_mask: whether masks keep values between 0 and 1.
        checks: `input_range`, `grow_mask`, `feather`, `noisy` and `whole`, see `_checked`.
    """
    images, masks, looks = _read(image, mask_image, image_shape, background, keep_alpha)
    if keep_alpha:
        size = image_shape[1::-1]
        looks = [
            look if look.alpha is None else look._replace(alpha=resized(look.alpha, size)) for look in looks
        ]
    if resize:
        images, masks = resize_together(images, masks, image_shape, background, soft_masks=soft_mask)
    shapes = [image_shape] * len(images)
    pixels, holes, fades = _checked(images, masks, shapes, soft_mask=soft_mask, **checks)
    return Batch(np.stack([in_floats(one) for one in pixels]), np.stack(holes), looks, fades)


def make_canvases(
    image: Any,
    mask_image: Any,
    image_shape: tuple[int, int, int],
    *,
    background: Colour = DEFAULT_BACKGROUND,
    keep_alpha: bool = False,
    **checks: Any,
) -> tuple[list[Canvas], Sequence[Look]]:
    """Convert pictures and masks of any size, see `make_batch`."""
    images, masks, looks = _read(image, mask_image, image_shape, background, keep_alpha)
    shapes = [_own_shape(one, image_shape[-1]) for one in images]
    inputs = _checked(images, masks, shapes, **checks)
    return [Canvas(*of_one) for of_one in zip(*inputs, strict=True)], looks


def _read(
    image: Any, mask_image: Any, image_shape: tuple[int, int, int], background: Colour, keep_alpha: bool
) -> tuple[list[Any], list[Any], list[Look]]:
    """Return pictures in the model's colours, a mask for each, and their looks."""
    rgb(background)  # raises if it is no colour
    images, masks = _as_list("image", image), _as_list("mask_image", mask_image)
    if len(masks) not in (1, len(images)):
        raise ValueError(
            f"mask_image has {len(masks)} masks, expected 1 or one for each of {len(images)} images"
        )
    alphas = [_alpha(one) if keep_alpha else None for one in images]
    images = [_in_model_mode(one, image_shape, background) for one in images]
    looks = [Look(_profile(one), alpha) for one, alpha in zip(images, alphas, strict=True)]
    return images, [*masks] * (len(images) // len(masks)), looks


def _checked(
    images: Sequence[Any],
    masks: Sequence[Any],
    shapes: Sequence[tuple[int, int, int]],
    *,
    input_range: Range | None = None,
    grow_mask: int = 0,
    feather: int = 0,
    soft_mask: bool = False,
    noisy: bool = False,
    whole: bool = False,
) -> tuple[list[NDArray[Any]], list[NDArray[np.float32]], list[Fade]]:
    """Return pixels, uint8 or in [-1, 1], masks, and how results fade.

    Args:
        images: PIL images in the model's colours, or arrays.
        masks: a mask for each.
        shapes: the shape that each image must have.
        input_range: the values of black and white in floating arrays. If None, these are -1 and 1, and a
            UserWarning tells of arrays without a negative value.
        grow_mask: the number of pixels by which holes grow, or shrink if it is negative.
        feather: the width of the rim in which results fade into their pictures. The masks are 0 there, too.
        soft_mask: whether masks keep values between 0 and 1.
        noisy: whether floating arrays may have finite values outside the range.
        whole: whether what is in the hole matters, too.
    """
    check_int("grow_mask", grow_mask, None)
    check_int("feather", feather, 0)
    check_flag("soft_mask", soft_mask)
    model_range = MODEL_RANGE if input_range is None else checked_range(input_range)
    pixels = [image_pixels(*pair) for pair in zip(images, shapes, strict=True)]
    holes = [
        _grown(mask_to_array(*pair, soft=soft_mask), grow_mask) for pair in zip(masks, shapes, strict=True)
    ]
    floating = [number for number, one in enumerate(pixels) if one.dtype != np.uint8]
    for number in floating:
        of_mask = None if whole else holes[number]
        pixels[number] = in_model_range(pixels[number], of_mask, model_range, noisy=noisy)
    fades: list[Fade] = [None] * len(holes)
    if feather > 0:
        fades = [fading(hole[..., 0] == 0, feather)[..., None] for hole in holes]
        holes = [np.where(fade == 1, 1, 0).astype(np.float32) for fade in fades]
    if input_range is None:
        _warn_if_none_is_negative([(pixels[number], holes[number]) for number in floating])
    return pixels, holes, fades


def _grown(mask: NDArray[np.float32], grow_mask: int) -> NDArray[np.float32]:
    """Grow or shrink the hole of a mask [H, W, 1], or raise ValueError if nothing of it is left."""
    if grow_mask == 0:
        return mask
    hole = grown(mask[..., 0] == 0, grow_mask)
    if not hole.any() and not mask.all():
        raise ValueError(
            f"grow_mask is {grow_mask}, which leaves nothing of the hole, expected less shrinking"
        )
    return np.where(hole, 0, 1).astype(np.float32)[..., None]


def _own_shape(image: Any, channels: int) -> tuple[int, int, int]:
    """Return the shape of a picture of any size in the model's colours."""
    height, width = image.size[::-1] if isinstance(image, Image.Image) else np.shape(image)[:2]
    return height, width, channels


def _in_model_mode(image: Any, image_shape: tuple[int, int, int], background: Colour) -> Any:
    """Convert a PIL image; return arrays as they are."""
    if not isinstance(image, Image.Image):
        return image
    return in_mode("image", image, pil_mode(image_shape), background)


def _profile(image: Any) -> bytes | None:
    return image.info.get("icc_profile") if isinstance(image, Image.Image) else None


def _alpha(image: Any) -> Image.Image | None:
    return alpha_channel(upright(image)) if isinstance(image, Image.Image) else None


def _warn_if_none_is_negative(
    pictures: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> None:
    known = [image[mask[..., 0] > 0] for image, mask in pictures]
    if any(values.size for values in known) and all(values.min(initial=0) >= 0 for values in known):
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
