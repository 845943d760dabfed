"""Make the `model_fn(params, sample, timestep)` that `inpaint` needs from a Flax module."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx


class ModuleFn:
    """A module as a function `model_fn(params, sample, timestep, *conditions) -> model_output`.

    Functions of equal modules are equal, so `inpaint` does not compile again for a new one. They can be
    pickled.

    Attributes:
        apply: `apply(module, params, *arguments)`.
        module: the module, or its graph definition.
        timestep_per_image: pass one timestep for each image of a batch instead of a scalar.
    """

    def __init__(self, apply: Callable[..., Any], module: Any, timestep_per_image: bool):
        self.apply, self.module, self.timestep_per_image = apply, module, timestep_per_image
        try:
            self._hash = hash((apply, module, timestep_per_image))
        except TypeError:  # a module with an unhashable attribute equals itself alone
            self._hash = id(module)

    def __call__(self, params: Any, sample: jax.Array, timestep: jax.Array, *conditions: Any) -> jax.Array:
        per_image = self.timestep_per_image and jnp.ndim(timestep) == 0 and jnp.ndim(sample) > 3
        if per_image:
            timestep = jnp.broadcast_to(timestep, jnp.shape(sample)[:1])
        try:
            return self.apply(self.module, params, sample, timestep, *conditions)
        except (IndexError, TypeError, ValueError) as error:
            if jnp.ndim(timestep) == 0:
                error.add_note(
                    "The timestep is a scalar here. If the module expects one for each image of a batch, "
                    "give timestep_per_image=True to linen_model_fn or nnx_model_fn."
                )
            raise

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, ModuleFn)
            and self._hash == other._hash
            and (self.apply, self.timestep_per_image) == (other.apply, other.timestep_per_image)
            and (self.module is other.module or self.module == other.module)
        )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleFn, (self.apply, self.module, self.timestep_per_image)


def linen_model_fn(module: linen.Module, *, timestep_per_image: bool = False) -> ModuleFn:
    """Make a `model_fn` from a Flax linen module.

    Args:
        module: a module whose `__call__` takes (sample, timestep), and optionally class labels.
        timestep_per_image: pass timesteps [B] to the module when the sample is a batch [B, H, W, C]; by
            default the timestep is a scalar.

    Returns:
        A `model_fn`. Its params are the variables that `module.init` returns, or their entry "params".

    Raises:
        TypeError: module is not a linen module.
    """
    if not isinstance(module, linen.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected a linen.Module")
    return ModuleFn(_apply_linen, module, timestep_per_image)


def nnx_model_fn(module: nnx.Module, *, timestep_per_image: bool = False) -> tuple[ModuleFn, nnx.State]:
    """Split a Flax NNX module into a `model_fn` and its params.

    The function and the params belong to a copy of the module in inference mode (no dropout, stored batch
    statistics). Later changes of the module do not affect them. A training step that donates the module's
    arrays deletes them, though: pass `nnx.clone(module, arrays=True)` beside one.

    Args:
        module: a module whose `__call__` takes (sample, timestep), and optionally class labels.
        timestep_per_image: pass timesteps [B] to the module when the sample is a batch [B, H, W, C]; by
            default the timestep is a scalar.

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
    return ModuleFn(_apply_nnx, graphdef, timestep_per_image), params


def _apply_linen(module: linen.Module, params: Any, *arguments: Any) -> Any:
    whole = isinstance(params, Mapping) and "params" in params
    return module.apply(params if whole else {"params": params}, *arguments)


def _apply_nnx(graphdef: Any, params: Any, *arguments: Any) -> Any:
    # A copy of the arrays' variables, which modules that trace parts of themselves (nnx.remat) can change.
    return nnx.merge(graphdef, params, copy=True)(*arguments)
