"""Record what diffusers' RePaintScheduler and UNet2DModel compute, for test_golden.py to replay.

Run once, in an environment with torch and diffusers (the library itself needs neither):

    pip install torch==2.13.0 diffusers==0.42.1 safetensors
    cd tests
    python -m golden.record_diffusers [timesteps] [steps] [unets] ...

It rewrites the named files beside it, or all, byte for byte where the versions are the same (and the
processor, for a network's outputs). Those in the repository were recorded with diffusers 0.42.1 and
torch 2.13.0 (CPU, one thread); each file also says so itself, under `recorded_with`. diffusers is only
called, never copied.

Randomness is taken out of diffusers by replacing its `randn_tensor`, so that a step is a function
of the noise it is given. tests/test_diffusers_live.py runs the same functions on other settings.
"""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import product, repeat
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers import RePaintScheduler, UNet2DModel
from diffusers.schedulers import scheduling_repaint
from golden import weights

HERE = Path(__file__).parent
RECORDED_WITH = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
STEP_SHAPE = (2, 3, 3)  # [H, W, C]
CHAIN_SHAPE = (4, 5, 3)

Config = dict[str, Any]
Module = TypeVar("Module", bound=torch.nn.Module)

# (num_train_timesteps, num_inference_steps, jump_length, jump_n_sample)
SCHEDULES = [
    (1000, 250, 10, 10),  # the paper's
    (1000, 250, 10, 5),
    (1000, 250, 10, 1),
    (1000, 250, 1, 10),
    (1000, 100, 10, 10),
    (1000, 50, 10, 10),
    (1000, 50, 7, 3),
    (1000, 50, 49, 4),  # jump_length = T - 1: a single anchor, at 0
    (1000, 25, 1, 10),
    (1000, 1000, 10, 2),
    (1000, 1000, 999, 2),
    (1000, 300, 10, 10),  # T does not divide num_train_timesteps: starts at 897
    (1000, 600, 10, 3),  # starts at 599
    (1000, 999, 100, 2),
    (1000, 501, 500, 2),
    (4000, 250, 10, 10),
    (100, 100, 10, 10),
    (100, 30, 4, 6),
    (13, 7, 3, 5),
    (10, 10, 9, 10),
    (1000, 1, 10, 1),
    (1000, 2, 1, 3),
    (1000, 3, 2, 2),
    (1000, 3, 1, 1),
    (1, 1, 1, 1),
]
# What only the legacy preset accepts: T is clamped to num_train_timesteps, a jump may outrun T.
LEGACY_SCHEDULES = [
    (1000, 1500, 10, 2),
    (20, 250, 10, 10),
    (1000, 10, 10, 10),
    (1000, 5, 10, 10),
    (1000, 1, 1, 10),
]
TRAINED_BETAS = tuple(float(beta) for beta in np.linspace(0.003, 0.35, 20, dtype=np.float32))
NOISE_CONFIGS: list[Config] = [
    {},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    {"beta_schedule": "sigmoid", "num_train_timesteps": 7},
    {"num_train_timesteps": 20, "trained_betas": TRAINED_BETAS},
]


RESNETS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
CONVOLUTIONS = {
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
CONVOLUTIONS_FIRST = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
ATTENTION = {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2}
RESAMPLE_BY_RESNETS = {"downsample_type": "resnet", "upsample_type": "resnet"}
# Every option that the recorded folder `unet2d` leaves at its default, by itself and with its likes.
UNET_OPTIONS: dict[str, Config] = {
    "defaults": CONVOLUTIONS,
    "resnet_blocks": RESNETS,
    "attention_between_resnets": ATTENTION | RESAMPLE_BY_RESNETS,
    "convolutions_whatever_the_type": CONVOLUTIONS_FIRST | RESAMPLE_BY_RESNETS,
    "scale_shift": CONVOLUTIONS | {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_and_attention_norm": RESNETS
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "attention_norm": CONVOLUTIONS | {"attn_norm_num_groups": 2},
    "fourier_time": CONVOLUTIONS | {"time_embedding_type": "fourier"},
    "learned_time": CONVOLUTIONS | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "time_embedding_dim": CONVOLUTIONS | {"time_embedding_dim": 20},
    "no_middle": CONVOLUTIONS | {"mid_block_type": None},
    "classes": CONVOLUTIONS | {"num_class_embeds": 5},
    "classes_as_timesteps": CONVOLUTIONS | {"class_embed_type": "timestep"},
    "classes_as_fourier_timesteps": CONVOLUTIONS
    | {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    "classes_as_vectors": CONVOLUTIONS | {"class_embed_type": "identity"},
}

NCSNPP = {
    "block_out_channels": (32, 32),
    "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 2**0.5,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "attention_head_dim": None,
}


def make_scheduler(config: Config) -> RePaintScheduler:
    """Build diffusers' scheduler; the one argument it wants as an array is converted."""
    config = dict(config)
    if config.get("trained_betas") is not None:
        config["trained_betas"] = np.asarray(config["trained_betas"], np.float32)
    return RePaintScheduler(**config)


def noise_from(draws: Iterable[np.ndarray]) -> AbstractContextManager:
    """Make diffusers' scheduler draw these arrays, in this order, instead of random numbers."""
    return mock.patch.object(scheduling_repaint, "randn_tensor", side_effect=map(torch.from_numpy, draws))


def reference_timesteps(
    config: Config, num_inference_steps: int, jump_length: int, jump_n_sample: int
) -> np.ndarray:
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(num_inference_steps, jump_length, jump_n_sample)
    return scheduler.timesteps.numpy()


def reference_step(
    config: Config, num_inference_steps: int, timestep: int, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(num_inference_steps)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items() if name != "noise"}
    with noise_from([inputs["noise"]]):
        output = scheduler.step(timestep=timestep, **tensors)
    return {
        "prev_sample": output.prev_sample.numpy(),
        "pred_original_sample": output.pred_original_sample.numpy(),
    }


def reference_undo(config: Config, num_inference_steps: int, timestep: int) -> tuple[float, float]:
    """Read off `undo_step` the scale and std of the Gaussian it samples, N(scale * sample, std^2).

    It is linear in the sample and in each of its n draws, so the answer to a unit in one of them,
    with zeros elsewhere, is that one's coefficient. This is as much as can be compared with an
    implementation that takes the same jump in a single draw.
    """
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(num_inference_steps)
    num_draws = scheduler.config.num_train_timesteps // scheduler.num_inference_steps

    def answer(sample: float, draws: np.ndarray) -> float:
        with noise_from(draws.astype(np.float32).reshape(-1, 1)):
            return float(scheduler.undo_step(torch.tensor([sample]), timestep))

    scale = answer(1.0, np.zeros(num_draws))
    weights = [answer(0.0, unit) for unit in np.eye(num_draws)]
    return scale, float(np.sqrt(np.sum(np.square(weights))))


# The levels the toy model believes in: those of the default schedule, whatever the chain's own.
TOY_ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).astype(np.float32)


def toy_model(sample: np.ndarray, timestep: int) -> np.ndarray:
    """A closed-form epsilon model: smooth, not pixelwise, now and then outside the clip range."""
    a = TOY_ALPHAS_CUMPROD[timestep]
    x0 = 1.4 * np.tanh(0.5 * sample - 0.4 * np.roll(sample, 1, axis=-2) + 0.3)
    return (sample - np.sqrt(a) * x0) / np.sqrt(1 - a)


def reference_chain(
    config: Config,
    num_inference_steps: int,
    jump_length: int,
    jump_n_sample: int,
    inputs: dict[str, np.ndarray],
    model: Callable[[np.ndarray, int], np.ndarray] = toy_model,
) -> np.ndarray:
    """Run the loop of diffusers' RePaintPipeline on the model, every draw replaced by zeros."""
    scheduler = make_scheduler(config)
    scheduler.set_timesteps(num_inference_steps, jump_length, jump_n_sample)
    sample, original_image, mask = (
        torch.from_numpy(inputs[name]) for name in ("sample", "original_image", "mask")
    )
    zeros = np.zeros(sample.shape, np.float32)
    with noise_from(repeat(zeros)):
        t_last = scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < t_last:
                model_output = torch.from_numpy(model(sample.numpy(), int(t)))
                sample = scheduler.step(model_output, t, sample, original_image, mask).prev_sample
            else:
                sample = scheduler.undo_step(sample, t_last)
            t_last = t
    return sample.numpy()


def random_step_inputs(
    rng: np.random.Generator, config: Config, timestep: int, soft_mask: bool
) -> dict[str, np.ndarray]:
    """A sample at its noise level, with a third of its predicted original outside [-1, 1]."""
    a = make_scheduler(config).alphas_cumprod[timestep].item()
    x0 = rng.uniform(-1.5, 1.5, STEP_SHAPE)
    model_output = rng.standard_normal(STEP_SHAPE)
    mask = rng.random((*STEP_SHAPE[:2], 1))
    arrays = {
        "sample": np.sqrt(a) * x0 + np.sqrt(1 - a) * model_output,
        "model_output": model_output,
        "original_image": rng.uniform(-1, 1, STEP_SHAPE),
        "mask": mask if soft_mask else mask.round(),
        "noise": rng.standard_normal(STEP_SHAPE),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def random_chain_inputs(
    rng: np.random.Generator, shape: tuple[int, int, int] = CHAIN_SHAPE
) -> dict[str, np.ndarray]:
    arrays = {
        "sample": rng.standard_normal(shape),
        "original_image": rng.uniform(-1, 1, shape),
        "mask": (rng.random((*shape[:2], 1)) < 0.4),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def random_unet(seed: int, **config: Any) -> UNet2DModel:
    """A UNet2DModel in which no weight is left at a zero or a one that could hide a mistake."""
    torch.manual_seed(seed)
    return perturbed(UNet2DModel(**config))


def perturbed(module: Module, scale: float = 0.05) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.eval()


def fill(module: torch.nn.Module) -> dict[str, list[int]]:
    """Give the module the weights that `weights.drawn` draws; return the shapes, under its names."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = {name: torch.from_numpy(array) for name, array in weights.drawn(shapes).items()}
    module.load_state_dict(tensors)
    module.eval()
    return shapes


def reference_unet(
    unet: UNet2DModel,
    sample: np.ndarray,
    timestep: int | np.ndarray,
    class_labels: np.ndarray | None = None,
) -> np.ndarray:
    """Run the model on a channels-last batch."""
    labels = () if class_labels is None else (torch.from_numpy(class_labels),)
    with torch.no_grad():
        output = unet(channels_first(sample), torch.as_tensor(timestep), *labels).sample
    return output.permute(0, 2, 3, 1).numpy()


def channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def example_timesteps(config: Config) -> list[int]:
    """Four timesteps; the logarithm in Fourier features has none at 0."""
    return [int(config["time_embedding_type"] == "fourier"), 17, 500, 999]


def example_class_labels(unet: UNet2DModel) -> np.ndarray | None:
    """Labels for a batch of two, where the model takes any."""
    if unet.class_embedding is None:
        return None
    if unet.config.class_embed_type == "identity":
        features = unet.time_embedding.linear_2.out_features
        return np.random.default_rng(4).standard_normal((2, features)).astype(np.float32)
    return np.array([1, 3])


def save(
    name: str, cases: list[dict[str, Any]], *, recorded_with: str = RECORDED_WITH, **arrays: np.ndarray
) -> None:
    """Write the arrays, with the settings that made row i of each of them in `cases[i]`."""
    np.savez_compressed(
        HERE / name,
        recorded_with=np.array(recorded_with),
        cases=np.array(json.dumps(cases)),
        **arrays,
    )


def stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def record_timesteps() -> None:
    cases, lists = [], []
    for legacy, schedules in ((False, SCHEDULES), (True, LEGACY_SCHEDULES)):
        for num_train_timesteps, *schedule in schedules:
            config = {"num_train_timesteps": num_train_timesteps}
            cases.append({"config": config, "schedule": schedule, "legacy": legacy})
            lists.append(reference_timesteps(config, *schedule))
    save(
        "timesteps.npz",
        cases,
        timesteps=np.concatenate(lists).astype(np.int16),
        lengths=np.array([len(timesteps) for timesteps in lists]),
    )


def record_noise_levels() -> None:
    arrays = {}
    for i, config in enumerate(NOISE_CONFIGS):
        scheduler = make_scheduler(config)
        arrays[f"betas_{i}"] = scheduler.betas.numpy()
        arrays[f"alphas_cumprod_{i}"] = scheduler.alphas_cumprod.numpy()
    save("noise_levels.npz", [{"config": config} for config in NOISE_CONFIGS], **arrays)


def record_steps() -> None:
    rng = np.random.default_rng(0)
    # The first timestep of the ladder, two inside it, the last but one, and the last (t = 0).
    ladders = [
        ({}, 250, (996, 500, 36, 4, 0)),
        ({}, 1000, (999, 400, 1, 0)),
        ({}, 300, (897, 300, 3, 0)),
        ({"beta_schedule": "scaled_linear"}, 50, (980, 200, 20, 0)),
        ({"beta_schedule": "squaredcos_cap_v2"}, 100, (990, 500, 10, 0)),
        ({"beta_schedule": "sigmoid"}, 25, (960, 400, 40, 0)),
        ({"num_train_timesteps": 20, "trained_betas": TRAINED_BETAS}, 5, (16, 8, 4, 0)),
    ]
    cases, inputs, outputs = [], [], []
    for soft_mask, (config, steps, timesteps) in product((False, True), ladders):
        # Soft masks meet every eta and timestep on the first ladder; elsewhere they add nothing.
        for timestep, eta, clip in product(timesteps, (0.0, 0.5, 1.0), (True, False)):
            if soft_mask and (steps != 250 or not clip):
                continue
            settings = {**config, "eta": eta, "clip_sample": clip}
            cases.append(
                {
                    "config": settings,
                    "num_inference_steps": steps,
                    "timestep": timestep,
                    "soft_mask": soft_mask,
                }
            )
            inputs.append(random_step_inputs(rng, settings, timestep, soft_mask))
            outputs.append(reference_step(settings, steps, timestep, inputs[-1]))
    save("steps.npz", cases, **stack(inputs), **stack(outputs))


def record_undos() -> None:
    cases, gaussians = [], []
    for config in NOISE_CONFIGS[:4]:
        for steps, timesteps in (
            (1000, (0, 1, 500, 998)),
            (300, (0, 300, 894)),
            (250, (0, 36, 500, 992)),
            (25, (0, 80, 920)),
        ):
            for timestep in timesteps:
                cases.append({"config": config, "num_inference_steps": steps, "timestep": timestep})
                gaussians.append(reference_undo(config, steps, timestep))
    scales, stds = np.array(gaussians).T
    save("undos.npz", cases, scale=scales, std=stds)


def record_chains() -> None:
    rng = np.random.default_rng(1)
    cases, inputs, outputs = [], [], []
    for config, schedule in (
        ({}, (50, 5, 3)),
        ({"eta": 1.0}, (50, 5, 3)),
        ({"clip_sample": False}, (50, 5, 3)),
        ({}, (100, 10, 10)),
        ({"eta": 0.5, "beta_schedule": "sigmoid"}, (100, 10, 10)),
    ):
        cases.append({"config": config, "schedule": schedule})
        inputs.append(random_chain_inputs(rng))
        outputs.append(reference_chain(config, *schedule, inputs[-1]))
    save("chains.npz", cases, **stack(inputs), inpainted=np.stack(outputs))


def record_unet() -> None:
    unet = random_unet(
        0,
        sample_size=(12, 8),
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        norm_eps=1e-6,
        attention_head_dim=8,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        mid_block_scale_factor=2**0.5,
    )
    unet.save_pretrained(HERE / "unet2d")
    timesteps = (0, 10, 500, 999)
    sample = np.random.default_rng(2).standard_normal((2, 12, 8, 3)).astype(np.float32)
    save(
        "unet2d.npz",
        [{"timestep": timestep} for timestep in timesteps],
        sample=sample,
        model_output=np.stack([reference_unet(unet, sample, t) for t in timesteps]),
    )


def record_unets() -> None:
    small = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    record_networks("unets.npz", {name: small | options for name, options in UNET_OPTIONS.items()})


def record_ncsnpp() -> None:
    record_networks("ncsnpp.npz", {"ncsnpp": NCSNPP})


def record_networks(file: str, networks: dict[str, Config]) -> None:
    """Each model sees the same two pictures at its first two timesteps and again at its last two."""
    sample = np.random.default_rng(3).standard_normal((2, 8, 8, 3)).astype(np.float32)
    sample = np.concatenate([sample, sample])
    cases, outputs = [], []
    for name, options in networks.items():
        unet = UNet2DModel(sample_size=8, **options)
        shapes = fill(unet)
        timesteps = example_timesteps(unet.config)
        labels = example_class_labels(unet)
        if labels is not None:
            labels = np.concatenate([labels, labels])
        cases.append(
            {
                "name": name,
                "config": json.loads(unet.to_json_string()),
                "shapes": shapes,
                "timesteps": timesteps,
                "class_labels": None if labels is None else labels.tolist(),
            }
        )
        outputs.append(reference_unet(unet, sample, np.array(timesteps), labels))
    save(file, cases, sample=sample, model_output=np.stack(outputs))


RECORDERS = {
    "timesteps": record_timesteps,
    "noise_levels": record_noise_levels,
    "steps": record_steps,
    "undos": record_undos,
    "chains": record_chains,
    "unet2d": record_unet,
    "unets": record_unets,
    "ncsnpp": record_ncsnpp,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for recorder in sys.argv[1:] or RECORDERS:
        RECORDERS[recorder]()
