"""The commands of `repaint-jax`. Each takes the parsed options and returns the exit status."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from repaint_jax import masks
from repaint_jax.evaluation.evaluate import evaluate as score_settings
from repaint_jax.evaluation.evaluate import images_of_settings
from repaint_jax.evaluation.named_schedules import with_setting
from repaint_jax.evaluation.score_tables import SCORES, read_scores, write_tables
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.models import UNet2DConfig, pretrained
from repaint_jax.pictures.colours import rgb
from repaint_jax.pictures.datasets import SUFFIXES, TEST_IDX_NAME, read_images
from repaint_jax.pictures.drawn_masks import check_hole, file_of_mask, picture_and_mask
from repaint_jax.pictures.fillings import PICTURE_OPTIONS
from repaint_jax.pictures.images import (
    MODEL_RANGE,
    image_to_array,
    open_image,
    pil_mode,
    save_picture,
    uint8_to_array,
)
from repaint_jax.pictures.plots import inpainting_grid, show_hole
from repaint_jax.pictures.previews import calls_to_show, save_previews
from repaint_jax.pictures.schedule_plot import DRAWINGS, draw_schedule
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.checks import check_int
from repaint_jax.sampling.keys import seed_key
from repaint_jax.sampling.scheduler import RePaintSchedulerState

_WITH_ALPHA = (".png", ".tif", ".tiff", ".webp")  # the pictures that keep an alpha channel
_SCHEDULE_ARGUMENTS = ("num_model_calls", "num_inference_steps", "jump_length", "jump_n_sample", "eta")


def demo(options: argparse.Namespace) -> int:
    """Inpaint the pictures that come with a model, each under a different mask."""
    _check_output("--output", options.output)
    paths = pretrained.pictures_of_model(options.model)
    if not paths:
        raise ValueError(
            f"--model is {options.model}, expected a model with pictures in its folder images; "
            "use repaint-jax inpaint for your own pictures"
        )
    pipe = _pipeline(options)
    height, width, _ = pipe.image_shape
    wide_key, narrow_key = jax.random.split(seed_key(6))
    holes = {
        "Half": masks.half(height, width),
        "Wide": masks.wide(height, width, wide_key),
        "Narrow": masks.narrow(height, width, narrow_key),
        "Expand": masks.expand(height, width),
        "Alternating lines": masks.alternating_lines(height, width),
        "Super-resolution": masks.super_resolution(height, width),
    }
    mask = np.stack([np.asarray(hole) for hole in holes.values()])
    chosen = [paths[number % len(paths)] for number in range(len(mask))]
    images = np.stack([image_to_array(open_image(path), pipe.image_shape) for path in chosen])
    state = pipe.set_timesteps(**_schedule(options))
    samples = _run_pipeline(
        options, pipe, images, mask, state, output_type="jax", input_range=MODEL_RANGE
    ).images
    grid = inpainting_grid(
        images, mask, np.asarray(samples).reshape(len(images), -1, *pipe.image_shape), list(holes)
    )
    save_picture(grid, options.output)
    print(f"wrote {options.output}: {len(images)} pictures, {options.num_samples} samples each")
    return 0


def inpaint(options: argparse.Namespace) -> int:
    """Inpaint a picture."""
    outputs = [options.output]
    if options.num_samples > 1 and not options.compare:
        stem, suffix = options.output.stem, options.output.suffix
        outputs = [options.output.with_name(f"{stem}-{i + 1}{suffix}") for i in range(options.num_samples)]
    written = [("--output", output) for output in outputs]
    if options.preview is not None:
        written.append(("--preview", options.preview))
    _, mask_file = file_of_mask(options.mask)
    taken = [options.image] if mask_file is None else [options.image, mask_file]
    for option, path in written:
        _check_output(option, path)
        if any(_is_same_file(path, other) for other in taken):
            raise ValueError(f"{option} is {path}, expected a file with no other use in this command")
        taken.append(path)
    if options.keep_alpha:
        _check_keeps_alpha(options)
    rgb(options.background)  # raises if it is no colour
    if options.compare and (options.preview is not None or _schedule(options) or options.strength != 1):
        raise ValueError(
            f"--compare is {' '.join(options.compare)}, expected it without --preview and without "
            "another schedule"
        )
    image = open_image(options.image)
    image, mask = picture_and_mask(
        options.mask,
        image,
        seed_key(options.seed),
        invert=options.invert_mask,
        colour=options.mask_colour,
    )
    check_hole(options.mask, mask, soft=options.soft_mask)
    pipe = _pipeline(options, dtype=options.dtype, classifier=options.classifier)
    if pil_mode(pipe.image_shape).endswith("A") and not options.compare:
        _check_output("--output", options.output, _WITH_ALPHA)
    reading = {
        "fit": options.fit,
        "context": options.context,
        "background": options.background,
        "grow_mask": options.grow_mask,
        "feather": options.feather,
        "soft_mask": options.soft_mask,
        "observation_noise": options.observation_noise,
    }
    guidance = {"class_labels": options.class_label, "guidance_scale": options.guidance_scale}
    if options.compare:
        save_picture(_comparison(options, pipe, image, mask, {**reading, **guidance}), options.output)
        print(f"wrote {options.output}")
        return 0
    state = pipe.set_timesteps(**_schedule(options), strength=options.strength)
    calls: tuple[int, ...] = ()
    if options.preview is not None:
        calls = calls_to_show(options.preview, state.num_model_calls or 0)
    made = _run_pipeline(
        options,
        pipe,
        image,
        mask,
        state,
        keep_alpha=options.keep_alpha,
        output_type="pil",
        preview_calls=calls,
        **reading,
        **guidance,
    )
    for picture, output in zip(made.images, outputs, strict=True):
        save_picture(picture, output)
        print(f"wrote {output}")
    if options.preview is not None:
        shown = show_hole(*_as_seen(pipe, state, image, mask, reading))
        save_previews(options.preview, shown, calls, made.previews, made.images)
        print(f"wrote {options.preview}")
    return 0


def _as_seen(
    pipe: RePaintPipeline, state: RePaintSchedulerState, image: Any, mask: Any, reading: dict[str, Any]
) -> tuple[Any, Any]:
    """Return a picture [H, W, C] in [-1, 1] and its mask [H, W, 1], as they are inpainted."""
    shown, hole, _ = pipe.filling_maker(state, **reading)(image, mask).original()
    return shown, hole


def _comparison(
    options: argparse.Namespace, pipe: Any, image: Any, mask: Any, arguments: dict[str, Any]
) -> Any:
    """Inpaint with each setting of --compare, and draw a row for each."""
    settings = {name: with_setting(pipe, name) for name in options.compare}
    results, titles = [], []
    for name, (one, state) in settings.items():
        made = _run_pipeline(options, one, image, mask, state, output_type="jax", **arguments)
        results.append(np.asarray(made.images))
        calls = state.num_model_calls
        titles.append(f"{calls} calls" if name == str(calls) else f"{name}: {calls} calls")
    reading = {name: arguments[name] for name in PICTURE_OPTIONS if name in arguments}
    shown, hole = (
        np.stack([array] * len(results)) for array in _as_seen(pipe, state, image, mask, reading)
    )
    return inpainting_grid(shown, hole, np.stack(results), titles)


def app(options: argparse.Namespace) -> int:
    """Serve the web app."""
    if not 0 < options.port < 2**16:
        raise ValueError(f"--port is {options.port}, expected an integer from 1 to {2**16 - 1}")
    from repaint_jax.cli.app import serve  # needs gradio

    serve(
        options.model,
        dtype=options.dtype,
        autoencoder=options.autoencoder,
        background=options.background,
        host=options.host,
        port=options.port,
    )
    return 0


def folder(options: argparse.Namespace) -> int:
    """Inpaint a folder of pictures."""
    if options.sheet is not None:
        _check_output("--sheet", options.sheet)
    process_index, process_count = _join_processes(options)
    pipe = _pipeline(options, dtype=options.dtype, classifier=options.classifier)
    failures = inpaint_folder(
        pipe,
        options.images,
        options.masks,
        options.output,
        schedule=_schedule(options) | ({"strength": options.strength} if options.strength != 1 else {}),
        seed=options.seed,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        fit=options.fit,
        context=options.context,
        background=options.background,
        keep_alpha=options.keep_alpha,
        invert_mask=options.invert_mask,
        mask_colour=options.mask_colour,
        grow_mask=options.grow_mask,
        feather=options.feather,
        soft_mask=options.soft_mask,
        observation_noise=options.observation_noise,
        class_label=options.class_label,
        guidance_scale=options.guidance_scale,
        official_layout=options.official_layout,
        checkpoint_every=options.checkpoint_every,
        sheet=options.sheet,
        described={
            "model": _absolute(options.model),
            "classifier": _absolute(options.classifier),
            "dtype": options.dtype,
        },
        process_index=process_index,
        process_count=process_count,
    )
    for name, reason in sorted(failures.items()):
        print(f"repaint-jax folder: {name}: {reason}", file=sys.stderr)
    print(f"wrote {options.output}" + (f", without {len(failures)} pictures" if failures else ""))
    return 1 if failures else 0


def _absolute(model: str | None) -> str | None:
    """Return the absolute path of a model's folder or file; other names stay as they are."""
    return str(Path(model).resolve()) if model is not None and Path(model).exists() else model


def _join_processes(options: argparse.Namespace) -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    if (options.num_processes is None) != (options.process_id is None):
        raise ValueError(
            f"--num-processes is {options.num_processes} and --process-id is {options.process_id}, "
            "expected both or neither"
        )
    if options.num_processes is not None:
        check_int("--num-processes", options.num_processes, 1)
        if not 0 <= options.process_id < options.num_processes:
            raise ValueError(
                f"--process-id is {options.process_id}, expected from 0 to {options.num_processes - 1}"
            )
    if not options.distributed and options.coordinator is None:
        return options.process_id or 0, options.num_processes or 1
    if options.coordinator is not None:
        host, _, port = options.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"--coordinator is {options.coordinator}, expected HOST:PORT")
        if options.num_processes is None and not options.distributed:
            raise ValueError(
                f"--coordinator is {options.coordinator}, expected --num-processes and --process-id with it"
            )
    try:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
        found = jax.process_index(), jax.process_count()
        # The processes exchange nothing, and one that dies must not stop the others.
        jax.distributed.shutdown()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes could not connect ({error}); check --coordinator, --num-processes and "
            "--process-id"
        ) from None
    return found


def schedule(options: argparse.Namespace) -> int:
    """Count, time and draw a chain's model calls."""
    if options.output is not None:
        _check_output("--output", options.output, DRAWINGS)
    pipe = _pipeline(options)
    state = pipe.set_timesteps(**_schedule(options))
    if options.output is not None:
        draw_schedule(state, options.output)
        print(f"wrote {options.output}")
    seconds, calls = _seconds_per_call(pipe), state.num_model_calls or 0
    print(
        f"{calls} model calls of {1000 * seconds:.3g} ms: {calls * seconds:.3g} s a picture on this machine"
    )
    if pipe.latents is not None:
        print("the model is latent: encoding and decoding of the picture come on top")
    return 0


def _seconds_per_call(pipe: RePaintPipeline) -> float:
    """Return the shortest time of a few compiled model calls for one picture."""
    labels = np.zeros(1, np.int32) if pipe.is_class_conditional or pipe.classifier is not None else None
    model_fn, params = pipe.guided_model(pipe.state.config, labels)
    call = jax.jit(model_fn)
    sample = jnp.zeros((1, *pipe.latent_shape))

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call(params, sample, 0))
        return time.perf_counter() - start

    return min([seconds() for _ in range(4)][1:])


def evaluate(options: argparse.Namespace) -> int:
    """Score settings on pictures whose removed pixels are known."""
    _check_folder("--output", options.output)
    counts = images_of_settings(options.settings, options.num_images)
    if options.scores is not None and options.scores.resolve() == (options.output / SCORES).resolve():
        raise ValueError(
            f"--scores is {options.scores}, expected a copy of it: this run overwrites the file"
        )
    pipe = _pipeline(options)
    height, width, channels = pipe.image_shape
    if height != width:
        raise ValueError(f"--model makes pictures of {height}x{width}, expected one that makes square ones")
    data = pretrained.model_folder(options.data)
    images = read_images(
        data,
        height,
        grey=channels == 1,
        idx_name=TEST_IDX_NAME,
        mixed=True,
        background=options.background,
    )
    known = [] if options.scores is None else read_scores(options.scores)
    rows = _interruptibly(
        score_settings,
        pipe,
        uint8_to_array(images[: max(counts.values())]),
        list(dict.fromkeys(options.masks)),
        counts,
        options.output,
        num_samples=options.num_samples,
        seed=options.seed,
        known=known,
    )
    print(write_tables(options.output, rows))
    print(f"\nwrote {options.output}")
    return 0


def convert(options: argparse.Namespace) -> int:
    """Convert an official checkpoint to a folder."""
    pretrained.convert(options.checkpoint, options.output, settings=options.settings, dtype=options.dtype)
    print(f"wrote {options.output}")
    return 0


def train(options: argparse.Namespace) -> int:
    """Train a model."""
    _check_folder("--output", options.output)
    from repaint_jax.training import TrainingConfig  # imports Orbax, which is slow
    from repaint_jax.training_run import train_unet2d

    config = TrainingConfig(
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        decay_fraction=options.decay_fraction,
        ema_decay=options.ema_decay,
        objective=options.objective,
        prediction_type=options.prediction_type,
        timestep_density=options.timestep_density,
        random_flip=options.random_flip,
        random_shift=options.random_shift,
        dtype=options.dtype,
        seed=options.seed,
    )
    images = read_images(options.data, options.image_size, grey=options.grey, background=options.background)
    model = train_unet2d(
        config,
        images,
        options.output,
        unet_config=UNet2DConfig.from_file(options.unet_config) if options.unet_config else None,
        initial_model=options.initial_model,
        autoencoder=options.autoencoder,
        checkpoint_every=options.checkpoint_every,
    )
    print(f"wrote {model}")
    return 0


def _pipeline(options: argparse.Namespace, **loading: Any) -> RePaintPipeline:
    return RePaintPipeline.from_pretrained(options.model, autoencoder=options.autoencoder, **loading)


def _run_pipeline(
    options: argparse.Namespace,
    pipe: RePaintPipeline,
    image: Any,
    mask: Any,
    state: RePaintSchedulerState,
    **arguments: Any,
) -> Any:
    """Call a pipeline and show a progress bar of its model calls."""
    bar = None

    def progress(calls_done: int) -> None:
        nonlocal bar
        calls = state.num_model_calls or 1
        bar = bar or tqdm(total=calls, unit="call", desc="model calls")
        bar.total = -(-int(calls_done) // calls) * calls  # windows in several rounds make as many chains
        bar.update(int(calls_done) - bar.n)

    try:
        return _interruptibly(
            pipe,
            image,
            mask,
            state=state,
            key=seed_key(options.seed),
            num_samples=options.num_samples,
            progress=progress,
            **arguments,
        )
    finally:
        if bar is not None:
            bar.close()


def _interruptibly(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function in another thread, so that Ctrl-C works: a running chain would not notice it."""
    return ThreadPoolExecutor(1).submit(call, *arguments, **options).result()


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name in _SCHEDULE_ARGUMENTS}


def _is_same_file(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, also where a file system ignores case."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def _check_keeps_alpha(options: argparse.Namespace) -> None:
    """Raise if `inpaint` with --keep-alpha could not show its result."""
    _check_output("--output", options.output, _WITH_ALPHA)
    prefix, path = file_of_mask(options.mask)
    if options.mask == "alpha" or (prefix == "alpha=" and path and _is_same_file(path, options.image)):
        raise ValueError(
            f"mask is {options.mask}, expected another one with --keep-alpha: the result would be hidden"
        )
    if options.compare:
        raise ValueError(
            f"--compare is {' '.join(options.compare)}, expected it without --keep-alpha: it writes a table"
        )


def _check_output(option: str, path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise, before anything is computed, if an output cannot be written."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{option} is {path}, expected a picture's name that ends in {', '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{option} is {path}, but the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} is {path}, which cannot be written")


def _check_folder(option: str, path: Path) -> None:
    """Raise, before anything is computed, if a folder cannot be created or written to."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{option} is {path}, but {there} is not a folder that can be written to")
