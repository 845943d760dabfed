"""Checkpoints of guided-diffusion, as arrays of its names and shapes, and their conversion; without torch.

That they compute what its networks compute is in test_golden.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from model_files import (
    assert_same_parameters,
    sentence_of,
)

import repaint_jax as rp
from repaint_jax.models import (
    UNet2D,
    UNet2DConfig,
    guided_diffusion,
    pretrained,
)
from repaint_jax.models.checkpoints import load_module
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
) -> dict[str, np.ndarray]:
    """A U-Net's weights, all zero; `attended` are the levels with attention, the finest 0."""
    weights: dict[str, np.ndarray] = {}
    embedding = 4 * widths[0]

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

    layer("time_embed.0", embedding, widths[0])
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
TINY_SETTINGS = {"image_size": 16, "num_head_channels": 16}
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
            {"time_embed.0.weight": np.zeros((128, 64))},
            "has 32 channels and 64 sinusoids, expected equal numbers",
        ),
    ],
)
def test_checkpoint_of_something_else_is_refused(changes, message):
    weights = guided_diffusion_weights(**ONE_LEVEL) | changes
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    sentence = refusal_of(weights, TINY_SETTINGS)
    assert sentence.startswith(f"{SOURCE}{message if message[0] == ':' else ' ' + message}")


def test_checkpoint_without_a_single_name_of_guided_diffusion_is_refused():
    for weights in ({}, {"conv_in.weight": np.zeros((4, 3, 3, 3), np.float32)}):
        message = f"{SOURCE} has neither a way up nor attention, expected a guided-diffusion checkpoint"
        assert refusal_of(weights, {}) == message


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
            {"num_head_channels": -1, "num_heads_upsample": 2},
            "num_heads is 4 in the settings for attention over [32] channels; only heads of ",
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
        ({"rescale_timesteps": True}, "rescale_timesteps is true in the settings, only false is supported"),
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
    module, config = load_pretrained(tmp_path / "tiny")
    expected_module, expected_config = guided_diffusion.load_unet(checkpoint, settings)
    assert (module.config, config) == (expected_module.config, expected_config)
    assert config.beta_schedule == "squaredcos_cap_v2"
    assert_same_parameters(module, expected_module, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.yml"]


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
