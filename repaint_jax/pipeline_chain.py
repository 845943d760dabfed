"""The chains of a call of the pipeline: their schedule, their rows on the devices, and their results."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repaint_jax.models.latents import LatentSpace, chain_inputs, chain_pictures
from repaint_jax.pictures.fillings import Filling, Row
from repaint_jax.sampling.budget_schedule import DEFAULT_MODEL_CALLS, set_timesteps_for_budget
from repaint_jax.sampling.devices import mesh_of_devices, replicate, shard_batch
from repaint_jax.sampling.inpaint import ChainCarry, continue_chain, inpaint, start_chain
from repaint_jax.sampling.noisy_pixels import noise_of_mask
from repaint_jax.sampling.repaint_schedule import set_timesteps
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state

_DIFFUSERS_SCHEDULE = {"num_inference_steps": 250, "eta": 0.0, "jump_length": 10, "jump_n_sample": 10}


class ImagePipelineOutput(NamedTuple):
    """The output of a pipeline, with the field names of diffusers."""

    images: Any  # a list of PIL images, or an array [B * num_samples, H, W, C]
    previews: Any = None  # with preview_calls: such a list per call, or [calls, B * num_samples, H, W, C]


@dataclasses.dataclass(frozen=True)
class WatchedPictures:
    """The predicted pictures after a model call; after the last call, the results.

    The pictures are made when `images` is read first: large ones take a while.
    """

    calls_done: int  # model calls made so far
    num_model_calls: int  # model calls of the whole chain
    make_images: Callable[[], Any] = dataclasses.field(repr=False)

    @cached_property
    def images(self) -> Any:
        """The pictures, as in ImagePipelineOutput."""
        return self.make_images()


class Chain(NamedTuple):
    """The inputs of a chain, and what makes pictures of its results.

    Rows beyond num_results are copies of the last one, so that every device has the same number of rows.
    """

    # the arguments of `inpaint`: state, model_fn, params, images or latents, masks, keys
    arguments: tuple[RePaintSchedulerState, Callable[..., jax.Array], Any, Any, Any, Any]
    num_results: int
    devices: list[jax.Device]  # the devices that hold the rows; empty if the params are sharded
    latents: LatentSpace | None  # of a latent model
    pictures: tuple[jax.Array, jax.Array]  # images [rows, H, W, C] in pixels, and their masks
    observation_noise: Any  # of the known pixels, see `inpaint`: a number, or [rows, H, W, 1]

    def as_pictures(self, samples: jax.Array) -> jax.Array:
        """Decode the chain's samples [rows, ...] if they are latents, and put in the known pixels."""
        return chain_pictures(self.latents, samples, *self.pictures)


ChainOfRows = Callable[[Sequence[Row], Any, Any], Chain]  # rows, and the images and masks in them


def choose_timesteps(
    state: RePaintSchedulerState,
    num_model_calls: int | None,
    *,
    strength: float = 1.0,
    **resampling: float | None,
) -> RePaintSchedulerState:
    """Return the state with a schedule, see `RePaintPipeline.set_timesteps`."""
    given = {name: value for name, value in resampling.items() if value is not None}
    if not given:
        calls = DEFAULT_MODEL_CALLS if num_model_calls is None else num_model_calls
        return set_timesteps_for_budget(state, calls, strength=strength)
    if num_model_calls is not None:
        name, value = next(iter(given.items()))
        raise ValueError(
            f"num_model_calls is {num_model_calls} and {name} is {value}, expected only one of them: "
            "a call budget takes the place of RePaint's schedule"
        )
    chosen: dict[str, Any] = {**_DIFFUSERS_SCHEDULE, **given}
    config = dataclasses.replace(state.config, eta=chosen.pop("eta"))
    return set_timesteps(create_state(config), **chosen, strength=strength)


def check_noise_of_latents(latents: LatentSpace | None, soft_mask: bool, observation_noise: float) -> None:
    """Raise ValueError if the model is one of latents, and known pixels have noise."""
    for name, value, none in (
        ("soft_mask", soft_mask, False),
        ("observation_noise", observation_noise, 0.0),
    ):
        if latents is not None and value != none:
            raise ValueError(
                f"{name} is {value}, expected {none}: the noise of pixels is not that of latents, and this "
                "is a latent model"
            )


def make_chain(
    state: RePaintSchedulerState,
    model_fn: Callable[..., jax.Array],
    params: Any,
    images: Any,
    masks: Any,
    keys: jax.Array,
    num_results: int,
    devices: list[jax.Device],
    latents: LatentSpace | None = None,
    observation_noise: float = 0.0,
) -> Chain:
    """Place the rows of a chain on the devices. Their number is a multiple of that of the devices."""
    masks, noise = noise_of_mask(masks, observation_noise)
    placed: Any = images, masks, keys, *([noise] if np.ndim(noise) else [])
    if devices:
        placed = shard_batch(placed, devices)
        state, params, latents = replicate((state, params, latents), devices)
    images, masks, keys, *of_pixels = placed
    noise = of_pixels[0] if of_pixels else noise
    with mesh_of_devices(devices):
        inputs = chain_inputs(latents, images, masks, whole=state.starts_from_image)
    arguments = (state, model_fn, params, *inputs, keys)
    return Chain(arguments, num_results, devices, latents, (images, masks), noise)


def run_chains(
    filling: Filling,
    chain_of: ChainOfRows,
    num_model_calls: int,
    output_type: str,
    preview_calls: Sequence[int] | None,
    progress: Callable[[int], None] | None,
) -> ImagePipelineOutput:
    """Fill pictures, see `RePaintPipeline.__call__`."""
    calls = () if preview_calls is None else preview_calls
    previews = [filling.copy() for _ in calls]
    for number, rows in enumerate(filling.rounds()):
        chain = chain_of(rows, *filling.cut(rows))
        report = progress and partial(_report, progress, number * num_model_calls)
        with mesh_of_devices(chain.devices):
            samples, shown = inpaint(
                *chain.arguments,
                observation_noise=chain.observation_noise,
                preview_calls=calls,
                progress=report,
            )
            filling.put(rows, _finite(chain.as_pictures(samples)[: chain.num_results]))
            for preview, predicted in zip(previews, shown, strict=True):
                preview.put(rows, chain.as_pictures(predicted)[: chain.num_results])
    return ImagePipelineOutput(
        filling.output(output_type),
        None if preview_calls is None else _together(previews, output_type),
    )


def _report(progress: Callable[[int], None], calls_before: int, calls_done: int) -> None:
    progress(calls_before + calls_done)


def _together(previews: Sequence[Filling], output_type: str) -> Any:
    """Return the previews of all calls: a list of lists, or an array."""
    pictures = [preview.output(output_type) for preview in previews]
    if output_type == "pil":
        return pictures
    return (jnp if output_type == "jax" else np).stack(pictures)


def watch_chains(
    filling: Filling, chain_of: ChainOfRows, num_model_calls: int, output_type: str
) -> Iterator[WatchedPictures]:
    """Fill pictures call by call, see `RePaintPipeline.watch`."""
    total = filling.num_rounds * num_model_calls
    for number, rows in enumerate(filling.rounds()):
        chain = chain_of(rows, *filling.cut(rows))
        for calls_done, samples in enumerate(_calls_of(chain, num_model_calls), start=1):
            with mesh_of_devices(chain.devices):
                pictures = _finite(chain.as_pictures(samples)[: chain.num_results])
                if calls_done == num_model_calls:
                    filling.put(rows, pictures)
            predicted = None if calls_done == num_model_calls else (rows, pictures)
            make = partial(_output, filling.copy(), output_type, chain, predicted)
            yield WatchedPictures(number * num_model_calls + calls_done, total, make)


def _output(
    filling: Filling, output_type: str, chain: Chain, predicted: tuple[Sequence[Row], jax.Array] | None
) -> Any:
    """Return the pictures with what is predicted for some rows, if anything."""
    with mesh_of_devices(chain.devices):
        if predicted is not None:
            filling.put(*predicted)
        return filling.output(output_type)


def _calls_of(chain: Chain, num_model_calls: int) -> Iterator[jax.Array]:
    """Run a chain call by call, and yield the predicted clean rows of each, and at last the results."""
    state, *_, images, masks, keys = chain.arguments

    def next_call(carry: ChainCarry) -> tuple[ChainCarry, jax.Array]:
        noise = chain.observation_noise
        return continue_chain(*chain.arguments, carry, 1, observation_noise=noise, preview_calls=(0,))

    with mesh_of_devices(chain.devices):
        carry = start_chain(state, images, keys)
        if chain.devices:
            # Place the carry where the calls place it. Another placement would compile once more.
            rows = shard_batch((carry.sample, carry.memory), chain.devices)
            carry = ChainCarry(*rows, replicate(carry.calls_done, chain.devices))
    for _ in range(num_model_calls - 1):
        with mesh_of_devices(chain.devices):
            carry, previews = next_call(carry)
            exact = (masks == 1) & (chain.observation_noise == 0)
            predicted = jnp.where(exact, images, previews[0])
        yield predicted
    with mesh_of_devices(chain.devices):
        carry, _ = next_call(carry)
    yield carry.sample


def _finite(images: jax.Array) -> jax.Array:
    if not bool(jnp.isfinite(images).all()):
        raise FloatingPointError("the model's result has values that are not finite")
    return images
