"""Make the `model_fn(params, sample, timestep)` that `inpaint` needs from a Flax module."""

from collections.abc import Mapping
from typing import Any, cast

import jax
from flax import linen, nnx

from repaint_jax.sampling.inpaint import ModelFn


def linen_model_fn(module: linen.Module) -> ModelFn:
    """Make a `model_fn` from a Flax linen module.

    Call this function once and reuse its result: `inpaint` compiles again for every new `model_fn`.

    Args:
        module: a module whose `__call__` takes (sample, timestep), and optionally class labels.

    Returns:
        A `model_fn`. Its params are the variables that `module.init` returns, or their entry "params".

    Raises:
        TypeError: module is not a linen module.
    """
    if not isinstance(module, linen.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected a linen.Module")

    def model_fn(params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        whole = isinstance(params, Mapping) and "params" in params
        output = module.apply(params if whole else {"params": params}, sample, timestep, *conditions)
        return cast(jax.Array, output)

    return model_fn


def nnx_model_fn(module: nnx.Module) -> tuple[ModelFn, nnx.State]:
    """Split a Flax NNX module into a `model_fn` and its params.

    Call this function once and reuse its result: `inpaint` compiles again for every new `model_fn`. The
    function and the params belong to a copy of the module in inference mode (no dropout, stored batch
    statistics). Later changes of the module do not affect them.

    Args:
        module: a module whose `__call__` takes (sample, timestep), and optionally class labels.

    Returns:
        The `model_fn` and its params. If the module takes class labels, they are the fourth argument of
        the `model_fn`.

    Raises:
        TypeError: module is not an NNX module.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected an nnx.Module")
    copy = nnx.clone(module)
    copy.eval()
    graphdef, params = nnx.split(copy)

    def model_fn(params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(sample, timestep, *conditions)

    return model_fn, params
