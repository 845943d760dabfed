"""Inpaint a batch: with a key for each image, under jax.vmap, and on several devices.

    python examples/05_batch_and_devices.py -o runs/05_batch_and_devices.png

Image i depends only on key i. Its result is the same alone, in any batch and on any number of devices, up
to the rounding of sums. On a machine without an accelerator, the example divides the CPU into two devices.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import repaint_jax as rp
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.images import array_to_uint8, image_to_array
from repaint_jax.pictures.plots import show_hole, tile

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-o", "--output", type=Path, default=Path("runs/05_batch_and_devices.png"))
output = parser.parse_args().output
output.parent.mkdir(parents=True, exist_ok=True)

jax.config.update("jax_num_cpu_devices", 2)  # must come before the first use of JAX

pipe = rp.RePaintPipeline.from_pretrained("bundled")
model_fn, params = pipe.model_fn, pipe.params
state = rp.set_timesteps_for_budget(pipe.state, 64)

paths = pictures_of_model("bundled")
images = np.stack([image_to_array(Image.open(path), pipe.image_shape) for path in paths])
keys = jax.random.split(jax.random.key(0), len(images))
masks = jax.vmap(lambda key: rp.masks.wide(28, 28, key))(jax.random.split(jax.random.key(4), len(images)))


def timed(what: str, run) -> jax.Array:
    jax.block_until_ready(run())  # compile first
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    print(f"{what}: {time.perf_counter() - start:.2f} s")
    return result


def report(what: str, result: jax.Array) -> None:
    difference = np.abs(np.asarray(result) - np.asarray(batch)).max()
    print(f"  largest difference from the batch: {difference:.1g}")


# With a vector of keys, the leading axis is a batch.
batch = timed("a batch", lambda: rp.inpaint(state, model_fn, params, images, masks, keys))

alone = timed(
    "image 3 alone", lambda: rp.inpaint(state, model_fn, params, images[2:3], masks[2:3], keys[2:3])
)
print(f"  largest difference from the batch: {np.abs(alone[0] - batch[2]).max():.1g}")


# vmap maps a function of a single image. The model needs a batch axis, which has length 1 here.
def model_of_one(params, sample, timestep):
    return model_fn(params, sample[None], timestep)[0]


@jax.jit
@jax.vmap
def inpaint_each(image, mask, key):
    return rp.inpaint(state, model_of_one, params, image, mask, key)


report("vmap", timed("vmap", lambda: inpaint_each(images, masks, keys)))

# On all devices: the data are divided among them, and each has a copy of the parameters.
devices = jax.local_devices()[: 2 if len(jax.local_devices()) % 2 == 0 else 1]
print("devices:", *devices)
sharded = rp.shard_batch((images, np.asarray(masks), keys), devices)
copies = rp.replicate(params, devices)
over_devices = timed("over devices", lambda: rp.inpaint(state, model_fn, copies, *sharded))
report("over devices", over_devices)
print(f"the result lies on {len(over_devices.sharding.device_set)} devices")

masked = [show_hole(image, mask) for image, mask in zip(images, np.asarray(masks), strict=True)]
rows = [list(array_to_uint8(images)), masked, list(array_to_uint8(over_devices))]
tile(rows, [path.stem[2:] for path in paths], ["original", "masked", "filled"]).save(output)
print(f"wrote {output}")
