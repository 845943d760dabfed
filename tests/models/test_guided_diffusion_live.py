"""Parity with openai/guided-diffusion, live, as test_diffusers_live.py is with diffusers.

The same comparisons as test_golden.py, on `.pt` files of weights drawn anew, and what `convert` makes of
them.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("guided_diffusion")

from golden import record_diffusers as diffusers_side  # noqa: E402
from golden import record_guided_diffusion as reference  # noqa: E402
from golden import replay  # noqa: E402
from guided_diffusion.respace import SpacedDiffusion, space_timesteps  # noqa: E402
from guided_diffusion.script_util import create_gaussian_diffusion  # noqa: E402
from guided_diffusion.unet import EncoderUNetModel  # noqa: E402

import repaint_jax as rp  # noqa: E402
from repaint_jax.models import guided_diffusion  # noqa: E402
from repaint_jax.models.pretrained import convert, load_classifier, load_pretrained  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.* does not tell all settings of the model"),  # not of the diffusion
]

TIMESTEPS = np.array(reference.TIMESTEPS)
LABELS = np.array(reference.CLASS_LABELS)
OFFICIAL = {
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "use_new_attention_order": False,
    "class_cond": False,
}
SETTINGS = OFFICIAL | reference.UNTOLD_SETTINGS


def assert_same_parameters(one: nnx.Module, other: nnx.Module) -> None:
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


@pytest.mark.parametrize("name", reference.UNET_SETTINGS)
def test_unet_file_and_the_folder_made_of_it_give_its_outputs(name: str, tmp_path: Path) -> None:
    settings = reference.UNET_SETTINGS[name]
    unet = reference.random_unet(0, num_res_blocks=2, **settings)
    sample = reference.random_sample(0)
    labels = LABELS if settings["class_cond"] else None
    expected = reference.reference_unet(unet, sample, TIMESTEPS, labels)
    early, late = np.split(expected, 2)
    assert replay.relative_difference(early, late) > 1e-2, "the timestep must matter"
    if labels is not None:
        others = reference.reference_unet(unet, sample, TIMESTEPS, labels[::-1].copy())
        assert replay.relative_difference(others, expected) > 1e-2, "the label must matter"

    path, settings_path, folder = (tmp_path / name for name in ("unet.pt", "settings.yml", "folder"))
    torch.save(unet.state_dict(), path)
    settings = settings | reference.UNTOLD_SETTINGS
    module, config = guided_diffusion.load_unet(path, settings)
    output = replay.unet(module, sample, TIMESTEPS, labels)
    assert replay.relative_difference(output, expected) < 2e-5

    settings_path.write_text(yaml.safe_dump(settings))
    convert(path, folder, settings=settings_path)
    converted, converted_config, _ = load_pretrained(folder)
    assert converted_config == config
    assert_same_parameters(converted, module)
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    output = diffusers_side.reference_unet(theirs, sample, TIMESTEPS, labels)
    assert replay.relative_difference(output, expected) < 2e-5


@pytest.mark.parametrize("name", reference.FLAGS)
def test_unet_of_any_heads_and_widths_gives_its_outputs_and_is_not_read_wrongly_by_diffusers(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    unet = diffusers_side.perturbed(reference.make_flagged_unet(reference.FLAGS[name][0]))
    sample, timesteps = reference.random_sample(0), np.array(reference.flagged_timesteps(name))
    expected = reference.reference_flagged_unet(name, unet, sample, timesteps)
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    (tmp_path / "settings.yml").write_text(yaml.safe_dump(reference.flagged_settings(name)))
    convert(tmp_path / "unet.pt", tmp_path / "folder", settings=tmp_path / "settings.yml")
    module, *_ = load_pretrained(tmp_path / "folder")
    output = replay.unet(module, sample, timesteps)
    assert replay.relative_difference(output, expected) < 2e-5
    config = module.config
    if isinstance(config.attention_head_dim, tuple) or config.time_proj_dim is not None:
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet")
    else:
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder" / "unet").eval()
        output = diffusers_side.reference_unet(theirs, sample, timesteps, None)
        assert replay.relative_difference(output, expected) < 2e-5


def test_file_of_half_precision_weights_gives_the_outputs_of_those_weights(tmp_path: Path) -> None:
    path = tmp_path / "unet.pt"
    unet = reference.random_unet(1, **OFFICIAL)
    sample = reference.random_sample(1)
    unet.convert_to_fp16()  # guided-diffusion's own: of all convolutions but the first and the last
    half = unet.state_dict()
    assert {tensor.dtype for tensor in half.values()} == {torch.float16, torch.float32}
    torch.save(half, path)
    unet.convert_to_fp32()
    module, _ = guided_diffusion.load_unet(path, SETTINGS)
    output = replay.unet(module, sample, TIMESTEPS)
    expected = reference.reference_unet(unet, sample, TIMESTEPS)
    assert replay.relative_difference(output, expected) < 2e-5

    torch.save({name: tensor.half() for name, tensor in half.items()}, path)
    (tmp_path / "settings.yml").write_text(yaml.safe_dump(SETTINGS))
    convert(path, tmp_path / "folder", settings=tmp_path / "settings.yml", dtype=np.float16)
    module, _ = guided_diffusion.load_unet(path, SETTINGS)
    converted, *_ = load_pretrained(tmp_path / "folder")
    assert_same_parameters(converted, module)


def test_file_in_the_format_before_torch_1_6_loads_as_the_other(tmp_path: Path) -> None:
    state_dict = reference.random_unet(2, **OFFICIAL).state_dict()
    modules = []
    for new_format in (True, False):
        torch.save(state_dict, tmp_path / "unet.pt", _use_new_zipfile_serialization=new_format)
        modules.append(guided_diffusion.load_unet(tmp_path / "unet.pt", SETTINGS)[0])
    assert_same_parameters(*modules)


@pytest.mark.parametrize("name", reference.CLASSIFIER_SETTINGS)
def test_classifier_file_and_the_folder_made_of_it_give_its_logits_and_their_gradient(
    name: str, tmp_path: Path
) -> None:
    classifier = reference.random_classifier(0, num_res_blocks=2, **reference.CLASSIFIER_SETTINGS[name])
    sample = reference.random_sample(0)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    module = load_classifier(tmp_path / "classifier.pt")
    pairs = zip(
        replay.classifier(module, sample, TIMESTEPS, LABELS),
        reference.reference_classifier(classifier, sample, TIMESTEPS, LABELS),
        strict=True,
    )
    for output, expected in pairs:
        assert replay.relative_difference(output, expected) < 2e-5
        early, late = np.split(expected, 2)
        assert replay.relative_difference(early, late) > 1e-2, "the timestep must matter"

    convert(tmp_path / "classifier.pt", tmp_path / "folder")
    assert_same_parameters(load_classifier(tmp_path / "folder"), module)


def test_classifier_with_a_narrow_first_level_gives_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(4)
    classifier = diffusers_side.perturbed(
        EncoderUNetModel(
            image_size=8,
            in_channels=3,
            out_channels=reference.NUM_CLASSES,
            model_channels=128,
            num_res_blocks=1,
            attention_resolutions=(2,),
            channel_mult=(0.5, 1),
            num_head_channels=64,
            resblock_updown=True,
            use_scale_shift_norm=True,
            pool="attention",
        ).eval()
    )
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    module = load_classifier(tmp_path / "classifier.pt")
    sample = reference.random_sample(4)
    expected, _ = reference.reference_classifier(classifier, sample, TIMESTEPS, LABELS)
    output, _ = replay.classifier(module, sample, TIMESTEPS, LABELS)
    assert replay.relative_difference(output, expected) < 2e-5


def test_noiseless_chain_ends_where_the_network_in_the_loop_of_diffusers_does(tmp_path: Path) -> None:
    unet = reference.random_unet(3, num_res_blocks=2, **OFFICIAL)
    with torch.no_grad():  # at full strength a random network is chaotic, and any rounding grows to 1
        unet.out[2].weight.mul_(0.1)
    inputs = diffusers_side.random_chain_inputs(np.random.default_rng(3), (8, 8, 3))

    def predicted_noise(sample: np.ndarray, timestep: int) -> np.ndarray:
        return reference.reference_unet(unet, sample[None], timestep)[0, ..., :3]

    schedule = [20, 5, 3]
    expected = diffusers_side.reference_chain({}, *schedule, inputs, predicted_noise)

    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    model_fn, params = rp.nnx_model_fn(guided_diffusion.load_unet(tmp_path / "unet.pt", SETTINGS)[0])
    inpainted = replay.chain_by_inpaint(
        rp.RePaintSchedulerConfig.diffusers(),
        schedule,
        inputs,
        lambda params, sample, timestep: model_fn(params, sample, timestep)[..., :3],
        params,
    )
    np.testing.assert_allclose(inpainted, expected, atol=2e-3)
    missing = np.broadcast_to(inputs["mask"] == 0, inpainted.shape)
    assert np.abs(inpainted - inputs["original_image"])[missing].max() > 0.1


@pytest.mark.parametrize("steps", [1000, 250])
@pytest.mark.parametrize(
    "settings",
    [
        {"noise_schedule": "linear", "learn_sigma": True},
        {"noise_schedule": "cosine", "learn_sigma": True},
        {"noise_schedule": "linear", "learn_sigma": False},
        {"noise_schedule": "linear", "learn_sigma": True, "predict_xstart": True},
    ],
    ids=["linear", "cosine", "fixed variance", "predicted image"],
)
def test_reverse_step_of_the_settings_is_that_of_guided_diffusion(
    settings: dict[str, Any], steps: int
) -> None:
    rng = np.random.default_rng(steps)
    channels = 6 if settings["learn_sigma"] else 3
    config = guided_diffusion.scheduler_config(rp.models.UNet2DConfig(out_channels=channels), settings)
    theirs = create_gaussian_diffusion(**settings, timestep_respacing=str(steps))
    assert isinstance(theirs, SpacedDiffusion)
    visited = sorted(space_timesteps(1000, str(steps)))
    for index in (0, 1, steps // 2, steps - 1):
        inputs = {
            "sample": rng.standard_normal((2, 3, 3)).astype(np.float32),
            "model_output": rng.uniform(-1, 1, (2, 3, channels)).astype(np.float32),
            "original_image": np.zeros((2, 3, 3), np.float32),
            "mask": np.zeros((2, 3, 1), np.float32),
            "noise": rng.standard_normal((2, 3, 3)).astype(np.float32),
        }
        output = replay.step(config, steps, visited[index], inputs)
        model_output = diffusers_side.channels_first(inputs["model_output"][None])
        sample = diffusers_side.channels_first(inputs["sample"][None])
        step = theirs.p_mean_variance(lambda x, t, y=model_output: y, sample, torch.tensor([index]))
        noise = diffusers_side.channels_first(inputs["noise"][None]) * (index > 0)
        expected = step["mean"] + torch.exp(0.5 * step["log_variance"]) * noise
        for name, value in (
            ("prev_sample", expected),
            ("pred_original_sample", step["pred_xstart"]),
        ):
            np.testing.assert_allclose(output[name], value[0].permute(1, 2, 0).numpy(), atol=2e-5)
