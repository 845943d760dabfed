"""Compare a call of `UNet2D` with torch, with the same weights, and with the machine's matrix products."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bundled import PIPE
from timing import Row, Rows, alternately, ready

import repaint_jax as rp
from repaint_jax.models import load_unet2d, nnx_model_fn

EXAMPLES = Path(__file__).parents[1]
CIFAR10 = {  # google/ddpm-cifar10-32
    **{"sample_size": 32, "block_out_channels": [128, 256, 256, 256], "attention_head_dim": None},
    **{"down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]},
    **{"up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]},
    **{"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
}
FASHION_MNIST, EMOJI, CELEBAHQ = (
    json.loads((EXAMPLES / f"{name}_unet.json").read_text())
    for name in ("fashion_mnist", "emoji", "celebahq")
)
NETWORKS = {  # configuration, side of the images, batch sizes
    "Fashion-MNIST (1.3 M)": (FASHION_MNIST, 28, (1, 4, 8)),
    "emoji (2.5 M)": (EMOJI, 32, (1, 4, 8)),
    "ddpm-cifar10 (36 M)": (CIFAR10, 32, (1, 4, 8)),
    "emoji (2.5 M), larger images": (EMOJI, 128, (1, 4)),
    "ddpm-celebahq (114 M)": (CELEBAHQ, 256, (1,)),
}


def over_torch() -> Rows:
    """Compare `UNet2D` with the fastest of torch's ways to run the same network.

    Batches are also divided among one device per core, as in the pipeline.
    """
    import torch
    from diffusers import UNet2DModel

    @torch.no_grad()
    def run(model: torch.nn.Module, planes: torch.Tensor) -> None:
        model(planes, 500)

    def torch_call(ways: dict[str, torch.nn.Module], way: str, images: np.ndarray) -> Callable[[], None]:
        layout = torch.channels_last if way.endswith("channels_last") else torch.contiguous_format
        ways["eager"].to(memory_format=layout)  # all ways share its weights
        planes = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
        return partial(run, ways[way], planes)

    for name, (config, side, batches) in NETWORKS.items():
        torch.manual_seed(0)
        channels = config.get("in_channels", 3)
        theirs = UNet2DModel.from_config({**config, "sample_size": side}).eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            model_fn, params = nnx_model_fn(load_unet2d(folder))
        call = jax.jit(model_fn)
        ways = {
            "eager": theirs,
            "eager, channels_last": theirs,
            "compiled": torch.compile(theirs),
            "compiled, channels_last": torch.compile(theirs),
        }
        for batch in batches:
            images = np.random.default_rng(0).normal(size=(batch, side, side, channels)).astype(np.float32)
            arguments = params, jnp.asarray(images), jnp.int32(500)
            times = {
                way: alternately(partial(ready, call, *arguments), torch_call(ways, way, images), seconds=3)
                for way in ways
            }
            way = max(ways, key=lambda way: times[way][2])
            what, goal = f"{name}, {side} px, batch {batch}", "below 1; mean 0.8"
            yield Row(what, f"torch, {way}", *times[way], goal)
            devices = jax.local_device_count()
            if devices > 1 and batch % devices == 0:
                divided = rp.replicate(params), rp.shard_batch(arguments[1]), rp.replicate(arguments[2])
                yield Row(
                    f"{what}, on {devices} devices",
                    f"torch, {way}",
                    *alternately(partial(ready, call, *divided), torch_call(ways, way, images), seconds=3),
                    goal,
                )


def over_matmul() -> Rows:
    """Compare the rate of the bundled network's arithmetic with that of a large matrix product."""
    size = 1024
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    call = jax.jit(PIPE.model_fn)
    images = jnp.zeros((32, *PIPE.image_shape))
    arguments = PIPE.params, images, jnp.int32(500)
    flops = call.lower(*arguments).compile().cost_analysis()["flops"]
    of_call, of_product, _ = alternately(
        partial(ready, call, *arguments), partial(ready, product, matrix, matrix)
    )
    expected = flops / (2 * size**3) * of_product  # time of its operations at that rate
    yield Row(
        "bundled network, batch 32",
        "its operations at the rate of a matrix product",
        of_call,
        expected,
        of_call / expected,
    )
