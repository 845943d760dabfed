"""Inpaint a face with google/ddpm-ema-celebahq-256, a published model of diffusers.

    python examples/inpaint_celebahq.py face.png mask.png filled.png

Black pixels of the mask are filled. The first run downloads 455 MB into the hub's cache. On a CPU, the 64
model calls take minutes. The paper's 2,410 (`num_inference_steps=250, eta=1.0`) take hours.
"""

import sys

import jax
from PIL import Image

import repaint_jax as rp

face, mask, filled = sys.argv[1:]
pipe = rp.RePaintPipeline.from_pretrained("google/ddpm-ema-celebahq-256", dtype="bfloat16")
pictures = pipe(
    Image.open(face), Image.open(mask), num_model_calls=64, resize=True, key=jax.random.key(0)
).images
pictures[0].save(filled)
