"""Inpaint one picture under nine masks: the paper's six, a box, its inverse, and a box with soft edges.

    python examples/04_masks.py -o runs/04_masks.png

The command line can also read drawn masks, see `repaint-jax inpaint --help`.
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

# The six masks of the paper. The strokes of `wide` and `narrow` depend on the key.
masks = {name: rp.masks.by_name(name, height, width, jax.random.key(7)) for name in rp.masks.NAMES}

# Your own mask: any array of zeros (inpaint) and ones (keep).
box = np.ones((height, width, 1), np.float32)
box[8:20, 8:20] = 0
masks["box"] = box

# The inverse, for a mask in which 1 marks the pixels to fill.
masks["around a box"] = 1 - box

# Soft edges: pixels near the hole become a blend of the known image and the model's result. They change,
# and closer pixels change more. Only pixels that are further away than the radius are kept exactly.
masks["soft box"] = rp.masks.feather(box, 3)

# Inpaint all masks in one batch, with a mask and a key for each image.
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
