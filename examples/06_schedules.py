"""Compare RePaint's schedules and call budgets: their cost, and their results for one picture.

    python examples/06_schedules.py -o runs/06_schedules.png

`--paper` adds the paper's setting, whose 2,410 model calls take nearly a minute on a CPU. One picture
cannot show which schedule is better. For that, see docs/how/results.md.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import repaint_jax as rp
from repaint_jax.models.pretrained import bundled_folder
from repaint_jax.pictures.images import array_to_uint8, image_to_array
from repaint_jax.pictures.plots import show_hole, tile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/06_schedules.png"))
parser.add_argument("--paper", action="store_true", help="add the paper's setting")
options = parser.parse_args()
options.output.parent.mkdir(parents=True, exist_ok=True)

pipe = rp.RePaintPipeline.from_pretrained("bundled")
image = image_to_array(Image.open(bundled_folder() / "images" / "1_bag.png"), pipe.image_shape)
mask = rp.masks.half(28, 28)

# RePaint's schedule has T steps. After every j steps it jumps j steps back, r - 1 times. This makes
# T + j (r - 1) len(range(0, T - j, j)) model calls. eta is the share of DDPM's noise in a step. It is 1 in
# the paper, and 0 (none) by default in diffusers.
schedules = [
    ("T=50, no jumps", {"num_inference_steps": 50, "jump_length": 1, "jump_n_sample": 1, "eta": 1.0}),
    ("T=50, j=5, r=5", {"num_inference_steps": 50, "jump_length": 5, "jump_n_sample": 5, "eta": 1.0}),
    ("budget", {"num_model_calls": 16}),
    ("budget", {"num_model_calls": 64}),
    ("budget", {"num_model_calls": 128}),
]
if options.paper:
    paper = {"num_inference_steps": 250, "jump_length": 10, "jump_n_sample": 10, "eta": 1.0}
    schedules.append(("paper", paper))

print(f"paper: {pipe.set_timesteps(250, 1.0, 10, 10).num_model_calls} model calls")
rows, titles = [], []
for name, settings in schedules:
    calls = pipe.set_timesteps(**settings).num_model_calls
    start = time.perf_counter()
    samples = pipe(image, mask, key=jax.random.key(0), num_samples=4, output_type="jax", **settings).images
    print(f"{name}: {calls} model calls, {time.perf_counter() - start:.1f} s with compilation")
    rows.append([show_hole(image, np.asarray(mask)), *array_to_uint8(samples)])
    titles.append(f"{name}: {calls} calls")
tile(rows, ["masked", *(f"sample {i + 1}" for i in range(4))], titles).save(options.output)
print(f"wrote {options.output}")
