"""Print the cost of one call of a UNet2D: parameters, floating point operations, seconds, memory.

    python examples/measure_unet.py examples/celebahq_unet.json --dtype bfloat16

The weights are constants. A published model of the same architecture has the same cost.
"""

import argparse
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from repaint_jax.models import UNet2D, UNet2DConfig, nnx_model_fn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unet_config", type=Path, help="architecture, as diffusers' unet/config.json")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()

    config = UNet2DConfig.from_file(options.unet_config)
    shape = (options.batch_size, *config.height_and_width, config.in_channels)
    model_fn, params = nnx_model_fn(nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, options.dtype), params)
    sample = jax.random.normal(jax.random.key(0), shape)

    def seconds(call) -> float:
        start = time.perf_counter()
        jax.block_until_ready(call(params, sample, jnp.int32(500)))
        return time.perf_counter() - start

    call = jax.jit(model_fn)
    flops = call.lower(params, sample, jnp.int32(500)).compile().cost_analysis()["flops"]
    first, *others = [seconds(call) for _ in range(1 + options.calls)]
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    median = sorted(others)[len(others) // 2]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{num_parameters:,} parameters, sample {shape}, {options.dtype}, {flops:.4g} FLOP a call")
    print(
        f"{median:.2f} s a call (median of {len(others)}), {first:.1f} s the first; {peak:.2f} GiB at most"
    )


if __name__ == "__main__":
    main()
