"""Write the loop yourself, to look at the sample during the chain and change it.

    python examples/07_by_hand.py -o runs/07_by_hand.png

`inpaint` runs such a loop in one compiled program. Your own loop is slower, but you can look at and change
everything between two model calls.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import repaint_jax as rp
from repaint_jax.models.pretrained import bundled_folder
from repaint_jax.pictures.images import array_to_uint8, image_to_array
from repaint_jax.pictures.plots import tile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/07_by_hand.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)

pipe = rp.RePaintPipeline.from_pretrained("bundled")
model_call = jax.jit(pipe.model_fn)
image = image_to_array(Image.open(bundled_folder() / "images" / "5_shirt.png"), pipe.image_shape)[None]
mask = rp.masks.half(28, 28)[None]
shown_calls = (0, 12, 24, 36, 48, 63)
rows, row_titles = [], []


def show(title: str, pictures: list[jax.Array]) -> None:
    row_titles.append(title)
    rows.append([array_to_uint8(picture[0]) for picture in pictures])


# A call budget. Each step passes its noise to the next step.
state = rp.set_timesteps_for_budget(pipe.state, 64)
step = jax.jit(rp.budget_step)
sample = jax.random.normal(jax.random.key(0), image.shape)
noise = jnp.zeros_like(sample)
on_its_way, predictions = [], []
for call, t in enumerate(state.timesteps):
    before, model_output = sample, model_call(pipe.params, sample, t)
    sample, noise, prediction = step(
        state, model_output, call, sample, noise, image, mask, jax.random.key(call + 1)
    )
    if call in shown_calls:
        on_its_way.append(before)
        predictions.append(prediction)
assert np.array_equal(np.asarray(sample)[:, :, :14], image[:, :, :14])
show("the sample", [*on_its_way, sample])
show("predicted clean", [*predictions, sample])

# The same schedule, but the sample is changed during the chain. The first 48 calls move its right half
# towards the mirror image of the left half, scaled by the signal in the noisy sample.
state = rp.set_timesteps_for_budget(pipe.state, 64)
sample = jax.random.normal(jax.random.key(0), image.shape)
noise = jnp.zeros_like(sample)
predictions = []
for call, t in enumerate(state.timesteps):
    if call < 48:
        signal = jnp.sqrt(state.alphas_cumprod[t])
        sample = sample + (1 - mask) * 0.2 * signal * (image[:, :, ::-1] - sample / signal)
    model_output = model_call(pipe.params, sample, t)
    sample, noise, prediction = step(
        state, model_output, call, sample, noise, image, mask, jax.random.key(call + 1)
    )
    if call in shown_calls:
        predictions.append(prediction)
show("pulled to its mirror", [*predictions, sample])

# RePaint's own schedule. Its timesteps decrease, and increase in the jumps.
state = rp.set_timesteps(pipe.state, 24, jump_length=4, jump_n_sample=3)
step, undo_step = jax.jit(rp.step), jax.jit(rp.undo_step)
print("timesteps with jumps:", *state.timesteps[:24].tolist(), "...")
sample = jax.random.normal(jax.random.key(0), image.shape)
predictions, t_last = [], state.timesteps[0] + 1
for i, t in enumerate(state.timesteps):
    key = jax.random.key(i + 1)
    if t < t_last:
        model_output = model_call(pipe.params, sample, t)
        sample, prediction = step(state, model_output, t, sample, image, mask, key)
        predictions.append(prediction)
    else:
        sample = undo_step(state, sample, t_last, key)
    t_last = t
print(f"the loop made {len(predictions)} model calls; state.num_model_calls is {state.num_model_calls}")
show("time jumps", [*(predictions[call] for call in shown_calls), sample])

tile(rows, [*(f"call {call + 1}" for call in shown_calls), "result"], row_titles).save(output)
print(f"wrote {output}")
