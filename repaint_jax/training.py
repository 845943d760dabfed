"""Train an unconditional diffusion model from images (Ho et al. 2020, arXiv 2006.11239, algorithm 1).

All randomness of a step is determined by the seed and the step's number, and `TrainState` holds everything
that training changes. So a run that was stopped and resumed ends with the same weights.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.typing import ArrayLike
from numpy.typing import NDArray

from repaint_jax.files import StrPath
from repaint_jax.models.families import EDM, Flow, Scheduler
from repaint_jax.pictures.images import uint8_to_array
from repaint_jax.sampling import noise_levels
from repaint_jax.sampling.checks import check_choice, check_int, check_number, check_positive
from repaint_jax.sampling.config import PREDICTION_TYPES, RePaintSchedulerConfig
from repaint_jax.sampling.devices import replicate, shard_batch
from repaint_jax.sampling.inpaint import ModelFn
from repaint_jax.sampling.keys import check_seed, seed_key

Params = Any

_OBJECTIVE_OF: dict[type, str] = {RePaintSchedulerConfig: "ddpm", EDM: "edm", Flow: "flow"}
OBJECTIVES = tuple(_OBJECTIVE_OF.values())
TIMESTEP_DENSITIES = ("uniform", "lognormal")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run. Two runs with equal settings give equal weights.

    Attributes:
        num_steps: the total number of optimiser steps.
        batch_size: the number of images per step.
        learning_rate: the highest learning rate. It is reached by a linear warm-up, stays constant, and
            decays to zero along a cosine over the last `decay_fraction` of the steps. Therefore a run that
            was stopped before the decay can be resumed with more steps.
        warmup_steps: the number of steps of the warm-up.
        decay_fraction: the share of the steps, in [0, 1], over which the learning rate decays.
        max_grad_norm: the largest global norm of the gradients. Larger ones are scaled down to it.
        ema_decay: the decay of the moving average of the weights. The averaged weights are exported.
        objective: what the network learns: "ddpm" (the noise levels of DDPM's betas), "edm" (the network of
            EDM's preconditioning, Karras et al. 2022, arXiv 2206.00364) or "flow" (the velocity z - x_0 of
            a rectified flow, Liu et al. 2022, arXiv 2209.03003).
        prediction_type: the target of `model_fn`: "epsilon" (the noise), "sample" (the clean sample) or
            "v_prediction", v = sqrt(abar) z - sqrt(1 - abar) x_0 (Salimans and Ho 2022, arXiv 2202.00512).
            The default is "epsilon" for the objective "ddpm". The others have "sample" alone, with weights
            that make it the network's own error.
        timestep_density: the distribution of the training timesteps: "uniform" as in DDPM, or "lognormal",
            in which ln sigma is normal with mean -0.5 and standard deviation 1.5, after Karras et al. 2022
            (table 1). One draw in ten of "lognormal" is uniform, so that no timestep is left untrained. The
            default is "lognormal" for the objective "edm" and "uniform" for the others.
        random_flip: whether to mirror half of the images of each epoch, left to right.
        random_shift: the largest shift of an image along each axis, in pixels. Every epoch draws new
            shifts. The pixels of the edge are repeated.
        dtype: the dtype of the network's arithmetic, "float32" or "bfloat16", which is faster on
            accelerators. Weights, gradients and the loss are float32.
        seed: the seed of the weights, the order of the images, the timesteps and the noise.
    """

    num_steps: int = 20_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    decay_fraction: float = 0.2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    objective: str = "ddpm"
    prediction_type: str = ""
    timestep_density: str = ""
    random_flip: bool = False
    random_shift: int = 0
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            check_int(name, getattr(self, name), 1)
        for name in ("warmup_steps", "random_shift"):
            check_int(name, getattr(self, name), 0)
        check_seed(self.seed)
        for name in ("learning_rate", "max_grad_norm"):
            check_positive(name, getattr(self, name))
        for name in ("decay_fraction", "ema_decay"):
            if not 0 <= check_number(name, getattr(self, name), "a number in [0, 1]") <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number in [0, 1]")
        if not isinstance(self.random_flip, bool):
            raise TypeError(f"random_flip is {self.random_flip!r}, expected True or False")
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("dtype", self.dtype, DTYPES)
        is_ddpm = self.objective == "ddpm"
        if not self.prediction_type:
            object.__setattr__(self, "prediction_type", "epsilon" if is_ddpm else "sample")
        if not self.timestep_density:
            density = "lognormal" if self.objective == "edm" else "uniform"
            object.__setattr__(self, "timestep_density", density)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        if not is_ddpm and self.prediction_type != "sample":
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}, expected 'sample' or none with "
                f"objective={self.objective!r}"
            )
        check_choice("timestep_density", self.timestep_density, TIMESTEP_DENSITIES)

    def scheduler(self) -> Scheduler:
        """Return the noise levels of a new network, and how it is called at them."""
        if self.objective == "edm":
            return EDM()
        if self.objective == "flow":
            return Flow()
        return RePaintSchedulerConfig(prediction_type=self.prediction_type)


def objective_of(scheduler: Scheduler) -> str | None:
    """Return the objective that networks with this scheduler learn, or None if there is none."""
    return _OBJECTIVE_OF.get(type(scheduler))


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # [] int32, the number of steps done
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Return the learning rate: linear warm-up, constant, cosine decay to zero."""
    last_at_highest = last_step_at_highest_rate(config.num_steps, config.decay_fraction)
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


def last_step_at_highest_rate(num_steps: int, decay_fraction: float) -> int:
    """Return the last step before the learning rate decays."""
    return num_steps - max(1, round(num_steps * decay_fraction))


def optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return Adam with clipped gradients."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.adam(learning_rate_schedule(config)))


def create_train_state(config: TrainingConfig, params: Params) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.int32(0), params, params, optimizer(config).init(params))


def timestep_probabilities(density: str, alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each training timestep under one of `TIMESTEP_DENSITIES`."""
    uniform = np.full(len(alphas_cumprod), 1 / len(alphas_cumprod))
    if density == "uniform":
        return uniform
    log_sigma = noise_levels.log_sigma(alphas_cumprod)
    lognormal = np.exp(-0.5 * ((log_sigma + 0.5) / 1.5) ** 2) * np.gradient(log_sigma)
    return 0.9 * lognormal / lognormal.sum() + 0.1 * uniform


def make_train_step(
    config: TrainingConfig,
    model_fn: ModelFn,
    alphas_cumprod: NDArray[np.float64],
    loss_weights: NDArray[np.float64] | None = None,
) -> Callable[[TrainState, ArrayLike], tuple[TrainState, jax.Array]]:
    """Build the jitted `train_step(state, images) -> (state, loss)`.

    `images` are [B, H, W, C], floating, in [-1, 1]. The loss is the mean squared error of the prediction,
    weighted if loss_weights [num_train_timesteps] are given.
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
        params = jax.tree.map(lambda weights: weights.astype(config.dtype), params)
        prediction = model_fn(params, (a * images + s * z).astype(config.dtype), timesteps)
        error = jnp.square(prediction.astype(jnp.float32) - target[config.prediction_type])
        if loss_weights is not None:
            error *= jnp.asarray(loss_weights, jnp.float32)[timesteps, None, None, None]
        return jnp.mean(error)

    @jax.jit
    def train_step(state: TrainState, images: ArrayLike) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(seed_key(config.seed), state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, images, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # In early steps the average follows the weights closely, so that it forgets the initial weights.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        return TrainState(state.step + 1, params, ema_params, opt_state), loss

    return train_step


def batches(
    config: TrainingConfig, images: NDArray[np.uint8], first_step: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Yield batches in [-1, 1] without end, from step `first_step` on. Every epoch has a new order."""
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


def _restored(checkpoints: ocp.CheckpointManager, step: int, state: TrainState) -> TrainState:
    try:
        return checkpoints.restore(step, args=ocp.args.StandardRestore(state))
    except Exception as error:  # a damaged checkpoint can raise anything
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"{checkpoints.directory / str(step)} is a damaged checkpoint "
            f"({type(error).__name__}: {reason}); delete it to resume from the one before it"
        ) from error


def _shifted(pictures: NDArray[np.uint8], shifts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Move each picture [H, W, C] down and to the right by its shift."""
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
    checkpoint_dir: StrPath,
    *,
    loss_weights: NDArray[np.float64] | None = None,
    encode: Callable[[jax.Array], jax.Array] | None = None,
    checkpoint_every: int = 1000,
    on_step: Callable[[int, float], None] | None = None,
    on_checkpoint: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Train from the newest checkpoint in `checkpoint_dir`, or from `params` if there is no checkpoint.

    Every batch is divided among the local devices, and their gradients are summed. The number of devices
    changes the results only by rounding, because sums are taken in another order.

    Args:
        config: the settings of the run. When a run is resumed, only `num_steps` may differ, and only before
            the learning rate has begun to decay.
        model_fn: the function `model_fn(params, sample, timesteps)`, with samples [B, H, W, C] and
            timesteps [B] int32.
        params: the initial weights.
        images: the training images, [N, H, W, C] uint8.
        alphas_cumprod: abar of each training timestep, [num_train_timesteps], decreasing in (0, 1).
        checkpoint_dir: the folder in which Orbax keeps the last two states.
        loss_weights: the weight of the squared error at each training timestep, [num_train_timesteps].
            None means 1 for all.
        encode: a function that makes latents of images [B, H, W, C], to train a model of latents.
        checkpoint_every: the number of steps between checkpoints. The last step always makes one.
        on_step: a function that is called as `on_step(steps_done, loss)` after each step.
        on_checkpoint: a function that is called as `on_checkpoint(state)` after each checkpoint, for
            example to draw samples.

    Returns:
        The state after `config.num_steps` steps. Use its `ema_params` as the trained weights.

    Raises:
        ValueError: if there are fewer images than batch_size, if batch_size is not a multiple of the number
            of devices, or if more than num_steps steps are already done.
        FloatingPointError: if the loss is not finite. The last checkpoint is from before that step.
    """
    check_int("checkpoint_every", checkpoint_every, 1)
    check_batches(config, images)
    train_step = make_train_step(config, model_fn, alphas_cumprod, loss_weights)
    state = replicate(create_train_state(config, params))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(Path(checkpoint_dir).absolute(), options=options) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is not None:
            state = _restored(checkpoints, latest, state)
        first_step = int(state.step)
        check_steps_left(config.num_steps, first_step)
        for step, batch in zip(
            range(first_step, config.num_steps),
            batches(config, images, first_step),
            strict=False,
        ):
            placed: Any = shard_batch(batch)
            state, mean_loss = train_step(state, placed if encode is None else encode(placed))
            done, loss = step + 1, float(mean_loss)
            if not math.isfinite(loss):  # checked before a checkpoint replaces the last good one
                raise FloatingPointError(f"the loss is {loss} in step {done}, expected a finite number")
            if on_step is not None:
                on_step(done, loss)
            if done % checkpoint_every == 0 or done == config.num_steps:
                checkpoints.save(done, args=ocp.args.StandardSave(state))
                if on_checkpoint is not None:
                    on_checkpoint(state)
    return state


def check_batches(config: TrainingConfig, images: NDArray[np.uint8]) -> None:
    """Raise if there are too few images for a batch, or the devices cannot divide a batch evenly."""
    if config.batch_size % jax.local_device_count():
        raise ValueError(
            f"batch_size is {config.batch_size}, expected a multiple of the "
            f"{jax.local_device_count()} devices"
        )
    if len(images) < config.batch_size:
        raise ValueError(f"batch_size is {config.batch_size}, but there are only {len(images)} images")


def check_steps_left(num_steps: int, steps_done: int) -> None:
    """Raise if more than num_steps steps are already done."""
    if steps_done > num_steps:
        raise ValueError(
            f"num_steps is {num_steps}, expected at least the {steps_done} steps that are done"
        )
