"""The pipeline: a model, its scheduler and the sampling loop in one object, for pictures and arrays."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.models.diffusion_model import DiffusionModel
from repaint_jax.models.guidance import CondFn, checked_labels
from repaint_jax.pictures.batches import check_output_type
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour
from repaint_jax.pictures.fillings import PICTURE_OPTIONS, Filling, Row, make_filling
from repaint_jax.pictures.images import Range
from repaint_jax.pictures.windows import DEFAULT_CONTEXT
from repaint_jax.pipeline_chain import (
    Chain,
    ChainOfRows,
    ImagePipelineOutput,
    WatchedPictures,
    check_noise_of_latents,
    choose_timesteps,
    make_chain,
    run_chains,
    watch_chains,
)
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.devices import bytes_needed, free_devices, memory_of_device
from repaint_jax.sampling.keys import sample_keys, window_keys
from repaint_jax.sampling.scheduler import RePaintSchedulerState, schedule_of


class RePaintPipeline(DiffusionModel):
    """A model with the scheduler it was trained for, which inpaints pictures."""

    def __call__(
        self,
        image: Any,
        mask_image: Any,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        *,
        num_model_calls: int | None = None,
        state: RePaintSchedulerState | None = None,
        key: jax.Array,
        num_samples: int = 1,
        output_type: str = "pil",
        resize: bool = False,
        fit: str = "exact",
        context: float = DEFAULT_CONTEXT,
        background: Colour = DEFAULT_BACKGROUND,
        keep_alpha: bool = False,
        input_range: Range | None = None,
        grow_mask: int = 0,
        feather: int = 0,
        soft_mask: bool = False,
        observation_noise: float = 0.0,
        strength: float = 1.0,
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        null_label: int | None = None,
        cond_fn: CondFn | None = None,
        cond_params: Any = None,
        preview_calls: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ImagePipelineOutput:
        """Inpaint pictures. The arguments have the same meaning as in diffusers' RePaintPipeline.

        The schedule is a call budget of `num_model_calls` by default. If at least one of
        `num_inference_steps`, `eta`, `jump_length` and `jump_n_sample` is given, the schedule is RePaint's
        own, and the others have diffusers' defaults 250, 0, 10 and 10.

        The output keeps the known pixels exactly, unless the schedule is RePaint's own and known_region is
        "before_model". The 8-bit values of known pixels are those of the input in "pil", and in "np" after
        multiplication by 255 and rounding.

        Args:
            image: a PIL image, an array, or a list of them, of the model's size or as fit says. PIL images
                must have 8 bits per channel. They are turned upright by their EXIF orientation, and
                converted between grey, palette and colour. Their ICC profile is kept if it fits the model's
                kind of colours, and otherwise they are converted through it to sRGB. Arrays are uint8, or
                floating in `input_range`, of shape [H, W], [H, W, C] or, for a batch, [B, H, W, C]. Where
                mask_image is 0, a floating array may hold anything, also NaN.
            mask_image: one mask for all images, or one for each. White or 1 keeps a pixel, black or 0
                inpaints it. Values are rounded at the middle of their range. PIL images are turned upright.
            num_inference_steps: the number of inference steps T, see `set_timesteps`.
            eta: the share of DDPM's noise in a step, in [0, 1]. 0 by default: the eta of the scheduler's
                config is not used.
            jump_length: the number of inference steps that a jump goes back, see `set_timesteps`.
            jump_n_sample: the number of passes through each stretch of jump_length steps, see
                `set_timesteps`.
            num_model_calls: the call budget, instead of the four arguments of RePaint's schedule, see
                `set_timesteps_for_budget`. None means 64 calls, its DEFAULT_MODEL_CALLS.
            state: a state with a schedule, for example from `set_timesteps`, instead of these five
                arguments.
            key: a key, or a vector of keys with one for each image.
            num_samples: the number of results for each image. The results of an image are adjacent in the
                output.
            output_type: the kind of the output: "pil", "np" ([B * num_samples, H, W, C] in [0, 1], which
                goes back in with `input_range=(0, 1)`) or "jax" (the same shape, in [-1, 1]).
            resize: short for fit="resize".
            fit: how pictures of another size than the model's are inpainted. "exact" refuses them. "resize"
                resizes PIL images and masks to the model's size, without keeping proportions; the results
                have that size, too. "crop" cuts windows around the holes, scales them to the model's size,
                and puts the results back; pixels outside the holes stay as they are, at full resolution
                (`pictures.windows`). "native" runs the network on the picture's own size. A convolutional
                network can do that, but it knows pictures of the size that it was trained on.
            context: with fit="crop", what a window shows on each side of a hole, as a share of the hole's
                longer side.
            background: the colour behind the transparent pixels of PIL images: a name or code that Pillow
                knows, a grey level, or red, green and blue from 0 to 255. It is not used for models with an
                alpha channel, of 2 or 4 channels.
            keep_alpha: whether PIL results get the alpha channel of their image, if it has one.
            input_range: the values of black and white in floating arrays: (0, 1) for arrays in [0, 1]. If
                None, these are -1 and 1, and a UserWarning tells of arrays without a negative value.
            grow_mask: the number of pixels by which the hole grows to each side before it is filled, in
                pixels of the result. If it is negative, the hole shrinks.
            feather: the number of pixels around the hole in which the result fades into the image, in
                pixels of the result. The model fills these pixels too, and pixels farther away are kept
                exactly. The rim lies outside the hole, because inside it the fade would show what is to be
                removed. The weights of the image are those of `masks.feather`.
            soft_mask: whether mask values m between 0 and 1 are kept. They mean that a pixel is known up to
                noise of the standard deviation sqrt((1 - m)/m), in the units of [-1, 1]: 0.1 for m = 0.99,
                0.33 for 0.9, and 1 for 0.5. The result may deviate that far from the image.
            observation_noise: the standard deviation c of Gaussian noise in the known pixels of image, in
                the units of [-1, 1]; 0 means that they are exact. Above 0, the known pixels of the result
                are not those of the image, but drawn from what the model and the image say about them, and
                floating arrays may have values outside `input_range`. See `inpaint`.
            strength: the share of the noise levels that is used, in (0, 1], as in diffusers' image-to-image
                pipelines. Below 1, the hole is filled starting from what is there, which must be finite.
                See `set_timesteps`.
            class_labels: one label for all images or one for each, for a class-conditional model, a
                classifier or both.
            guidance_scale: the strength of the guidance. It scales the gradient of the classifier or of
                cond_fn, where 0 means no guidance. With null_label, it weights the class-conditional
                prediction, where 1 means that prediction itself.
            null_label: the label that stood for "no class" when a class-conditional model was trained. If
                it is given, classifier-free guidance is used.
            cond_fn: a function `cond_fn(cond_params, sample, timestep)` that returns a gradient of
                log p(y | sample), to use instead of the classifier's. See
                `models.guidance.ClassifierGuidance`.
            cond_params: the first argument of cond_fn.
            preview_calls: the model calls whose predicted clean images are returned as `previews`.
            progress: a function that is called as `progress(calls_done)` after each model call.

        Raises:
            ValueError: if pictures and masks do not fit the model or each other.
            FloatingPointError: if the result is not finite.
        """
        filling, chain_of, calls = self._chains(
            image,
            mask_image,
            (num_inference_steps, eta, jump_length, jump_n_sample),
            num_model_calls=num_model_calls,
            state=state,
            strength=strength,
            output_type=output_type,
            key=key,
            num_samples=num_samples,
            resize=resize,
            fit=fit,
            context=context,
            background=background,
            keep_alpha=keep_alpha,
            input_range=input_range,
            grow_mask=grow_mask,
            feather=feather,
            soft_mask=soft_mask,
            observation_noise=observation_noise,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            null_label=null_label,
            cond_fn=cond_fn,
            cond_params=cond_params,
        )
        return run_chains(filling, chain_of, calls, output_type, preview_calls, progress)

    def watch(
        self,
        image: Any,
        mask_image: Any,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        *,
        key: jax.Array,
        num_model_calls: int | None = None,
        state: RePaintSchedulerState | None = None,
        strength: float = 1.0,
        output_type: str = "pil",
        **options: Any,
    ) -> Iterator[WatchedPictures]:
        """Inpaint pictures, and yield the predicted pictures after every model call.

        Before the last call, these are the predicted clean images with the known pixels put in. After the
        last call, they are the result of `pipe(...)` with the same arguments. They are made when `images`
        is read. Stop iterating to stop the chain.

        Args:
            image: the images, as for a call of the pipeline. The other named arguments are the same, too.
            options: `num_samples`, `resize`, `fit`, `context`, `background`, `keep_alpha`, `input_range`,
                `grow_mask`, `feather`, `soft_mask`, `observation_noise`, `class_labels`, `guidance_scale`,
                `null_label`, `cond_fn` and `cond_params`, as for a call of the pipeline.

        Raises:
            TypeError: at once, as for a call of the pipeline.
            ValueError: at once, as for a call of the pipeline.
        """
        filling, chain_of, calls = self._chains(
            image,
            mask_image,
            (num_inference_steps, eta, jump_length, jump_n_sample),
            num_model_calls=num_model_calls,
            state=state,
            strength=strength,
            output_type=output_type,
            key=key,
            **options,
        )
        return watch_chains(filling, chain_of, calls, output_type)

    def _chains(
        self,
        image: Any,
        mask_image: Any,
        resampling: Sequence[Any],
        *,
        num_model_calls: int | None = None,
        state: RePaintSchedulerState | None = None,
        strength: float = 1.0,
        output_type: str,
        key: jax.Array,
        num_samples: int = 1,
        resize: bool = False,
        fit: str = "exact",
        observation_noise: float = 0.0,
        class_labels: Any = None,
        **options: Any,
    ) -> tuple[Filling, ChainOfRows, int]:
        """Return the pictures to fill, what makes a chain of some of their rows, and a chain's calls."""
        check_output_type(output_type, self.image_shape, options.get("keep_alpha", False))
        schedule = self._scheduled(state, *resampling, num_model_calls=num_model_calls, strength=strength)
        check_int("num_samples", num_samples, 1)
        of_pictures = {name: options.pop(name) for name in PICTURE_OPTIONS if name in options}
        of_pictures["fit"] = _checked_fit(fit, resize)
        check_noise_of_latents(self.latents, of_pictures.get("soft_mask", False), observation_noise)
        make = self.filling_maker(
            schedule, num_samples=num_samples, observation_noise=observation_noise, **of_pictures
        )
        filling = make(image, mask_image)
        filling.check_output(output_type)
        if class_labels is not None:
            class_labels = checked_labels(
                "class_labels", class_labels, filling.num_pictures, self.unet_config, self.classifier
            )
        keys = sample_keys(key, filling.num_pictures, num_samples)

        def chain_of(rows: Sequence[Row], images: Any, masks: Any) -> Chain:
            devices = free_devices(self.params)[: len(rows)]
            filled_up = _filled_up(rows, devices)
            results = np.array([row.result for row in rows])[filled_up]
            row_keys = keys[results]
            if rows[0].window is not None:
                row_keys = window_keys(row_keys, jnp.array([row.window for row in rows])[filled_up])
            labels = None if class_labels is None else class_labels[results // num_samples]
            model_fn, params = self.guided_model(schedule.config, labels, **options)
            inputs = images[filled_up], masks[filled_up], row_keys
            return make_chain(
                schedule,
                model_fn,
                params,
                *inputs,
                len(rows),
                devices,
                self.latents,
                observation_noise,
            )

        return filling, chain_of, schedule.num_model_calls or 0

    def filling_maker(
        self, state: RePaintSchedulerState, *, num_samples: int = 1, **of_pictures: Any
    ) -> Callable[[Any, Any], Filling]:
        """Return a function that makes a filling of pictures and masks, see `make_filling`."""
        return partial(
            make_filling,
            image_shape=self.image_shape,
            num_samples=num_samples,
            multiple=self.side_multiple,
            check_memory=partial(self._check_memory, state),
            whole=state.starts_from_image,
            **of_pictures,
        )

    def _check_memory(self, state: RePaintSchedulerState, shape: tuple[int, int, int]) -> None:
        """Raise MemoryError if the network needs more memory for a picture of a shape than there is."""
        of_network = shape if self.latents is None else self.latents.shape_of(shape)
        with contextlib.suppress(NotImplementedError):  # the backend or the system does not tell
            available = memory_of_device(jax.local_devices()[0])
            needed = bytes_needed(state, self.model_fn, self.params, of_network, 1)
            if needed > available:
                raise MemoryError(
                    f"image is of {shape[0]} x {shape[1]} pixels, for which the network needs "
                    f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are there: expected a "
                    "smaller one with fit='native', or fit='crop'"
                )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        *,
        num_model_calls: int | None = None,
        strength: float = 1.0,
    ) -> RePaintSchedulerState:
        """Return the state with the schedule that a call of the pipeline with these arguments uses.

        Args:
            num_inference_steps: the number of inference steps T, as for a call of the pipeline. The other
                arguments are the same, too.

        Raises:
            ValueError: if num_model_calls is given together with one of the others, or a value is out of
                range.
        """
        return choose_timesteps(
            self.state,
            num_model_calls,
            num_inference_steps=num_inference_steps,
            eta=eta,
            jump_length=jump_length,
            jump_n_sample=jump_n_sample,
            strength=strength,
        )

    def _scheduled(
        self,
        state: RePaintSchedulerState | None,
        *arguments: Any,
        num_model_calls: int | None,
        strength: float,
    ) -> RePaintSchedulerState:
        """Return the given state, or make one from the arguments of a schedule."""
        if state is None:
            return self.set_timesteps(*arguments, num_model_calls=num_model_calls, strength=strength)
        if any(argument is not None for argument in (*arguments, num_model_calls)) or strength != 1:
            raise ValueError(
                "state is given together with arguments of a schedule, expected one of the two"
            )
        schedule_of(state)
        return state


def _checked_fit(fit: str, resize: bool) -> str:
    if resize and fit not in ("exact", "resize"):
        raise ValueError(f"resize is {resize!r} and fit is {fit!r}, expected one of the two")
    return "resize" if resize else fit


def _filled_up(rows: Sequence[Row], devices: Sequence[jax.Device]) -> NDArray[np.intp]:
    """Return the numbers of rows of which every device has as many: copies of the last one fill up."""
    count = len(rows)
    if rows[0].window is not None:
        count = 1 << (count - 1).bit_length()  # few numbers of windows, of which each is compiled
    return np.minimum(np.arange(count + -count % max(len(devices), 1)), len(rows) - 1)
