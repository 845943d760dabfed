"""Adapters from Flax modules, and UNet2D: its variants and what it refuses.

That it computes what diffusers' UNet2DModel computes is in test_golden, its files are in test_checkpoints.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig
from repaint_jax.models.resampling import convolve_upsampled

KEY = jax.random.key(0)
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
NCSNPP_CONFIG = CELEBAHQ_CONFIG | {  # google/ncsnpp-celebahq-256
    "block_out_channels": [128, 128, *[256] * 5],
    "down_block_types": [*["SkipDownBlock2D"] * 4, "AttnSkipDownBlock2D", *["SkipDownBlock2D"] * 2],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 2**0.5,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "up_block_types": [*["SkipUpBlock2D"] * 2, "AttnSkipUpBlock2D", *["SkipUpBlock2D"] * 4],
}


# Adapters


class Scale(nnx.Module):
    """sample * factor + timestep."""

    def __init__(self):
        self.factor = nnx.Param(jnp.array(2.0))

    def __call__(self, sample, timestep):
        return sample * self.factor[...] + jnp.asarray(timestep, sample.dtype)


class LinenScale(linen.Module):
    @linen.compact
    def __call__(self, sample, timestep):
        factor = self.param("factor", linen.initializers.constant(2.0), ())
        return sample * factor + jnp.asarray(timestep, sample.dtype)


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


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "channels", "features"), [(1, 1, 3, 2), (4, 7, 5, 5), (8, 3, 1, 16)]
)
def test_convolution_of_an_upsampled_image_is_that_of_its_pixels_repeated(
    height: int, width: int, channels: int, features: int, use_bias: bool
):
    rng = np.random.default_rng(0)
    conv = nnx.Conv(channels, features, (3, 3), use_bias=use_bias, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    padded = np.pad(x.repeat(2, 1).repeat(2, 2), ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # [B, 2H, 2W, C, 3, 3]
    expected = np.einsum("bhwcij,ijcd->bhwd", windows, np.asarray(conv.kernel[...]))
    if conv.bias is not None:
        conv.bias[...] = jnp.asarray(rng.normal(size=features), jnp.float32)
        expected = expected + np.asarray(conv.bias[...])
    np.testing.assert_allclose(convolve_upsampled(conv, x), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(CIFAR10_CONFIG, 35_746_307), (CELEBAHQ_CONFIG, 113_673_219), (NCSNPP_CONFIG, 65_574_549)],
    ids=["google/ddpm-cifar10-32", "google/ddpm-celebahq-256", "google/ncsnpp-celebahq-256"],
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


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ["CrossAttnDownBlock2D"]},
            "down_block_types has 'CrossAttnDownBlock2D', expected one of DownBlock2D, AttnDownBlock2D",
        ),
        (
            {"up_block_types": ["KUpBlock2D"]},
            "up_block_types has 'KUpBlock2D', expected one of UpBlock2D, AttnUpBlock2D",
        ),
        ({"down_block_types": []}, "down_block_types has 0 entries, expected one for each of the 1"),
        (
            {"up_block_types": ["UpBlock2D"] * 2},
            "up_block_types has 2 entries, expected one for each of the 1",
        ),
        ({"block_out_channels": [5]}, "block_out_channels has 5, expected a multiple of norm_num_groups=2"),
        (
            {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
            "block_out_channels is empty, expected the channels of each level",
        ),
        (
            {"block_out_channels": [5], "norm_num_groups": 5, "attention_head_dim": None},
            "block_out_channels has 5 first and freq_shift is 0, expected an even number",
        ),
        ({"freq_shift": 4}, "freq_shift is 4, expected an even number of channels and freq_shift below"),
        (
            {"time_embedding_type": "gaussian"},
            "time_embedding_type is 'gaussian', expected one of positional, fourier, learned",
        ),
        (
            {"time_embedding_type": "learned"},
            "num_train_timesteps is None, expected the rows of the learned time embedding",
        ),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', expected one of silu, swish"),
        (
            {"resnet_time_scale_shift": "ada_group"},
            "resnet_time_scale_shift is 'ada_group', expected one of default, scale_shift",
        ),
        (
            {"class_embed_type": "projection"},
            "class_embed_type is 'projection', expected one of None, timestep, identity",
        ),
        (
            {"mid_block_type": "UNetMidBlock2DCrossAttn"},
            "mid_block_type is 'UNetMidBlock2DCrossAttn', expected one of UNetMidBlock2D, None",
        ),
        ({"downsample_type": "pool"}, "downsample_type is 'pool', expected one of conv, resnet"),
        ({"upsample_type": None}, "upsample_type is None, expected one of conv, resnet"),
        ({"num_class_embeds": 0}, "num_class_embeds is 0, expected an integer of at least 1"),
        ({"time_embedding_dim": 0.5}, "time_embedding_dim is 0.5, expected an integer"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups is 3, expected a divisor of the 4 channels"),
        ({"sample_size": [8]}, "sample_size is (8,), expected a side or height and width"),
        ({"cross_attention_dim": 768}, "unknown option cross_attention_dim=768"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0, expected"),
        ({"norm_eps": "1"}, "norm_eps is '1', expected a number"),
        ({"freq_shift": "x"}, "freq_shift is 'x', expected an integer"),
        ({"add_attention": 1}, "add_attention is 1, expected true or false"),
        ({"block_out_channels": 5}, "block_out_channels is 5, expected a list"),
        ({"layers_per_block": 0}, "layers_per_block is 0, expected"),
        ({"attention_head_dim": 3, "add_attention": True}, "attention_head_dim"),
    ],
)
def test_architecture_that_is_not_supported_is_refused_by_name(unet_config, changes: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        UNet2DConfig.from_dict(unet_config.to_dict() | changes)


def test_lists_in_python_are_tuples(unet_config):
    lists = {name: list(value) for name, value in vars(unet_config).items() if isinstance(value, tuple)}
    assert lists.keys() >= {"block_out_channels", "down_block_types", "up_block_types"}
    made = dataclasses.replace(unet_config, sample_size=[8, 8], **lists)
    assert made == dataclasses.replace(unet_config, sample_size=(8, 8))
    hash(made)


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
