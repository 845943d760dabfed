"""Inpaint with a model of latents: encode, scale, downsample the mask, inpaint, decode, composite.

    python examples/08_latent.py -o runs/08_latent.png

The example needs no training, because it fits a linear autoencoder and a linear model. The autoencoder
uses the principal components of patches. The model is the ideal denoiser of the latents' Gaussian. Such a
model is correct for the pictures of this example, which are clouds of Gaussian noise. With a trained
autoencoder and a trained model, only `encode`, `decode` and `model_fn` change.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import repaint_jax as rp
from repaint_jax.pictures.images import array_to_uint8
from repaint_jax.pictures.plots import show_hole, tile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/08_latent.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)

SIDE, FACTOR, CHANNELS = 32, 4, 8  # 32 x 32 pixels of 3 colours become 8 x 8 latents of 8 channels
CELLS = SIDE // FACTOR

# The pictures: clouds, with nearly all values within [-1, 1].
rng = np.random.default_rng(0)
places = np.stack(np.indices((SIDE, SIDE)), -1).reshape(-1, 2)
distances = np.linalg.norm(places[:, None] - places, axis=-1)
correlations = 0.8 * np.exp(-((distances / 14) ** 2)) + 0.2 * np.exp(-distances / 6)
smooth = np.linalg.cholesky(correlations + 1e-5 * np.eye(len(places))).astype(np.float32)
colours = np.array([[0.50, 0.08, 0.02], [0.36, 0.26, 0.08], [0.10, 0.45, 0.20]], np.float32)
noise = rng.standard_normal((8_000, SIDE * SIDE, 3), np.float32)
pictures = (smooth @ noise @ colours.T).reshape(-1, SIDE, SIDE, 3)
train, test = pictures[:-2], pictures[-2:]


# The autoencoder: each latent contains the principal components of the pixels of its own cell.
def split_into_cells(images):  # [..., H, W, 3] -> [..., H/4, W/4, 48]
    images = images.reshape(*images.shape[:-3], CELLS, FACTOR, CELLS, FACTOR, 3)
    return images.swapaxes(-4, -3).reshape(*images.shape[:-5], CELLS, CELLS, FACTOR * FACTOR * 3)


def join_cells(cells):  # [..., H/4, W/4, 48] -> [..., H, W, 3]
    cells = cells.reshape(*cells.shape[:-3], CELLS, CELLS, FACTOR, FACTOR, 3)
    return cells.swapaxes(-4, -3).reshape(*cells.shape[:-5], SIDE, SIDE, 3)


patches = split_into_cells(train).reshape(-1, FACTOR * FACTOR * 3)
components = np.linalg.eigh(np.cov(patches[:50_000].T))[1][:, -CHANNELS:].astype(np.float32)


def encode(images):
    return split_into_cells(images) @ components


def decode(latents):
    return join_cells(latents @ components.T)


# The scale: a diffusion model needs data with a standard deviation of about 1/2 (pictures in [-1, 1]) to 1
# (published latent models). A published model gives its scale as `scaling_factor` in its vae's config.
latents = encode(train)
scale = 1 / latents.std()

# The model: the ideal noise prediction for the Gaussian of the latents. The eigenvectors of the covariance
# are independent directions. In each, x = sqrt(abar) x0 + sqrt(1 - abar) eps is a sum of two Gaussians.
flat = scale * latents.reshape(len(latents), -1)
covariance = np.cov(flat.T)
variances, directions = np.linalg.eigh(covariance)
params = {"mean": jnp.asarray(flat.mean(0)), "variances": variances, "directions": directions}
params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

# Do not clip: latents are not limited to a range, unlike pixels.
state = rp.create_state(rp.RePaintSchedulerConfig(clip_sample=False))
state = rp.set_timesteps_for_budget(state, 128)


def model_fn(params, sample, timestep):
    abar, std = state.alphas_cumprod[timestep], state.sqrt_one_minus_alphas_cumprod[timestep]
    noisy_mean = jnp.sqrt(abar) * params["mean"]
    along = (sample.reshape(len(sample), -1) - noisy_mean) @ params["directions"]
    eps = std * along / (abar * params["variances"] + std**2)
    return (eps @ params["directions"].T).reshape(sample.shape)


# The inpainting of pixels with a latent model.
def inpaint_pixels(image, mask, num_samples, key):
    blank = np.where(mask == 1, image, 0)  # the pixels in the hole must not reach the latents
    known = jnp.asarray(scale * encode(blank))
    known = jnp.broadcast_to(known, (num_samples, *known.shape))
    latent_mask = rp.masks.downsample(mask, FACTOR)  # use margin=1 or more if the encoder looks further
    keys = jax.random.split(key, num_samples)
    filled = rp.inpaint(state, model_fn, params, known, latent_mask[None], keys)
    decoded = decode(np.asarray(filled) / scale)
    return np.where(mask == 1, image, decoded), decoded, latent_mask


# The exact answer, which only a linear model has: the mean of the missing latents given the known ones.
def exact_mean(image, mask):
    known = scale * encode(image)
    is_known = np.broadcast_to(rp.masks.downsample(mask, FACTOR) == 1, known.shape).ravel()
    to_known, among_known = covariance[~is_known][:, is_known], covariance[is_known][:, is_known]
    surprise = (known.ravel() - flat.mean(0))[is_known]
    mean = known.ravel().astype(np.float64)
    mean[~is_known] = flat.mean(0)[~is_known] + to_known @ np.linalg.solve(among_known, surprise)
    return np.where(mask == 1, image, decode(mean.reshape(known.shape) / scale))


box = np.ones((SIDE, SIDE, 1), np.float32)
box[8:24, 12:28] = 0  # whole cells; the strokes cut cells, whose known pixels the model does not see
strokes = np.asarray(rp.masks.wide(SIDE, SIDE, jax.random.key(9)))
rows = []
for image, mask in zip(test, (box, strokes), strict=True):
    filled, decoded, latent_mask = inpaint_pixels(image, mask, 64, jax.random.key(0))
    exact = np.array_equal(filled * mask, np.broadcast_to(image * mask, filled.shape))
    answer = exact_mean(image, mask)
    error, spread = (filled.mean(0) - answer)[mask[..., 0] == 0], filled.std(0)[mask[..., 0] == 0]
    print(f"known pixels came back exactly: {exact}")
    print(
        f"the mean of 64 samples differs by {np.sqrt(np.mean(error**2)):.3f} from the exact mean; "
        f"the expected random error is {np.sqrt(np.mean(spread**2) / 64):.3f}"
    )
    of_cells = np.repeat(np.repeat(latent_mask, FACTOR, 0), FACTOR, 1)
    rows.append(
        [
            array_to_uint8(image),
            show_hole(image, mask),
            show_hole(image, of_cells),
            array_to_uint8(decoded[0]),
            *array_to_uint8(filled[:2]),
            array_to_uint8(filled.mean(0)),
            array_to_uint8(answer),
        ]
    )
titles = [
    "original",
    "masked",
    "known latents",
    "1 decoded",
    "sample 1",
    "sample 2",
    "mean of 64",
    "exact mean",
]
tile(rows, titles, ["box", "strokes"]).save(output)
print(f"wrote {output}")
