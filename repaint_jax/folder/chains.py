"""Run batches of chains, one device per batch.

Batches are halved if they do not fit a device's memory, and unfinished chains can be saved.
"""

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
from repaint_jax.models.latents import LatentSpace, chain_inputs, chain_pictures
from repaint_jax.sampling.inpaint import ChainCarry, continue_chain, start_chain
from repaint_jax.sampling.keys import keys_of_data
from repaint_jax.sampling.noisy_pixels import noise_of_mask
from repaint_jax.sampling.scheduler import RePaintSchedulerState

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # the words of XLA, now and in earlier versions

ModelOfRows = Callable[[int], tuple[Callable[..., jax.Array], Any]]


class ChainRunner:
    """Inpaints batches, each on a free device.

    Every device runs the same program, so a batch has the same result, bit for bit, on every device. The
    exception are batches that were halved to fit a device's memory, whose sums are rounded differently.
    Call the runner from as many threads as there are devices.

    Args:
        state: a state with a schedule.
        model_of: a function that returns the model_fn and params for a number of rows.
        batch_size: the number of rows of every batch.
        checkpoint_every: the number of model calls after which an unfinished chain is saved, or None.
        saved: the folder of unfinished chains.
        latents: the autoencoder of a latent model, or None.
        observation_noise: the standard deviation of the noise in known pixels.
    """

    def __init__(
        self,
        state: RePaintSchedulerState,
        model_of: ModelOfRows,
        batch_size: int,
        checkpoint_every: int | None,
        saved: Path,
        latents: LatentSpace | None = None,
        observation_noise: float = 0.0,
    ):
        self.devices = jax.local_devices()
        self.saved = saved
        self._state, self._model_of, self._latents = state, model_of, latents
        self._observation_noise = observation_noise
        self._rows = batch_size  # rows computed at a time; fewer after a device has run out of memory
        self._checkpoint_every = checkpoint_every
        self._models: dict[jax.Device, tuple[int, Any, Any]] = {}  # rows, model_fn, params and latents
        self._placing = Lock()
        self._free: SimpleQueue[jax.Device] = SimpleQueue()
        for device in self.devices:
            self._free.put(device)

    def __call__(
        self, name: str, images: NDArray[np.float32], masks: NDArray[np.float32], keys: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        """Inpaint a batch.

        Unfinished chains are saved under `name` and a digest of the arrays. If the arrays have changed, a
        chain starts from the beginning.

        Args:
            name: the name of the batch.
            images: the images, [batch_size, H, W, C] in [-1, 1].
            masks: the masks, [batch_size, H, W, 1], with values between 0 and 1 as in `noise_of_mask`.
            keys: the data of keys as `seed_key` makes them, [batch_size, 2].

        Returns:
            The inpainted images, [batch_size, H, W, C].

        Raises:
            MemoryError: if a device cannot hold even one picture at a time.
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
                    tqdm.write(
                        f"{rows} pictures at a time do not fit {device}: now {self._rows}", sys.stderr
                    )
        finally:
            self._free.put(device)

    def forget(self, name: str) -> None:
        """Remove the saved chains of a batch."""
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
        with self._placing:  # JAX corrupts arrays that several threads copy at once
            placed_rows, model_fn, placed = self._models.pop(device, (0, None, None))
            if placed_rows != rows:
                model_fn, params = self._model_of(rows)  # replaces the params placed for more rows
                placed = jax.device_put((params, self._latents), device)
            self._models[device] = rows, model_fn, placed
        params, latents = placed
        parts = []
        for start in range(0, len(images), rows):
            chosen = np.minimum(np.arange(start, start + rows), len(images) - 1)
            known, noise = noise_of_mask(masks[chosen], self._observation_noise)
            image, mask, key = jax.device_put((images[chosen], known, keys[chosen]), device)
            inputs = chain_inputs(latents, image, mask, whole=self._state.starts_from_image)
            sample = self._chain(name, model_fn, params, inputs, keys_of_data(key), noise)
            parts.append(np.asarray(chain_pictures(latents, sample, image, mask)))
        return np.concatenate(parts)[: len(images)]

    def _chain(
        self,
        name: str,
        model_fn: Callable[..., jax.Array],
        params: Any,
        inputs: tuple[jax.Array, jax.Array],
        keys: jax.Array,
        noise: NDArray[np.float32] | float,
    ) -> jax.Array:
        images, masks = inputs
        carry, total = start_chain(self._state, images, keys), self._state.num_model_calls or 0
        arguments = self._state, model_fn, params, images, masks, keys
        go_on = partial(continue_chain, *arguments, observation_noise=noise)
        if self._checkpoint_every is None:
            return go_on(carry, total).sample
        made_of = images, masks, jax.random.key_data(keys), *([noise] if np.ndim(noise) else [])
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
                    suppress(FileNotFoundError),  # a process that finished the batch removed the file
                    whole_file(path) as unfinished,
                    unfinished.open("wb") as file,
                ):
                    np.savez(file, *jax.tree.leaves(carry))
        return carry.sample


def _saved_carry(path: Path, new: ChainCarry) -> ChainCarry:
    """Read a saved chain, or return the new one if no saved chain can be read."""
    leaves, tree = jax.tree.flatten(new)
    try:
        with np.load(path) as saved:
            read = [saved[field] for field in saved.files]
    except Exception:  # a damaged file can raise anything
        return new
    if [(leaf.shape, leaf.dtype) for leaf in read] != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        return new
    return jax.tree.unflatten(tree, jax.device_put(read, new.sample.device))
