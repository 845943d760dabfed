"""Parity with diffusers and with guided-diffusion's networks, replayed from recorded files.

golden/record_diffusers.py and golden/record_guided_diffusion.py made the files and say how; no torch is
needed here. `.diffusers()` is the configuration that claims to be diffusers' scheduler. Where the default
configuration claims the same numbers, it is held to them too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from golden import replay, weights
from safetensors.numpy import load_file, save_file

import repaint_jax as rp
from repaint_jax.models import UNet2D, load_unet2d

# Some of the recorded settings start from pure noise in the middle of the chain, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:num_inference_steps=.* starts from pure noise")

STEP_INPUTS = ("sample", "model_output", "original_image", "mask", "noise")
STEP_OUTPUTS = ("prev_sample", "pred_original_sample")
CHAIN_INPUTS = ("sample", "original_image", "mask")


def test_timesteps_are_diffusers_entry_by_entry() -> None:
    cases, arrays = replay.load("timesteps.npz")
    recorded = np.split(arrays["timesteps"], np.cumsum(arrays["lengths"])[:-1])
    for case, expected in zip(cases, recorded, strict=True):
        presets = [rp.RePaintSchedulerConfig.diffusers(**case["config"])]
        if not case["legacy"]:
            presets.append(rp.RePaintSchedulerConfig(**case["config"]))
        for config in presets:
            timesteps = replay.timesteps(config, *case["schedule"])
            assert timesteps.dtype == np.int32
            np.testing.assert_array_equal(timesteps, expected, err_msg=f"{case}")


def test_noise_levels_are_diffusers_to_float32_rounding() -> None:
    cases, arrays = replay.load("noise_levels.npz")
    for i, case in enumerate(cases):
        config = rp.RePaintSchedulerConfig(**case["config"])
        state = rp.create_state(config)
        # diffusers multiplies up to a thousand float32 factors; ours are rounded once.
        np.testing.assert_allclose(config.betas, arrays[f"betas_{i}"], rtol=1e-6)
        np.testing.assert_allclose(state.alphas_cumprod, arrays[f"alphas_cumprod_{i}"], rtol=2e-5)


def check_recorded_steps(preset: Callable[..., rp.RePaintSchedulerConfig], soft_mask: bool) -> None:
    cases, arrays = replay.load("steps.npz")
    for i, case in enumerate(cases):
        if case["soft_mask"] != soft_mask:
            continue
        config = preset(**case["config"])
        inputs = replay.row(arrays, STEP_INPUTS, i)
        output = replay.step(config, case["num_inference_steps"], case["timestep"], inputs)
        expected = replay.row(arrays, STEP_OUTPUTS, i)
        replay.assert_steps_agree(output, expected, config, case["timestep"], case)


@pytest.mark.parametrize("soft_mask", [False, True])
def test_step_equals_diffusers_given_its_noise(soft_mask: bool) -> None:
    check_recorded_steps(rp.RePaintSchedulerConfig.diffusers, soft_mask)


def test_default_step_equals_diffusers_for_a_binary_mask() -> None:
    check_recorded_steps(rp.RePaintSchedulerConfig, soft_mask=False)


def test_legacy_undo_samples_the_gaussian_of_diffusers() -> None:
    cases, arrays = replay.load("undos.npz")
    for case, scale, std in zip(cases, arrays["scale"], arrays["std"], strict=True):
        config = rp.RePaintSchedulerConfig.diffusers(**case["config"])
        gaussian = replay.undo(config, case["num_inference_steps"], case["timestep"])
        np.testing.assert_allclose(gaussian, (scale, std), rtol=1e-5, err_msg=f"{case}")


def test_exact_undo_equals_diffusers_only_where_every_training_step_is_visited() -> None:
    cases, arrays = replay.load("undos.npz")
    for case, scale, std in zip(cases, arrays["scale"], arrays["std"], strict=True):
        config = rp.RePaintSchedulerConfig(**case["config"])
        gaussian = replay.undo(config, case["num_inference_steps"], case["timestep"])
        if case["num_inference_steps"] == config.num_train_timesteps:
            np.testing.assert_allclose(gaussian, (scale, std), rtol=1e-5, err_msg=f"{case}")
        else:
            assert gaussian[1] < std, f"diffusers adds too much noise in {case}"


@pytest.mark.parametrize("run", [replay.chain_by_hand, replay.chain_by_inpaint])
def test_noiseless_chain_ends_where_diffusers_does(run) -> None:
    cases, arrays = replay.load("chains.npz")
    for i, case in enumerate(cases):
        config = rp.RePaintSchedulerConfig.diffusers(**case["config"])
        inpainted = run(config, case["schedule"], replay.row(arrays, CHAIN_INPUTS, i))
        np.testing.assert_allclose(inpainted, arrays["inpainted"][i], atol=1e-3, err_msg=f"{case}")


def check_unet_outputs(folder: Path) -> None:
    module = load_unet2d(folder)
    cases, arrays = replay.load("unet2d.npz")
    for case, expected in zip(cases, arrays["model_output"], strict=True):
        output = replay.unet(module, arrays["sample"], case["timestep"])
        assert replay.relative_difference(output, expected) < 2e-5


def test_unet_read_from_a_diffusers_folder_gives_its_outputs() -> None:
    check_unet_outputs(replay.HERE / "unet2d")


def test_unet_reads_the_attention_names_of_old_checkpoints(tmp_path: Path) -> None:
    folder = replay.HERE / "unet2d"
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, weight in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        for new, old in renamed.items():
            name = name.replace(f".{new}.", f".{old}.")
        weights[name] = weight
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    check_unet_outputs(tmp_path)


def recorded_networks(name: str) -> list[Any]:
    """One parameter for each network in the file: its case, and the arrays that are its own."""
    cases, arrays = replay.load(name)
    del arrays["recorded_with"]
    sample = arrays.pop("sample")
    return [
        pytest.param(case, {"sample": sample, **replay.row(arrays, tuple(arrays), i)}, id=case["name"])
        for i, case in enumerate(cases)
    ]


def check_network_outputs(output: np.ndarray, expected: np.ndarray) -> None:
    assert replay.relative_difference(output, expected) < 2e-5
    # The same pictures at other timesteps: were they not to matter, their embedding would go unchecked.
    early, late = np.split(expected, 2)
    assert replay.relative_difference(early, late) > 1e-2


def check_unet(module: UNet2D, case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    # Not under jit: these networks share their layers' shapes, so that one by one there is less to compile.
    output = module(jnp.asarray(arrays["sample"]), *replay.example_arrays(case))
    check_network_outputs(np.asarray(output), arrays["model_output"])


@pytest.mark.parametrize(("case", "arrays"), recorded_networks("unets.npz"))
def test_unet_with_each_option_gives_the_outputs_of_diffusers(case, arrays, tmp_path: Path) -> None:
    save_file(weights.drawn(case["shapes"]), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    check_unet(load_unet2d(tmp_path), case, arrays)


@pytest.mark.parametrize(("case", "arrays"), recorded_networks("ncsnpp.npz"))
def test_ncsnpp_gives_the_outputs_of_diffusers(case, arrays, tmp_path: Path) -> None:
    save_file(weights.drawn(case["shapes"]), tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    output = replay.unet(load_unet2d(tmp_path), arrays["sample"], *replay.example_arrays(case))
    check_network_outputs(output, arrays["model_output"])


@pytest.mark.parametrize(("case", "arrays"), recorded_networks("guided_diffusion_unets.npz"))
def test_unet_of_guided_diffusion_gives_its_outputs(case, arrays) -> None:
    module = replay.guided_diffusion_module(weights.drawn(case["shapes"]), case["settings"])
    check_unet(module, case, arrays)


@pytest.mark.parametrize(("case", "arrays"), recorded_networks("guided_diffusion_classifiers.npz"))
def test_classifier_of_guided_diffusion_gives_its_logits_and_their_gradient(case, arrays) -> None:
    module = replay.guided_diffusion_module(weights.drawn(case["shapes"]), {})
    timesteps, labels = replay.example_arrays(case)
    logits, gradient = replay.classifier(module, arrays["sample"], timesteps, labels)
    check_network_outputs(logits, arrays["logits"])
    check_network_outputs(gradient, arrays["gradient"])
