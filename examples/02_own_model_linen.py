"""Train your own linen module for half a minute, and inpaint with it.

    python examples/02_own_model_linen.py -o runs/02_own_model_linen.png

The example makes its own pictures: a bright disc on a dark background. The module must learn that discs
are round.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import repaint_jax as rp
from repaint_jax.pictures.images import uint8_to_array
from repaint_jax.pictures.plots import inpainting_grid
from repaint_jax.sampling import noise_levels
from repaint_jax.training import TrainingConfig, batches, create_train_state, make_train_step

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/02_own_model_linen.png"))
parser.add_argument("--train-steps", type=int, default=2000)
options = parser.parse_args()
options.output.parent.mkdir(parents=True, exist_ok=True)

SIDE = 16


class Denoiser(nn.Module):
    """A fully connected network. Any module works whose `__call__` takes (sample, timestep)."""

    width: int = 256

    @nn.compact
    def __call__(self, sample: jax.Array, timestep: jax.Array) -> jax.Array:
        pixels = sample.reshape(*sample.shape[:-3], -1)
        angles = timestep[..., None] / 1000 * jnp.pi * 2.0 ** jnp.arange(-1, 5)
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        time = nn.silu(nn.Dense(self.width)(time))
        hidden = nn.Dense(self.width)(pixels)
        for _ in range(4):
            update = nn.Dense(self.width)(nn.silu(nn.LayerNorm()(hidden) + nn.Dense(self.width)(time)))
            hidden = hidden + nn.Dense(self.width)(nn.silu(update))
        output = nn.Dense(pixels.shape[-1])(nn.LayerNorm()(hidden))
        return output.reshape(sample.shape)


def discs(count: int, seed: int) -> np.ndarray:  # [count, SIDE, SIDE, 1] uint8
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((SIDE, SIDE))[..., None]
    centres = rng.uniform(4, SIDE - 5, (2, count, 1, 1, 1))
    radii, brightness = rng.uniform(2.5, 5, (count, 1, 1, 1)), rng.uniform(0.6, 1, (count, 1, 1, 1))
    distances = np.hypot(rows - centres[0], columns - centres[1])
    return (255 * brightness * np.clip(radii - distances + 0.5, 0, 1)).astype(np.uint8)


module = Denoiser()
params = module.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 1)), jnp.zeros(1, jnp.int32))
model_fn = rp.linen_model_fn(module)

# The scheduler must know the betas of the training and the prediction type. The module learns to predict
# the clean picture. That is easier for this network: to predict the noise, it would have to remember every
# value of it.
scheduler_config = rp.RePaintSchedulerConfig(prediction_type="sample")
config = TrainingConfig(
    num_steps=options.train_steps,
    batch_size=64,
    warmup_steps=100,
    decay_fraction=0.5,
    ema_decay=0.99,
    prediction_type="sample",
    timestep_density="lognormal",
)
train_step = make_train_step(config, model_fn, noise_levels.alphas_cumprod(scheduler_config.betas))
train_state = create_train_state(config, params)
losses = []
for step, batch in zip(range(config.num_steps), batches(config, discs(20_000, 0)), strict=False):
    train_state, loss = train_step(train_state, batch)
    losses.append(loss)
    if (step + 1) % 500 == 0:
        print(f"step {step + 1}: loss {np.mean(losses[-500:]):.4f}", flush=True)

# Inpaint new pictures, of which the right or the lower half is missing.
images = uint8_to_array(discs(4, 1))
right = rp.masks.half(SIDE, SIDE)
masks = jnp.stack([right, right.swapaxes(0, 1)] * 2)
state = rp.set_timesteps_for_budget(rp.create_state(scheduler_config), 64)
samples = []
for number in range(4):
    keys = jax.random.split(jax.random.key(number), len(images))
    samples.append(rp.inpaint(state, model_fn, train_state.ema_params, images, masks, keys))
inpainting_grid(images, np.asarray(masks), np.stack(samples, axis=1)).save(options.output)
print(f"wrote {options.output}")
