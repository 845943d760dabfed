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
from repaint_jax.pictures import batches as pictures
from repaint_jax.pictures.batches import Look, with_look
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, rgb
from repaint_jax.pictures.datasets import name_bytes
from repaint_jax.pictures.images import array_to_pil, open_image, save_picture
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.pipeline_chain import check_noise_of_latents
from repaint_jax.sampling.checks import check_int, check_noise
from repaint_jax.sampling.keys import seed_key


class Batch(NamedTuple):
    """Results that are computed together, and their inputs. Rows without a picture are 0."""

    number: int
    results: Sequence[Result]
    images: NDArray[np.float32]  # [batch_size, H, W, C]
    masks: NDArray[np.float32]  # [batch_size, H, W, 1]
    keys: NDArray[np.uint32]  # [batch_size, 2], the data of a key for each row
    looks: Mapping[str, Look]  # of the pictures, by their names
    failures: dict[str, str]  # the reason why a picture cannot be used, by its name
    missing: Sequence[int]  # rows whose results are still to be made


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
    resize: bool = False,
    background: Colour = DEFAULT_BACKGROUND,
    keep_alpha: bool = False,
    soft_mask: bool = False,
    observation_noise: float = 0.0,
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
        images: the folder of pictures, at any depth, each of the model's size. Links to folders are not
            followed.
        masks: one mask for all pictures, or a folder with a mask for each picture. A mask has the picture's
            name, with the suffix of any picture format. White keeps a pixel, black inpaints it.
        output: the folder of the results, `NAME.png`, or `NAME-1.png` and so on for several samples. It
            also gets a record of the run's settings, `repaint.json`.
        schedule: the keyword arguments of `RePaintPipeline.set_timesteps`.
        seed: the seed of the noise.
        num_samples: the number of results for each picture.
        batch_size: the number of results that a device computes at a time.
        resize: whether to resize pictures and masks together to the model's size.
        background: the colour behind transparent pixels, as for a call of the pipeline.
        keep_alpha: whether results get the alpha channel of their picture, if it has one.
        soft_mask: whether mask values between 0 and 1 are kept, as for a call of the pipeline.
        observation_noise: the standard deviation of the noise in known pixels, as for a call of the
            pipeline. Above 0, known pixels do not keep their values.
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
    observation_noise = check_noise("observation_noise", observation_noise)
    check_noise_of_latents(pipe.latents, soft_mask, observation_noise)
    images, masks, output = Path(images), Path(masks), Path(output)
    background_colour = rgb(background)
    names = pictures_to_inpaint(images)
    mask_paths = find_masks(masks, images, names)
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
        "masks": str(masks.resolve()),
        "schedule": dict(schedule or {"num_model_calls": state.num_model_calls}),
        "num_model_calls": state.num_model_calls,
        "seed": seed,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "resize": resize,
        "background": "#{:02x}{:02x}{:02x}".format(*background_colour),
        "keep_alpha": keep_alpha,
        "soft_mask": soft_mask,
        "observation_noise": observation_noise,
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

    decode = partial(
        pictures.make_batch,
        image_shape=pipe.image_shape,
        resize=resize,
        background=background,
        keep_alpha=keep_alpha,
        soft_mask=soft_mask,
        whole=state.starts_from_image,
    )
    load = partial(_load, decode, pipe.image_shape, images, mask_paths, batch_size, seed_key(seed))
    chains = ChainRunner(
        state,
        model_of,
        batch_size,
        checkpoint_every,
        output / CHAINS,
        pipe.latents,
        observation_noise,
    )
    total = sum(len(batch) for _, batch in batches)
    done = total - sum(len(batch) for _, batch in unfinished)
    with tqdm(total=total, initial=done, unit="result", disable=None) as bar:
        failures = _run(unfinished, load, chains, bar, state.num_model_calls or 0)
    tidy(output, [result for _, batch in batches for result in batch], is_ours)
    return failures


def _run(
    batches: Sequence[tuple[int, Sequence[Result]]],
    load: Callable[[int, Sequence[Result]], Batch],
    chains: ChainRunner,
    bar: "tqdm[Any]",
    num_model_calls: int,
) -> dict[str, str]:
    """Decode, compute and encode at the same time, with a few batches in flight."""
    devices = len(chains.devices)
    failures: dict[str, str] = {}
    computed: deque[Future[tuple[Batch, NDArray[np.float32]]]] = deque()
    written: deque[tuple[int, list[tuple[str, Future[str | None]]]]] = deque()
    files, computing = ThreadPoolExecutor(2 * devices), ThreadPoolExecutor(devices)

    def compute(loaded: Future[Batch]) -> tuple[Batch, NDArray[np.float32]]:
        batch = loaded.result()
        if not batch.missing:
            return batch, batch.images
        return batch, chains(str(batch.number), batch.images, batch.masks, batch.keys)

    def finish_oldest() -> None:
        batch, samples = computed.popleft().result()
        failures.update(batch.failures)
        writes = []
        for row in batch.missing:
            name, sample, *_ = batch.results[row]
            if np.isfinite(samples[row]).all():
                writes.append((name, files.submit(_write, batch, row, samples[row])))
            else:
                failures[name] = f"sample {sample + 1} has values that are not finite"
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


def _load(
    decode: Callable[[Any, Any], pictures.Batch],
    image_shape: tuple[int, int, int],
    images: Path,
    mask_paths: Mapping[str, Path],
    batch_size: int,
    run_key: jax.Array,
    number: int,
    results: Sequence[Result],
) -> Batch:
    """Read the pictures and masks of a batch."""
    pixels = np.zeros((batch_size, *image_shape), np.float32)
    holes = np.zeros((batch_size, *image_shape[:2], 1), np.float32)
    words = np.zeros((batch_size, 3), np.uint32)
    failures: dict[str, str] = {}
    decoded: dict[str, pictures.Batch] = {}
    for row, (name, sample, path, _) in enumerate(results):
        if name_length(path.name) > LONGEST_NAME:
            failures[name] = f"the name of its result, {path.name}, is too long"
        if name not in decoded and name not in failures:
            try:
                decoded[name] = _decode(decode, images / name, mask_paths.get(name))
            except Exception as error:  # decoders can raise anything
                failures[name] = " ".join(str(error).split())
        if name in decoded:
            (pixels[row],), (holes[row],), _ = decoded[name]
        digest = hashlib.sha256(name_bytes(name)).digest()
        words[row] = *np.frombuffer(digest[:8], "<u4"), sample
    missing = [
        row
        for row, result in enumerate(results)
        if result.name not in failures and not is_there(result.path)
    ]
    keys = np.asarray(_keys(run_key, words))
    looks = {name: one.looks[0] for name, one in decoded.items()}
    return Batch(number, results, pixels, holes, keys, looks, failures, missing)


@jax.jit
def _keys(run_key: jax.Array, words: jax.Array) -> jax.Array:
    """Fold each row of words [N, n] into the key, and return the data [N, 2] of the N keys."""

    def of_row(row: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, len(row), lambda i, key: jax.random.fold_in(key, row[i]), run_key)

    return jax.random.key_data(jax.vmap(of_row)(words))


def _decode(decode: Callable[[Any, Any], pictures.Batch], image: Path, mask: Path | None) -> pictures.Batch:
    if mask is None:
        raise ValueError("there is no mask of the same name")
    return decode(open_image(image), open_image(mask))


def _write(batch: Batch, row: int, pixels: NDArray[np.float32]) -> str | None:
    """Write a result, after the other files that the official layout has for it.

    Returns:
        The reason why the result cannot have its name, or None if it was written.
    """
    result, image, mask = batch.results[row], batch.images[row], batch.masks[row]
    look = batch.looks[result.name]
    known = {"gt": image, "gt_masked": np.where(mask == 1, image, -1), "gt_keep_mask": 2 * mask - 1}
    try:
        for kind, path in result.beside.items():
            of_colours = Look() if kind == "gt_keep_mask" else look._replace(alpha=None)
            save_picture(with_look(array_to_pil(known[kind]), of_colours), path)
        save_picture(with_look(array_to_pil(pixels), look), result.path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return f"the file system of the output refuses the name of its result, {result.path.name}"
    return None
