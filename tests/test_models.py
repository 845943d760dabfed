"""Adapters from Flax modules, and UNet2D: its variants, its files, what it refuses.

That it computes what diffusers' UNet2DModel computes is in test_golden.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from safetensors.numpy import load_file, save_file

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig, load_unet2d, save_unet2d

KEY = jax.random.key(0)
WEIGHTS = "diffusion_pytorch_model.safetensors"
CIFAR10_CONFIG = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CELEBAHQ_CONFIG = CIFAR10_CONFIG | {  # google/ddpm-ema-celebahq-256
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}


# Adapters


class Scale(nnx.Module):
    """sample * factor + timestep."""

    def __init__(self):
        self.factor = nnx.Param(jnp.array(2.0))

    def __call__(self, sample, timestep):
        return sample * self.factor[...] + timestep


class LinenScale(linen.Module):
    @linen.compact
    def __call__(self, sample, timestep):
        return sample * self.param("factor", linen.initializers.constant(2.0), ()) + timestep


def test_linen_model_fn_takes_all_variables_or_the_params_alone():
    module = LinenScale()
    variables = module.init(KEY, jnp.ones(3), 0)
    model_fn = rp.linen_model_fn(module)
    for params in (variables, variables["params"]):
        np.testing.assert_array_equal(model_fn(params, jnp.ones(3), 5), [7, 7, 7])
    doubled = jax.tree.map(lambda value: 2 * value, variables)
    np.testing.assert_array_equal(jax.jit(model_fn)(doubled, jnp.ones(3), jnp.int32(5)), [9, 9, 9])


def test_nnx_model_fn_is_the_module_as_a_pure_function():
    model_fn, params = rp.nnx_model_fn(Scale())
    for function in (model_fn, jax.jit(model_fn)):
        np.testing.assert_array_equal(function(params, jnp.ones(3), jnp.int32(5)), [7, 7, 7])
    doubled = jax.tree.map(lambda value: 2 * value, params)
    np.testing.assert_array_equal(model_fn(doubled, jnp.ones(3), 5), [9, 9, 9])
    np.testing.assert_array_equal(model_fn(params, jnp.ones(3), 5), [7, 7, 7])


def test_module_updated_afterwards_changes_neither_the_function_nor_its_params():
    module = Scale()
    model_fn, params = rp.nnx_model_fn(module)
    nnx.update(module, jax.tree.map(lambda value: 2 * value, params))
    assert module(jnp.ones(()), 0) == 4
    assert model_fn(params, jnp.ones(()), 0) == 2
    assert model_fn(nnx.state(module), jnp.ones(()), 0) == 4, "new parameters count when they are passed"


def test_params_that_an_optimizer_updated_are_used_when_passed():
    module = Scale()
    model_fn, params = rp.nnx_model_fn(module)
    optimizer = nnx.Optimizer(module, optax.sgd(0.25), wrt=nnx.Param)
    grads = nnx.grad(lambda module: module(jnp.ones(()), 0) ** 2)(module)
    optimizer.update(module, grads)
    assert model_fn(nnx.state(module), jnp.ones(()), 0) == module(jnp.ones(()), 0) == 1  # 2 - 0.25 * 4
    assert model_fn(params, jnp.ones(()), 0) == 2


def test_params_of_an_nnx_model_can_be_differentiated_through_inpaint(state):
    model_fn, params = rp.nnx_model_fn(Scale())
    zeros = jnp.zeros((2, 2, 1))
    grads = jax.grad(lambda params: rp.inpaint(state, model_fn, params, zeros, zeros, KEY).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# UNet2D


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(CIFAR10_CONFIG, 35_746_307), (CELEBAHQ_CONFIG, 113_673_219)],
    ids=["google/ddpm-cifar10-32", "google/ddpm-celebahq-256"],
)
def test_published_architectures_have_their_number_of_parameters(config: dict, parameters: int):
    module = nnx.eval_shape(lambda: UNet2D(UNet2DConfig.from_dict(config), rngs=nnx.Rngs(0)))
    shapes = jax.tree.leaves(jax.tree.map(lambda leaf: math.prod(leaf.shape), nnx.state(module, nnx.Param)))
    assert sum(shapes) == parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"center_input_sample": True, "flip_sin_to_cos": False, "freq_shift": 1},
        {"in_channels": 3, "out_channels": 6, "sample_size": None},
        {"layers_per_block": 3, "attention_head_dim": 2, "add_attention": True},
        {"attention_head_dim": None, "add_attention": True, "mid_block_scale_factor": 2**0.5},
        {
            "block_out_channels": (4, 8, 8),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "downsample_padding": 0,
            "attention_head_dim": 4,
        },
        {
            "block_out_channels": (4, 4),
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "act_fn": "swish",
        },
    ],
)
def test_variants_keep_the_shape_and_the_dtype_of_a_batch_and_of_one_image(unet_config, changes: dict):
    config = dataclasses.replace(unet_config, **changes)
    module = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    for shape, dtype, timestep in (
        ((2, 8, 4), jnp.float32, 5),
        ((3, 4, 8), jnp.bfloat16, jnp.arange(3)),
        ((8, 8), jnp.float16, jnp.int32(5)),
    ):
        sample = jax.ShapeDtypeStruct((*shape, config.in_channels), dtype)
        output = nnx.eval_shape(lambda module, sample, t=timestep: module(sample, t), module, sample)
        assert (output.shape, output.dtype) == ((*shape, config.out_channels), dtype)


def test_one_image_is_a_batch_of_one_and_each_image_has_its_timestep(unet):
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    call = nnx.jit(lambda module, sample, timestep: module(sample, timestep))
    batch = call(unet, images, jnp.array([3, 700]))
    for i, timestep in enumerate((3, 700)):
        np.testing.assert_allclose(call(unet, images[i], jnp.int32(timestep)), batch[i], atol=1e-5)
    assert np.abs(batch[0] - call(unet, images[0], jnp.int32(700))).max() > 1e-4


# Files


def assert_same_parameters(one: nnx.Module, other: nnx.Module, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), nnx.state(one), nnx.state(other)
    )


@pytest.fixture
def folder(unet, tmp_path: Path) -> Path:
    """The tiny model's own copy, to be damaged."""
    save_unet2d(unet, tmp_path)
    return tmp_path


def test_saved_model_loads_as_it_was(unet, folder: Path):
    loaded = load_unet2d(folder)
    assert loaded.config == unet.config
    assert_same_parameters(loaded, unet, rtol=0)


@pytest.mark.parametrize("sample_size", [None, 16, (8, 16)])
def test_config_comes_back_from_its_file(unet_config, random_unet, sample_size, tmp_path: Path):
    config = dataclasses.replace(unet_config, sample_size=sample_size)
    assert UNet2DConfig.from_dict(config.to_dict()) == config
    save_unet2d(random_unet(config), tmp_path / "unet")
    assert load_unet2d(tmp_path, "unet").config == config
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"


def test_half_precision_files_are_half_the_size_and_load_as_float32(unet, folder: Path, tmp_path: Path):
    save_unet2d(unet, tmp_path / "half", dtype=np.float16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}
    loaded = load_unet2d(tmp_path / "half")
    assert loaded.conv_in.kernel.dtype == jnp.float32
    assert_same_parameters(loaded, unet, rtol=1e-3, atol=1e-7)


def test_model_loads_in_the_dtype_asked_for(folder: Path):
    loaded = load_unet2d(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(loaded))} == {jnp.dtype(jnp.bfloat16)}
    output = nnx.eval_shape(lambda module: module(jnp.zeros((8, 8, 1)), 5), loaded)
    assert output.dtype == jnp.float32


def test_configs_of_diffusers_are_read_with_all_their_keys(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    extra = {"_name_or_path": "x", "class_embed_type": None, "resnet_time_scale_shift": "default"}
    (folder / "config.json").write_text(json.dumps(config | extra))
    assert load_unet2d(folder).config.block_out_channels == (4,)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        load_unet2d(folder)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path):
    # Without huggingface_hub the hub cannot be asked, which is an ImportError.
    with pytest.raises((FileNotFoundError, ImportError), match=r"nowhere is .*folder here"):
        load_unet2d(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not a JSON file"),
        ("", "config.json is not a JSON file"),
        ("[]", "config.json holds list, expected a JSON object"),
    ],
)
def test_damaged_config_is_refused(folder: Path, text: str, message: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_unet2d(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_truncated_weights_are_refused(folder: Path, keep: int):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is not a whole safetensors file"):
        load_unet2d(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv_in.bias"), "lacks the tensor conv_in.bias"),
        (lambda w: w.update(extra=np.zeros(1)), "has a tensor that the model lacks: extra"),
        (
            lambda w: w.update({"conv_in.weight": np.zeros((4, 2, 3, 3), np.float32)}),
            "conv_in.weight has shape (4, 2, 3, 3), expected (4, 1, 3, 3)",
        ),
        (
            lambda w: w.update({"conv_in.bias": np.full(4, np.nan, np.float32)}),
            "conv_in.bias has values that are not finite",
        ),
        (
            lambda w: w.update({"conv_in.bias": np.full(4, np.inf, np.float32)}),
            "conv_in.bias has values that are not finite",
        ),
        (
            lambda w: w.update({"conv_in.weight": np.zeros((4, 9, 1), np.float32)}),
            "conv_in.weight has shape",
        ),
    ],
    ids=["missing", "extra", "other shape", "nan", "inf", "other rank"],
)
def test_weights_of_another_model_are_refused(folder: Path, change, message: str):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_unet2d(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ["CrossAttnDownBlock2D"]},
            "down_block_types has 'CrossAttnDownBlock2D', expected one of DownBlock2D, AttnDownBlock2D",
        ),
        (
            {"up_block_types": ["ResnetUpsampleBlock2D"]},
            "up_block_types has 'ResnetUpsampleBlock2D', expected one of UpBlock2D, AttnUpBlock2D",
        ),
        ({"down_block_types": []}, "down_block_types has 0 entries, expected one for each of the 1"),
        (
            {"up_block_types": ["UpBlock2D"] * 2},
            "up_block_types has 2 entries, expected one for each of the 1",
        ),
        ({"block_out_channels": [5]}, "block_out_channels has 5, expected a multiple of norm_num_groups=2"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', only 'positional'"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu'"),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "resnet_time_scale_shift is 'scale_shift', only 'default' is supported",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', only None is supported"),
        ({"cross_attention_dim": 768}, "unknown option cross_attention_dim=768"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0, expected"),
        ({"layers_per_block": 0}, "layers_per_block is 0, expected"),
        ({"attention_head_dim": 3, "add_attention": True}, "attention_head_dim"),
    ],
)
def test_architecture_that_is_not_supported_is_refused_by_name(unet_config, changes: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        UNet2DConfig.from_dict(unet_config.to_dict() | changes)


@pytest.mark.parametrize("side", [7, 9])
def test_sides_that_cannot_be_halved_are_refused_in_one_sentence(unet_config, side: int):
    config = dataclasses.replace(
        unet_config,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    module = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=rf"sample has shape \(1, {side}, 8, 1\), expected"):
        nnx.eval_shape(lambda module: module(jnp.zeros((1, side, 8, 1)), 5), module)


def test_channels_that_are_not_the_model_s_are_refused_in_one_sentence(unet):
    with pytest.raises(ValueError, match=r"sample has shape \(1, 8, 8, 3\), expected"):
        nnx.eval_shape(lambda module: module(jnp.zeros((1, 8, 8, 3)), 5), unet)
