"""Parity with the installed diffusers, run live: `pip install torch diffusers`, then `-m torch`.

The same comparisons as test_golden.py, on settings drawn at random, and the files both sides write.
"""

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.pipelines.deprecated.repaint import pipeline_repaint  # noqa: E402
from golden import record_diffusers as reference  # noqa: E402
from golden import replay  # noqa: E402

import repaint_jax as rp  # noqa: E402
from repaint_jax.models import UNet2DConfig, load_unet2d, save_unet2d  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    # Random settings may start from pure noise in the middle of the chain, and say so.
    pytest.mark.filterwarnings("ignore:num_inference_steps=.* starts from pure noise"),
]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def random_settings(rng: np.random.Generator) -> tuple[dict[str, Any], list[int]]:
    """A scheduler config, and [num_inference_steps, jump_length, jump_n_sample] that fit it."""
    num_train_timesteps = int(rng.choice([50, 333, 1000]))
    num_inference_steps = int(rng.integers(2, min(num_train_timesteps, 120) + 1))
    config = {
        "num_train_timesteps": num_train_timesteps,
        "beta_schedule": str(rng.choice(BETA_SCHEDULES)),
        "beta_end": float(rng.uniform(0.01, 0.03)),
        "eta": float(rng.choice([0.0, rng.uniform(), 1.0])),
        "clip_sample": bool(rng.integers(2)),
    }
    return config, [
        num_inference_steps,
        int(rng.integers(1, num_inference_steps)),
        int(rng.integers(1, 12)),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_timesteps_are_diffusers_entry_by_entry(seed: int) -> None:
    config, schedule = random_settings(np.random.default_rng(seed))
    np.testing.assert_array_equal(
        replay.timesteps(rp.RePaintSchedulerConfig(**config), *schedule),
        reference.reference_timesteps(config, *schedule),
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("soft_mask", [False, True])
def test_step_equals_diffusers_given_its_noise(seed: int, soft_mask: bool) -> None:
    rng = np.random.default_rng(seed)
    settings, (num_inference_steps, *_) = random_settings(rng)
    config = rp.RePaintSchedulerConfig.diffusers(**settings)
    n = config.num_train_timesteps // num_inference_steps
    for level in rng.integers(0, num_inference_steps, 4):
        timestep = int(n * level)
        inputs = reference.random_step_inputs(rng, settings, timestep, soft_mask)
        replay.assert_steps_agree(
            replay.step(config, num_inference_steps, timestep, inputs),
            reference.reference_step(settings, num_inference_steps, timestep, inputs),
            config,
            timestep,
            (settings, num_inference_steps, timestep),
        )


@pytest.mark.parametrize("seed", range(20))
def test_legacy_undo_samples_the_gaussian_of_diffusers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    config, (num_inference_steps, *_) = random_settings(rng)
    n = config["num_train_timesteps"] // num_inference_steps
    timestep = int(n * rng.integers(0, num_inference_steps - 1))
    np.testing.assert_allclose(
        replay.undo(rp.RePaintSchedulerConfig.diffusers(**config), num_inference_steps, timestep),
        reference.reference_undo(config, num_inference_steps, timestep),
        rtol=1e-5,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("run", [replay.chain_by_hand, replay.chain_by_inpaint])
def test_noiseless_chain_ends_where_diffusers_does(run, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config, schedule = random_settings(rng)
    inputs = reference.random_chain_inputs(rng)
    np.testing.assert_allclose(
        run(rp.RePaintSchedulerConfig.diffusers(**config), schedule, inputs),
        reference.reference_chain(config, *schedule, inputs),
        atol=1e-3,
    )


def test_scheduler_files_are_read_by_either_side(tmp_path: Path) -> None:
    settings = {"num_train_timesteps": 70, "beta_schedule": "sigmoid", "eta": 0.3}
    theirs = reference.make_scheduler(settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = rp.RePaintSchedulerConfig.from_pretrained(tmp_path / "theirs")
    assert ours == rp.RePaintSchedulerConfig(**settings)
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.RePaintScheduler.from_pretrained(tmp_path / "ours")
    assert {name: again.config[name] for name in settings} == settings
    assert torch.equal(again.betas, theirs.betas)


NCSNPP = reference.NCSNPP | {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
SMALL = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
UNETS: dict[str, dict[str, Any]] = {
    "grey_ddpm": SMALL
    | {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "rgb_defaults": SMALL
    | {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
    "scaled_mid_block": SMALL
    | {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "mid_block_scale_factor": 2**0.5,
        "attention_head_dim": None,
        "freq_shift": 1,
    },
    "no_attention": SMALL
    | {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
    },
    "attention_everywhere": SMALL
    | {
        "block_out_channels": (8, 16, 24, 32),
        "down_block_types": ("AttnDownBlock2D",) * 4,
        "up_block_types": ("AttnUpBlock2D",) * 4,
        "downsample_padding": 0,
        "mid_block_scale_factor": 2**0.5,
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "learned_variance": SMALL
    | {
        "out_channels": 6,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
    **{name: SMALL | options for name, options in reference.UNET_OPTIONS.items()},
    "ncsnpp": NCSNPP,
    "skip_blocks_before_others": NCSNPP
    | {
        "down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "positional",
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    },
    "two_layers_of_skip_blocks": NCSNPP
    | {
        "block_out_channels": (12, 16, 48),
        "down_block_types": ("SkipDownBlock2D",) * 3,
        "up_block_types": ("SkipUpBlock2D",) * 3,
        "layers_per_block": 2,
        "center_input_sample": True,
        "num_class_embeds": 5,
    },
    "grey_with_skip_blocks_last": NCSNPP
    | {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D"),
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
    "resnets_on_three_levels": SMALL
    | {
        "block_out_channels": (16, 24, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 2,
        "downsample_type": "resnet",
        "mid_block_scale_factor": 2**0.5,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "num_class_embeds": 7,
    },
}


def compare_unets(module: Any, unet: Any, sample: np.ndarray) -> None:
    labels = reference.example_class_labels(unet)
    outputs = []
    for timestep in reference.example_timesteps(unet.config):
        outputs.append(reference.reference_unet(unet, sample, timestep, labels))
        output = replay.unet(module, sample, timestep, labels)
        assert replay.relative_difference(output, outputs[-1]) < 2e-5
    # Were the model deaf to the timestep, its embedding would have gone unchecked.
    for one, other in itertools.pairwise(outputs):
        assert replay.relative_difference(one, other) > 1e-2
    if labels is not None:
        other = reference.reference_unet(unet, sample, timestep, labels[::-1].copy())
        assert replay.relative_difference(outputs[-1], other) > 1e-2


@pytest.mark.parametrize("name", UNETS)
def test_unet_files_are_read_by_either_side(name: str, tmp_path: Path) -> None:
    unet = reference.random_unet(7, **UNETS[name])
    shape = (2, 16, 8, unet.config.in_channels)
    sample = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    unet.save_pretrained(tmp_path / "theirs")
    module = load_unet2d(tmp_path / "theirs")
    compare_unets(module, unet, sample)

    save_unet2d(module, tmp_path / "ours")
    compare_unets(module, diffusers.UNet2DModel.from_pretrained(tmp_path / "ours").eval(), sample)


def test_ncsnpp_gives_the_scores_of_diffusers_at_every_noise_level(tmp_path: Path) -> None:
    unet = reference.random_unet(3, **NCSNPP)
    unet.save_pretrained(tmp_path)
    module = load_unet2d(tmp_path)
    sample = np.random.default_rng(3).standard_normal((2, 16, 8, 3)).astype(np.float32)
    # At these levels both sides round the logarithm alike. One unit in its last place, as at 1348, turns
    # the angles of the embedding by 1e-4.
    for level in (0.01, 0.5, 50.0, 1300.0):
        expected = reference.reference_unet(unet, level * sample, level)
        assert replay.relative_difference(replay.unet(module, level * sample, level), expected) < 2e-5


KINDS = {
    "down_block_types": ("DownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("UpBlock2D", "SkipUpBlock2D"),
}


def is_taken(config: dict[str, Any]) -> bool:
    try:
        UNet2DConfig.from_dict(config)
    except ValueError:
        return False
    return True


def runs_in_diffusers(config: dict[str, Any]) -> bool:
    try:
        unet = diffusers.UNet2DModel(**config).eval()
        reference.reference_unet(unet, np.zeros((1, 16, 16, config["in_channels"]), np.float32), 1)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError):
        return False
    return True


@pytest.mark.parametrize("channels", [3, 1])
def test_mixtures_of_blocks_are_taken_where_diffusers_runs_them(channels: int) -> None:
    taken = []
    for down in itertools.product(KINDS["down_block_types"], repeat=3):
        for up in itertools.product(KINDS["up_block_types"], repeat=3):
            config = {
                "in_channels": channels,
                "out_channels": channels,
                "block_out_channels": (4, 4, 4),
                "down_block_types": down,
                "up_block_types": up,
                "layers_per_block": 1,
                "norm_num_groups": 2,
                "add_attention": False,
            }
            taken.append(is_taken(config))
            assert taken[-1] == runs_in_diffusers(config), config
    assert 0 < sum(taken) < len(taken)


def test_widths_are_taken_where_diffusers_builds_them() -> None:
    taken = []
    kinds = itertools.product(("", "Attn"), repeat=2)
    for (down, up), fine, coarse, groups in itertools.product(
        kinds, (2, 4, 12, 30, 32, 36), (8, 32, 100, 128), (None, 4)
    ):
        config = {
            "in_channels": 3,
            "block_out_channels": (fine, coarse),
            "down_block_types": (f"{down}SkipDownBlock2D", "SkipDownBlock2D"),
            "up_block_types": (f"{up}SkipUpBlock2D", "SkipUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": groups,
            "attention_head_dim": None,
            "add_attention": False,
        }
        taken.append(is_taken(config))
        assert taken[-1] == runs_in_diffusers(config), config
    assert 0 < sum(taken) < len(taken)


def test_inpaint_with_a_unet_ends_where_the_diffusers_pipeline_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unet = reference.random_unet(0, sample_size=32, **UNETS["rgb_defaults"])
    with torch.no_grad():  # at full strength a random network is chaotic, and any rounding grows to 1
        unet.conv_out.weight.mul_(0.1)
    original_image = rng.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    mask = (rng.random((1, 32, 32, 1)) < 0.5).astype(np.float32)
    initial_sample = rng.standard_normal((1, 32, 32, 3)).astype(np.float32)

    pipe = diffusers.RePaintPipeline(unet=unet, scheduler=diffusers.RePaintScheduler())
    pipe.set_progress_bar_config(disable=True)
    zeros = np.zeros((1, 3, 32, 32), np.float32)
    start = mock.patch.object(
        pipeline_repaint, "randn_tensor", return_value=reference.channels_first(initial_sample)
    )
    with start, reference.noise_from(itertools.repeat(zeros)):
        expected = pipe(
            reference.channels_first(original_image),
            reference.channels_first(mask),
            num_inference_steps=20,
            jump_length=5,
            jump_n_sample=3,
            output_type="np",
        ).images

    unet.save_pretrained(tmp_path)
    model_fn, params = rp.nnx_model_fn(load_unet2d(tmp_path))
    state = rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig.diffusers()), 20, 5, 3)
    with replay.noise_from(0.0):
        inpainted = rp.inpaint(
            state,
            model_fn,
            params,
            jnp.asarray(original_image),
            jnp.asarray(mask),
            replay.KEY,
            initial_sample=jnp.asarray(initial_sample),
        )
    np.testing.assert_allclose(np.clip(np.asarray(inpainted) / 2 + 0.5, 0, 1), expected, atol=1e-3)
