"""Devices: batches over several devices, one device for each CPU core, the largest batch for a device."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.inpaint import ModelFn, inpaint
from repaint_jax.sampling.scheduler import RePaintSchedulerState

Tree = TypeVar("Tree")

_DEVICE_COUNT_FLAG = "xla_force_host_platform_device_count"


def shard_batch(batch: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Divide the leading axis of every array among devices.

    Pass the result to `inpaint`, together with parameters from `replicate`. It then runs on all devices at
    once, in a program without communication between them.

    Args:
        batch: a pytree of arrays and vectors of keys, such as (images, masks, keys). All have the same
            length, which is a multiple of the number of devices.
        devices: the devices; None means all devices of the mesh that `jax.set_mesh` has set, or
            `jax.local_devices()` where none is set.

    Returns:
        The batch, with every array divided among the devices.

    Raises:
        ValueError: the leading axes differ, or are not a multiple of the number of devices.
    """
    mesh = _mesh(devices)
    lengths = {jnp.shape(leaf)[0] if jnp.shape(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(lengths) > 1 or 0 in lengths or any(length % mesh.size for length in lengths):
        raise ValueError(
            f"batch has leading axes of length {sorted(lengths)}, expected one length, a multiple of the "
            f"{mesh.size} devices (0: no axis)"
        )
    return _placed(batch, mesh, PartitionSpec(mesh.axis_names))


def replicate(params: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Put a copy of every array on each device.

    Args:
        params: a pytree of arrays.
        devices: the devices; None means those of `shard_batch`.

    Returns:
        The params, with a copy of every array on each device.
    """
    return _placed(params, _mesh(devices), PartitionSpec())


def free_devices(params: Any) -> list[jax.Device]:
    """List the devices of this process, or no devices if params are sharded.

    If params are sharded, JAX computes where they are. Inside `jax.default_device(...)` that device is the
    only one.
    """
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    whole = all(leaf.sharding.is_fully_replicated for leaf in leaves)
    if not whole:
        return []
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(default, str):  # a platform
        return jax.local_devices(backend=default)[:1]
    return jax.local_devices() if default is None else [default]


def mesh_of_devices(devices: Sequence[jax.Device]) -> contextlib.AbstractContextManager[Any]:
    """Set the mesh that `shard_batch` lays arrays out on, in place of another one that is set.

    JAX refuses arrays of one mesh while another is set, as by a training loop around a pipeline's call.
    """
    if jax.sharding.get_abstract_mesh().empty or not devices:
        return contextlib.nullcontext()
    return jax.set_mesh(_mesh_of(devices))


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh | AbstractMesh:
    if devices is None:
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty:
            return mesh
        devices = jax.local_devices()
    if not devices:
        raise ValueError("devices is empty, expected at least one")
    return _mesh_of(devices)


def _mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("batch",))


def _placed(tree: Tree, mesh: Mesh | AbstractMesh, spec: PartitionSpec) -> Tree:
    # A spec alone means the mesh that is set.
    return jax.device_put(tree, NamedSharding(mesh, spec) if isinstance(mesh, Mesh) else spec)


def use_every_core(batch_size: int = 0) -> None:
    """Make JAX use one device for each CPU core.

    This has no effect if JAX has started already, or if the number of devices is already set. It does not
    change other platforms. Two cores are faster if each takes half of a batch than if both share every
    operation, because few operations are large enough to be divided.

    Args:
        batch_size: number of pictures, which must be a multiple of the number of devices; 0 for no such
            condition.
    """
    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not told and _DEVICE_COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = max(count for count in range(1, cores + 1) if batch_size % count == 0)
        with contextlib.suppress(RuntimeError):  # JAX has started already
            jax.config.update("jax_num_cpu_devices", most)


def largest_batch_size(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    image_shape: tuple[int, ...],
    *,
    dtype: Any = jnp.float32,
    bytes_limit: int | None = None,
) -> int:
    """Return how many images `inpaint` can process at once on one device, without running it.

    The function compiles the chain for one image and for two images, and XLA reports how much memory each
    program needs. The difference is the memory per image. The function then compiles the chain for the
    resulting batch size, and lowers that size if it does not fit. The number of model calls hardly matters:
    each call reuses the memory of the previous one, and adds only a few coefficients.

    Args:
        state: a state with a schedule.
        model_fn: see `inpaint`.
        params: the parameters of model_fn, or their shapes and dtypes.
        image_shape: [H, W, C] of one image.
        dtype: dtype of the images.
        bytes_limit: available memory in bytes. None means the memory of the first local device; for a CPU
            this is the memory of the machine.

    Returns:
        The batch size, or 0 if not even one image fits.

    Raises:
        NotImplementedError: the backend of JAX does not report how much memory a program needs, or
            bytes_limit is None and the system does not report how much memory it has.
    """
    if bytes_limit is None:
        bytes_limit = memory_of_device(jax.local_devices()[0])
    check_int("bytes_limit", bytes_limit, 1)

    def needed(batch_size: int) -> int:
        return bytes_needed(state, model_fn, params, image_shape, batch_size, dtype=dtype)

    one, two = needed(1), needed(2)
    if one > bytes_limit:
        return 0
    size = 1 + (bytes_limit - one) // max(two - one, 1)
    while size > 1 and (too_much := needed(size)) > bytes_limit:
        size = 1 + (bytes_limit - one) * (size - 1) // (too_much - one)
    return size


def bytes_needed(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    image_shape: tuple[int, ...],
    batch_size: int,
    *,
    dtype: Any = jnp.float32,
) -> int:
    """Return how much memory `inpaint` needs for a batch, without running it; see `largest_batch_size`."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), dtype)
    masks = jax.ShapeDtypeStruct((batch_size, *image_shape[:-1], 1), dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    chain = jax.jit(inpaint, static_argnums=1).lower(state, model_fn, params, images, masks, keys)
    memory = chain.compile().memory_analysis()
    if memory is None:
        raise NotImplementedError("this backend of JAX does not say how much memory a program needs")
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def memory_of_device(device: jax.Device) -> int:
    """Return the memory of a device in bytes; for a CPU that of the machine.

    Raises:
        NotImplementedError: the system does not report how much memory it has.
    """
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        raise NotImplementedError(
            "bytes_limit is None, expected a number: this system does not say how much memory it has"
        ) from None
