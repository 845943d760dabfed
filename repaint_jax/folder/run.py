"""Inpaint a folder of pictures on all devices, resumably.

The results, `num_samples` for each picture, are numbered in the order of the pictures' names and divided
into batches. A batch always contains the same results at the same positions, even if some of them are
already finished, and runs on one device. So a resumed run, and a run on more devices or hosts, writes the
same bytes. A picture that cannot be used leaves its position in the batch empty.
"""

import errno
import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from repaint_jax.files import StrPath
from repaint_jax.folder.chains import ChainRunner
from repaint_jax.folder.results import (
    CHAINS,
    LONGEST_NAME,
    Result,
    divided,
    find_masks,
    is_there,
    name_length,
    pictures_to_inpaint,
    plan_results,
    record_settings,
    refuse_merged_names,
    refuse_output_among_inputs,
    tidy,
)
from repaint_jax.models.guidance import checked_labels
from repaint_jax.pictures.batches import Look, with_look
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, rgb
from repaint_jax.pictures.datasets import name_bytes
from repaint_jax.pictures.drawn_masks import check_description, picture_and_mask
from repaint_jax.pictures.fillings import Filling, Row
from repaint_jax.pictures.images import array_to_pil, open_image, save_picture
from repaint_jax.pictures.windows import DEFAULT_CONTEXT
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.keys import keys_of_data, seed_key, window_keys


class Batch(NamedTuple):
    """Results that are computed together, and their inputs."""

    number: int
    results: Sequence[Result]
    fillings: Sequence[Filling | None]  # of each result; None if its picture cannot be used
    keys: NDArray[np.uint32]  # [results, 2], the data of a key for each result
    failures: dict[str, str]  # the reason why a picture cannot be used, by its name
    missing: Sequence[int]  # the results that are still to be made


def inpaint_folder(
    pipe: RePaintPipeline,
    images: StrPath,
    masks: StrPath,
    output: StrPath,
    *,
    schedule: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 16,
    fit: str = "exact",
    context: float = DEFAULT_CONTEXT,
    background: Colour = DEFAULT_BACKGROUND,
    keep_alpha: bool = False,
    invert_mask: bool = False,
    mask_colour: Colour | None = None,
    grow_mask: int = 0,
    feather: int = 0,
    class_label: int | None = None,
    guidance_scale: float = 1.0,
    official_layout: bool = False,
    checkpoint_every: int | None = None,
    described: Mapping[str, Any] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, str]:
    """Inpaint all pictures below a folder. A run that was stopped resumes with the missing results.

    A result depends on the run's seed and the picture's name, and not on the other pictures. Known pixels
    keep their values exactly. Existing results are kept, even if their picture or mask has changed since.

    Args:
        pipe: the model.
        images: the folder of pictures, at any depth. Links to folders are not followed.
        masks: one mask for all pictures, or a folder with a mask for each picture. A mask has the picture's
            name, with the suffix of any picture format. White keeps a pixel, black inpaints it. Or another
            description of masks as on the command line, which is "half" or "alpha" or "outpaint=8,0,8,0",
            for example; random masks differ from picture to picture. A file or folder of that name has
            precedence.
        output: the folder of the results, `NAME.png`, or `NAME-1.png` and so on for several samples. It
            also gets a record of the run's settings, `repaint.json`.
        schedule: the keyword arguments of `RePaintPipeline.set_timesteps`.
        seed: the seed of the noise.
        num_samples: the number of results for each picture.
        batch_size: the number of results that a device computes at a time.
        fit: how pictures of another size than the model's are inpainted, as for a call of the pipeline.
        context: what a window shows around a hole with fit="crop", as for a call of the pipeline.
        background: the colour behind transparent pixels, as for a call of the pipeline.
        keep_alpha: whether results get the alpha channel of their picture, if it has one.
        invert_mask: whether to invert the masks, so that white inpaints and black keeps.
        mask_colour: the colour that inpaints in the masks, instead of black: a name or code that Pillow
            knows, a grey level, or red, green and blue from 0 to 255.
        grow_mask: the number of pixels by which holes grow, as for a call of the pipeline.
        feather: the number of pixels in which results fade into their pictures, as for a call of the
            pipeline.
        class_label: the class label of all pictures, see `RePaintPipeline`.
        guidance_scale: the strength of the guidance, see `RePaintPipeline`.
        official_layout: whether to write the four folders of the official code: `inpainted`, `gt`,
            `gt_masked` and `gt_keep_mask`.
        checkpoint_every: the number of model calls after which unfinished chains are saved. A later run
            resumes them from there.
        described: more settings for the record, such as the model's name.
        process_index: the index of this process among `process_count` processes. Each process takes its
            share of the batches.
        process_count: the number of processes.

    Returns:
        The pictures that this process could not use, by name, with the reason.

    Raises:
        ValueError: if the folders cannot be used, output holds the results of other settings, or the file
            system of output would merge the names of two results.
        OSError: if a result cannot be written.
        MemoryError: if a device cannot hold even one picture at a time.
    """
    for name, value in (
        ("num_samples", num_samples),
        ("batch_size", batch_size),
        ("checkpoint_every", 1 if checkpoint_every is None else checkpoint_every),
        ("process_count", process_count),
    ):
        check_int(name, value, 1)
    check_int("process_index", process_index, 0)
    if process_index >= process_count:
        raise ValueError(
            f"process_index is {process_index}, expected less than process_count={process_count}"
        )
    images, output = Path(images), Path(output)
    background_colour = rgb(background)
    kind_of_masks, masks_path = divided(masks)
    description = kind_of_masks + ("" if masks_path is None else str(masks_path.resolve()))
    check_description(description, invert=invert_mask, colour=mask_colour)
    check_int("grow_mask", grow_mask, None)
    check_int("feather", feather, 0)
    names = pictures_to_inpaint(images)
    mask_of = find_masks(masks, images, names)
    state = pipe.set_timesteps(**(schedule or {}))

    def model_of(rows: int) -> tuple[Callable[..., jax.Array], Any]:
        labels = None
        if class_label is not None:
            labels = checked_labels("class_label", class_label, rows, pipe.unet_config, pipe.classifier)
        return pipe.guided_model(state.config, labels, guidance_scale=guidance_scale)

    model_of(1)  # raises if the label or the scale does not fit the model
    results = plan_results(output, names, num_samples, official_layout)
    refuse_output_among_inputs(output, images, masks, results)
    settings = {
        **(described or {}),
        "digest of the model": pipe.digest(),
        "images": str(images.resolve()),
        "masks": description,
        "schedule": dict(schedule or {"num_model_calls": state.num_model_calls}),
        "num_model_calls": state.num_model_calls,
        "seed": seed,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "fit": fit,
        "context": context,
        "background": "#{:02x}{:02x}{:02x}".format(*background_colour),
        "keep_alpha": keep_alpha,
        "invert_mask": invert_mask,
        "mask_colour": None if mask_colour is None else "#{:02x}{:02x}{:02x}".format(*rgb(mask_colour)),
        "grow_mask": grow_mask,
        "feather": feather,
        "class_label": class_label,
        "guidance_scale": guidance_scale,
        "official_layout": official_layout,
    }
    record_settings(output, settings, results)
    refuse_merged_names(output, results)

    def is_ours(batch_number: int) -> bool:
        return batch_number % process_count == process_index

    batches = [
        (number, results[start : start + batch_size])
        for number, start in enumerate(range(0, len(results), batch_size))
        if is_ours(number)
    ]
    unfinished = [
        (number, batch) for number, batch in batches if not all(is_there(result.path) for result in batch)
    ]

    make_filling = pipe.filling_maker(
        state,
        fit=fit,
        context=context,
        background=background,
        keep_alpha=keep_alpha,
        grow_mask=grow_mask,
        feather=feather,
    )
    with_mask = partial(picture_and_mask, invert=invert_mask, colour=mask_colour)

    def read(name: str, key: jax.Array) -> Filling:
        if name not in mask_of:
            raise ValueError("there is no mask of the same name")
        return make_filling(*with_mask(mask_of[name], open_image(images / name), key))

    load = partial(_load, read, seed_key(seed))
    chains = ChainRunner(state, model_of, batch_size, checkpoint_every, output / CHAINS, pipe.latents)
    total = sum(len(batch) for _, batch in batches)
    done = total - sum(len(batch) for _, batch in unfinished)
    with tqdm(total=total, initial=done, unit="result", disable=None) as bar:
        failures = _run(unfinished, load, chains, pipe.image_shape, bar, state.num_model_calls or 0)
    tidy(output, [result for _, batch in batches for result in batch], is_ours)
    return failures


def _run(
    batches: Sequence[tuple[int, Sequence[Result]]],
    load: Callable[[int, Sequence[Result]], Batch],
    chains: ChainRunner,
    image_shape: tuple[int, int, int],
    bar: "tqdm[Any]",
    num_model_calls: int,
) -> dict[str, str]:
    """Decode, compute and encode at the same time, with a few batches in flight."""
    devices = len(chains.devices)
    failures: dict[str, str] = {}
    computed: deque[Future[tuple[Batch, set[int]]]] = deque()
    written: deque[tuple[int, list[tuple[str, Future[str | None]]]]] = deque()
    files, computing = ThreadPoolExecutor(2 * devices), ThreadPoolExecutor(devices)

    def compute(loaded: Future[Batch]) -> tuple[Batch, set[int]]:
        batch = loaded.result()
        return batch, _fill(batch, chains, image_shape) if batch.missing else set()

    def finish_oldest() -> None:
        batch, not_finite = computed.popleft().result()
        failures.update(batch.failures)
        writes = []
        for number in batch.missing:
            name, sample, *_ = batch.results[number]
            if number in not_finite:
                failures[name] = f"sample {sample + 1} has values that are not finite"
            else:
                writes.append((name, files.submit(_write, batch, number)))
        finish_writing()
        written.append((batch.number, writes))
        bar.update(len(batch.results))
        if not bar.disable:
            calls = (bar.n - bar.initial) * num_model_calls
            bar.set_postfix_str(f"{calls / bar.format_dict['elapsed']:.0f} calls/s")

    def finish_writing() -> None:
        while written:
            number, writes = written.popleft()
            for name, one in writes:
                if (reason := one.result()) is not None:
                    failures[name] = reason
            chains.forget(str(number))

    try:
        for number, results in batches:
            loaded = files.submit(load, number, results)
            computed.append(computing.submit(compute, loaded))
            if len(computed) > 2 * devices:
                finish_oldest()
        while computed:
            finish_oldest()
        finish_writing()
    finally:  # after an error or Ctrl-C; a running chain cannot be stopped, so do not wait for it
        computing.shutdown(wait=False, cancel_futures=True)
        files.shutdown(cancel_futures=True)
    return failures


def _fill(batch: Batch, chains: ChainRunner, image_shape: tuple[int, int, int]) -> set[int]:
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


def _load(
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
        digest = hashlib.sha256(name_bytes(name)).digest()
        if name not in decoded and name not in failures:
            try:
                of_mask = jax.random.fold_in(run_key, int.from_bytes(digest[8:12], "little"))
                decoded[name] = read(name, of_mask)
            except Exception as error:  # decoders can raise anything
                failures[name] = " ".join(str(error).split())
        words[position] = *np.frombuffer(digest[:8], "<u4"), sample
    missing = [
        position
        for position, result in enumerate(results)
        if result.name not in failures and not is_there(result.path)
    ]
    fillings = [decoded[result.name].copy() if result.name in decoded else None for result in results]
    return Batch(number, results, fillings, np.asarray(_keys(run_key, words)), failures, missing)


@jax.jit
def _keys(run_key: jax.Array, words: jax.Array) -> jax.Array:
    """Fold each row of words [N, n] into the key, and return the data [N, 2] of the N keys."""

    def of_row(row: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, len(row), lambda i, key: jax.random.fold_in(key, row[i]), run_key)

    return jax.random.key_data(jax.vmap(of_row)(words))


def _write(batch: Batch, number: int) -> str | None:
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
