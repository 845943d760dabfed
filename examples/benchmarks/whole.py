"""Compare a whole run of the pipeline with diffusers' pipeline, with the same weights."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from timing import Row, Rows, alternately

import repaint_jax as rp

CONFIG = json.loads((Path(__file__).parents[1] / "emoji_unet.json").read_text())


def over_diffusers() -> Rows:
    """Compare both with T = 50 and j = r = 5, and compare the default of each."""
    import torch
    from diffusers import RePaintPipeline, RePaintScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel.from_config(CONFIG).eval()
    theirs = RePaintPipeline(unet, RePaintScheduler())
    theirs.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = rp.RePaintPipeline.from_pretrained(folder)
    picture = Image.fromarray(np.full((32, 32, 3), 128, np.uint8))
    hole = Image.fromarray(np.asarray(255 * rp.masks.half(32, 32)[..., 0], np.uint8))

    def by_them(steps: int, jump: int, samples: int) -> None:
        theirs(picture, hole, steps, jump_length=jump, jump_n_sample=samples)

    same = alternately(
        lambda: ours(picture, hole, 50, jump_length=5, jump_n_sample=5, key=jax.random.key(0)),
        lambda: by_them(50, 5, 5),
    )
    yield Row("pipeline, 230 calls", "diffusers' pipeline, 230 calls", *same)
    defaults = alternately(
        lambda: ours(picture, hole, key=jax.random.key(0)), lambda: by_them(250, 10, 10), at_least=2
    )
    yield Row("pipeline, default (64 calls)", "diffusers' pipeline, default (2,410 calls)", *defaults)
