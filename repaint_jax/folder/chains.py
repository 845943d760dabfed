"""Run batches of chains on devices: one device a batch, smaller where memory ends, saved on the way."""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
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
from repaint_jax.sampling.inpaint import ChainCarry, continue_chain, start_chain
from repaint_jax.sampling.keys import keys_of_data
from repaint_jax.sampling.scheduler import RePaintSchedulerState

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # as XLA says it, now and in earlier versions

ModelOfRows = Callable[[int], tuple[Callable[..., jax.Array], Any]]


class ChainRunner:
    """Inpaints one batch after another, each on a device that is free.

    Every device runs the same program, so that a batch has the same result, bit for bit, on any of them;
    but where batches had to be halved to fit its memory, sums are rounded otherwise. Call it from as many
    threads as there are devices.

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
        self._models: dict[jax.Device, tuple[int, Any, Any]] = {}  # rows, model_fn, params
        self._placing = Lock()
        self._free: SimpleQueue[jax.Device] = SimpleQueue()
        for device in self.devices:
            self._free.put(device)

    def __call__(
        self, name: str, images: NDArray[np.float32], masks: NDArray[np.float32], keys: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        """Inpaint images [batch_size, H, W, C]; keys are [batch_size, 2], the data of `seed_key`s.

        Unfinished chains are saved under `name` and a digest of the arrays: where these have changed, a
        chain starts anew.
        """
        device = self._free.get()
        try:
            while True:
                rows = self._rows
                try:
                    return self._in_parts(name, images, masks, keys, rows, device)
                except jax.errors.JaxRuntimeError as error:
                    if not any(words in str(error) for words in _OUT_OF_MEMORY):
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
        for path in self.saved.glob(f"{name}-*"):
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
            placed_rows, model_fn, params = self._models.pop(device, (0, None, None))
            if placed_rows != rows:
                model_fn, params = self._model_of(rows)  # what was placed for more rows is let go of
                params = jax.device_put(params, device)
            self._models[device] = rows, model_fn, params
        parts = []
        for start in range(0, len(images), rows):
            chosen = np.minimum(np.arange(start, start + rows), len(images) - 1)
            image, mask, key = jax.device_put((images[chosen], masks[chosen], keys[chosen]), device)
            parts.append(self._chain(name, model_fn, params, image, mask, keys_of_data(key)))
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
        made_of = images, masks, jax.random.key_data(keys)
        digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in made_of)).hexdigest()[:16]
        path = self.saved / f"{name}-{digest}.npz"
        carry = _saved_carry(path, carry)
        done = int(carry.calls_done)
        while done < total:
            stretch = min(self._checkpoint_every, total - done)
            carry = go_on(carry, stretch)
            done += stretch
            if done < total:
                with (
                    suppress(FileNotFoundError),  # removed by another process that has finished the batch
                    whole_file(path) as unfinished,
                    unfinished.open("wb") as file,
                ):
                    np.savez(file, *jax.tree.leaves(carry))
        return np.asarray(carry.sample)


def _saved_carry(path: Path, new: ChainCarry) -> ChainCarry:
    """Read a chain that was saved, or return the new one where there is none that can be read."""
    leaves, tree = jax.tree.flatten(new)
    try:
        with np.load(path) as saved:
            read = [saved[field] for field in saved.files]
    except Exception:  # a damaged file raises whatever it likes
        return new
    if [(leaf.shape, leaf.dtype) for leaf in read] != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        return new
    return jax.tree.unflatten(tree, jax.device_put(read, new.sample.device))
