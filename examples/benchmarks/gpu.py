"""Measure an accelerator for some minutes, and train a model of colour pictures with what is left.

    python examples/benchmarks/gpu.py OUT --pictures runs/emoji/train --minutes 13
    python examples/benchmarks/gpu.py OUT --rehearse

It needs nothing but this package, and compares with torch where torch and diffusers are installed. It
writes OUT/benchmarks.md row by row, and the model of 64 x 64 pixels to OUT/model at the end. So whatever
ends it early, what was measured is there. --rehearse does the same on any machine with tiny sizes.
"""

import argparse
import dataclasses
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from machine import machine
from network import CELEBAHQ, CIFAR10, EMOJI
from timing import ready, timed

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig, nnx_model_fn
from repaint_jax.pictures.datasets import read_images
from repaint_jax.training import TrainingConfig
from repaint_jax.training_run import train_unet2d

MEASURING = 4 / 13  # the share of the time, if there is training
COLUMNS = (
    "network",
    "batch",
    "float32",
    "bfloat16",
    "a call in a chain of 64, over a bare one",
    "compiling the chain",
    "memory",
    "torch, bfloat16",
)


@dataclasses.dataclass
class Sizes:
    """What is measured, and what is trained."""

    networks: dict[str, tuple[dict[str, Any], int]]
    batches: tuple[int, ...]
    seconds: float  # of a measurement
    train_side: int
    train_batch: int


FULL = Sizes(
    {
        "emoji (5.8 M), 32 px": (EMOJI, 32),
        "emoji (5.8 M), 64 px": (EMOJI, 64),
        "ddpm-cifar10 (36 M), 32 px": (CIFAR10, 32),
        "ddpm-celebahq (114 M), 256 px": (CELEBAHQ, 256),
    },
    (1, 8, 64, 256),
    1.0,
    64,
    256,
)
TINY = {
    **EMOJI,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [8, 16],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
REHEARSAL = Sizes({"tiny, 8 px": (TINY, 8)}, (2,), 0.05, 16, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--pictures", type=Path, help="folder to train on; without it nothing is trained")
    parser.add_argument("--minutes", type=float, default=13, help="for everything, roughly")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, random pictures")
    options = parser.parse_args()
    start = time.monotonic()
    seconds = 60 * (60 if options.rehearse else options.minutes)  # a rehearsal ends by itself
    sizes = REHEARSAL if options.rehearse else FULL
    trains = options.rehearse or options.pictures is not None
    options.output.mkdir(parents=True, exist_ok=True)

    def left() -> float:
        return start + seconds - time.monotonic()

    with (options.output / "benchmarks.md").open("w", encoding="utf-8") as table:
        for line in measure(sizes, lambda: left() - (seconds * (1 - MEASURING) if trains else 0)):
            print(line, flush=True)
            print(line, file=table, flush=True)
    if trains:
        side = sizes.train_side
        if options.rehearse:
            pictures = np.random.default_rng(0).integers(0, 256, (32, side, side, 3), np.uint8)
        else:
            pictures = read_images(options.pictures, side, grey=False)
        train(sizes, pictures, options.output, left)


def measure(sizes: Sizes, left: Callable[[], float]) -> Iterator[str]:
    """Yield the lines of the table, until the time is over."""
    yield f"{jax.devices()[0].device_kind}; {machine()}"
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    for name, (config, side) in sizes.networks.items():
        unet = UNet2D(UNet2DConfig.from_dict({**config, "sample_size": side}), rngs=nnx.Rngs(0))
        model_fn, params = nnx_model_fn(unet)
        torch_call = torch_of(config, side) if importlib.util.find_spec("diffusers") else None
        for batch in sizes.batches:
            if left() < 0:
                yield f"| {name} | {batch} | not measured: the time was over |" + " |" * 5
                return
            try:
                cells = row(model_fn, params, torch_call, (batch, side, side, 3), sizes.seconds)
            except Exception as error:  # out of memory, above all: go on with the next network
                cells = [" ".join(str(error).split())[:80]] + [""] * 5
                yield f"| {name} | {batch} | {' | '.join(cells)} |"
                break
            yield f"| {name} | {batch} | {' | '.join(cells)} |"


def row(
    model_fn: Callable[..., jax.Array],
    params: Any,
    torch_call: Callable[..., str] | None,
    shape: tuple[int, ...],
    seconds: float,
) -> list[str]:
    """Measure a network at a batch size: a call in two dtypes, a chain, its compilation and memory."""
    halved = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    call, timestep = jax.jit(model_fn), jnp.int32(500)
    of_dtype = {}
    for dtype, weights in ((jnp.float32, params), (jnp.bfloat16, halved)):
        images = jnp.zeros(shape, dtype)
        of_dtype[dtype] = median(partial(ready, call, weights, images, timestep), seconds)
    state = rp.set_timesteps_for_budget(rp.create_state(), 64)
    masks = jnp.zeros((*shape[:-1], 1), jnp.bfloat16).at[:, : shape[1] // 2].set(1)
    keys = jax.random.split(jax.random.key(0), shape[0])
    images = jnp.zeros(shape, jnp.bfloat16)
    chain = jax.jit(partial(rp.inpaint, state, model_fn))
    began = time.perf_counter()
    compiled = chain.lower(halved, images, masks, keys).compile()
    compiling = time.perf_counter() - began
    of_chain = median(partial(ready, compiled, halved, images, masks, keys), seconds)
    memory = compiled.memory_analysis()
    return [
        f"{1000 * of_dtype[jnp.float32]:.3g} ms",
        f"{1000 * of_dtype[jnp.bfloat16]:.3g} ms",
        f"{of_chain / 64 / of_dtype[jnp.bfloat16]:.3g}",
        f"{compiling:.1f} s",
        "" if memory is None else f"{memory.temp_size_in_bytes / 2**20:.0f} MiB",
        "" if torch_call is None else torch_call(shape, seconds),
    ]


def median(call: Callable[[], object], seconds: float) -> float:
    call()
    once = timed(call)
    return float(np.median([timed(call) for _ in range(max(3, min(100, round(seconds / once))))]))


def torch_of(config: dict[str, Any], side: int) -> Callable[..., str]:
    """Return a function that times the network in torch on the same device, eager and compiled."""
    import torch
    from diffusers import UNet2DModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = UNet2DModel.from_config({**config, "sample_size": side}).eval().to(device, torch.bfloat16)
    unet = unet.to(memory_format=torch.channels_last)
    ways = {"eager": unet}
    if device == "cuda":
        ways["compiled"] = torch.compile(unet)

    @torch.no_grad()
    def run(model: torch.nn.Module, planes: torch.Tensor) -> None:
        model(planes, 500)
        if device == "cuda":
            torch.cuda.synchronize()

    def time_ways(shape: tuple[int, ...], seconds: float) -> str:
        planes = torch.zeros((shape[0], shape[3], *shape[1:3]), dtype=torch.bfloat16, device=device)
        planes = planes.contiguous(memory_format=torch.channels_last)
        times = {way: median(partial(run, model, planes), seconds) for way, model in ways.items()}
        return ", ".join(f"{way} {1000 * duration:.3g} ms" for way, duration in times.items())

    return time_ways


def train(sizes: Sizes, pictures: np.ndarray, output: Path, left: Callable[[], float]) -> None:
    """Train for the time that is left, in bfloat16, and write the model."""
    config = TrainingConfig(
        batch_size=sizes.train_batch,
        prediction_type="v_prediction",
        timestep_density="lognormal",
        random_flip=True,
        random_shift=sizes.train_side // 16,
        dtype="bfloat16",
        ema_decay=0.9995,
        decay_fraction=0.3,
    )
    unet = UNet2DConfig.from_dict({**EMOJI, "sample_size": sizes.train_side})
    if sizes is REHEARSAL:
        unet = UNet2DConfig.from_dict({**TINY, "sample_size": sizes.train_side})

    def steps(count: int, folder: Path) -> float:
        config_of_steps = dataclasses.replace(config, num_steps=count, warmup_steps=min(500, count // 10))
        began = time.monotonic()
        train_unet2d(config_of_steps, pictures, folder, unet_config=unet, checkpoint_every=2000)
        return time.monotonic() - began

    # Two short runs say what a step costs, and what is paid once.
    few, more = (2, 6) if sizes is REHEARSAL else (10, 60)
    with tempfile.TemporaryDirectory() as folder:
        of_few, of_more = (steps(count, Path(folder) / str(count)) for count in (few, more))
        each = max((of_more - of_few) / (more - few), 1e-3)
        count = max(few, int(0.9 * (left() - of_few) / each))
        if sizes is REHEARSAL:
            count = min(count, 20)
        spent = steps(count, Path(folder) / "whole")
        shutil.copytree(Path(folder) / "whole" / "model", output / "model", dirs_exist_ok=True)
        for name in ("log.csv", f"samples/step_{count:07d}.png"):
            shutil.copy(Path(folder) / "whole" / name, output)
    print(f"trained {count} steps of {config.batch_size} pictures in {spent:.0f} s")


if __name__ == "__main__":
    main()
