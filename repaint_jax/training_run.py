"""Train a `UNet2D` in a folder with settings, checkpoints, log and samples, as `repaint-jax train` does."""

import dataclasses
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax.files import StrPath, read_json, whole_file, whole_folder, write_json
from repaint_jax.models import UNet2D, UNet2DConfig, load_autoencoder
from repaint_jax.models.autoencoder import Autoencoder
from repaint_jax.models.diffusion_model import DiffusionModel
from repaint_jax.models.families import Family, Scheduler, config_of
from repaint_jax.pictures.images import save_picture
from repaint_jax.pictures.plots import square_grid
from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.devices import replicate
from repaint_jax.sampling.inpaint import inpaint
from repaint_jax.sampling.keys import seed_key
from repaint_jax.sampling.repaint_schedule import set_timesteps
from repaint_jax.training import (
    OBJECTIVES,
    TrainingConfig,
    TrainState,
    check_batches,
    check_steps_left,
    last_step_at_highest_rate,
    objective_of,
    train,
)

_SIDES = 4  # sides of a small architecture's samples are multiples of it


def train_unet2d(
    config: TrainingConfig,
    images: NDArray[np.uint8],
    output: StrPath,
    *,
    unet_config: UNet2DConfig | None = None,
    initial_model: StrPath | None = None,
    autoencoder: StrPath | None = None,
    checkpoint_every: int = 1000,
) -> Path:
    """Train a `UNet2D` and export it, as `repaint-jax train` does.

    If the folder holds an unfinished run with the same settings, the training resumes from its last
    checkpoint.

    Args:
        config: the settings of the run.
        images: the training images, [N, H, W, C] uint8.
        output: the folder for `checkpoints/`, `samples/` (a grid drawn at each checkpoint), `log.csv`,
            `training_config.json` and the exported `model/`.
        unet_config: the architecture. If None, `small_unet_config` for the images.
        initial_model: a model to start from, as in `RePaintPipeline.from_pretrained`. The run takes its
            weights, architecture, noise schedule and autoencoder.
        autoencoder: the autoencoder in whose latents the model is trained, as in
            `RePaintPipeline.from_pretrained`. None means a model of pixels.
        checkpoint_every: the number of steps between checkpoints.

    Returns:
        The folder of the exported model, in diffusers' layout.
    """
    check_int("checkpoint_every", checkpoint_every, 1)
    output = Path(output)
    model = _initial_model(config, images.shape[1:], unet_config, initial_model, autoencoder)
    check_batches(config, images)
    digests = {
        "data": ("pictures", [images]),
        "initial_model": ("initial model", None if initial_model is None else model.params),
        "autoencoder": ("autoencoder", model.latents),
    }
    scale_of_latents = None if model.latents is None else model.latents.config.latents_shift_and_scale
    steps_done = _check_same_run(
        output,
        {
            "training": dataclasses.asdict(config),
            "unet": _unet_config(model).to_dict(),
            "scheduler": model.scheduler.to_dict(),
            **{name: {f"digest of the {what}": _digest(part)} for name, (what, part) in digests.items()},
            "latents": {"shift and scale of the latents": scale_of_latents},
        },
    )
    _forget_later_steps(output / "log.csv", steps_done)
    sampler = set_timesteps(model.state, 50, jump_n_sample=1)
    (output / "samples").mkdir(exist_ok=True)

    def draw_samples(state: TrainState) -> None:
        # Inpainting without known pixels samples from the prior.
        nothing = jnp.zeros((16, *model.latent_shape))
        ema_params = replicate(state.ema_params, jax.local_devices()[:1])
        samples = inpaint(sampler, model.model_fn, ema_params, nothing, nothing, seed_key(config.seed))
        samples = samples if model.latents is None else model.latents.decode(samples)
        save_picture(square_grid(samples), output / "samples" / f"step_{int(state.step):07d}.png")

    with (
        tqdm(total=config.num_steps, unit="step", desc="training") as bar,
        (output / "log.csv").open("a", encoding="utf-8") as log,
    ):
        if log.tell() == 0:
            print("step,loss,time", file=log)
        recent_losses: list[float] = []

        def on_step(done: int, loss: float) -> None:
            recent_losses.append(loss)
            bar.update(done - bar.n)
            if done % 50 == 0:
                mean_loss = sum(recent_losses) / len(recent_losses)
                recent_losses.clear()
                bar.set_postfix(loss=f"{mean_loss:.4f}")
                print(
                    f"{done},{mean_loss:.5f},{datetime.now():%Y-%m-%d %H:%M:%S}",
                    file=log,
                    flush=True,
                )

        state = train(
            config,
            model.model_fn,
            model.params,
            images,
            noise_levels.alphas_cumprod(model.state.config.betas),
            output / "checkpoints",
            loss_weights=None if model.family is None else model.family.loss_weights(),
            encode=None if model.latents is None else model.latents.encode,
            checkpoint_every=checkpoint_every,
            on_step=on_step,
            on_checkpoint=draw_samples,
        )
    trained = dataclasses.replace(model, params=state.ema_params)
    with whole_folder(output / "model") as unfinished:
        trained.save_pretrained(unfinished, dtype=np.float16)
    return output / "model"


def small_unet_config(image_shape: tuple[int, ...]) -> UNet2DConfig:
    """Return a small architecture of three levels. The images' sides must be multiples of four."""
    height, width, channels = image_shape
    if height % _SIDES or width % _SIDES:
        raise ValueError(f"images are {height}x{width}, expected sides that are multiples of {_SIDES}")
    return UNet2DConfig(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=8,
    )


def _initial_model(
    config: TrainingConfig,
    image_shape: tuple[int, ...],
    unet_config: UNet2DConfig | None,
    initial_model: StrPath | None,
    autoencoder: StrPath | None,
) -> DiffusionModel:
    """Make or load the model that a run starts from, and check that it fits the images."""
    if initial_model is None:
        loaded = None if autoencoder is None else load_autoencoder(autoencoder)
        if unet_config is None:
            unet_config = small_unet_config(
                image_shape if loaded is None else _latent_shape(loaded, image_shape)
            )
        _check_trainable(config, unet_config, config.scheduler())
        unet = UNet2D(unet_config, rngs=nnx.Rngs(seed_key(config.seed)))
        model = DiffusionModel.from_unet2d(unet, config.scheduler(), autoencoder=loaded)
    elif unet_config is not None:
        raise ValueError("unet_config is given and initial_model is given, expected one of the two")
    else:
        model = DiffusionModel.from_pretrained(initial_model, autoencoder=autoencoder)
        _check_same_objective(config, model.scheduler)
        _check_trainable(config, _unet_config(model), model.scheduler)
    if image_shape != model.image_shape:
        hint = {(3, 1): "; `grey` reads pictures as grey", (1, 3): "; pictures have colours without `grey`"}
        raise ValueError(
            f"images have shape {image_shape}, expected the model's {model.image_shape} (height, width, "
            f"channels){hint.get((image_shape[-1], model.image_shape[-1]), '')}"
        )
    return model


def _unet_config(model: DiffusionModel) -> UNet2DConfig:
    assert model.unet_config is not None  # it is a UNet2D's
    return model.unet_config


def _latent_shape(autoencoder: Autoencoder, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, _ = image_shape
    multiple = _SIDES * autoencoder.factor
    if height % multiple or width % multiple:
        raise ValueError(
            f"images are {height}x{width}, expected sides that are multiples of {multiple}: {_SIDES} times "
            f"the {autoencoder.factor} pixels of a latent's side"
        )
    return height // autoencoder.factor, width // autoencoder.factor, autoencoder.latent_channels


def _check_same_objective(config: TrainingConfig, scheduler: Scheduler) -> None:
    """Raise if a model was trained for something else than what the run is to teach it."""
    objective, prediction_type = objective_of(scheduler), config_of(scheduler).prediction_type
    if objective is None:
        raise ValueError(
            f"initial_model is one with the scheduler {scheduler.to_dict()['_class_name']}, expected a "
            f"model of one of the objectives {', '.join(OBJECTIVES)}"
        )
    if objective != config.objective:
        raise ValueError(
            f"objective is {config.objective!r}, expected {objective!r}, that of `initial_model`"
        )
    if prediction_type != config.prediction_type:
        raise ValueError(
            f"prediction_type is {config.prediction_type!r}, expected {prediction_type!r}, that of "
            "`initial_model`"
        )


def _check_trainable(config: TrainingConfig, unet: UNet2DConfig, scheduler: Scheduler) -> None:
    """Raise if an architecture cannot be trained on pictures alone for the run's objective."""
    if unet.is_class_conditional:
        raise ValueError("the model is class-conditional, expected one that is not: training has no labels")
    embedding, levels = unet.time_embedding_type, config_of(scheduler).num_train_timesteps
    if embedding == "fourier" or (embedding == "learned" and isinstance(scheduler, Family)):
        raise ValueError(
            f"time_embedding_type is {embedding!r}, expected 'positional' for the objective "
            f"{config.objective!r}"
        )
    if embedding == "learned" and unet.num_train_timesteps != levels:
        raise ValueError(
            f"num_train_timesteps is {unet.num_train_timesteps}, expected the scheduler's {levels}"
        )
    if unet.dropout:
        raise ValueError(f"dropout is {unet.dropout}, expected 0: it is not supported in training")
    if unet.out_channels != unet.in_channels:
        raise ValueError(f"out_channels is {unet.out_channels}, expected in_channels={unet.in_channels}")


def _check_same_run(output: Path, settings: dict[str, dict[str, Any]]) -> int:
    """Write the run's settings next to its checkpoints, or raise if they differ from the recorded ones.

    Returns:
        The number of steps done.
    """
    settings = json.loads(json.dumps(settings))
    path = output / "training_config.json"
    steps_done = max(
        (int(one.name) for one in (output / "checkpoints").glob("*") if one.name.isdecimal()), default=0
    )
    if path.exists() and steps_done:
        # Earlier versions recorded neither the last three sections nor settings that they did not have.
        # Their runs may still be resumed.
        before = {**settings, **read_json(path)}
        before["training"] = {**dataclasses.asdict(TrainingConfig()), **before["training"]}
        for section in settings:
            for name, value in settings[section].items():
                earlier = before[section].get(name)
                if name != "num_steps" and earlier != value:
                    raise ValueError(
                        f"{output} holds a run with {name}={earlier!r}, expected the "
                        f"same to resume it, not {value!r}"
                    )
        check_steps_left(settings["training"]["num_steps"], steps_done)
        _check_extended(before["training"], settings["training"]["num_steps"], steps_done)
    with whole_file(path) as unfinished:
        write_json(unfinished, settings)
    return steps_done


def _check_extended(before: dict[str, Any], num_steps: int, steps_done: int) -> None:
    """Raise if a run would become longer although its learning rate has already begun to decay."""
    last_at_highest = last_step_at_highest_rate(before["num_steps"], before["decay_fraction"])
    if num_steps > before["num_steps"] and steps_done > last_at_highest + 1:
        raise ValueError(
            f"num_steps is {num_steps}, expected the run's own {before['num_steps']}: after {steps_done} "
            "steps its learning rate has begun to decay (`initial_model` starts a new run from its model)"
        )


def _forget_later_steps(log: Path, steps_done: int) -> None:
    """Remove the log's rows after the last checkpoint, from which a killed run resumes."""
    if not log.exists() or not log.stat().st_size:
        return
    head, *rows = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # A crash of the machine can leave a half-written row, or zeros in its place.
    whole = [row for row in rows if re.fullmatch(r"\d+,[^,\0]+,[^,\0]+\n", row)]
    with whole_file(log) as unfinished:
        kept = [row for row in whole if int(row.split(",")[0]) <= steps_done]
        unfinished.write_text("".join([head, *kept]), encoding="utf-8")


def _digest(arrays: Any) -> str | None:
    """Return a digest of a tree of arrays, or None for None."""
    if arrays is None:
        return None
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]
