"""The chain of a call of the pipeline: its schedule, its rows on the devices, and its results."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from repaint_jax.models.latents import LatentSpace, chain_inputs, chain_pictures
from repaint_jax.pictures.batches import Batch, Look, as_output
from repaint_jax.sampling.budget_schedule import DEFAULT_MODEL_CALLS, set_timesteps_for_budget
from repaint_jax.sampling.devices import free_devices, mesh_of_devices, replicate, shard_batch
from repaint_jax.sampling.inpaint import ChainCarry, continue_chain, inpaint, start_chain
from repaint_jax.sampling.keys import sample_keys
from repaint_jax.sampling.noisy_pixels import noise_of_mask
from repaint_jax.sampling.repaint_schedule import set_timesteps
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state

_DIFFUSERS_SCHEDULE = {"num_inference_steps": 250, "eta": 0.0, "jump_length": 10, "jump_n_sample": 10}


class ImagePipelineOutput(NamedTuple):
    """The output of a pipeline, with the field names of diffusers."""

    images: Any  # a list of PIL images, or an array [B * num_samples, H, W, C]
    previews: Any = None  # with preview_calls: such a list per call, or [calls, B * num_samples, H, W, C]


class WatchedPictures(NamedTuple):
    """The predicted pictures after a model call; after the last call, the results."""

    calls_done: int  # model calls made so far
    num_model_calls: int  # model calls of the whole chain
    images: Any  # as in ImagePipelineOutput


class Chain(NamedTuple):
    """The inputs of a chain, and what makes pictures of its results.

    Rows beyond num_results are copies of the last one, so that every device has the same number of rows.
    """

    # the arguments of `inpaint`: state, model_fn, params, images or latents, masks, keys
    arguments: tuple[RePaintSchedulerState, Callable[..., jax.Array], Any, Any, Any, Any]
    num_results: int
    devices: list[jax.Device]  # the devices that hold the rows; empty if the params are sharded
    looks: Sequence[Look]  # of the images, each of which has as many results
    latents: LatentSpace | None  # of a latent model
    pictures: tuple[jax.Array, jax.Array]  # images [rows, H, W, C] in pixels, and their masks
    observation_noise: Any = 0.0  # a number, or [rows, H, W, 1]

    def as_pictures(self, samples: jax.Array) -> jax.Array:
        """Decode the chain's samples [rows, ...] if they are latents, and put in the known pixels."""
        return chain_pictures(self.latents, samples, *self.pictures)


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


def rows_on_devices(
    num_images: int, num_samples: int, params: Any
) -> tuple[NDArray[np.intp], list[jax.Device]]:
    """Return the number of the result in each row, and the devices that hold the rows.

    The rows are filled up to a multiple of the number of devices with copies of the last one.
    """
    num_results = num_images * num_samples
    devices = free_devices(params)[:num_results]
    rows = np.minimum(np.arange(num_results + -num_results % max(len(devices), 1)), num_results - 1)
    return rows, devices


def make_chain(
    state: RePaintSchedulerState,
    model_fn: Callable[..., jax.Array],
    params: Any,
    batch: Batch,
    key: jax.Array,
    num_samples: int,
    rows: NDArray[np.intp],
    devices: list[jax.Device],
    latents: LatentSpace | None = None,
    observation_noise: float = 0.0,
) -> Chain:
    """Place the inputs of a chain on the devices, see `rows_on_devices`."""
    num_images, of_row = len(batch.images), rows // num_samples
    keys = sample_keys(key, num_images, num_samples)[rows]
    masks, noise = noise_of_mask(batch.masks[of_row], observation_noise)
    placed: Any = (batch.images[of_row], masks, keys, *([noise] if np.ndim(noise) else []))
    if devices:
        placed = shard_batch(placed, devices)
        state, params, latents = replicate((state, params, latents), devices)
    images, masks, keys, *of_pixels = placed
    noise = of_pixels[0] if of_pixels else noise
    with mesh_of_devices(devices):
        inputs = chain_inputs(latents, images, masks, whole=state.starts_from_image)
    arguments = (state, model_fn, params, *inputs, keys)
    pictures, count = (images, masks), num_images * num_samples
    return Chain(arguments, count, devices, batch.looks, latents, pictures, noise)


def run_chain(
    chain: Chain,
    output_type: str,
    preview_calls: Sequence[int] | None,
    progress: Callable[[int], None] | None,
) -> ImagePipelineOutput:
    """Run a chain, see `RePaintPipeline.__call__`."""
    with mesh_of_devices(chain.devices):
        result, previews = inpaint(
            *chain.arguments,
            observation_noise=chain.observation_noise,
            preview_calls=() if preview_calls is None else preview_calls,
            progress=progress,
        )
        result = _finite(chain.as_pictures(result)[: chain.num_results])
        if chain.latents is not None and len(previews):
            previews = jnp.stack([chain.as_pictures(samples) for samples in previews])
        previews = previews[:, : chain.num_results]
    return ImagePipelineOutput(
        as_output(result, output_type, chain.looks),
        None if preview_calls is None else as_output(previews, output_type, chain.looks),
    )


def watch_chain(chain: Chain, output_type: str) -> Iterator[WatchedPictures]:
    """Run a chain call by call, see `RePaintPipeline.watch`."""
    state, *_, images, masks, keys = chain.arguments
    total, noise = state.num_model_calls or 0, chain.observation_noise
    with mesh_of_devices(chain.devices):
        carry = start_chain(state, images, keys)
        if chain.devices:
            # Place the carry where the calls place it. Another placement would compile once more.
            rows = shard_batch((carry.sample, carry.memory), chain.devices)
            carry = ChainCarry(*rows, replicate(carry.calls_done, chain.devices))
    for calls_done in range(1, total + 1):
        with mesh_of_devices(chain.devices):
            carry, previews = continue_chain(
                *chain.arguments, carry, 1, observation_noise=noise, preview_calls=(0,)
            )
            samples = carry.sample
            if calls_done < total:
                samples = jnp.where((masks == 1) & (noise == 0), images, previews[0])
            pictures = _finite(chain.as_pictures(samples)[: chain.num_results])
        yield WatchedPictures(calls_done, total, as_output(pictures, output_type, chain.looks))


def _finite(images: jax.Array) -> jax.Array:
    if not bool(jnp.isfinite(images).all()):
        raise FloatingPointError("the model's result has values that are not finite")
    return images
