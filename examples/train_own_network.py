"""Train your own network on a folder of pictures, then inpaint with it.

    python examples/train_own_network.py /usr/share/datasets/fashion-mnist --train-steps 2000

`repaint-jax train` trains a UNet2D. This script does the same for any Flax NNX module, because
`training.train` needs only a `model_fn(params, sample, timesteps)` and its initial params. The same command
resumes a run that was stopped from its last checkpoint. The script writes inpainted.png into the output
folder.
"""

import argparse
from pathlib import Path

import jax
from flax import nnx
from tqdm import tqdm

import repaint_jax as rp
from repaint_jax.pictures.datasets import read_images
from repaint_jax.pictures.images import uint8_to_array
from repaint_jax.pictures.plots import inpainting_grid
from repaint_jax.sampling import noise_levels
from repaint_jax.training import TrainingConfig, train


class DilatedNetwork(nnx.Module):
    """Convolutions with dilations of up to 8. Each layer gets the timestep."""

    def __init__(self, channels: int, width: int = 32, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.time = nnx.Embed(1000, width, rngs=rngs)
        self.layers = nnx.List(
            nnx.Conv(width, width, (3, 3), kernel_dilation=dilation, rngs=rngs)
            for dilation in (1, 2, 4, 8, 4, 2, 1)
        )
        self.norms = nnx.List(nnx.GroupNorm(width, num_groups=8, rngs=rngs) for _ in self.layers)
        self.last = nnx.Conv(width, channels, (1, 1), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, sample: jax.Array, timestep: jax.Array) -> jax.Array:
        hidden = self.first(sample)
        time = self.time(timestep)
        time = time[..., None, None, :]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            hidden += layer(nnx.silu(norm(hidden + time)))
        return self.last(hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of pictures or with Fashion-MNIST's idx.gz files")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/own_network"))
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--train-steps", type=int, default=2000)
    options = parser.parse_args()

    images = read_images(options.data, options.image_size, grey=False)
    _, height, width, channels = images.shape
    model_fn, params = rp.nnx_model_fn(DilatedNetwork(channels, rngs=nnx.Rngs(0)))
    scheduler_config = rp.RePaintSchedulerConfig()
    config = TrainingConfig(num_steps=options.train_steps, warmup_steps=100)

    with tqdm(total=config.num_steps, unit="step") as bar:

        def show(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}")

        abar = noise_levels.alphas_cumprod(scheduler_config.betas)
        trained = train(
            config, model_fn, params, images, abar, options.output / "checkpoints", on_step=show
        )

    originals = uint8_to_array(images[:4])
    mask = rp.masks.half(height, width)[None]
    state = rp.set_timesteps(rp.create_state(scheduler_config), 50, jump_length=5, jump_n_sample=5)
    keys = jax.random.split(jax.random.key(0), len(originals))
    filled = rp.inpaint(state, model_fn, trained.ema_params, originals, mask, keys)
    picture = options.output / "inpainted.png"
    inpainting_grid(originals, mask.repeat(4, axis=0), filled[:, None]).save(picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
