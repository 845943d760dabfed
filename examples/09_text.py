"""Train a small text-conditional network, and inpaint with it as a prompt says.

    python examples/09_text.py -o runs/09_text.png

The network has the call of diffusers' UNet2DConditionModel: `network(sample, timestep,
encoder_hidden_states)`. The pictures show a shape on a plain ground. The hole hides the shape, and a prompt
asks for another one. Embeddings of prompts are data, like the weights: a new prompt compiles nothing.
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import repaint_jax as rp
from repaint_jax.models.guidance import ClassifierFreeGuidance
from repaint_jax.pictures.images import array_to_uint8, uint8_to_array
from repaint_jax.pictures.plots import show_hole, tile
from repaint_jax.training import timestep_probabilities

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/09_text.png"))
parser.add_argument("--train-steps", type=int, default=1000)
options = parser.parse_args()
options.output.parent.mkdir(parents=True, exist_ok=True)

SIDE, PATCH, WIDTH, TEXT = 24, 6, 96, 32  # pixels; channels of the network and of the embedding of a word
COLOURS = {"red": (205, 45, 50), "green": (40, 150, 80), "blue": (45, 85, 200), "orange": (245, 150, 30)}
SHAPES, PLACES = ("circle", "square", "triangle"), ("left", "right")
CAPTIONS = [f"a {c} {s} on the {p}" for c, s, p in itertools.product(COLOURS, SHAPES, PLACES)]
WORDS = ["", "a", "on", "the", *COLOURS, *SHAPES, *PLACES]


def tokens(texts):  # [count, 6]: the number of each word, and 0 where there is none
    return np.array([[WORDS.index(word) for word in (text.split() + 6 * [""])[:6]] for text in texts])


def draw(captions, seed):  # [count, SIDE, SIDE, 3] uint8
    rng = np.random.default_rng(seed)
    _, colours, shapes, *_, places = np.array([caption.split() for caption in captions]).T[..., None, None]
    low, high = [3.9, -2, -0.7, 170], [4.7, 2, 0.7, 245]
    radii, up, right, ground = rng.uniform(low, high, (len(captions), 4)).T[..., None, None]
    y, x = np.indices((SIDE, SIDE))[:, None] - (SIDE - 1) / 2
    y, x = y - up, x - right - np.where(places == "left", -4.2, 4.2)
    squares, triangles = 1.12 * np.maximum(abs(x), abs(y)), np.maximum(1.25 * y, 1.55 * abs(x) - 0.9 * y)
    distances = np.select([shapes == "circle", shapes == "square"], [np.hypot(x, y), squares], triangles)
    inside = np.clip(radii - distances + 0.5, 0, 1)[..., None]
    paint = np.array([COLOURS[colour] for colour in colours.flat])[:, None, None]
    return (inside * paint + (1 - inside) * ground[..., None]).astype(np.uint8)


class Block(nnx.Module):
    """Attention to the other patches, attention to the words, and a feed-forward layer."""

    def __init__(self, rngs):
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(3))
        self.to_patches = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.to_words = nnx.MultiHeadAttention(4, WIDTH, in_kv_features=TEXT, decode=False, rngs=rngs)
        self.widen = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, encoder_hidden_states):
        x = x + self.to_patches(self.norms[0](x))
        x = x + self.to_words(self.norms[1](x), encoder_hidden_states)
        return x + self.narrow(nnx.silu(self.widen(self.norms[2](x))))


class Network(nnx.Module):
    """A stand-in of UNet2DConditionModel: a transformer of patches of 6 x 6 pixels."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=PATCH, rngs=rngs)
        self.place = nnx.Embed((SIDE // PATCH) ** 2, WIDTH, rngs=rngs)
        self.time = nnx.Linear(12, WIDTH, rngs=rngs)
        self.blocks = nnx.List(Block(rngs) for _ in range(4))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.last = nnx.ConvTranspose(WIDTH, 3, (PATCH, PATCH), strides=PATCH, rngs=rngs)

    def __call__(self, sample, timestep, encoder_hidden_states):
        timesteps = jnp.broadcast_to(timestep, len(sample))  # one for each picture in training
        angles = timesteps[:, None] / 1000 * jnp.pi * 2.0 ** jnp.arange(-1, 5)
        time = self.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
        patches = self.first(sample)
        x = patches.reshape(len(sample), -1, WIDTH) + self.place.embedding[...] + time[:, None]
        for block in self.blocks:
            x = block(x, encoder_hidden_states)
        return self.last(self.norm(x).reshape(patches.shape))


# Train the network together with the embeddings of the words. It learns to predict the clean picture. One
# caption in seven is dropped, so the network also learns what pictures look like without a prompt.
config = rp.RePaintSchedulerConfig(prediction_type="sample")
state = rp.set_timesteps_for_budget(rp.create_state(config), 64)
density = jnp.asarray(timestep_probabilities("lognormal", np.asarray(state.alphas_cumprod, np.float64)))
model = nnx.Dict(words=nnx.Embed(len(WORDS), TEXT, rngs=nnx.Rngs(0)), network=Network(nnx.Rngs(1)))
rate = optax.warmup_cosine_decay_schedule(0, 1.5e-3, options.train_steps // 10, options.train_steps)
adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, images, numbers, key):
    noise_key, time_key = jax.random.split(key)
    timesteps = jax.random.choice(time_key, len(density), images.shape[:1], p=density)
    noisy = rp.add_noise(state, images, jax.random.normal(noise_key, images.shape), timesteps)

    def loss_fn(model):
        return jnp.mean((model.network(noisy, timesteps, model.words(numbers)) - images) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


rng = np.random.default_rng(0)
captions = rng.choice(CAPTIONS, 10_000)
pictures, numbers, losses = draw(captions, 0), tokens(captions), []
for step in range(options.train_steps):
    chosen, kept = rng.integers(len(pictures), size=64), rng.random((64, 1)) > 1 / 7
    images = uint8_to_array(pictures[chosen])
    losses.append(train_step(model, optimizer, images, numbers[chosen] * kept, jax.random.key(step)))
    if (step + 1) % 500 == 0:
        print(f"step {step + 1}: loss {np.mean(losses[-500:]):.4f}", flush=True)

# Inpaint new pictures. Guidance of scale 0 ignores the prompt, 1 is the network as it was trained.
network, weights = rp.nnx_model_fn(model.network)
model_fn = ClassifierFreeGuidance(network)
prompts = CAPTIONS * 3
embeddings, null_embeddings = model.words(tokens(prompts)), model.words(tokens([""] * len(prompts)))
images = np.tile(uint8_to_array(draw(rng.choice(CAPTIONS, len(CAPTIONS)), 1)), (3, 1, 1, 1))
mask = np.ones((1, SIDE, SIDE, 1), np.float32)
mask[:, 2:-2, 2:-2] = 0
keys = jax.random.split(jax.random.key(0), len(prompts))
results = {}
for scale in (0.0, 1.0, 3.0):
    params = (weights, embeddings, null_embeddings, scale)
    results[f"guidance {scale:g}"] = array_to_uint8(rp.inpaint(state, model_fn, params, images, mask, keys))

# The caption of the most similar training picture says what a result shows.
seen = uint8_to_array(pictures).reshape(len(pictures), -1)
print("share that shows the prompt's   colour   shape   place     all")
for name, shown in {"drawn as prompted": draw(prompts, 2), **results}.items():
    similarity = uint8_to_array(shown).reshape(len(shown), -1) @ seen.T - (seen**2).sum(1) / 2
    right = numbers[similarity.argmax(1)] == tokens(prompts)
    shares = *right[:, [1, 2, 5]].mean(0), right.all(1).mean()
    print(f"{name:30}" + "".join(f"{share:8.0%}" for share in shares))

rows, chosen = [], [0, 9, 14, 19, 22]
for i in chosen:
    samples = [shown[j] for shown in results.values() for j in (i, i + len(CAPTIONS))]
    rows.append([array_to_uint8(images[i]), show_hole(images[i], mask[0]), *samples])
titles = ["original", "masked", *(name for name in results for _ in range(2))]
tile(rows, titles, [prompts[i] for i in chosen]).save(options.output)
print(f"wrote {options.output}")
