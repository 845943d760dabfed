"""Types of arrays inside `jax.shard_map` and on meshes with explicit axes.

There a scan's carry must have the type that its body returns: JAX refuses a replicated start of a chain
whose images are sharded.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType

Tree = TypeVar("Tree")


def with_type_of_output(body: Callable[[Tree, Any], tuple[Tree, Any]], carry: Tree, row: Any) -> Tree:
    """Give a scan's first carry the type that its body returns: the axes it varies over, and its sharding.

    Outside `shard_map` and without explicit axes the carry is returned as it is, and `body` is not traced.

    Args:
        body: the scan's body.
        carry: what the scan starts from.
        row: what the body gets of the arrays that are scanned, for one iteration.
    """
    if not _has_typed_axes((carry, row)):
        return carry
    while True:
        out, _ = jax.eval_shape(body, carry, row)
        before = jax.tree.map(_type, carry)
        carry = jax.tree.map(_cast, carry, out)
        if jax.tree.map(_type, carry) == before:
            return carry


def _has_typed_axes(tree: Any) -> bool:
    meshes = [
        jax.sharding.get_abstract_mesh(),
        *(jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)),
    ]
    return any(kind != AxisType.Auto for mesh in meshes for kind in mesh.axis_types)


def _varying_axes(typed: Any) -> frozenset[Any]:
    """Return the manual axes over which an array differs, in newer and older versions of JAX."""
    if hasattr(typed, "manual_axis_type"):
        return frozenset(typed.manual_axis_type.varying if typed.manual_axis_type else ())
    return frozenset(typed.vma or ())


def _vary(array: Any, axes: tuple[Any, ...]) -> Any:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return getattr(jax.lax, "pvary")(array, axes)  # noqa: B009  # JAX before 0.9


def _type(array: Any) -> tuple[Any, Any]:
    typed = jax.typeof(array)
    return _varying_axes(typed), typed.sharding


def _cast(array: Any, like: jax.ShapeDtypeStruct) -> Any:
    axes = tuple(_varying_axes(like) - _varying_axes(jax.typeof(array)))
    if axes:
        array = _vary(array, axes)
    if like.sharding is not None and like.sharding != jax.typeof(array).sharding:
        array = jax.sharding.reshard(array, like.sharding)
    return array
