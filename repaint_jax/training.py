"""Train an unconditional diffusion model from images (Ho et al. 2020, arXiv 2006.11239, algorithm 1).

Everything random in a step follows from the seed and the step's number, and everything that training
changes is in `TrainState`, so a run that was stopped and resumed ends with the same weights.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import ArrayLike
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax import noise
from repaint_jax.checks import check_int
from repaint_jax.config import PREDICTION_TYPES, RePaintSchedulerConfig
from repaint_jax.devices import replicate, shard_batch
from repaint_jax.files import read_json, whole_file, whole_folder, write_json
from repaint_jax.images import save_picture, uint8_to_array
from repaint_jax.inpaint import ModelFn, inpaint
from repaint_jax.keys import check_seed, seed_key
from repaint_jax.models import UNet2D, UNet2DConfig, nnx_model_fn
from repaint_jax.plots import square_grid
from repaint_jax.pretrained import load_pretrained, save_pretrained
from repaint_jax.scheduler import create_state, set_timesteps

Params = Any

TIMESTEP_DENSITIES = ("uniform", "lognormal")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a training run is made of; two runs with equal values give equal weights.

    Attributes:
        num_steps: optimiser steps in all.
        batch_size: images a step.
        learning_rate: the highest; reached by a linear warm-up, kept, and brought to zero by a cosine
            over the last `decay_fraction` of the steps. A run stopped before the decay can therefore be
            resumed with more steps.
        warmup_steps: length of the warm-up.
        decay_fraction: share of the steps, in [0, 1], over which the learning rate decays.
        max_grad_norm: gradients are scaled down to this global norm.
        ema_decay: decay of the moving average of the weights, which is what gets exported.
        prediction_type: what the network learns: the noise, the clean sample, or
            v = sqrt(abar) z - sqrt(1 - abar) x_0 (Salimans and Ho 2022, arXiv 2202.00512).
        timestep_density: "uniform" as in DDPM, or "lognormal": ln sigma normal with mean -0.5 and
            standard deviation 1.5, after Karras et al. 2022 (arXiv 2206.00364, table 1), with one step
            in ten uniform so that no timestep is left untrained.
        random_flip: mirror half of the images of an epoch, left to right.
        random_shift: move every image by up to so many pixels along each axis, anew in every epoch; the
            pixels of its edge are repeated.
        seed: of the weights, the order of the images, the timesteps and the noise.
    """

    num_steps: int = 20_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    decay_fraction: float = 0.2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    prediction_type: str = "epsilon"
    timestep_density: str = "uniform"
    random_flip: bool = False
    random_shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            check_int(name, getattr(self, name), 1)
        for name in ("warmup_steps", "random_shift"):
            check_int(name, getattr(self, name), 0)
        check_seed(self.seed)
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        for name in ("decay_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}, "
                f"expected one of {', '.join(PREDICTION_TYPES)}"
            )
        if self.timestep_density not in TIMESTEP_DENSITIES:
            raise ValueError(
                f"timestep_density is {self.timestep_density!r}, "
                f"expected one of {', '.join(TIMESTEP_DENSITIES)}"
            )


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array  # [] int32: steps done
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Linear warm-up, constant, cosine decay to zero."""
    last_at_highest = _last_at_highest(config.num_steps, config.decay_fraction)
    decay = optax.join_schedules(
        [
            optax.constant_schedule(config.learning_rate),
            optax.cosine_decay_schedule(config.learning_rate, config.num_steps - last_at_highest),
        ],
        [last_at_highest],
    )
    if not config.warmup_steps:
        return decay
    return lambda step: decay(step) * jnp.minimum(1.0, step / config.warmup_steps)


def _last_at_highest(num_steps: int, decay_fraction: float) -> int:
    """Return the last step before the learning rate decays."""
    return num_steps - max(1, round(num_steps * decay_fraction))


def optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Adam with clipped gradients."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.adam(learning_rate_schedule(config)))


def create_train_state(config: TrainingConfig, params: Params) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, params, optimizer(config).init(params))


def timestep_probabilities(density: str, alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each training timestep under one of `TIMESTEP_DENSITIES`."""
    uniform = np.full(len(alphas_cumprod), 1 / len(alphas_cumprod))
    if density == "uniform":
        return uniform
    log_sigma = noise.log_sigma(alphas_cumprod)
    lognormal = np.exp(-0.5 * ((log_sigma + 0.5) / 1.5) ** 2) * np.gradient(log_sigma)
    return 0.9 * lognormal / lognormal.sum() + 0.1 * uniform


def make_train_step(
    config: TrainingConfig, model_fn: ModelFn, alphas_cumprod: NDArray[np.float64]
) -> Callable[[TrainState, ArrayLike], tuple[TrainState, jax.Array]]:
    """Build the jitted `train_step(state, images) -> (state, loss)`.

    `images` is [B, H, W, C], floating, in [-1, 1]; the loss is the mean squared error of the prediction.
    """
    tx = optimizer(config)
    signal = jnp.asarray(np.sqrt(alphas_cumprod), jnp.float32)
    noise_level = jnp.asarray(np.sqrt(1 - alphas_cumprod), jnp.float32)
    log_probabilities = jnp.log(
        jnp.asarray(timestep_probabilities(config.timestep_density, alphas_cumprod), jnp.float32)
    )

    def loss_fn(params: Params, images: jax.Array, key: jax.Array) -> jax.Array:
        timestep_key, noise_key = jax.random.split(key)
        timesteps = jax.random.categorical(timestep_key, log_probabilities, shape=images.shape[:1])
        z = jax.random.normal(noise_key, images.shape, images.dtype)
        a, s = signal[timesteps, None, None, None], noise_level[timesteps, None, None, None]
        target = {"epsilon": z, "sample": images, "v_prediction": a * z - s * images}
        prediction = model_fn(params, a * images + s * z, timesteps)
        return jnp.mean(jnp.square(prediction - target[config.prediction_type]))

    @jax.jit
    def train_step(state: TrainState, images: ArrayLike) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(seed_key(config.seed), state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, images, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average follows the weights closely instead of remembering their start.
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        return TrainState(state.step + 1, params, ema_params, opt_state), loss

    return train_step


def batches(
    config: TrainingConfig, images: NDArray[np.uint8], first_step: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Batches in [-1, 1] from step `first_step` on, for ever; every epoch in an order of its own."""
    per_epoch = len(images) // config.batch_size
    epoch, position = divmod(first_step, per_epoch)
    while True:
        rng = np.random.default_rng((config.seed, epoch))
        order = rng.permutation(len(images))
        flipped = config.random_flip & (rng.random(len(images)) < 0.5)
        shifts = rng.integers(-config.random_shift, config.random_shift, (len(images), 2), endpoint=True)
        for batch in range(position, per_epoch):
            chosen = slice(batch * config.batch_size, (batch + 1) * config.batch_size)
            pictures = images[order[chosen]]
            mirrored = flipped[chosen, None, None, None]
            pictures = np.where(mirrored, pictures[:, :, ::-1], pictures)
            yield uint8_to_array(_shifted(pictures, shifts[chosen]))
        epoch, position = epoch + 1, 0


def _shifted(pictures: NDArray[np.uint8], shifts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Move each picture [H, W, C] by its shift down and to the right."""
    rows, columns = (np.arange(side) for side in pictures.shape[1:3])
    rows = np.clip(rows - shifts[:, :1], 0, len(rows) - 1)
    columns = np.clip(columns - shifts[:, 1:], 0, len(columns) - 1)
    number = np.arange(len(pictures))[:, None, None]
    return pictures[number, rows[:, :, None], columns[:, None, :]]


def train(
    config: TrainingConfig,
    model_fn: ModelFn,
    params: Params,
    images: NDArray[np.uint8],
    alphas_cumprod: NDArray[np.float64],
    checkpoint_dir: Path,
    *,
    checkpoint_every: int = 1000,
    on_step: Callable[[int, float], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train from the newest checkpoint in `checkpoint_dir`, or from `params` where there is none.

    Every batch is divided among the local devices, which add up their gradients. Their number changes
    results by rounding only, as sums are taken in another order.

    Args:
        config: the run; after a resume only `num_steps` may differ, and only before its decay began.
        model_fn: `model_fn(params, sample, timesteps)`, samples [B, H, W, C], timesteps [B] int32.
        params: initial weights.
        images: [N, H, W, C] uint8.
        alphas_cumprod: [num_train_timesteps], decreasing in (0, 1).
        checkpoint_dir: where Orbax keeps the last two states.
        checkpoint_every: steps between checkpoints; the last step is always one.
        on_step: called as `on_step(steps_done, loss)` after each step.
        on_checkpoint: called after each checkpoint, for instance to draw samples.

    Returns:
        The state after `config.num_steps` steps; `ema_params` are the weights to use.

    Raises:
        ValueError: on images that are too few, and more steps done already than num_steps.
        FloatingPointError: the loss is not finite; the last checkpoint is of before.
    """
    check_int("checkpoint_every", checkpoint_every, 1)
    _check_batches(config, images)
    train_step = make_train_step(config, model_fn, alphas_cumprod)
    state = replicate(create_train_state(config, params))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(checkpoint_dir.absolute(), options=options) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is not None:
            state = checkpoints.restore(latest, args=ocp.args.StandardRestore(state))
        first_step = int(state.step)
        _check_steps_left(config.num_steps, first_step)
        for step, batch in zip(
            range(first_step, config.num_steps),
            batches(config, images, first_step),
            strict=False,
        ):
            state, mean_loss = train_step(state, shard_batch(batch))
            done, loss = step + 1, float(mean_loss)
            if not math.isfinite(loss):  # before a checkpoint replaces the last good one
                raise FloatingPointError(f"the loss is {loss} in step {done}, expected a finite number")
            if on_step is not None:
                on_step(done, loss)
            if done % checkpoint_every == 0 or done == config.num_steps:
                checkpoints.save(done, args=ocp.args.StandardSave(state))
                if on_checkpoint is not None:
                    on_checkpoint(state)
    return state


def train_unet2d(
    config: TrainingConfig,
    images: NDArray[np.uint8],
    output: Path,
    *,
    unet_config: UNet2DConfig | None = None,
    initial_model: str | Path | None = None,
    checkpoint_every: int = 1000,
) -> Path:
    """Train a `UNet2D` and export it, as `repaint-jax train` does; called again, it goes on.

    Args:
        config: the run.
        images: [N, H, W, C] uint8.
        output: folder for `checkpoints/`, `samples/` (a grid drawn at each checkpoint), `log.csv`,
            `training_config.json` and the exported `model/`.
        unet_config: architecture; a small one that fits the images where None.
        initial_model: start from the weights, architecture and noise schedule of this model, given as
            to `RePaintPipeline.from_pretrained`.
        checkpoint_every: steps between checkpoints.

    Returns:
        Folder of the exported model, in diffusers' layout.
    """
    check_int("checkpoint_every", checkpoint_every, 1)
    unet, scheduler_config = _initial_model(config, images.shape[1:], unet_config, initial_model)
    _check_batches(config, images)
    model_fn, params = nnx_model_fn(unet)
    initial_digest = None if initial_model is None else _digest(jax.tree.leaves(params))
    steps_done = _check_same_run(
        output,
        {
            "training": dataclasses.asdict(config),
            "unet": unet.config.to_dict(),
            "scheduler": scheduler_config.to_dict(),
            "data": {"digest of the pictures": _digest([images])},
            "initial_model": {"digest of the initial model": initial_digest},
        },
    )
    _forget_later_steps(output / "log.csv", steps_done)
    sampler = set_timesteps(create_state(scheduler_config), 50, jump_n_sample=1)
    (output / "samples").mkdir(exist_ok=True)

    def draw_samples(state: TrainState) -> None:
        # Inpainting where nothing is known is sampling from the prior.
        nothing = jnp.zeros((16, *images.shape[1:]))
        ema_params = replicate(state.ema_params, jax.local_devices()[:1])
        samples = inpaint(sampler, model_fn, ema_params, nothing, nothing, seed_key(config.seed))
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
            model_fn,
            params,
            images,
            noise.alphas_cumprod(scheduler_config.betas),
            output / "checkpoints",
            checkpoint_every=checkpoint_every,
            on_step=on_step,
            on_checkpoint=draw_samples,
        )
    nnx.update(unet, state.ema_params)
    with whole_folder(output / "model") as unfinished:
        save_pretrained(unfinished, unet, scheduler_config, np.float16)
    return output / "model"


def small_unet_config(image_shape: tuple[int, ...]) -> UNet2DConfig:
    """Return an architecture of three levels for images whose sides are multiples of four."""
    height, width, channels = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"images are {height}x{width}, expected sides that are multiples of 4")
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
    initial_model: str | Path | None,
) -> tuple[UNet2D, RePaintSchedulerConfig]:
    """Make or load the model that a run starts from, and see that it fits the images."""
    if initial_model is None:
        unet = UNet2D(unet_config or small_unet_config(image_shape), rngs=nnx.Rngs(seed_key(config.seed)))
        scheduler_config = RePaintSchedulerConfig(prediction_type=config.prediction_type)
    elif unet_config is not None:
        raise ValueError("unet_config is given beside initial_model, expected one of the two")
    else:
        unet, scheduler_config = load_pretrained(initial_model)
        if scheduler_config.prediction_type != config.prediction_type:
            raise ValueError(
                f"prediction_type is {config.prediction_type!r}, expected that of initial_model, "
                f"{scheduler_config.prediction_type!r}"
            )
    expected = (*unet.config.height_and_width, unet.config.in_channels)
    if image_shape != expected:
        raise ValueError(
            f"images have shape {image_shape}, expected the model's {expected} (height, width, channels)"
        )
    if unet.config.is_class_conditional:
        raise ValueError("the model is class-conditional, expected one that is not: training has no labels")
    embedded = unet.config.num_train_timesteps
    if unet.config.time_embedding_type == "learned" and embedded != scheduler_config.num_train_timesteps:
        raise ValueError(
            f"num_train_timesteps is {embedded}, expected the scheduler's "
            f"{scheduler_config.num_train_timesteps}"
        )
    if unet.config.dropout:
        raise ValueError(f"dropout is {unet.config.dropout}, expected 0: it is not supported in training")
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"out_channels is {unet.config.out_channels}, expected in_channels={unet.config.in_channels}"
        )
    return unet, scheduler_config


def _check_batches(config: TrainingConfig, images: NDArray[np.uint8]) -> None:
    if config.batch_size % jax.local_device_count():
        raise ValueError(
            f"batch_size is {config.batch_size}, expected a multiple of the "
            f"{jax.local_device_count()} devices"
        )
    if len(images) < config.batch_size:
        raise ValueError(f"batch_size is {config.batch_size}, but there are only {len(images)} images")


def _check_same_run(output: Path, settings: dict[str, dict[str, Any]]) -> int:
    """Write the run's settings beside its checkpoints, or refuse to go on with other ones.

    Returns:
        The steps that are done.
    """
    settings = json.loads(json.dumps(settings))
    path = output / "training_config.json"
    steps_done = max(
        (int(one.name) for one in (output / "checkpoints").glob("*") if one.name.isdecimal()), default=0
    )
    if path.exists() and steps_done:
        # Runs begun before the last three were recorded may go on.
        before = {**settings, **read_json(path)}
        for section in settings:
            for name, value in settings[section].items():
                earlier = before[section].get(name)
                if name != "num_steps" and earlier != value:
                    raise ValueError(
                        f"{output} holds a run with {name}={earlier!r}, expected the "
                        f"same to go on with it, not {value!r}"
                    )
        _check_steps_left(settings["training"]["num_steps"], steps_done)
        _check_extended(before["training"], settings["training"]["num_steps"], steps_done)
    with whole_file(path) as unfinished:
        write_json(unfinished, settings)
    return steps_done


def _check_steps_left(num_steps: int, steps_done: int) -> None:
    if steps_done > num_steps:
        raise ValueError(
            f"num_steps is {num_steps}, expected at least the {steps_done} steps that are done"
        )


def _check_extended(before: dict[str, Any], num_steps: int, steps_done: int) -> None:
    """Refuse to lengthen a run whose learning rate has begun to fall to the end that it had."""
    last_at_highest = _last_at_highest(before["num_steps"], before["decay_fraction"])
    if num_steps > before["num_steps"] and steps_done > last_at_highest + 1:
        raise ValueError(
            f"num_steps is {num_steps}, expected the run's own {before['num_steps']}: after {steps_done} "
            "steps its learning rate has begun to decay (`initial_model` starts a run from its model)"
        )


def _forget_later_steps(log: Path, steps_done: int) -> None:
    """Remove what a run that was killed has logged after its last checkpoint, from where it goes on."""
    if not log.exists():
        return
    head, *rows = log.read_text(encoding="utf-8").splitlines(keepends=True)
    with whole_file(log) as unfinished:
        kept = [row for row in rows if int(row.split(",")[0]) <= steps_done]
        unfinished.write_text("".join([head, *kept]), encoding="utf-8")


def _digest(arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]
