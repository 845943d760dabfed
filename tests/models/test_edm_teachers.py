"""EDM teachers of openai/consistency_models: what their files are taken for, and what they compute.

golden/record_consistency_models.py recorded the outputs, and the shapes of the published files.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from golden import replay
from golden import weights as golden_weights
from model_files import sentence_of

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig, guided_diffusion, pretrained
from repaint_jax.models.families import EDM
from repaint_jax.models.guided_diffusion.layout import layout_of
from repaint_jax.models.guided_diffusion.settings import complete_settings
from repaint_jax.models.guided_diffusion.teachers import edm_of_teacher

CASES, RECORDED = replay.load("consistency_models.npz")
BY_NAME = {case["name"]: case for case in CASES}
SMALL = [case for case in CASES if "levels" in case]
TEACHER = {"training_mode": "edm", "image_size": 8, "num_head_channels": 16}
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
PUBLISHED = {
    "edm_imagenet64_ema.pt": UNet2DConfig(
        sample_size=64,
        out_channels=3,
        time_embedding_dim=768,
        down_block_types=(DOWN, *["AttnDownBlock2D"] * 3),
        up_block_types=(*["AttnUpBlock2D"] * 3, UP),
        block_out_channels=(192, 384, 576, 768),
        layers_per_block=3,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1000,
    ),
    "edm_bedroom256_ema.pt": UNet2DConfig(
        sample_size=256,
        out_channels=3,
        time_embedding_dim=1024,
        down_block_types=(DOWN, DOWN, DOWN, *["AttnDownBlock2D"] * 3),
        up_block_types=(*["AttnUpBlock2D"] * 3, UP, UP, UP),
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
        attn_norm_num_groups=32,
    ),
}

Weights = dict[str, np.ndarray]


def zeros(shapes: dict[str, Any]) -> Weights:
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def load(
    weights: Weights, settings: dict[str, Any], name: str = "teacher.pt", **options: Any
) -> tuple[UNet2D, Any, list[str]]:
    """Load weights as the file of this name; return its network, its EDM, and the warnings."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(guided_diffusion, "TorchFile", lambda path: weights)
        module, edm = guided_diffusion.load_unet(name, settings, **options)
    return module, edm, [str(warning.message) for warning in caught]


def small_weights(**shapes: tuple[int, ...]) -> Weights:
    """Weights, all zero, of the unconditional small network; `out__2__bias` stands for a dotted name."""
    changes = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return zeros(BY_NAME["unconditional"]["shapes"] | changes)


# What is computed


def denoised(
    module: UNet2D, edm: EDM, case: dict[str, Any], level: int
) -> tuple[np.ndarray, np.ndarray]:  # [2, 8, 8, 3]
    """Return the clean pictures that a model predicts at a recorded level, and the recorded ones."""
    model_fn, params = rp.nnx_model_fn(module)
    labels = () if case["class_labels"] is None else (jnp.asarray(case["class_labels"]),)
    denoiser = edm.model_fn(lambda params, x, timestep: model_fn(params, x, timestep, *labels))
    sigma = float(RECORDED["sigma"][level])
    sample = RECORDED["x"][level] / np.float32(math.sqrt(1 + sigma**2))  # of the library's chain
    output = denoiser(params, jnp.asarray(sample), jnp.int32(case["levels"][level]))
    return np.asarray(output), RECORDED["denoised"][CASES.index(case), level]


@pytest.fixture(scope="module")
def small() -> dict[str, tuple[UNet2D, EDM]]:
    """The small networks, loaded once, with what `load_unet` says of them."""
    return {
        case["name"]: load(golden_weights.drawn(case["shapes"]), case["settings"])[:2] for case in SMALL
    }


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["name"])
def test_model_gives_the_clean_pictures_of_karras_denoiser_at_four_noise_levels(case, small):
    module, edm = small[case["name"]]
    assert edm == EDM(noise_scale=250.0)
    for level in range(len(case["levels"])):
        output, expected = denoised(module, edm, case, level)
        assert 0.5 < np.abs(expected).max() < 2
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case["name"])
def test_network_gives_their_outputs_at_fractional_timesteps(case, small):
    module, _ = small[case["name"]]
    labels = None if case["class_labels"] is None else jnp.asarray(case["class_labels"])
    for level, (sigma, x) in enumerate(zip(RECORDED["sigma"], RECORDED["x"], strict=True)):
        scaled = x / np.sqrt(sigma**2 + np.float32(0.25))
        timestep = 250 * np.log(sigma)  # in float32 as theirs: one rounding more is 1e-4 at timestep 1500
        assert timestep != round(timestep)
        output = module(jnp.asarray(scaled), jnp.asarray(timestep), labels)
        expected = RECORDED["model_output"][CASES.index(case), level]
        assert replay.relative_difference(np.asarray(output), expected) < 2e-5


@pytest.mark.slow
def test_another_order_of_heads_and_another_noise_scale_give_other_pictures(small, monkeypatch):
    case, level = BY_NAME["unconditional"], 1
    output, expected = denoised(small["unconditional"][0], EDM(), case, level)
    assert replay.relative_difference(output, expected) > 1e-2
    renamed = guided_diffusion.DiffusersNames
    monkeypatch.setattr(guided_diffusion, "DiffusersNames", lambda *args: renamed(*args[:3], False))
    module, edm, _ = load(golden_weights.drawn(case["shapes"]), case["settings"])
    output, expected = denoised(module, edm, case, level)
    assert replay.relative_difference(output, expected) > 1e-2


# What a file is taken for


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_teachers_are_known_without_their_settings(name: str):
    weights = zeros(BY_NAME[name]["shapes"])
    settings, assumed = complete_settings({}, layout_of(weights, Path(name)), Path(name))
    assert assumed == {"training_mode": "edm"}
    assert settings["use_new_attention_order"]
    assert guided_diffusion.unet_config(weights, Path(name), {}) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_teacher_has_its_place(name: str):
    flags = BY_NAME[name]["settings"] | {"training_mode": "edm"}
    module, edm, messages = load(zeros(BY_NAME[name]["shapes"]), flags, name, dtype=jnp.float16)
    assert (module.config, edm, messages) == (PUBLISHED[name], EDM(noise_scale=250.0), [])


@pytest.mark.parametrize(
    ("settings", "assumed"),
    [
        ({"image_size": 8, "num_head_channels": 16}, {"training_mode": "edm"}),
        ({"image_size": 8}, {"num_head_channels": 64, "training_mode": "edm"}),
        ({"image_size": 8, "training_mode": "edm"}, {"num_head_channels": 64}),
        (TEACHER, {}),
        (TEACHER | {"use_new_attention_order": True, "weight_schedule": "karras"}, {}),
    ],
)
def test_what_the_settings_do_not_tell_is_assumed(settings, assumed):
    source = Path("teacher.pt")
    assert complete_settings(settings, layout_of(small_weights(), source), source)[1] == assumed


def test_warning_says_that_the_file_could_be_a_consistency_model():
    _, _, messages = load(small_weights(), {"image_size": 8, "num_head_channels": 16}, "edm_cat.pt")
    assert messages == [
        "edm_cat.pt does not tell all settings of the model; assumed training_mode='edm': other values "
        "belong in the .yml file that `repaint-jax convert --config` takes; a consistency model has the "
        "same tensors, but cannot be used"
    ]


def test_noise_levels_are_those_of_the_settings():
    given, source = TEACHER | {"sigma_min": 0.01, "sigma_max": 50}, Path("teacher.pt")
    settings, _ = complete_settings(given, layout_of(small_weights(), source), source)
    assert edm_of_teacher(settings) == EDM(sigma_min=0.01, sigma_max=50.0, noise_scale=250.0)


@pytest.mark.parametrize("name", ["cd_bedroom256_l2.pt", "ct_cat256.pt"])
def test_file_with_the_name_of_a_consistency_model_is_refused_unless_its_settings_tell_otherwise(name: str):
    settings = {key: value for key, value in TEACHER.items() if key != "training_mode"}
    sentence = sentence_of(lambda: load(small_weights(), settings, f"models/{name}"))
    assert sentence == (
        f"{Path('models', name)} has the name of a consistency model, which cannot be used, expected its "
        "EDM teacher; if it is one, give training_mode: edm in a .yml file"
    )
    source = Path(name)
    assert complete_settings(TEACHER, layout_of(small_weights(), source), source)[1] == {}


def learned_variance() -> Weights:
    return small_weights(out__2__weight=(6, 32, 3, 3), out__2__bias=(6,))


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        (
            small_weights,
            {"training_mode": "consistency_distillation"},
            "training_mode is 'consistency_distillation' in the settings, expected 'edm': consistency ",
        ),
        (small_weights, {"training_mode": None}, "training_mode is None in the settings, expected 'edm': "),
        (
            small_weights,
            {"noise_schedule": "linear"},
            "noise_schedule is 'linear' in the settings, expected none: teacher.pt is an EDM model of ",
        ),
        (
            small_weights,
            {"predict_xstart": False},
            "predict_xstart is False in the settings, expected none",
        ),
        (
            small_weights,
            {"use_new_attention_order": False},
            "use_new_attention_order is False in the settings, expected true or none: the code of ",
        ),
        (
            small_weights,
            {"use_scale_shift_norm": True},
            "use_scale_shift_norm is True in the settings, but False in teacher.pt",
        ),
        (
            small_weights,
            {"class_cond": True},
            "class_cond is True in the settings, but False in teacher.pt",
        ),
        (
            small_weights,
            {"sigma_max": "80"},
            "sigma_max is '80' in the settings, expected a positive number",
        ),
        (small_weights, {"sigma_min": 0}, "sigma_min is 0 in the settings, expected a positive number"),
        (
            small_weights,
            {"sigma_min": True},
            "sigma_min is True in the settings, expected a positive number",
        ),
        (
            small_weights,
            {"sigma_min": 90.0},
            "sigma_min is 90.0 and sigma_max is 80.0, expected rising posi",
        ),
        (
            learned_variance,
            {},
            "teacher.pt takes 3 channels and predicts 6, expected as many of an EDM model, which ",
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_settings_that_contradict_an_edm_teacher_are_refused(weights, settings, message):
    sentence = sentence_of(lambda: load(weights(), TEACHER | settings))
    assert sentence.startswith(message)


def sequential(weights: Weights) -> Weights:
    """The weights as guided-diffusion's code has them, with attention over sequences."""
    return {
        name: tensor[..., 0] if name.endswith(("qkv.weight", "proj_out.weight")) else tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_network_in_the_layout_of_guided_diffusion_is_no_teacher(name: str):
    weights, source = sequential(zeros(BY_NAME[name]["shapes"])), Path(name)
    settings, assumed = complete_settings({}, layout_of(weights, source), source)
    assert (settings["noise_schedule"], settings["use_new_attention_order"]) == ("linear", False)
    assert "noise_schedule" in assumed


def test_training_mode_of_a_network_of_guided_diffusion_is_refused():
    sentence = sentence_of(lambda: load(sequential(small_weights()), TEACHER))
    assert sentence == (
        "training_mode is 'edm' in the settings, expected none: the attention of teacher.pt is not that of "
        "openai/consistency_models"
    )


def test_attention_of_another_shape_is_named():
    weights = small_weights(middle_block__1__proj_out__weight=(64, 64, 3, 3))
    sentence = sentence_of(lambda: load(weights, TEACHER))
    name = "mid_block.attentions.0.to_out.0.weight"
    assert sentence == f"teacher.pt: {name} has shape (64, 64, 3, 3), expected (64, 64)"


@pytest.mark.slow
def test_a_converted_teacher_loads_and_denoises_as_its_file(tmp_path: Path, monkeypatch):
    case = BY_NAME["unconditional"]
    for module in (guided_diffusion, pretrained):
        monkeypatch.setattr(module, "TorchFile", lambda path: golden_weights.drawn(case["shapes"]))
    (tmp_path / "flags.yml").write_text(yaml.safe_dump(TEACHER | case["settings"]))
    pretrained.convert(tmp_path / "edm_cat.pt", tmp_path / "cat", settings=tmp_path / "flags.yml")
    pipe = rp.RePaintPipeline.from_pretrained(tmp_path / "cat")
    assert pipe.family == EDM(noise_scale=250.0)
    sigma = float(RECORDED["sigma"][1])
    sample = jnp.asarray(RECORDED["x"][1] / np.float32(math.sqrt(1 + sigma**2)))
    clean = pipe.model_fn(pipe.params, sample, jnp.int32(case["levels"][1]))
    np.testing.assert_allclose(clean, RECORDED["denoised"][CASES.index(case), 1], atol=2e-5)
