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
parser.add_argument("--train-steps", type=int, default=2500)
options = parser.parse_args()
options.output.parent.mkdir(parents=True, exist_ok=True)

SIDE, WIDTH, QUERIES, TEXT, TIME = 24, 384, 8, 32, 64  # TEXT: length of a word's embedding
COLOURS = {"red": (205, 45, 50), "green": (40, 150, 80), "blue": (45, 85, 200), "purple": (140, 60, 165)}
SHAPES, PLACES = ("ring", "square", "triangle"), ("left", "right")
CAPTIONS = [f"a {c} {s} on the {p}" for c, s, p in itertools.product(COLOURS, SHAPES, PLACES)]
WORDS = ["", "a", "on", "the", *COLOURS, *SHAPES, *PLACES]


def tokens(texts):  # [count, 6]: the number of each word, and 0 where there is none
    return np.array([[WORDS.index(word) for word in (text.split() + 6 * [""])[:6]] for text in texts])


def draw(captions, rng):  # [count, SIDE, SIDE, 3] uint8
    _, colours, shapes, *_, places = np.array([caption.split() for caption in captions]).T[..., None, None]
    y, x = np.indices((SIDE, SIDE))[:, None] - (SIDE - 1) / 2
    y, x = y - rng.choice([-4, 4], (len(captions), 1, 1)), x - np.where(places == "left", -4, 4)
    squares, triangles = 1.12 * np.maximum(abs(x), abs(y)), np.maximum(1.12 * y, 1.5 * abs(x) - 0.9 * y)
    rings = 1 + 2.5 * abs(np.hypot(x, y) - 3.4)
    distances = np.select([shapes == "ring", shapes == "square"], [rings, squares], triangles)
    inside = np.clip(5 - distances, 0, 1)[..., None]
    paint = np.array([COLOURS[colour] for colour in colours.flat])[:, None, None]
    ground = rng.uniform(170, 245, (len(captions), 1, 1, 1))
    return (inside * paint + (1 - inside) * ground).astype(np.uint8)


class Block(nnx.Module):
    """Attention to the words, as in a block of UNet2DConditionModel, and a fully connected layer."""

    def __init__(self, rngs):
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(
            4, WIDTH // QUERIES, in_kv_features=TEXT, decode=False, rngs=rngs
        )
        self.time = nnx.Linear(TIME, 2 * WIDTH, rngs=rngs)
        self.layers = nnx.List(nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2))

    def __call__(self, x, time, encoder_hidden_states):
        queries = self.norms[0](x).reshape(len(x), QUERIES, -1)
        x = x + self.attention(queries, encoder_hidden_states).reshape(x.shape)
        scale, shift = jnp.split(self.time(time), 2, axis=-1)
        return x + self.layers[1](nnx.silu(self.layers[0](self.norms[1](x)) * (1 + scale) + shift))


class Network(nnx.Module):
    """A stand-in of UNet2DConditionModel. Eight parts of its hidden vector attend to the words."""

    def __init__(self, rngs):
        self.first = nnx.Linear(SIDE * SIDE * 3, WIDTH, rngs=rngs)
        self.time = nnx.Linear(12, TIME, rngs=rngs)
        self.blocks = nnx.List(Block(rngs) for _ in range(4))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, SIDE * SIDE * 3, rngs=rngs)

    def __call__(self, sample, timestep, encoder_hidden_states):
        timesteps = jnp.broadcast_to(timestep, len(sample))  # one for each picture in training
        angles = timesteps[:, None] / 1000 * jnp.pi * 2.0 ** jnp.arange(-1, 5)
        time = nnx.silu(self.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)))
        x = self.first(sample.reshape(len(sample), -1))
        for block in self.blocks:
            x = block(x, time, encoder_hidden_states)
        return self.last(self.norm(x)).reshape(sample.shape)


# Train the network together with the embeddings of the words. It learns to predict the clean picture. One
# caption in five is dropped, so the network also learns what pictures look like without a prompt.
config = rp.RePaintSchedulerConfig(prediction_type="sample")
state = rp.set_timesteps_for_budget(rp.create_state(config), 64)
density = jnp.asarray(timestep_probabilities("lognormal", np.asarray(state.alphas_cumprod, np.float64)))
model = nnx.Dict(words=nnx.Embed(len(WORDS), TEXT, rngs=nnx.Rngs(0)), network=Network(nnx.Rngs(1)))
rate = optax.warmup_cosine_decay_schedule(0, 2e-3, options.train_steps // 10, options.train_steps)
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
pictures, numbers, losses = draw(captions, rng), tokens(captions), []
for step in range(options.train_steps):
    chosen, kept = rng.integers(len(pictures), size=64), rng.random((64, 1)) > 0.2
    images = uint8_to_array(pictures[chosen])
    losses.append(train_step(model, optimizer, images, numbers[chosen] * kept, jax.random.key(step)))
    if (step + 1) % 500 == 0:
        print(f"step {step + 1}: loss {np.mean(losses[-500:]):.4f}", flush=True)

# Inpaint new pictures. Guidance of scale 0 ignores the prompt, 1 is the network as it was trained.
network, weights = rp.nnx_model_fn(model.network)
model_fn = ClassifierFreeGuidance(network)
prompts = CAPTIONS * 3
embeddings, null_embeddings = model.words(tokens(prompts)), model.words(tokens([""] * len(prompts)))
images = np.tile(uint8_to_array(draw(rng.choice(CAPTIONS, len(CAPTIONS)), rng)), (3, 1, 1, 1))
mask = np.ones((1, SIDE, SIDE, 1), np.float32)
mask[:, 2:-2, 2:-2] = 0
keys = jax.random.split(jax.random.key(0), len(prompts))
results = {}
for scale in (0.0, 1.0, 1.5):
    params = (weights, embeddings, null_embeddings, scale)
    results[f"guidance {scale:g}"] = array_to_uint8(rp.inpaint(state, model_fn, params, images, mask, keys))

# The caption of the most similar training picture says what a result shows.
seen = uint8_to_array(pictures).reshape(len(pictures), -1)
print("share that shows the prompt's   colour   shape   place     all")
for name, shown in {"drawn as prompted": draw(prompts, rng), **results}.items():
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
