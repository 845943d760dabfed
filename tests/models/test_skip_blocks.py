"""UNet2D with the Skip blocks of NCSN++: filters, gradients, dtypes, old files, and what it refuses.

That it computes what diffusers' UNet2DModel computes is in test_golden.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_files import WEIGHTS, assert_same_parameters, edit_weights
from safetensors.numpy import load_file
from test_models import NCSNPP_CONFIG

import repaint_jax as rp
from repaint_jax import training
from repaint_jax.models import UNet2D, UNet2DConfig, load_unet2d, save_unet2d
from repaint_jax.models.resampling import fir_downsampled, fir_upsampled
from repaint_jax.sampling import noise_levels

SMALL = UNet2DConfig(
    sample_size=8,
    block_out_channels=(4, 8),
    down_block_types=("SkipDownBlock2D",) * 2,
    up_block_types=("SkipUpBlock2D",) * 2,
    layers_per_block=1,
    mid_block_scale_factor=2**0.5,
    norm_num_groups=None,
    time_embedding_type="fourier",
    add_attention=False,
)


@pytest.fixture(scope="module")
def unet(random_unet) -> UNet2D:
    """To be read only."""
    return random_unet(SMALL)


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)


# The filter


def filtered(x: np.ndarray, padding: int, gain: float) -> np.ndarray:
    """Convolve height and width with the outer product of [1, 3, 3, 1] / 8 with itself, times `gain`."""
    taps = np.array([1, 3, 3, 1]) / 8
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (1, 2))
    return gain * np.einsum("bhwcij,i,j->bhwc", windows, taps, taps)


def test_resampling_is_a_convolution_with_the_filter_of_stylegan2():
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(fir_downsampled(jnp.asarray(x)), filtered(x, 1, 1)[:, ::2, ::2], atol=1e-6)
    between_zeros = np.zeros((2, 4, 12, 3), np.float32)
    between_zeros[:, ::2, ::2] = x
    expected = filtered(between_zeros, 2, 4)[:, :-1, :-1]
    np.testing.assert_allclose(fir_upsampled(jnp.asarray(x)), expected, atol=1e-6)


# The network


call = nnx.jit(lambda module, sample, level: module(sample, level))


def test_a_noise_level_may_be_a_fraction_and_each_image_has_its_own(unet, sample):
    mixed, swapped, low = (
        call(unet, sample, jnp.array(levels)) for levels in ((0.01, 1000), (1000, 0.01), (0.01, 0.01))
    )
    np.testing.assert_allclose(low, np.stack([mixed[0], swapped[1]]), rtol=1e-5)
    assert np.linalg.norm(mixed[1]) < 1e-3 * np.linalg.norm(low[1])


@pytest.mark.slow
def test_in_bfloat16_the_output_is_that_of_float32_to_its_rounding(unet, sample, tmp_path: Path):
    save_unet2d(unet, tmp_path)
    levels = jnp.array([0.3, 40.0])
    expected = call(unet, sample, levels)
    output = call(load_unet2d(tmp_path, dtype=jnp.bfloat16), sample, levels)
    assert output.dtype == jnp.float32
    assert 0 < np.linalg.norm(output - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.slow
def test_training_moves_every_weight(random_unet):
    config = dataclasses.replace(SMALL, time_embedding_type="positional", mid_block_type=None)
    model_fn, params = rp.nnx_model_fn(random_unet(config))
    settings = training.TrainingConfig(num_steps=3, warmup_steps=1, learning_rate=0.01)
    abar = noise_levels.alphas_cumprod(rp.RePaintSchedulerConfig().betas)
    step = training.make_train_step(settings, model_fn, abar)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    state = training.create_train_state(settings, params)
    for _ in range(2):
        state, loss = step(state, images)
    assert np.isfinite(loss)
    for path, moved in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: a != b, params, state.params)):
        assert moved.all(), jax.tree_util.keystr(path)


# Files


@pytest.mark.parametrize("both", [True, False])
def test_frequencies_under_their_old_name_are_read_and_the_new_name_wins(unet, both, tmp_path: Path):
    save_unet2d(unet, tmp_path)
    frequencies = load_file(tmp_path / WEIGHTS)["time_proj.weight"]
    if both:
        edit_weights(tmp_path / WEIGHTS, time_proj__W=frequencies + 1)
    else:
        edit_weights(tmp_path / WEIGHTS, time_proj__W=frequencies, time_proj__weight=None)
    assert_same_parameters(load_unet2d(tmp_path), unet, rtol=0)


@pytest.mark.parametrize("options", [NCSNPP_CONFIG, NCSNPP_CONFIG | {"norm_num_groups": 32}])
def test_config_of_the_published_models_comes_back_from_its_file(options: dict, tmp_path: Path):
    config = UNet2DConfig.from_dict(options)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert UNet2DConfig.from_file(tmp_path / "config.json") == config
    assert config.mid_attention_groups == config.num_groups(128) == 32


# Refusals

ATTENTION = {"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]}
THREE = {
    "block_out_channels": [32, 32, 32],
    "down_block_types": ["SkipDownBlock2D"] * 3,
    "up_block_types": ["SkipUpBlock2D"] * 3,
    "norm_num_groups": 8,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 1}, "in_channels is 1, expected 3: down_block_types has SkipDownBlock2D"),
        ({"out_channels": 6}, "out_channels is 6, expected 3: up_block_types has SkipUpBlock2D"),
        (
            THREE | {"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"]},
            "down_block_types has DownBlock2D before SkipDownBlock2D, expected Skip blocks there",
        ),
        (
            THREE | {"up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D", "AttnUpBlock2D"]},
            "up_block_types has AttnUpBlock2D after AttnSkipUpBlock2D, expected Skip blocks there",
        ),
        (
            {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
            "norm_num_groups is None, expected the groups of the norms in DownBlock2D",
        ),
        (
            ATTENTION,
            "block_out_channels is (4, 8), expected channels that group norms can divide: "
            "AttnSkipDownBlock2D has 8 in 32 groups",
        ),
        (
            {"block_out_channels": [2, 8]},
            "expected channels that group norms can divide: the output has 2 in 0 groups",
        ),
        (
            {"block_out_channels": [100, 100]},
            "expected channels that group norms can divide: SkipUpBlock2D has 200 in 32 groups",
        ),
        ({"norm_num_groups": 0}, "norm_num_groups is 0, expected an integer of at least 1"),
    ],
)
def test_skip_blocks_that_diffusers_cannot_run_are_refused_by_name(changes: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        UNet2DConfig.from_dict(SMALL.to_dict() | changes)
