"""The library's side of the parity tests: what it computes from the inputs the others were given.

test_golden.py compares it with the recorded files, the tests named live with what they recorded.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DClassifier, guided_diffusion
from repaint_jax.models.checkpoints import load_module
from repaint_jax.sampling.inpaint import ModelFn

HERE = Path(__file__).parent
KEY = jax.random.key(0)  # never used: every draw is replaced

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]


def load(name: str) -> tuple[list[dict[str, Any]], Arrays]:
    """Read a recorded file: the settings, and the arrays whose row i they made."""
    with np.load(HERE / name) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("cases"))), arrays


def row(arrays: Arrays, names: tuple[str, ...], i: int) -> Arrays:
    return {name: arrays[name][i] for name in names}


@contextmanager
def noise_from(noise: np.ndarray | float) -> Iterator[None]:
    """Make every draw of the library return `noise`, a number or an array of the drawn shape.

    What is compiled inside keeps that noise: leave nothing compiled that another test would call.
    """

    def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        assert np.shape(noise) in ((), tuple(shape))
        return jnp.full(shape, noise, dtype)

    with mock.patch.object(jax.random, "normal", normal):
        yield


def timesteps(
    config: rp.RePaintSchedulerConfig,
    num_inference_steps: int,
    jump_length: int,
    jump_n_sample: int,
) -> np.ndarray:
    state = rp.create_state(config)
    return np.asarray(rp.set_timesteps(state, num_inference_steps, jump_length, jump_n_sample).timesteps)


def step(
    config: rp.RePaintSchedulerConfig, num_inference_steps: int, timestep: int, inputs: Arrays
) -> Arrays:
    state = rp.set_timesteps(rp.create_state(config), num_inference_steps, 1, 1)
    arrays = {name: jnp.asarray(value) for name, value in inputs.items() if name != "noise"}
    with noise_from(inputs["noise"]):
        output = rp.step(state, timestep=timestep, key=KEY, **arrays)
    return {
        "prev_sample": np.asarray(output.prev_sample),
        "pred_original_sample": np.asarray(output.pred_original_sample),
    }


def undo(config: rp.RePaintSchedulerConfig, num_inference_steps: int, timestep: int) -> tuple[float, float]:
    """Scale and standard deviation of the Gaussian that `undo_step` samples."""
    state = rp.set_timesteps(rp.create_state(config), num_inference_steps, 1, 1)

    def answer(sample: float, noise: float) -> float:
        with noise_from(noise):
            return rp.undo_step(state, jnp.full((1,), sample), timestep, KEY).item()

    return answer(1.0, 0.0), answer(0.0, 1.0)


def toy_model_fn(alphas_cumprod: jax.Array, sample: jax.Array, timestep: jax.Array) -> jax.Array:
    """The recorder's `toy_model`; its noise levels come as the parameters."""
    a = alphas_cumprod[timestep]
    x0 = 1.4 * jnp.tanh(0.5 * sample - 0.4 * jnp.roll(sample, 1, axis=-2) + 0.3)
    return (sample - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)


def toy_params() -> jax.Array:
    return jnp.asarray(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), jnp.float32)


def chain_by_hand(config: rp.RePaintSchedulerConfig, schedule: list[int], inputs: Arrays) -> np.ndarray:
    """Walk `state.timesteps` with `step` and `undo_step`, as diffusers' pipeline walks its list."""
    state = rp.set_timesteps(rp.create_state(config), *schedule)
    sample, original_image, mask = (
        jnp.asarray(inputs[name]) for name in ("sample", "original_image", "mask")
    )

    @jax.jit
    def down(params: jax.Array, sample: jax.Array, t: jax.Array) -> jax.Array:
        model_output = toy_model_fn(params, sample, t)
        return rp.step(state, model_output, t, sample, original_image, mask, KEY).prev_sample

    @jax.jit
    def up(sample: jax.Array, t_last: jax.Array) -> jax.Array:
        return rp.undo_step(state, sample, t_last, KEY)

    params = toy_params()
    visited = np.asarray(state.timesteps)
    with noise_from(0.0):
        t_last = visited[0] + 1
        for t in visited:
            sample = down(params, sample, t) if t < t_last else up(sample, t_last)
            t_last = t
    return np.asarray(sample)


def chain_by_inpaint(
    config: rp.RePaintSchedulerConfig,
    schedule: list[int],
    inputs: Arrays,
    model_fn: ModelFn = toy_model_fn,
    params: Any = None,
) -> np.ndarray:
    state = rp.set_timesteps(rp.create_state(config), *schedule)
    with noise_from(0.0):
        return np.asarray(
            rp.inpaint(
                state,
                model_fn,
                toy_params() if model_fn is toy_model_fn else params,
                jnp.asarray(inputs["original_image"]),
                jnp.asarray(inputs["mask"]),
                KEY,
                initial_sample=jnp.asarray(inputs["sample"]),
            )
        )


def assert_steps_agree(
    output: Arrays, expected: Arrays, config: rp.RePaintSchedulerConfig, timestep: int, case: Any
) -> None:
    """Compare to 1e-5; predicting the original divides float32 rounding by sqrt(abar) on top."""
    abar = float(rp.create_state(config).alphas_cumprod[timestep])
    rounding = {"prev_sample": 0.0, "pred_original_sample": 5e-7 / abar**0.5}
    for name, value in output.items():
        np.testing.assert_allclose(
            value, expected[name], atol=1e-5 + rounding[name], err_msg=f"{name} of {case}"
        )


def unet(
    module: nnx.Module,
    sample: np.ndarray,
    timestep: int | np.ndarray,
    class_labels: np.ndarray | None = None,
) -> np.ndarray:
    labels = () if class_labels is None else (jnp.asarray(class_labels),)
    return np.asarray(_jitted_call(module, jnp.asarray(sample), timestep, *labels))


_jitted_call = nnx.jit(lambda module, sample, timestep, *labels: module(sample, timestep, *labels))


def classifier(
    module: nnx.Module, sample: np.ndarray, timestep: int | np.ndarray, class_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of log p(label | sample) with respect to the sample."""
    arrays = _jitted_classifier(module, jnp.asarray(sample), timestep, jnp.asarray(class_labels))
    logits, gradient = map(np.asarray, arrays)
    return logits, gradient


@nnx.jit
def _jitted_classifier(
    module: nnx.Module, sample: jax.Array, timestep: jax.Array, class_labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def log_probability(sample: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = module(sample, timestep)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), class_labels[:, None], axis=-1)
        return chosen.sum(), logits

    gradient, logits = jax.grad(log_probability, has_aux=True)(sample)
    return logits, gradient


def example_arrays(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Timesteps and class labels of a recorded call."""
    labels = case["class_labels"]
    return np.array(case["timesteps"], np.int32), None if labels is None else np.array(labels)


def guided_diffusion_module(state_dict: Mapping[str, np.ndarray], settings: Config) -> nnx.Module:
    """Make a model or a classifier of a state dict, as `load_unet` and `load_classifier` do of a file."""
    source = Path("state dict")
    config = guided_diffusion.unet_config(state_dict, source, settings)
    new_order = bool(settings.get("use_new_attention_order"))
    renamed = guided_diffusion.DiffusersNames(state_dict, HERE, config, new_order)
    network = UNet2DClassifier if guided_diffusion.is_classifier(state_dict) else UNet2D
    return load_module(lambda: network(config, rngs=nnx.Rngs(0)), renamed, source, None)


def relative_difference(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in units of the largest expected magnitude."""
    return float(np.abs(value - expected).max() / np.abs(expected).max())
