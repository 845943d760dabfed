"""Devices: one for each core of a CPU, batches over several, and how large a batch fits one."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.inpaint import ModelFn, inpaint
from repaint_jax.sampling.scheduler import RePaintSchedulerState

Tree = TypeVar("Tree")

_DEVICE_COUNT_FLAG = "xla_force_host_platform_device_count"


def shard_batch(batch: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Lay the leading axis of every array out over devices.

    `inpaint` on what comes back, and on `replicate`d parameters, runs on all of the devices at once and
    compiles to a program in which they exchange nothing.

    Args:
        batch: a pytree of arrays and vectors of keys, such as (images, masks, keys), of one length, a
            multiple of the number of devices.
        devices: `jax.local_devices()` where None.
    """
    devices = _at_least_one(devices)
    lengths = {jnp.shape(leaf)[0] if jnp.shape(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(lengths) > 1 or 0 in lengths or any(length % len(devices) for length in lengths):
        raise ValueError(
            f"batch has leading axes of length {sorted(lengths)}, expected one length, a multiple of the "
            f"{len(devices)} devices (0: no axis)"
        )
    return jax.device_put(batch, NamedSharding(_mesh(devices), PartitionSpec("batch")))


def replicate(params: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Put a copy of every array on each device, `jax.local_devices()` where None."""
    devices = _at_least_one(devices)
    return jax.device_put(params, NamedSharding(_mesh(devices), PartitionSpec()))


def free_devices(params: Any) -> list[jax.Device]:
    """List all devices of this process; none where params are sharded: JAX knows where to compute then."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    whole = all(leaf.sharding.is_fully_replicated for leaf in leaves)
    return jax.local_devices() if whole else []


def _at_least_one(devices: Sequence[jax.Device] | None) -> Sequence[jax.Device]:
    devices = jax.local_devices() if devices is None else devices
    if not devices:
        raise ValueError("devices is empty, expected at least one")
    return devices


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), ("batch",))


def use_every_core(batch_size: int = 0) -> None:
    """Let JAX have a device for every core of the CPU, unless it runs already or was told how many.

    Two cores do more on two halves of a batch than together on each operation, few of which are large
    enough to be divided. Other platforms are not concerned.

    Args:
        batch_size: a number of pictures that has to be a multiple of the number of devices, or 0.
    """
    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not told and _DEVICE_COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = max(count for count in range(1, cores + 1) if batch_size % count == 0)
        with contextlib.suppress(RuntimeError):  # JAX runs already
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
    """Say how many images `inpaint` can take at once on one device, without running it.

    The chain is compiled for one image and for two, and the difference of what XLA says each needs is taken
    for an image's share; then for the result, to be sure, or to correct it. The number of model calls
    hardly matters: a call needs the memory of the one before, and a few coefficients.

    Args:
        state: with a schedule.
        model_fn: as `inpaint` takes it.
        params: its parameters, or their shapes and dtypes.
        image_shape: [H, W, C] of one image.
        dtype: of the images.
        bytes_limit: memory to fit into; where None what the first local device has, of which a CPU's is
            the machine's.

    Returns:
        The batch size, 0 where not even one image fits.
    """
    if bytes_limit is None:
        bytes_limit = _bytes_limit(jax.local_devices()[0])
    check_int("bytes_limit", bytes_limit, 1)

    def needed(batch_size: int) -> int:
        return _bytes_needed(state, model_fn, params, image_shape, dtype, batch_size)

    one, two = needed(1), needed(2)
    if one > bytes_limit:
        return 0
    size = 1 + (bytes_limit - one) // max(two - one, 1)
    while size > 1 and (too_much := needed(size)) > bytes_limit:
        size = 1 + (bytes_limit - one) * (size - 1) // (too_much - one)
    return size


def _bytes_needed(
    state: RePaintSchedulerState,
    model_fn: ModelFn,
    params: Any,
    image_shape: tuple[int, ...],
    dtype: Any,
    batch_size: int,
) -> int:
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


def _bytes_limit(device: jax.Device) -> int:
    statistics = device.memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(statistics.get("bytes_limit", machine))
