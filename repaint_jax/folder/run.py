"""Inpaint a folder of pictures on all devices, resumably.

The results, `num_samples` for each picture, are numbered in the order of the pictures' names and divided
into batches. A batch always contains the same results at the same positions, even if some of them are
already finished, and runs on one device. So a resumed run, and a run on more devices or hosts, writes the
same bytes. A picture that cannot be used leaves its position in the batch empty.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from repaint_jax.files import StrPath
from repaint_jax.folder.batch import Batch, fill_batch, key_of_mask, load_batch, write_result
from repaint_jax.folder.chains import ChainRunner
from repaint_jax.folder.results import (
    CHAINS,
    Result,
    divided,
    find_masks,
    is_there,
    pictures_to_inpaint,
    plan_results,
    record_settings,
    refuse_merged_names,
    refuse_output_among_inputs,
    tidy,
)
from repaint_jax.folder.sheet import save_sheet
from repaint_jax.models.guidance import checked_labels
from repaint_jax.pictures.colours import DEFAULT_BACKGROUND, Colour, rgb
from repaint_jax.pictures.drawn_masks import check_description, picture_and_mask
from repaint_jax.pictures.fillings import Filling
from repaint_jax.pictures.images import open_image
from repaint_jax.pictures.windows import DEFAULT_CONTEXT
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.pipeline_chain import check_noise_of_latents
from repaint_jax.sampling.checks import check_int, check_noise
from repaint_jax.sampling.keys import seed_key


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
    soft_mask: bool = False,
    observation_noise: float = 0.0,
    class_label: int | None = None,
    guidance_scale: float = 1.0,
    official_layout: bool = False,
    checkpoint_every: int | None = None,
    sheet: StrPath | None = None,
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
        soft_mask: whether mask values between 0 and 1 are kept, as for a call of the pipeline.
        observation_noise: the standard deviation of the noise in known pixels, as for a call of the
            pipeline. Above 0, known pixels do not keep their values.
        class_label: the class label of all pictures, see `RePaintPipeline`.
        guidance_scale: the strength of the guidance, see `RePaintPipeline`.
        official_layout: whether to write the four folders of the official code: `inpainted`, `gt`,
            `gt_masked` and `gt_keep_mask`.
        checkpoint_every: the number of model calls after which unfinished chains are saved. A later run
            resumes them from there.
        sheet: a picture to write at the end, with a row for each picture, its hole and its results.
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

    make_filling = pipe.filling_maker(
        state,
        fit=fit,
        context=context,
        background=background,
        keep_alpha=keep_alpha,
        grow_mask=grow_mask,
        feather=feather,
        soft_mask=soft_mask,
        observation_noise=observation_noise,
    )
    with_mask = partial(picture_and_mask, invert=invert_mask, colour=mask_colour)

    def read(name: str, key: jax.Array) -> Filling:
        if name not in mask_of:
            raise ValueError("there is no mask of the same name")
        return make_filling(*with_mask(mask_of[name], open_image(images / name), key))

    load = partial(load_batch, read, seed_key(seed))
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
        failures = _run(unfinished, load, chains, pipe.image_shape, bar, state.num_model_calls or 0)
    tidy(output, [result for _, batch in batches for result in batch], is_ours)
    if sheet is not None:
        save_sheet(Path(sheet), results, lambda name: read(name, key_of_mask(seed_key(seed), name)))
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
        return batch, fill_batch(batch, chains, image_shape) if batch.missing else set()

    def finish_oldest() -> None:
        batch, not_finite = computed.popleft().result()
        failures.update(batch.failures)
        writes = []
        for number in batch.missing:
            name, sample, *_ = batch.results[number]
            if number in not_finite:
                failures[name] = f"sample {sample + 1} has values that are not finite"
            else:
                writes.append((name, files.submit(write_result, batch, number)))
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
