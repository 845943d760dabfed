"""Checkpoints of guided-diffusion, as arrays of its names and shapes, and their conversion; without torch.

That they compute what its networks compute is in test_golden, and here for heads and widths that diffusers
cannot have.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from golden import replay
from golden import weights as golden_weights
from model_files import (
    assert_same_parameters,
    sentence_of,
)

import repaint_jax as rp
from repaint_jax.models import (
    UNet2D,
    UNet2DConfig,
    guided_diffusion,
    load_unet2d,
    pretrained,
    save_unet2d,
)
from repaint_jax.models.checkpoints import load_module
from repaint_jax.models.guided_diffusion.layout import layout_of
from repaint_jax.models.guided_diffusion.settings import complete_settings
from repaint_jax.models.pretrained import convert, load_pretrained


def guided_diffusion_weights(
    widths: tuple[int, ...] = (32, 64),
    layers: int = 1,
    attended: tuple[int, ...] = (1,),
    *,
    resnet_resampling: bool = True,
    scale_shift: bool = True,
    num_classes: int | None = None,
    learned_variance: bool = True,
    model_channels: int | None = None,
) -> dict[str, np.ndarray]:
    """A U-Net's weights, all zero; `attended` are the levels with attention, the finest 0."""
    weights: dict[str, np.ndarray] = {}
    model_channels = model_channels or widths[0]
    embedding = 4 * model_channels

    def layer(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = np.broadcast_to(np.float32(0), shape)
        weights[f"{name}.bias"] = np.broadcast_to(np.float32(0), shape[:1])

    def resnet(name: str, inputs: int, outputs: int) -> None:
        layer(f"{name}.in_layers.0", inputs)
        layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
        layer(f"{name}.emb_layers.1", (1 + scale_shift) * outputs, embedding)
        layer(f"{name}.out_layers.0", outputs)
        layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
        if inputs != outputs:
            layer(f"{name}.skip_connection", outputs, inputs, 1, 1)

    def attention(name: str, channels: int) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    def resampling(name: str, conv: str, channels: int) -> None:
        if resnet_resampling:
            resnet(name, channels, channels)
        else:
            layer(f"{name}.{conv}", channels, channels, 3, 3)

    layer("time_embed.0", embedding, model_channels)
    layer("time_embed.2", embedding, embedding)
    if num_classes is not None:
        weights["label_emb.weight"] = np.broadcast_to(np.float32(0), (num_classes, embedding))
    layer("input_blocks.0.0", widths[0], 3, 3, 3)
    skips, channels = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        for _ in range(layers):
            resnet(f"input_blocks.{len(skips)}.0", channels, width)
            channels = width
            if level in attended:
                attention(f"input_blocks.{len(skips)}.1", width)
            skips.append(width)
        if level < len(widths) - 1:
            resampling(f"input_blocks.{len(skips)}.0", "op", width)
            skips.append(width)
    resnet("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    resnet("middle_block.2", channels, channels)
    block = 0
    for level, width in reversed(list(enumerate(widths))):
        for i in range(layers + 1):
            resnet(f"output_blocks.{block}.0", channels + skips.pop(), width)
            channels = width
            if level in attended:
                attention(f"output_blocks.{block}.1", width)
            if level and i == layers:
                resampling(f"output_blocks.{block}.{1 + (level in attended)}", "conv", width)
            block += 1
    layer("out.0", channels)
    layer("out.2", 3 * (1 + learned_variance), channels, 3, 3)
    return weights


SOURCE = Path("celeba.pt")
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
TINY_SETTINGS = {
    "image_size": 16,
    "num_head_channels": 16,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "predict_xstart": False,
}
ONE_LEVEL: dict[str, Any] = {"widths": (32,), "attended": (0,)}


def test_architecture_of_the_official_256_px_models_is_read_off_their_weights():
    weights = guided_diffusion_weights((256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5))
    config = guided_diffusion.unet_config(weights, SOURCE, {})
    assert config == UNet2DConfig(
        sample_size=256,
        out_channels=6,
        time_embedding_dim=1024,
        down_block_types=(DOWN, DOWN, DOWN, *["AttnDownBlock2D"] * 3),
        up_block_types=(*["AttnUpBlock2D"] * 3, UP, UP, UP),
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
    )
    assert sum(tensor.size for tensor in weights.values()) == 552_814_086
    scheduler = guided_diffusion.scheduler_config(config, {})
    assert scheduler == rp.RePaintSchedulerConfig.paper(known_region="after_step")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"num_classes": 7, "learned_variance": False},
            {
                "num_class_embeds": 7,
                "out_channels": 3,
                "layers_per_block": 1,
                "down_block_types": (DOWN, "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", UP),
            },
        ),
        (
            {"layers": 3, "scale_shift": False, "attended": ()},
            {
                "layers_per_block": 3,
                "resnet_time_scale_shift": "default",
                "down_block_types": (DOWN, DOWN),
                "up_block_types": (UP, UP),
            },
        ),
        (
            {"widths": (32, 32, 64), "attended": (1, 2), "resnet_resampling": False},
            {
                "block_out_channels": (32, 32, 64),
                "downsample_type": "conv",
                "upsample_type": "conv",
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            },
        ),
        (
            {"attended": (0,), "layers": 2},
            {"layers_per_block": 2, "down_block_types": ("AttnDownBlock2D", DOWN)},
        ),
    ],
    ids=["class-conditional", "no scale-shift", "convolutions resample", "attention on the finest"],
)
def test_architecture_is_read_off_the_weights_and_they_fill_it(options, expected):
    weights = guided_diffusion_weights(**options)
    config = guided_diffusion.unet_config(weights, SOURCE, TINY_SETTINGS)
    assert {name: getattr(config, name) for name in expected} == expected
    renamed = guided_diffusion.DiffusersNames(weights, SOURCE, config, new_attention_order=False)
    module = load_module(lambda: UNet2D(config, rngs=nnx.Rngs(0)), renamed, SOURCE, jnp.float16)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) == sum(
        tensor.size for tensor in weights.values()
    )


@pytest.mark.parametrize(
    ("widths", "expected"),
    [((32, 32, 64, 64, 128, 128), 256), ((32, 32, 64, 96, 128), 128), ((32, 64, 96, 128), 64)],
)
def test_picture_s_size_is_read_off_the_levels_widths(widths, expected):
    weights = guided_diffusion_weights(widths, 1, (1,))
    assert guided_diffusion.unet_config(weights, SOURCE, {"num_head_channels": 32}).sample_size == expected


@pytest.mark.parametrize("new_order", [False, True])
def test_queries_keys_and_values_are_split_by_head_or_by_kind(new_order):
    weights = guided_diffusion_weights()
    config = guided_diffusion.unet_config(weights, SOURCE, TINY_SETTINGS)
    kinds = np.repeat(np.array([1, 2, 3], np.float32), 16)  # of one head; 64 channels are four
    order = np.repeat([1, 2, 3], 64) if new_order else np.tile(kinds, 4)
    weights["middle_block.1.qkv.bias"] = order.astype(np.float32)
    renamed = guided_diffusion.DiffusersNames(weights, SOURCE, config, new_order)
    for letter, value in (("q", 1), ("k", 2), ("v", 3)):
        bias = renamed[f"mid_block.attentions.0.to_{letter}.bias"]
        np.testing.assert_array_equal(bias, np.full(64, value))


def refusal_of(weights: dict[str, np.ndarray], settings: dict[str, Any]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guided_diffusion, "TorchFile", lambda path: weights)
        return sentence_of(lambda: guided_diffusion.load_unet(SOURCE, settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"time_embed.0.weight": None},
            "lacks the tensor time_embed.0.weight of 2 axes, expected a guided-",
        ),
        ({"input_blocks.0.0.weight": None}, "lacks the tensor input_blocks.0.0.weight of 4 axes, "),
        ({"out.2.weight": None}, "lacks the tensor out.2.weight of 4 axes, expected a guided-diffusion"),
        ({"out.2.bias": None}, "lacks the tensor conv_out.bias"),
        ({"middle_block.1.qkv.bias": None}, "lacks the tensor mid_block.attentions.0.to_"),
        (
            {"time_embed.0.weight": np.zeros(())},
            "lacks the tensor time_embed.0.weight of 2 axes, expected ",
        ),
        (
            {"middle_block.1.qkv.bias": np.zeros(97)},
            ": middle_block.1.qkv.bias has shape (97,), expected queries, keys and values for heads of 16",
        ),
        ({"out.2.positional_embedding": np.zeros(1)}, "is a classifier, expected a diffusion model"),
        ({"ema.rate": np.zeros(1)}, "has a tensor that the model lacks: ema.rate"),
        ({"out.2.bias": np.full(6, np.nan)}, ": conv_out.bias has values that are not finite in float32"),
        (
            {
                "input_blocks.0.0.weight": np.zeros((32, 6, 3, 3)),
                "out.2.weight": np.zeros((3, 32, 3, 3)),
            },
            "takes 6 channels and predicts 3, expected as many or twice as many: a model that enlarges",
        ),
    ],
)
def test_checkpoint_of_something_else_is_refused(changes, message):
    weights = guided_diffusion_weights(**ONE_LEVEL) | changes
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    sentence = refusal_of(weights, TINY_SETTINGS)
    assert sentence.startswith(f"{SOURCE}{message if message[0] == ':' else ' ' + message}")


def test_odd_number_of_sinusoids_is_refused():
    weights = guided_diffusion_weights(**ONE_LEVEL) | {"time_embed.0.weight": np.zeros((128, 63))}
    assert refusal_of(weights, TINY_SETTINGS).startswith("time_proj_dim has 63 first and freq_shift is 0, ")


def test_checkpoint_without_a_single_name_of_guided_diffusion_is_refused():
    message = f"{SOURCE} has neither a way up nor attention, expected a guided-diffusion checkpoint"
    assert refusal_of({}, {}) == message
    names = ("conv_in.weight", "model.diffusion_model.out.0.bias", "conv_in.bias")
    weights = {name: np.zeros(4, np.float32) for name in names}
    assert refusal_of(weights, {}) == f"{message}; its names begin with 'conv_in', 'model'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_channels": 128}, f"num_channels is 128 in the settings, but 32 in {SOURCE}"),
        ({"num_res_blocks": 2}, f"num_res_blocks is 2 in the settings, but 1 in {SOURCE}"),
        ({"class_cond": True}, f"class_cond is True in the settings, but False in {SOURCE}"),
        ({"learn_sigma": False}, f"learn_sigma is False in the settings, but True in {SOURCE}"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm is False in the settings, but True in "),
        ({"resblock_updown": True}, f"resblock_updown is True in the settings, but False in {SOURCE}"),
        ({"num_head_channels": 48}, "attention_head_dim is 48, expected a divisor of the 32 channels"),
        (
            {"num_head_channels": -1, "num_heads": 3},
            "num_heads is 3 in the settings, expected a divisor of the 32 channels that a block with ",
        ),
        (
            {"num_head_channels": -1, "num_heads_upsample": 5},
            "num_heads_upsample is 5 in the settings, expected a divisor of the 32 channels that a ",
        ),
        ({"diffusion_steps": 0}, "diffusion_steps is 0 in the settings, expected a positive integer"),
        ({"image_size": "x"}, "image_size is 'x' in the settings, expected a positive integer"),
        ({"num_head_channels": None}, "num_head_channels is None in the settings, expected a positive"),
        (
            {"use_new_attention_order": "False"},
            "use_new_attention_order is 'False' in the settings, expected true or false",
        ),
        ({"noise_schedule": []}, "noise_schedule is [] in the settings, expected a word"),
        ({"num_channels": 256, "num_head_channels": 64}, "num_channels is 256 in the settings, but 32 in"),
        (
            {"rescale_timesteps": "yes"},
            "rescale_timesteps is 'yes' in the settings, expected true or false",
        ),
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt' in the settings, expected linear or cosine"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_another_model_are_refused(settings, message):
    sentence = refusal_of(guided_diffusion_weights(**ONE_LEVEL), TINY_SETTINGS | settings)
    assert sentence.startswith(message)


def test_model_given_as_a_classifier_is_refused(monkeypatch):
    monkeypatch.setattr(guided_diffusion, "TorchFile", lambda path: guided_diffusion_weights())
    message = f"{SOURCE} is no classifier with attention pooling, expected one"
    assert sentence_of(lambda: guided_diffusion.load_classifier(SOURCE)) == message


def test_size_that_is_nowhere_is_asked_for():
    message = f"{SOURCE} does not tell the pictures' size, expected image_size in a .yml file"
    assert refusal_of(guided_diffusion_weights(), {"num_head_channels": 32}) == message


# Settings that the weights do not tell

FLAGS, FLAG_ARRAYS = replay.load("guided_diffusion_flags.npz")


@pytest.mark.parametrize("case", FLAGS, ids=lambda case: case["name"])
def test_network_of_any_heads_and_widths_gives_the_outputs_of_guided_diffusion(case):
    expected = FLAG_ARRAYS["model_output"][FLAGS.index(case)]
    module = replay.guided_diffusion_module(golden_weights.drawn(case["shapes"]), case["settings"])
    output = module(jnp.asarray(FLAG_ARRAYS["sample"]), *replay.example_arrays(case))
    assert replay.relative_difference(np.asarray(output), expected) < 2e-5
    early, late = np.split(expected, 2)
    assert replay.relative_difference(early, late) > 1e-2, "the timestep must matter"


def test_heads_that_are_guessed_wrong_give_other_outputs():
    case = FLAGS[[case["name"] for case in FLAGS].index("four heads")]
    expected = FLAG_ARRAYS["model_output"][FLAGS.index(case)]
    settings = case["settings"] | {"num_heads": 1}
    module = replay.guided_diffusion_module(golden_weights.drawn(case["shapes"]), settings)
    output = module(jnp.asarray(FLAG_ARRAYS["sample"]), *replay.example_arrays(case))
    assert replay.relative_difference(np.asarray(output), expected) > 1e-2


def loaded(weights: dict[str, np.ndarray], settings: dict[str, Any]) -> tuple[Any, list[str]]:
    """The config of a file's network, with its scheduler's, and the warnings."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(guided_diffusion, "TorchFile", lambda path: weights)
        module, config = guided_diffusion.load_unet("celeba.pt", settings)
    return (module.config, config), [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("options", "settings", "assumed"),
    [
        (
            {"widths": (64, 128, 192, 256)},
            {},
            "diffusion_steps=1000, image_size=64, noise_schedule='linear', num_head_channels=64, "
            "predict_xstart=False, use_new_attention_order=False",
        ),
        (
            {"widths": (32, 64, 64, 64), "resnet_resampling": False},
            {},
            "diffusion_steps=1000, image_size=32, noise_schedule='linear', num_heads=4, "
            "predict_xstart=False, use_new_attention_order=False",
        ),
        ({}, TINY_SETTINGS | {"num_head_channels": -1}, "num_heads=4"),
        ({}, {k: v for k, v in TINY_SETTINGS.items() if k != "num_head_channels"}, "num_head_channels=64"),
        ({}, TINY_SETTINGS | {"diffusion_steps": 50}, "rescale_timesteps=False"),
        ({}, TINY_SETTINGS, None),
        (
            {},
            {k: v for k, v in TINY_SETTINGS.items() if k != "num_head_channels"} | {"num_heads": 2},
            None,
        ),
    ],
)
def test_what_was_assumed_is_said(options, settings, assumed):
    _, messages = loaded(guided_diffusion_weights(**options), settings)
    if assumed is None:
        assert messages == []
    else:
        (message,) = messages
        assert message.startswith(f"celeba.pt does not tell all settings of the model; assumed {assumed}: ")


def test_warning_names_the_line_of_the_caller(monkeypatch):
    monkeypatch.setattr(guided_diffusion, "TorchFile", lambda path: guided_diffusion_weights(**ONE_LEVEL))
    with pytest.warns(UserWarning, match="assumed") as caught:
        guided_diffusion.load_unet(SOURCE, {"image_size": 8})
    assert caught[0].filename == __file__


# Architectures and flags from the README of openai/guided-diffusion, and of FFHQ 256 from the code of DPS.
PUBLISHED = {
    "64": (
        (192, 384, 576, 768), 3, (1, 2, 3), None,
        {"sample_size": 64, "attention_head_dim": 64}, "squaredcos_cap_v2", True,
    ),
    "128": (
        (256, 256, 512, 768, 1024), 2, (2, 3, 4), None,
        {"sample_size": 128, "attention_head_dim": (1, 1, 128, 192, 256)}, "linear", False,
    ),
    "256": (
        (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5), None,
        {"sample_size": 256, "attention_head_dim": 64}, "linear", False,
    ),
    "512": (
        (128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6), 256,
        {"sample_size": 512, "attention_head_dim": 64, "time_proj_dim": 256}, "linear", False,
    ),
    "ffhq": (
        (128, 128, 256, 256, 512, 512), 1, (4,), None,
        {"sample_size": 256, "attention_head_dim": 64}, "linear", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_known_without_their_settings(name: str):
    widths, layers, attended, model_channels, fields, beta_schedule, new_order = PUBLISHED[name]
    weights = guided_diffusion_weights(widths, layers, attended, model_channels=model_channels)
    settings, assumed = complete_settings({}, layout_of(weights, SOURCE), SOURCE)
    assert assumed == {}
    config = guided_diffusion.unet_config(weights, SOURCE, {})
    assert {field: getattr(config, field) for field in fields} == fields
    assert settings["use_new_attention_order"] == new_order
    assert guided_diffusion.scheduler_config(config, settings).beta_schedule == beta_schedule


def test_settings_go_before_what_is_known_of_a_published_model():
    weights = guided_diffusion_weights((256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5))
    config = guided_diffusion.unet_config(weights, SOURCE, {"num_heads": 2, "image_size": 128})
    assert (config.attention_head_dim, config.sample_size) == ((1, 1, 1, 256, 512, 512), 128)


@pytest.mark.parametrize(("small", "variance_type"), [(True, "fixed_small"), (False, "fixed_large")])
def test_fixed_variance_is_that_of_improved_diffusion_s_flag(small: bool, variance_type: str):
    config = UNet2DConfig(out_channels=3)
    scheduler = guided_diffusion.scheduler_config(config, TINY_SETTINGS | {"sigma_small": small})
    assert scheduler.variance_type == variance_type


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_head_dim": (8,)},
            "attention_head_dim has 1 entries, expected one number, or one for ",
        ),
        (
            {"attention_head_dim": (8, 3)},
            "attention_head_dim is (8, 3), expected a divisor of the 64 channels",
        ),
        (
            {"attention_head_dim": (8, 8, 8, 3)},
            "attention_head_dim is (8, 8, 8, 3), expected a divisor of ",
        ),
        ({"attention_head_dim": (8, None)}, "attention_head_dim is None, expected an integer"),
        ({"time_proj_dim": 0}, "time_proj_dim is 0, expected an integer of at least 1"),
        ({"time_proj_dim": 8, "time_embedding_type": "fourier"}, "time_proj_dim is 8, expected None for "),
    ],
)
def test_heads_and_sinusoids_that_do_not_fit_are_refused(changes, message):
    blocks = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
    options = {"block_out_channels": (32, 64), **blocks, **changes}
    assert sentence_of(lambda: UNet2DConfig(**options)).startswith(message)


def test_heads_of_each_block_and_sinusoids_come_back_from_the_file(random_unet, tmp_path: Path):
    config = UNet2DConfig(
        sample_size=4,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 4, 2, 1),
        time_proj_dim=6,
    )
    module = random_unet(config)
    save_unet2d(module, tmp_path)
    loaded_module = load_unet2d(tmp_path)
    assert loaded_module.config == config
    assert_same_parameters(loaded_module, module, rtol=0)
    assert loaded_module.mid_block.attentions[0].heads == 2
    assert loaded_module.up_blocks[0].attentions[0].heads == 4


# Converting


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that is read without torch, and the settings of its dataset beside it."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in guided_diffusion_weights(**ONE_LEVEL).items()
    }
    for module in (guided_diffusion, pretrained):
        monkeypatch.setattr(module, "TorchFile", lambda path: weights)
    settings = TINY_SETTINGS | {
        "noise_schedule": "cosine",
        "num_channels": 32,
        "attention_resolutions": "8",
    }
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(settings))
    return tmp_path / "tiny.pt"


def test_converted_checkpoint_loads_as_the_checkpoint_itself(checkpoint: Path, tmp_path: Path):
    convert(checkpoint, tmp_path / "tiny", settings=tmp_path / "tiny.yml")
    settings = guided_diffusion.read_settings(tmp_path / "tiny.yml")
    module, config, _ = load_pretrained(tmp_path / "tiny")
    expected_module, expected_config = guided_diffusion.load_unet(checkpoint, settings)
    assert (module.config, config) == (expected_module.config, expected_config)
    assert config.beta_schedule == "squaredcos_cap_v2"
    assert_same_parameters(module, expected_module, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.yml"]


def test_conversion_takes_paths_of_any_kind(checkpoint: Path, tmp_path: Path):
    class Elsewhere:
        def __init__(self, path: Path):
            self.path = path

        def __fspath__(self) -> str:
            return str(self.path)

    for kind in (str, Elsewhere):
        folder = tmp_path / kind.__name__
        convert(kind(checkpoint), kind(folder), settings=kind(tmp_path / "tiny.yml"))
        assert load_pretrained(kind(folder))[0].config.sample_size == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "tiny.yml does not exist"),
        (b"a: [", "tiny.yml is not a YAML file: "),
        (b"\xff\xfe\0", "tiny.yml is not a YAML file: "),
        (b"- 1\n- 2\n", "tiny.yml holds list, expected a mapping of settings"),
        (b"", "tiny.yml holds NoneType, expected a mapping of settings"),
        (b"image_size: 16\nnum_head_channels: 16\nnum_channels: 128\n", "num_channels is 128 in the"),
        (b"image_size: 16\nnum_head_channels: 16\nnoise_schedule: sqrt\n", "noise_schedule is 'sqrt' in"),
    ],
)
def test_settings_that_cannot_be_used_leave_nothing_behind(checkpoint, tmp_path: Path, settings, message):
    (tmp_path / "tiny.yml").unlink()
    if settings is not None:
        (tmp_path / "tiny.yml").write_bytes(settings)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        convert(checkpoint, tmp_path / "tiny", settings=tmp_path / "tiny.yml")
    assert sorted(tmp_path.iterdir()) == before


def test_conversion_refuses_a_folder_that_exists_and_keeps_it(checkpoint, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sentence = sentence_of(lambda: convert(checkpoint, folder))
    assert sentence == f"{folder} exists, expected the name of a new folder"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_conversion_that_fails_while_writing_leaves_nothing_behind(checkpoint, tmp_path: Path, monkeypatch):
    def full_disk(folder: Path, *_: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model_index.json").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(pretrained, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        convert(checkpoint, tmp_path / "tiny", settings=tmp_path / "tiny.yml")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yml"]
