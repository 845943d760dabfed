"""Results that are computed together: their pictures are read, filled and written."""

import errno
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from repaint_jax.folder.chains import ChainRunner
from repaint_jax.folder.results import LONGEST_NAME, Result, is_there, name_length
from repaint_jax.pictures.batches import Look, with_look
from repaint_jax.pictures.datasets import name_bytes
from repaint_jax.pictures.fillings import Filling, Row
from repaint_jax.pictures.images import array_to_pil, save_picture
from repaint_jax.sampling.keys import keys_of_data, window_keys


class Batch(NamedTuple):
    """Results that are computed together, and their inputs."""

    number: int
    results: Sequence[Result]
    fillings: Sequence[Filling | None]  # of each result; None if its picture cannot be used
    keys: NDArray[np.uint32]  # [results, 2], the data of a key for each result
    failures: dict[str, str]  # the reason why a picture cannot be used, by its name
    missing: Sequence[int]  # the results that are still to be made


def load_batch(
    read: Callable[[str, jax.Array], Filling],
    run_key: jax.Array,
    number: int,
    results: Sequence[Result],
) -> Batch:
    """Read the pictures and masks of a batch. `read` gets a picture's name and the key of its mask."""
    words = np.zeros((len(results), 3), np.uint32)
    failures: dict[str, str] = {}
    decoded: dict[str, Filling] = {}
    for position, (name, sample, path, _) in enumerate(results):
        if name_length(path.name) > LONGEST_NAME:
            failures[name] = f"the name of its result, {path.name}, is too long"
        if name not in decoded and name not in failures:
            try:
                decoded[name] = read(name, key_of_mask(run_key, name))
            except Exception as error:  # decoders can raise anything
                failures[name] = " ".join(str(error).split())
        words[position] = *np.frombuffer(_digest(name)[:8], "<u4"), sample
    missing = [
        position
        for position, result in enumerate(results)
        if result.name not in failures and not is_there(result.path)
    ]
    fillings = [decoded[result.name].copy() if result.name in decoded else None for result in results]
    return Batch(number, results, fillings, np.asarray(_keys(run_key, words)), failures, missing)


def fill_batch(batch: Batch, chains: ChainRunner, image_shape: tuple[int, int, int]) -> set[int]:
    """Fill the pictures of a batch, and return the numbers of those whose results are not finite."""
    not_finite: set[int] = set()
    rounds = [[[Row(0)]] if one is None else list(one.rounds()) for one in batch.fillings]
    for turn in range(max(map(len, rounds))):
        places = [(number, row) for number, of_one in enumerate(rounds) for row in _at(of_one, turn)]
        inputs = [_cut(batch.fillings[number], row, image_shape) for number, row in places]
        images, masks = (np.concatenate(arrays) for arrays in zip(*inputs, strict=True))
        keys = batch.keys[[number for number, _ in places]]
        if any(row.window is not None for _, row in places):
            keys = np.asarray(_keys_of_windows(keys, np.array([row.window or 0 for _, row in places])))
        samples = chains(f"{batch.number}-{turn}", images, masks, keys)
        for (number, row), sample in zip(places, samples, strict=True):
            filling = batch.fillings[number]
            if not np.isfinite(sample).all():
                not_finite.add(number)
            elif filling is not None:
                filling.put([row], sample[None])
    return not_finite


def _at(rounds: Sequence[Sequence[Row]], turn: int) -> Sequence[Row]:
    return rounds[turn] if turn < len(rounds) else ()


def _cut(filling: Filling | None, row: Row, image_shape: tuple[int, int, int]) -> tuple[Any, Any]:
    if filling is None:  # its place in the batch stays, so that all others keep theirs
        return np.zeros((1, *image_shape), np.float32), np.zeros((1, *image_shape[:2], 1), np.float32)
    return filling.cut([row])


@jax.jit
def _keys_of_windows(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return the data of a key for each window, from that of its picture's key, as `window_keys`."""
    return jax.random.key_data(window_keys(keys_of_data(keys), numbers))


def key_of_mask(run_key: jax.Array, name: str) -> jax.Array:
    """Return the key of a picture's random mask."""
    return jax.random.fold_in(run_key, int.from_bytes(_digest(name)[8:12], "little"))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name_bytes(name)).digest()


@jax.jit
def _keys(run_key: jax.Array, words: jax.Array) -> jax.Array:
    """Fold each row of words [N, n] into the key, and return the data [N, 2] of the N keys."""

    def of_row(row: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, len(row), lambda i, key: jax.random.fold_in(key, row[i]), run_key)

    return jax.random.key_data(jax.vmap(of_row)(words))


def write_result(batch: Batch, number: int) -> str | None:
    """Write a result, after the other files that the official layout has for it.

    Returns:
        The reason why the result cannot have its name, or None if it was written.
    """
    result, filling = batch.results[number], batch.fillings[number]
    assert filling is not None
    try:
        if result.beside:
            image, mask, profile = filling.original()
            known = {"gt": image, "gt_masked": np.where(mask == 1, image, -1), "gt_keep_mask": 2 * mask - 1}
            for kind, path in result.beside.items():
                look = Look() if kind == "gt_keep_mask" else Look(profile)
                save_picture(with_look(array_to_pil(known[kind]), look), path)
        (picture,) = filling.output("pil")
        save_picture(picture, result.path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return f"the file system of the output refuses the name of its result, {result.path.name}"
    return None
