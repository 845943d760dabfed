"""Train a small AutoencoderKL on a folder of pictures, for a latent diffusion model.

    python examples/train_autoencoder.py photos/ -o runs/autoencoder --image-size 64

The loss is the mean absolute error of the decoded picture and of its differences between neighbouring
pixels, and a small weight times the KL divergence of the latents from a standard normal (Rombach et al.
2021, arXiv 2112.10752, appendix G, without the perceptual and the adversarial loss of that paper). The
script writes a folder in diffusers' layout. Train a U-Net in its latents with

    repaint-jax train photos/ --image-size 64 --autoencoder runs/autoencoder -o runs/latent
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax.models import AutoencoderKL, AutoencoderKLConfig, save_autoencoder
from repaint_jax.pictures.datasets import read_images
from repaint_jax.pictures.images import array_to_uint8, save_picture, uint8_to_array
from repaint_jax.pictures.plots import tile
from repaint_jax.training import TrainingConfig, batches, check_batches

OPTION_OF = {  # names in errors
    "num_steps": "--train-steps",
    "batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "image_size": "--image-size",
    "block_out_channels": "--widths",
    "latent_channels": "--latent-channels",
}
KL_WEIGHT = 1e-4
EMA_DECAY = 0.995

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", type=Path, help="folder of pictures")
parser.add_argument("-o", "--output", type=Path, default=Path("runs/autoencoder"))
parser.add_argument("--image-size", type=int, default=64)
parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="channels of each level")
parser.add_argument("--latent-channels", type=int, default=4)
parser.add_argument("--train-steps", type=int, default=4000)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--learning-rate", type=float, default=1e-3)


def make_config(options: argparse.Namespace, scaling_factor: float) -> AutoencoderKLConfig:
    levels = len(options.widths)
    return AutoencoderKLConfig(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(options.widths),
        latent_channels=options.latent_channels,
        norm_num_groups=8,
        sample_size=options.image_size,
        scaling_factor=scaling_factor,
    )


def checked_input(options: argparse.Namespace) -> tuple[NDArray[np.uint8], TrainingConfig]:
    """Read the pictures, or raise if an option or a picture will not do."""
    config = TrainingConfig(
        num_steps=options.train_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        random_flip=True,
        random_shift=2,
    )
    factor = make_config(options, 1.0).factor
    if options.image_size < 1 or options.image_size % factor:
        raise ValueError(
            f"--image-size is {options.image_size}, expected a multiple of the {factor} pixels of a "
            "latent's side"
        )
    images = read_images(options.data, options.image_size, grey=False)
    if images.shape[1:] != (options.image_size, options.image_size, 3):
        raise ValueError(f"{options.data} has images of shape {images.shape[1:]}, expected colour pictures")
    check_batches(config, images)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output is {options.output}, expected a folder ({error.strerror})") from None
    return images, config


def loss_fn(model: AutoencoderKL, images: jax.Array, key: jax.Array) -> jax.Array:
    moments = model.quant_conv(model.encoder(images))
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    log_variance = jnp.clip(log_variance, -30, 20)
    latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    error = model.decode(latents) - images
    loss = jnp.abs(error).mean()
    loss += jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum((1, 2, 3)).mean()
    return loss + KL_WEIGHT * kl / np.prod(images.shape[1:])


def main() -> None:
    options = parser.parse_args()
    try:
        images, config = checked_input(options)
    except (TypeError, ValueError, OSError) as error:
        name, _, rest = str(error).partition(" ")
        parser.error(f"{OPTION_OF.get(name, name)} {rest}")
    graphdef, params = nnx.split(AutoencoderKL(make_config(options, 1.0), rngs=nnx.Rngs(0)))
    schedule = optax.cosine_onecycle_schedule(options.train_steps, options.learning_rate, 0.05)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def train_step(params, ema_params, opt_state, images, key):
        loss, grads = jax.value_and_grad(lambda p: loss_fn(nnx.merge(graphdef, p), images, key))(params)
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return params, optax.incremental_update(params, ema_params, 1 - EMA_DECAY), opt_state, loss

    ema_params, opt_state, key = params, tx.init(params), jax.random.key(1)
    steps = tqdm(
        zip(range(options.train_steps), batches(config, images), strict=False), total=options.train_steps
    )
    for step, batch in steps:
        step_key = jax.random.fold_in(key, step)
        params, ema_params, opt_state, loss = train_step(params, ema_params, opt_state, batch, step_key)
        if step % 50 == 0:
            steps.set_postfix(loss=f"{float(loss):.4f}")

    model = nnx.merge(graphdef, ema_params)
    some = uint8_to_array(images[:: max(1, len(images) // 256)])
    latents = model.encode(some)
    model.config = make_config(options, float(1 / latents.std()))
    save_autoencoder(model, options.output, dtype=np.float16)
    decoded = np.clip(model.decode(latents), -1, 1)
    print(f"mean absolute error of decoded pixels in [-1, 1]: {np.abs(decoded - some).mean():.4f}")
    rows = [list(array_to_uint8(np.asarray(one[:8]))) for one in (some, decoded)]
    save_picture(tile(rows, row_titles=["picture", "decoded"]), options.output / "decoded.png")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
