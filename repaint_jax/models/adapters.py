"""From a Flax module to the `model_fn(params, sample, timestep)` that `inpaint` takes."""

from collections.abc import Mapping
from typing import Any, cast

import jax
from flax import linen, nnx

from repaint_jax.sampling.inpaint import ModelFn


def linen_model_fn(module: linen.Module) -> ModelFn:
    """Adapt a linen module whose `__call__` takes (sample, timestep), and perhaps class labels.

    The params to pass to `inpaint` are what `module.init` returned, or its entry "params" alone. Make the
    function once and keep it: `inpaint` compiles anew for every new function.
    """
    if not isinstance(module, linen.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected a linen.Module")

    def model_fn(params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        whole = isinstance(params, Mapping) and "params" in params
        output = module.apply(params if whole else {"params": params}, sample, timestep, *conditions)
        return cast(jax.Array, output)

    return model_fn


def nnx_model_fn(module: nnx.Module) -> tuple[ModelFn, nnx.State]:
    """Split an NNX module whose `__call__` takes (sample, timestep) into a function and its params.

    Where the module takes class labels as well, so does the function, as its fourth argument.

    Make the function once and keep it: `inpaint` compiles anew for every new function. Function and params
    are of a copy in inference mode (no dropout, batch statistics as they are), so what happens to the
    module afterwards does not change them.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected an nnx.Module")
    copy = nnx.clone(module)
    copy.eval()
    graphdef, params = nnx.split(copy)

    def model_fn(params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(sample, timestep, *conditions)

    return model_fn, params
