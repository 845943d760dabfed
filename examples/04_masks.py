"""Inpaint one picture under many masks: the paper's six, a box, and a box with soft edges.

    python examples/04_masks.py -o runs/04_masks.png

On the command line masks can also be drawn: `repaint-jax inpaint --help`.
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
parser.add_argument("-o", "--output", type=Path, default=Path("runs/04_masks.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)

pipe = rp.RePaintPipeline.from_pretrained("bundled")
height, width, _ = pipe.image_shape
image = image_to_array(Image.open(bundled_folder() / "images" / "6_pullover.png"), pipe.image_shape)

# The paper's six; the strokes of `wide` and `narrow` follow from the key.
masks = {name: rp.masks.by_name(name, height, width, jax.random.key(7)) for name in rp.masks.NAMES}

# One's own: any array of zeros, to inpaint, and ones, to keep.
box = np.ones((height, width, 1), np.float32)
box[8:20, 8:20] = 0
masks["box"] = box

# The other way round, from a mask in which 1 marks what to fill.
masks["around a box"] = 1 - box

# Soft edges: pixels near the hole are a blend of the known ones and of what the model makes of them. So
# they change, the more the nearer, and only those further away than the radius come back exactly.
masks["soft box"] = rp.masks.feather(box, 3)

# One batch for all masks: a mask and a key for each image.
names = list(masks)
batch_of_masks = jnp.stack([masks[name] for name in names])
images = jnp.broadcast_to(image, (len(names), *image.shape))
state = rp.set_timesteps_for_budget(pipe.state, 64)
keys = jax.random.split(jax.random.key(0), len(names))
filled = rp.inpaint(state, pipe.model_fn, pipe.params, images, batch_of_masks, keys)

for name, mask, result in zip(names, batch_of_masks, filled, strict=True):
    changed = float(jnp.abs(result - image)[mask == 1].max())
    print(f"{name}: {float(mask.mean()):.0%} known, where the mask is 1 the largest change is {changed}")

orange = np.array([0.74, -0.06, -0.53], np.float32)
masked = batch_of_masks * images + (1 - batch_of_masks) * orange
rows = [list(array_to_uint8(pictures)) for pictures in (masked, filled)]
tile(rows, [name.replace("_", " ") for name in names], ["masked", "filled"]).save(output)
print(f"wrote {output}")
