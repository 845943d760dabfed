"""Compare the time of `inpaint_folder` with the time of its model calls.

    python examples/measure_folder.py

This inpaints 200 pictures, copies of the bundled ones, from files to files. Alternately, it makes the same
number of bare calls of the bundled network on batches of the same size. The first turn compiles and is not
counted.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import repaint_jax as rp
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.models.pretrained import pictures_of_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model-calls", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    num_batches = -(-options.pictures // options.batch_size)
    images = jnp.zeros((options.batch_size, *pipe.image_shape))

    @jax.jit
    def call(images: jax.Array) -> jax.Array:
        return pipe.model_fn(pipe.params, images, jnp.int32(500))

    def bare_calls(work: Path) -> None:
        del work
        sample = images
        for _ in range(num_batches * options.model_calls):
            sample = call(sample)
        sample.block_until_ready()

    def folder(work: Path) -> None:
        inpaint_folder(
            pipe,
            work / "images",
            work / "mask.png",
            work / "results",
            schedule={"num_model_calls": options.model_calls},
            batch_size=options.batch_size,
        )

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "images").mkdir()
        bundled = pictures_of_model("bundled")
        for number in range(options.pictures):
            shutil.copy(bundled[number % len(bundled)], work / "images" / f"{number:04}.png")
        half = np.asarray(rp.masks.half(*pipe.image_shape[:2]))[..., 0]
        Image.fromarray((255 * half).astype(np.uint8)).save(work / "mask.png")
        seconds: dict[str, list[float]] = {"bare model calls": [], "folder": []}
        for _ in range(1 + options.repeats):  # the first turn compiles
            for kind, run in zip(seconds, (bare_calls, folder), strict=True):
                shutil.rmtree(work / "results", ignore_errors=True)
                start = time.perf_counter()
                run(work)
                seconds[kind].append(time.perf_counter() - start)
    best = {kind: min(times[1:]) for kind, times in seconds.items()}
    calls = num_batches * options.batch_size * options.model_calls
    for kind, shortest in best.items():
        print(f"{kind}: {shortest:.2f} s, {calls / shortest:.0f} pictures x calls a second")
    ratio = best["bare model calls"] / best["folder"]
    print(f"throughput of the folder divided by that of its model calls: {ratio:.3f}")


if __name__ == "__main__":
    main()
