"""The pipeline: a model, its scheduler and the sampling loop in one object, for pictures and arrays."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from repaint_jax.models.diffusion_model import DiffusionModel
from repaint_jax.models.guidance import CondFn, checked_labels
from repaint_jax.pictures.batches import PICTURE_OPTIONS, check_output_type, make_batch
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour
from repaint_jax.pictures.images import Range
from repaint_jax.pipeline_chain import (
    Chain,
    ImagePipelineOutput,
    WatchedPictures,
    check_noise_of_latents,
    choose_timesteps,
    make_chain,
    rows_on_devices,
    run_chain,
    watch_chain,
)
from repaint_jax.sampling.checks import check_int, check_noise
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
        background: Colour = DEFAULT_BACKGROUND,
        keep_alpha: bool = False,
        input_range: Range | None = None,
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
            image: a PIL image, an array, or a list of them, each of the model's size. PIL images must have
                8 bits per channel. They are turned upright by their EXIF orientation, and converted between
                grey, palette and colour. Their ICC profile is kept if it fits the model's kind of colours,
                and otherwise they are converted through it to sRGB. Arrays are uint8, or floating in
                `input_range`, of shape [H, W], [H, W, C] or, for a batch, [B, H, W, C]. Where mask_image is
                0, a floating array may hold anything, also NaN.
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
            resize: whether to resize PIL images and masks to the model's size. Proportions are not kept. An
                image and its mask must have the same size. Without it, images of another size are refused.
            background: the colour behind the transparent pixels of PIL images: a name or code that Pillow
                knows, a grey level, or red, green and blue from 0 to 255. It is not used for models with an
                alpha channel, of 2 or 4 channels.
            keep_alpha: whether PIL results get the alpha channel of their image, if it has one.
            input_range: the values of black and white in floating arrays: (0, 1) for arrays in [0, 1]. If
                None, these are -1 and 1, and a UserWarning tells of arrays without a negative value.
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
        check_output_type(output_type, self.image_shape, keep_alpha)
        chain = self._chain(
            image,
            mask_image,
            self._scheduled(
                state,
                num_inference_steps,
                eta,
                jump_length,
                jump_n_sample,
                num_model_calls=num_model_calls,
                strength=strength,
            ),
            key=key,
            num_samples=num_samples,
            resize=resize,
            background=background,
            keep_alpha=keep_alpha,
            input_range=input_range,
            soft_mask=soft_mask,
            observation_noise=observation_noise,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            null_label=null_label,
            cond_fn=cond_fn,
            cond_params=cond_params,
        )
        return run_chain(chain, output_type, preview_calls, progress)

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
        last call, they are the result of `pipe(...)` with the same arguments. Stop iterating to stop the
        chain.

        Args:
            image: the images, as for a call of the pipeline. The other named arguments are the same, too.
            options: `num_samples`, `resize`, `background`, `keep_alpha`, `input_range`, `soft_mask`,
                `observation_noise`, `class_labels`, `guidance_scale`, `null_label`, `cond_fn` and
                `cond_params`, as for a call of the pipeline.

        Raises:
            TypeError: at once, as for a call of the pipeline.
            ValueError: at once, as for a call of the pipeline.
        """
        check_output_type(output_type, self.image_shape, options.get("keep_alpha", False))
        state = self._scheduled(
            state,
            num_inference_steps,
            eta,
            jump_length,
            jump_n_sample,
            num_model_calls=num_model_calls,
            strength=strength,
        )
        return watch_chain(self._chain(image, mask_image, state, key=key, **options), output_type)

    def _chain(
        self,
        image: Any,
        mask_image: Any,
        state: RePaintSchedulerState,
        *,
        key: jax.Array,
        num_samples: int = 1,
        observation_noise: float = 0.0,
        class_labels: Any = None,
        **options: Any,
    ) -> Chain:
        check_int("num_samples", num_samples, 1)
        observation_noise = check_noise("observation_noise", observation_noise)
        check_noise_of_latents(self.latents, options.get("soft_mask", False), observation_noise)
        of_pictures = {name: options.pop(name) for name in PICTURE_OPTIONS if name in options}
        noisy, whole = observation_noise > 0, state.starts_from_image
        batch = make_batch(image, mask_image, self.image_shape, noisy=noisy, whole=whole, **of_pictures)
        rows, devices = rows_on_devices(len(batch.images), num_samples, self.params)
        if class_labels is not None:
            class_labels = checked_labels(
                "class_labels", class_labels, len(batch.images), self.unet_config, self.classifier
            )
            class_labels = class_labels[rows // num_samples]
        model_fn, params = self.guided_model(state.config, class_labels, **options)
        return make_chain(
            state, model_fn, params, batch, key, num_samples, rows, devices, self.latents, observation_noise
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
            strength=strength,
            num_inference_steps=num_inference_steps,
            eta=eta,
            jump_length=jump_length,
            jump_n_sample=jump_n_sample,
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
