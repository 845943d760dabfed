"""From pictures to inpainted pictures: a model, a scheduler and the loop in one object."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from repaint_jax.models import UNet2D, UNet2DClassifier, UNet2DConfig, nnx_model_fn
from repaint_jax.models.guidance import Classifier, CondFn, checked_labels, guided_model
from repaint_jax.models.pretrained import load_classifier, load_pretrained, save_pretrained
from repaint_jax.pictures.images import (
    as_output,
    check_output_type,
    images_and_masks,
)
from repaint_jax.sampling.budget_schedule import set_timesteps_for_budget
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.devices import free_devices, replicate, shard_batch
from repaint_jax.sampling.inpaint import ChainCarry, ModelFn, continue_chain, inpaint, start_chain
from repaint_jax.sampling.keys import sample_keys
from repaint_jax.sampling.repaint_schedule import set_timesteps
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state, schedule_of

DEFAULT_MODEL_CALLS = 64

_DIFFUSERS_SCHEDULE = {"num_inference_steps": 250, "eta": 0.0, "jump_length": 10, "jump_n_sample": 10}


class ImagePipelineOutput(NamedTuple):
    """What a pipeline returns, named as in diffusers."""

    images: Any  # a list of PIL images, or an array [B * num_samples, H, W, C]
    previews: Any = None  # where asked for: for each call such a list, or [calls, B * num_samples, H, W, C]


class WatchedPictures(NamedTuple):
    """The pictures of a pipeline on their way; after the last model call, its results."""

    calls_done: int
    num_model_calls: int
    images: Any  # as ImagePipelineOutput's


class _Chain(NamedTuple):
    """What a call runs; rows beyond num_results are copies, so that devices have equally many."""

    # inpaint's: state, model_fn, params, images, masks, keys
    arguments: tuple[RePaintSchedulerState, Callable[..., jax.Array], Any, Any, Any, Any]
    num_results: int
    devices: list[jax.Device]  # that the rows are laid out over; none where params are sharded


@dataclasses.dataclass(frozen=True)
class RePaintPipeline:
    """A model with the scheduler it was trained for.

    Attributes:
        model_fn: `model_fn(params, sample, timestep)`; with a fourth argument, the class labels, where
            unet_config is of a class-conditional model.
        params: its parameters.
        state: the scheduler's state, without a schedule.
        image_shape: the model's [H, W, C].
        unet_config: architecture of the `UNet2D` that model_fn runs; None for any other model.
        classifier: of noisy pictures, for guidance.
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
        path_or_repo: str | Path,
        *,
        dtype: Any = None,
        revision: str | None = None,
        classifier: str | Path | None = None,
    ) -> Self:
        """Load a model of the kinds that are published.

        Args:
            path_or_repo: a diffusers folder of an unconditional or class-conditional `UNet2DModel`, with
                `model_index.json`, `unet/` and `scheduler/`, or with all its files in one folder; a
                repository of the Hugging Face hub of the same layout (which needs huggingface_hub and
                heeds its cache and HF_HUB_OFFLINE); a `.pt` checkpoint of guided-diffusion, which the
                official RePaint models are (which needs torch); or a model that is part of this
                package, "bundled/fashion_mnist", also called "bundled", or "bundled/emoji".
            dtype: of the model's parameters and arithmetic; float32 where it is None.
            revision: branch, tag or commit on the hub.
            classifier: a classifier of noisy pictures to guide with: guided-diffusion's `.pt` checkpoint,
                or the folder that `repaint-jax convert` made of it.
        """
        pipe = cls.from_unet2d(*load_pretrained(path_or_repo, dtype=dtype, revision=revision))
        if classifier is None:
            return pipe
        return pipe.with_classifier(load_classifier(classifier, dtype=dtype))

    @classmethod
    def from_unet2d(cls, unet: UNet2D, config: RePaintSchedulerConfig) -> Self:
        """Put a model and the settings of its scheduler together."""
        model_fn, params = nnx_model_fn(unet)
        image_shape = (*unet.config.height_and_width, unet.config.in_channels)
        return cls(model_fn, params, create_state(config), image_shape, unet.config)

    def with_classifier(self, classifier: UNet2DClassifier) -> Self:
        """Return the pipeline with a classifier to guide with."""
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

    def save_pretrained(self, folder: str | Path, *, dtype: Any = np.float32) -> None:
        """Write a folder that `from_pretrained` and diffusers' RePaintPipeline load."""
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
        class_labels: Any = None,
        guidance_scale: float = 1.0,
        null_label: int | None = None,
        cond_fn: CondFn | None = None,
        cond_params: Any = None,
        preview_calls: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ImagePipelineOutput:
        """Inpaint pictures; the arguments have the meaning they have in diffusers' RePaintPipeline.

        Args:
            image: a PIL image (of 8 bits; converted between grey, palette and colour, transparency
                dropped), an array (uint8, or floating in [-1, 1]; [H, W], [H, W, C] or a batch
                [B, H, W, C]) or a list of them, each of the model's size.
            mask_image: one mask for all images or one for each: white or 1 keeps, black or 0 inpaints.
                Values are rounded at the middle of their range.
            num_inference_steps: see `set_timesteps`, as for jump_length and jump_n_sample. Where one of
                these four is given the chain is RePaint's, and the others are diffusers' 250, 0, 10 and
                10; where none is, it is that of a call budget.
            eta: share of DDPM's noise in a step, in [0, 1]; not that of the scheduler's config, but 0 where
                it is not given.
            jump_length: inference steps that a jump goes back up.
            jump_n_sample: passes through each stretch of jump_length steps.
            num_model_calls: the budget, instead of the four; see `set_timesteps_for_budget`.
                DEFAULT_MODEL_CALLS where None.
            state: a state with a schedule, such as `set_timesteps` returns, instead of all five.
            key: a key, or a vector of keys, one for each image.
            num_samples: results for each image; they follow one another in the output.
            output_type: "pil", "np" ([B * num_samples, H, W, C] in [0, 1]) or "jax" (the same shape, in
                [-1, 1]).
            resize: resize PIL images and their masks, which must be of one size, to the model's size
                whatever their proportions; otherwise another size is refused.
            class_labels: one for all images or one for each, for a class-conditional model, a classifier or
                both.
            guidance_scale: how far to follow the classifier's gradient (0: not at all), cond_fn's, or, with
                null_label, the class-conditional prediction (1: that prediction itself).
            null_label: the label that a class-conditional model was trained with for "no class"; giving it
                asks for classifier-free guidance.
            cond_fn: `cond_fn(cond_params, sample, timestep)`, a gradient of log p(y | sample) to follow
                instead of the classifier's; see `models.guidance.ClassifierGuidance`.
            cond_params: what cond_fn gets as its first argument.
            preview_calls: model calls whose predicted clean images to return as `previews`.
            progress: called as `progress(calls_done)` after each model call.

        Known pixels come back exactly, unless the schedule is RePaint's own and known_region is
        "before_model": "pil", and "np" times 255 and rounded, hold the input's own 8-bit values.

        Raises:
            ValueError: on pictures and masks that do not fit the model or each other.
            FloatingPointError: the result is not finite.
        """
        check_output_type(output_type, self.image_shape)
        chain = self._chain(
            image,
            mask_image,
            self._scheduled(
                state, num_inference_steps, eta, jump_length, jump_n_sample, num_model_calls=num_model_calls
            ),
            key=key,
            num_samples=num_samples,
            resize=resize,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            null_label=null_label,
            cond_fn=cond_fn,
            cond_params=cond_params,
        )
        num_results = chain.num_results
        result, previews = inpaint(
            *chain.arguments,
            preview_calls=() if preview_calls is None else preview_calls,
            progress=progress,
        )
        result, previews = _finite(result[:num_results]), previews[:, :num_results]
        return ImagePipelineOutput(
            as_output(result, output_type),
            None if preview_calls is None else as_output(previews, output_type),
        )

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
        """Inpaint pictures as a call does, and yield after every model call what they will be like.

        Until the last call that is the predicted clean image, with the known pixels in it; then it is the
        result of a call with the same arguments. To stop, take no more from the iterator.

        Args:
            image: as for a call, like the other named arguments.
            options: `num_samples`, `resize`, `class_labels`, `guidance_scale`, `null_label`, `cond_fn` and
                `cond_params`.

        Raises:
            TypeError, ValueError: at once, as a call does.
        """
        check_output_type(output_type, self.image_shape)
        state = self._scheduled(
            state, num_inference_steps, eta, jump_length, jump_n_sample, num_model_calls=num_model_calls
        )
        return self._watched(self._chain(image, mask_image, state, key=key, **options), output_type)

    def _watched(self, chain: _Chain, output_type: str) -> Iterator[WatchedPictures]:
        state, *_, images, masks, keys = chain.arguments
        total = state.num_model_calls or 0
        carry = start_chain(state, images, keys)
        if chain.devices:
            # Put where the calls put it: what lies elsewhere is compiled for once more.
            samples = shard_batch((carry.sample, carry.memory), chain.devices)
            carry = ChainCarry(*samples, replicate(carry.calls_done, chain.devices))
        for calls_done in range(1, total + 1):
            carry, previews = continue_chain(*chain.arguments, carry, 1, preview_calls=(0,))
            pictures = jnp.where(masks == 1, images, previews[0]) if calls_done < total else carry.sample
            pictures = _finite(pictures[: chain.num_results])
            yield WatchedPictures(calls_done, total, as_output(pictures, output_type))

    def _chain(
        self,
        image: Any,
        mask_image: Any,
        state: RePaintSchedulerState,
        *,
        key: jax.Array,
        num_samples: int = 1,
        resize: bool = False,
        class_labels: Any = None,
        **guidance: Any,
    ) -> _Chain:
        check_int("num_samples", num_samples, 1)
        images, masks = images_and_masks(image, mask_image, self.image_shape, resize=resize)
        # Rows up to a multiple of the devices are filled with copies of the last one.
        num_results = len(images) * num_samples
        devices = free_devices(self.params)[:num_results]
        rows = np.minimum(np.arange(num_results + -num_results % max(len(devices), 1)), num_results - 1)
        if class_labels is not None:
            class_labels = checked_labels(
                "class_labels", class_labels, len(images), self.unet_config, self.classifier
            )
            class_labels = class_labels[rows // num_samples]
        model_fn, params = self.guided_model(state.config, class_labels, **guidance)
        keys = sample_keys(key, len(images), num_samples)
        batch = (images[rows // num_samples], masks[rows // num_samples], keys[rows])
        if devices:
            batch, params = shard_batch(batch, devices), replicate(params, devices)
        return _Chain((state, model_fn, params, *batch), num_results, devices)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        jump_length: int | None = None,
        jump_n_sample: int | None = None,
        *,
        num_model_calls: int | None = None,
    ) -> RePaintSchedulerState:
        """Return the state with the schedule that a call with these arguments runs."""
        resampling = {
            "num_inference_steps": num_inference_steps,
            "eta": eta,
            "jump_length": jump_length,
            "jump_n_sample": jump_n_sample,
        }
        given = {name: value for name, value in resampling.items() if value is not None}
        if not given:
            calls = DEFAULT_MODEL_CALLS if num_model_calls is None else num_model_calls
            return set_timesteps_for_budget(self.state, calls)
        if num_model_calls is not None:
            name, value = next(iter(given.items()))
            raise ValueError(
                f"num_model_calls is {num_model_calls} and {name} is {value}, expected only one of them: "
                "a call budget takes the place of RePaint's schedule"
            )
        chosen: dict[str, Any] = {**_DIFFUSERS_SCHEDULE, **given}
        config = dataclasses.replace(self.state.config, eta=chosen.pop("eta"))
        return set_timesteps(create_state(config), **chosen)

    def _scheduled(
        self, state: RePaintSchedulerState | None, *arguments: Any, num_model_calls: int | None
    ) -> RePaintSchedulerState:
        """Return the state that a call was given, or make the one that its other arguments ask for."""
        if state is None:
            return self.set_timesteps(*arguments, num_model_calls=num_model_calls)
        if any(argument is not None for argument in (*arguments, num_model_calls)):
            raise ValueError("state is given beside arguments of a schedule, expected one of the two")
        schedule_of(state)
        return state

    @property
    def is_class_conditional(self) -> bool:
        """Whether the model wants class labels."""
        return self.unet_config is not None and self.unet_config.is_class_conditional

    def digest(self) -> str:
        """Return a digest of all that decides what the model makes, but for a model_fn of your own."""
        digest = hashlib.sha256(repr((self.state.config, self.unet_config)).encode())
        of_classifier = None if self.classifier is None else self.classifier.params
        for leaf in jax.tree.leaves((self.params, of_classifier)):
            is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)  # nnx.Dropout keeps one
            digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
        return digest.hexdigest()

    def guided_model(
        self, config: RePaintSchedulerConfig, class_labels: NDArray[np.int32] | None, **guidance: Any
    ) -> tuple[ModelFn, Any]:
        """Return a model_fn and its params that do what a call with these arguments asks for.

        Args:
            config: of the scheduler.
            class_labels: one for each image of the batch, or None.
            guidance: `guidance_scale`, `null_label`, `cond_fn` and `cond_params` of the call.
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


def _finite(images: jax.Array) -> jax.Array:
    if not bool(jnp.isfinite(images).all()):
        raise FloatingPointError("the model's result has values that are not finite")
    return images
