"""Inpaint a picture with the bundled model.

python examples/01_inpaint.py -o runs/01_inpaint.png
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import repaint_jax as rp
from repaint_jax.models.pretrained import bundled_folder
from repaint_jax.pictures.drawn_masks import box
from repaint_jax.pictures.plots import tile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/01_inpaint.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)

# Load a model with its scheduler's settings: the bundled one, a diffusers folder, or a name on the hub.
pipe = rp.RePaintPipeline.from_pretrained("bundled")
print(f"the model makes pictures of {pipe.image_shape} (height, width, channels)")

# Load a picture of that size, and make a mask. White pixels are kept, black ones are filled.
image = Image.open(bundled_folder() / "images" / "5_shirt.png")
mask = box(image.size, 6, 4, 22, 14)

# 64 model calls are the default. The key determines the results. The samples of a key differ.
pictures = pipe(image, mask, key=jax.random.key(0), num_samples=5).images

kept = np.asarray(mask) == 255
exact = all(np.array_equal(np.asarray(p)[kept], np.asarray(image)[kept]) for p in pictures)
print(f"known pixels came back exactly: {exact}")

masked = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "chocolate"), mask)
shown = [picture.convert("RGB") for picture in (image, masked, *pictures)]
titles = ["original", "masked", *(f"sample {i + 1}" for i in range(len(pictures)))]
tile([[np.asarray(picture) for picture in shown]], titles).save(output)
print(f"wrote {output}")
