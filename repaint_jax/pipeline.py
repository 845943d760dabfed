"""The pipeline: a model, its scheduler and the sampling loop in one object, for pictures and arrays."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from repaint_jax.files import StrPath
from repaint_jax.models import UNet2D, UNet2DClassifier, UNet2DConfig, nnx_model_fn
from repaint_jax.models.guidance import Classifier, CondFn, checked_labels, guided_model
from repaint_jax.models.pretrained import load_classifier, load_pretrained, save_pretrained
from repaint_jax.pictures.batches import PICTURE_OPTIONS, check_output_type, make_batch
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour
from repaint_jax.pictures.images import Range
from repaint_jax.pipeline_chain import (
    Chain,
    ImagePipelineOutput,
    WatchedPictures,
    choose_timesteps,
    make_chain,
    rows_on_devices,
    run_chain,
    watch_chain,
)
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.inpaint import ModelFn
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state, schedule_of


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: equal params are equal memory
class RePaintPipeline:
    """A model with the scheduler it was trained for.

    Attributes:
        model_fn: the function `model_fn(params, sample, timestep)`. It takes the class labels as a fourth
            argument if unet_config describes a class-conditional model.
        params: the model's parameters.
        state: the scheduler's state, without a schedule.
        image_shape: the shape [H, W, C] of the model's images.
        unet_config: the architecture of the `UNet2D` that model_fn runs. None for any other model.
        classifier: a classifier of noisy pictures, for guidance.
    """

    model_fn: Callable[..., jax.Array]
    params: Any
    state: RePaintSchedulerState
    image_shape: tuple[int, int, int]
    unet_config: UNet2DConfig | None = None
    classifier: Classifier | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: StrPath,
        *,
        dtype: Any = None,
        revision: str | None = None,
        classifier: StrPath | None = None,
        subfolder: StrPath | None = None,
        variant: str | None = None,
        token: str | bool | None = None,
        cache_dir: StrPath | None = None,
    ) -> Self:
        """Load a pretrained model and its scheduler's settings.

        `path_or_repo` is one of these:

        - A diffusers folder of an unconditional or class-conditional `UNet2DModel`, with
          `model_index.json`, `unet/` and `scheduler/`, or with all its files in one folder.
        - A repository of the Hugging Face hub with the same layout. This needs huggingface_hub, and
          respects its cache and HF_HUB_OFFLINE.
        - A `.pt`, `.pth` or `.ckpt` checkpoint of guided-diffusion, the format of the official RePaint
          models. This needs torch.
        - A model of this package: "bundled/fashion_mnist", for which "bundled" is short, or
          "bundled/emoji".

        Args:
            path_or_repo: the model's folder, repository, checkpoint or bundled name.
            dtype: the dtype of the model's parameters and arithmetic. float32 if None.
            revision: the branch, tag or commit on the hub.
            classifier: a classifier of noisy pictures, for guidance: a `.pt` checkpoint of
                guided-diffusion, or the folder that `repaint-jax convert` made from it.
            subfolder: the folder inside path_or_repo that holds the pipeline, such as "checkpoint-500", or
                the network alone, such as "unet_ema". The scheduler's settings are then those of the
                nearest folder above it.
            variant: the variant of the weights, such as "fp16".
            token: the access token for a private or gated repository. None means the stored one.
            cache_dir: the folder for downloads. None means that of huggingface_hub.
        """
        unet, config = load_pretrained(
            path_or_repo,
            dtype=dtype,
            revision=revision,
            subfolder=subfolder,
            variant=variant,
            token=token,
            cache_dir=cache_dir,
        )
        pipe = cls.from_unet2d(unet, config)
        if classifier is None:
            return pipe
        return pipe.with_classifier(load_classifier(classifier, dtype=dtype))

    @classmethod
    def from_unet2d(cls, unet: UNet2D, config: RePaintSchedulerConfig) -> Self:
        """Make a pipeline from a model and its scheduler's settings.

        Args:
            unet: the model.
            config: the settings of the scheduler that the model was trained for.
        """
        model_fn, params = nnx_model_fn(unet)
        image_shape = (*unet.config.height_and_width, unet.config.in_channels)
        return cls(model_fn, params, create_state(config), image_shape, unet.config)

    def with_classifier(self, classifier: UNet2DClassifier) -> Self:
        """Return a copy of the pipeline that uses a classifier for guidance.

        Args:
            classifier: a classifier of noisy pictures, for pictures of the model's shape.

        Raises:
            ValueError: if the classifier takes pictures of another shape.
        """
        shape = (*classifier.config.height_and_width, classifier.config.in_channels)
        if shape != self.image_shape:
            raise ValueError(
                f"classifier takes pictures of shape {shape}, expected the model's {self.image_shape} "
                "(height, width, channels)"
            )
        model_fn, params = nnx_model_fn(classifier)
        return dataclasses.replace(
            self, classifier=Classifier(model_fn, params, classifier.config.out_channels)
        )

    def save_pretrained(self, folder: StrPath, *, dtype: Any = np.float32) -> None:
        """Save the model in a folder that `from_pretrained` and diffusers' RePaintPipeline can load.

        Args:
            folder: the folder to write.
            dtype: the NumPy dtype of the stored weights.

        Raises:
            ValueError: if the model is not a `UNet2D`.
        """
        if self.unet_config is None:
            raise ValueError("unet_config is None, expected a pipeline of a UNet2D: only that can be saved")
        config = self.unet_config
        unet = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
        nnx.update(unet, self.params)
        save_pretrained(folder, unet, self.state.config, dtype)

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
                state, num_inference_steps, eta, jump_length, jump_n_sample, num_model_calls=num_model_calls
            ),
            key=key,
            num_samples=num_samples,
            resize=resize,
            background=background,
            keep_alpha=keep_alpha,
            input_range=input_range,
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
        output_type: str = "pil",
        **options: Any,
    ) -> Iterator[WatchedPictures]:
        """Inpaint pictures, and yield the predicted pictures after every model call.

        Before the last call, these are the predicted clean images with the known pixels put in. After the
        last call, they are the result of `pipe(...)` with the same arguments. Stop iterating to stop the
        chain.

        Args:
            image: the images, as for a call of the pipeline. The other named arguments are the same, too.
            options: `num_samples`, `resize`, `background`, `keep_alpha`, `input_range`, `class_labels`,
                `guidance_scale`, `null_label`, `cond_fn` and `cond_params`, as for a call of the pipeline.

        Raises:
            TypeError: at once, as for a call of the pipeline.
            ValueError: at once, as for a call of the pipeline.
        """
        check_output_type(output_type, self.image_shape, options.get("keep_alpha", False))
        state = self._scheduled(
            state, num_inference_steps, eta, jump_length, jump_n_sample, num_model_calls=num_model_calls
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
        class_labels: Any = None,
        **options: Any,
    ) -> Chain:
        check_int("num_samples", num_samples, 1)
        of_pictures = {name: options.pop(name) for name in PICTURE_OPTIONS if name in options}
        batch = make_batch(image, mask_image, self.image_shape, **of_pictures)
        rows, devices = rows_on_devices(len(batch.images), num_samples, self.params)
        if class_labels is not None:
            class_labels = checked_labels(
                "class_labels", class_labels, len(batch.images), self.unet_config, self.classifier
            )
            class_labels = class_labels[rows // num_samples]
        model_fn, params = self.guided_model(state.config, class_labels, **options)
        return make_chain(state, model_fn, params, batch, key, num_samples, rows, devices)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        *,
        num_model_calls: int | None = None,
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
        )

    def _scheduled(
        self, state: RePaintSchedulerState | None, *arguments: Any, num_model_calls: int | None
    ) -> RePaintSchedulerState:
        """Return the given state, or make one from the arguments of a schedule."""
        if state is None:
            return self.set_timesteps(*arguments, num_model_calls=num_model_calls)
        if any(argument is not None for argument in (*arguments, num_model_calls)):
            raise ValueError(
                "state is given together with arguments of a schedule, expected one of the two"
            )
        schedule_of(state)
        return state

    @property
    def is_class_conditional(self) -> bool:
        """Whether the model takes class labels."""
        return self.unet_config is not None and self.unet_config.is_class_conditional

    def digest(self) -> str:
        """Return a digest of settings, architecture and parameters: of all but your own model_fn."""
        digest = hashlib.sha256(repr((self.state.config, self.unet_config)).encode())
        of_classifier = None if self.classifier is None else self.classifier.params
        for leaf in jax.tree.leaves((self.params, of_classifier)):
            is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)  # nnx.Dropout keeps one
            digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
        return digest.hexdigest()

    def guided_model(
        self, config: RePaintSchedulerConfig, class_labels: NDArray[np.int32] | None, **guidance: Any
    ) -> tuple[ModelFn, Any]:
        """Return the model_fn and params that a call of the pipeline with these arguments uses.

        Args:
            config: the settings of the scheduler.
            class_labels: one label for each image of the batch, or None.
            guidance: `guidance_scale`, `null_label`, `cond_fn` and `cond_params`, as for a call of the
                pipeline.
        """
        return guided_model(
            self.model_fn,
            self.params,
            config,
            class_labels,
            unet_config=self.unet_config,
            classifier=self.classifier,
            **guidance,
        )
