"""Run batches of chains on devices: one device a batch, smaller where memory ends, saved on the way."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax.files import whole_file
from repaint_jax.inpaint import continue_chain, start_chain
from repaint_jax.scheduler import RePaintSchedulerState

ModelOfRows = Callable[[int], tuple[Callable[..., jax.Array], Any]]


class ChainRunner:
    """Inpaints one batch after another, each on a device that is free.

    Every device runs the same program, so that a batch has the same result, bit for bit, on any of them.
    Call it from as many threads as there are devices.

    Args:
        state: with a schedule.
        model_of: returns the model_fn and params for a number of rows.
        batch_size: rows of every batch.
        checkpoint_every: model calls after which an unfinished chain is saved, or None.
        saved: folder for unfinished chains.
    """

    def __init__(
        self,
        state: RePaintSchedulerState,
        model_of: ModelOfRows,
        batch_size: int,
        checkpoint_every: int | None,
        saved: Path,
    ):
        self.devices = jax.local_devices()
        self.saved = saved
        self._state, self._model_of = state, model_of
        self._rows = batch_size  # at a time; fewer once a device's memory was too small
        self._checkpoint_every = checkpoint_every
        self._models: dict[tuple[int, jax.Device], tuple[Callable[..., jax.Array], Any]] = {}
        self._placing = Lock()
        self._free: SimpleQueue[jax.Device] = SimpleQueue()
        for device in self.devices:
            self._free.put(device)

    def __call__(
        self, name: str, images: NDArray[np.float32], masks: NDArray[np.float32], keys: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        """Inpaint images [batch_size, H, W, C]; `name` is what unfinished chains are saved under.

        Keys are [batch_size, ...], the data of typed keys.
        """
        device = self._free.get()
        try:
            while True:
                rows = self._rows
                try:
                    return self._in_parts(name, images, masks, keys, rows, device)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    if rows == 1:
                        reason = f"not even one picture at a time fits the memory of {device}"
                        raise MemoryError(reason) from None
                    self._rows = min(self._rows, rows // 2)
                    tqdm.write(f"{rows} pictures at a time do not fit {device}: {self._rows}", sys.stderr)
        finally:
            self._free.put(device)

    def forget(self, name: str) -> None:
        """Remove what is saved of a batch."""
        for pattern in (f"{name}-*", f".{name}-*.unfinished"):
            for path in self.saved.glob(pattern):
                path.unlink(missing_ok=True)

    def _in_parts(
        self,
        name: str,
        images: NDArray[np.float32],
        masks: NDArray[np.float32],
        keys: NDArray[np.uint32],
        rows: int,
        device: jax.Device,
    ) -> NDArray[np.float32]:
        with self._placing:  # arrays that several threads copy at once come out broken
            if (rows, device) not in self._models:
                model_fn, params = self._model_of(rows)
                self._models[rows, device] = model_fn, jax.device_put(params, device)
        parts = []
        for start in range(0, len(images), rows):
            chosen = np.minimum(np.arange(start, start + rows), len(images) - 1)
            image, mask, key = jax.device_put((images[chosen], masks[chosen], keys[chosen]), device)
            arguments = *self._models[rows, device], image, mask, jax.random.wrap_key_data(key)
            parts.append(self._chain(f"{name}-{rows}-{start}", *arguments))
        return np.concatenate(parts)[: len(images)]

    def _chain(
        self,
        name: str,
        model_fn: Callable[..., jax.Array],
        params: Any,
        images: jax.Array,
        masks: jax.Array,
        keys: jax.Array,
    ) -> NDArray[np.float32]:
        carry, total = start_chain(self._state, images, keys), self._state.num_model_calls or 0
        go_on = partial(continue_chain, self._state, model_fn, params, images, masks, keys)
        if self._checkpoint_every is None:
            return np.asarray(go_on(carry, total).sample)
        path = self.saved / f"{name}.npz"
        if path.exists():
            with np.load(path) as saved:
                leaves = [saved[field] for field in saved.files]
            carry = jax.tree.unflatten(jax.tree.structure(carry), jax.device_put(leaves, images.device))
        done = int(carry.calls_done)
        while done < total:
            stretch = min(self._checkpoint_every, total - done)
            carry = go_on(carry, stretch)
            done += stretch
            if done < total:
                with whole_file(path) as unfinished, unfinished.open("wb") as file:
                    np.savez(file, *jax.tree.leaves(carry))
        return np.asarray(carry.sample)
