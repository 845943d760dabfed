"""From pictures to inpainted pictures: a model, a scheduler and the loop in one object."""

import dataclasses
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from repaint_jax.checks import check_int
from repaint_jax.config import RePaintSchedulerConfig
from repaint_jax.files import find_file, write_json
from repaint_jax.images import array_to_pil, image_to_array, mask_to_array
from repaint_jax.inpaint import ModelFn, inpaint
from repaint_jax.keys import is_key_vector
from repaint_jax.models import UNet2D, load_unet2d, nnx_model_fn, save_unet2d
from repaint_jax.scheduler import RePaintSchedulerState, create_state, set_timesteps

BUNDLED = "bundled"
OUTPUT_TYPES = ("pil", "np", "jax")


class ImagePipelineOutput(NamedTuple):
    """What a pipeline returns, named as in diffusers."""

    images: Any  # a list of PIL images, or an array [B * num_samples, H, W, C]


@dataclasses.dataclass(frozen=True)
class RePaintPipeline:
    """A model with the scheduler it was trained for.

    Attributes:
        model_fn: `model_fn(params, sample, timestep)`.
        params: its parameters.
        state: the scheduler's state, without a schedule.
        image_shape: the model's [H, W, C].
    """

    model_fn: ModelFn
    params: Any
    state: RePaintSchedulerState
    image_shape: tuple[int, int, int]

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, *, dtype: Any = jnp.float32) -> Self:
        """Load a diffusers folder of an unconditional `UNet2DModel`.

        Args:
            path_or_repo: a folder with `model_index.json`, `unet/` and `scheduler/`; a flat folder with
                the model alone; a repository of the Hugging Face hub of the same layout; or
                "bundled", the model that is part of this package.
            dtype: of the model's parameters and arithmetic.
        """
        return cls.from_unet2d(*load_pipeline(path_or_repo, dtype))

    @classmethod
    def from_unet2d(cls, unet: UNet2D, config: RePaintSchedulerConfig) -> Self:
        """Put a model and the settings of its scheduler together."""
        model_fn, params = nnx_model_fn(unet)
        image_shape = (*unet.config.height_and_width, unet.config.in_channels)
        return cls(model_fn, params, create_state(config), image_shape)

    def __call__(
        self,
        image: Any,
        mask_image: Any,
        num_inference_steps: int = 250,
        eta: float = 0.0,
        jump_length: int = 10,
        jump_n_sample: int = 10,
        *,
        key: jax.Array,
        num_samples: int = 1,
        output_type: str = "pil",
        progress: Callable[[int], None] | None = None,
    ) -> ImagePipelineOutput:
        """Inpaint pictures; the arguments have the meaning they have in diffusers' RePaintPipeline.

        Args:
            image: a PIL image, an array (uint8, or floating in [-1, 1]; [H, W], [H, W, C] or a batch
                [B, H, W, C]) or a list of them, each of the model's size.
            mask_image: one mask for all images or one for each: white or 1 keeps, black or 0 inpaints.
            num_inference_steps: see `set_timesteps`, as for jump_length and jump_n_sample.
            eta: share of DDPM's noise in a step, in [0, 1].
            jump_length: inference steps that a jump goes back up.
            jump_n_sample: passes through each stretch of jump_length steps.
            key: a key, or a vector of keys, one for each image.
            num_samples: results for each image; they follow one another in the output.
            output_type: "pil", "np" ([B * num_samples, H, W, C] in [0, 1]) or "jax" (the same shape, in
                [-1, 1]).
            progress: called as `progress(calls_done)` after each model call.

        Raises:
            ValueError: on pictures and masks that do not fit the model or each other.
            FloatingPointError: the result is not finite.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")
        check_int("num_samples", num_samples, 1)
        images = np.stack([image_to_array(one, self.image_shape) for one in _as_list("image", image)])
        masks = np.stack(
            [mask_to_array(one, self.image_shape) for one in _as_list("mask_image", mask_image)]
        )
        if len(masks) not in (1, len(images)):
            raise ValueError(
                f"mask_image has {len(masks)} masks, expected 1 or one for each of {len(images)} images"
            )
        masks = np.broadcast_to(masks, (len(images), *masks.shape[1:]))
        config = dataclasses.replace(self.state.config, eta=eta)
        state = set_timesteps(create_state(config), num_inference_steps, jump_length, jump_n_sample)
        result = inpaint(
            state,
            self.model_fn,
            self.params,
            jnp.asarray(images.repeat(num_samples, axis=0)),
            jnp.asarray(masks.repeat(num_samples, axis=0)),
            _sample_keys(key, len(images), num_samples),
            progress=progress,
        )
        if not bool(jnp.isfinite(result).all()):
            raise FloatingPointError("the model's result has values that are not finite")
        if output_type == "jax":
            return ImagePipelineOutput(result)
        if output_type == "np":
            return ImagePipelineOutput(np.clip(np.asarray(result) / 2 + 0.5, 0, 1))
        return ImagePipelineOutput([array_to_pil(one) for one in np.asarray(result)])


def load_pipeline(
    path_or_repo: str | Path, dtype: Any = jnp.float32
) -> tuple[UNet2D, RePaintSchedulerConfig]:
    """Read what `RePaintPipeline.from_pretrained` reads, as the module and its scheduler's settings."""
    if str(path_or_repo) == BUNDLED:
        path_or_repo = bundled_folder()
    try:
        find_file(path_or_repo, "model_index.json")
        flat = False
    except FileNotFoundError:
        flat = True
    unet = load_unet2d(path_or_repo, None if flat else "unet", dtype=dtype)
    return unet, RePaintSchedulerConfig.from_pretrained(path_or_repo, None if flat else "scheduler")


def save_pipeline(folder: str | Path, unet: UNet2D, config: RePaintSchedulerConfig, dtype: Any) -> None:
    """Write a diffusers pipeline folder: `model_index.json`, `unet/` and `scheduler/`."""
    folder = Path(folder)
    save_unet2d(unet, folder / "unet", dtype=dtype)
    config.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "RePaintPipeline",
        "scheduler": ["diffusers", "RePaintScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / "model_index.json", index)


def bundled_folder() -> Path:
    """Folder of the model and the pictures that are part of this package."""
    return Path(str(files("repaint_jax") / "bundled" / "fashion_mnist"))


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


def _sample_keys(key: jax.Array, num_images: int, num_samples: int) -> jax.Array:
    """One key for each sample; those of image i follow from its own key alone."""
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))
    image_keys = key if is_key_vector(key) else fold_in_each(key, jnp.arange(num_images))
    if len(image_keys) != num_images:
        raise ValueError(
            f"key is a vector of {len(image_keys)} keys, expected one for each of {num_images} images"
        )
    per_sample = [fold_in(image_keys, sample) for sample in range(num_samples)]
    return jnp.stack(per_sample, axis=1).reshape(num_images * num_samples, *image_keys.shape[1:])
