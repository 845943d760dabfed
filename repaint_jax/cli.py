"""The command line, `repaint-jax`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from repaint_jax import __version__

DEMO_SAMPLES = 3

_SCHEDULE_ARGUMENTS = ("num_model_calls", "num_inference_steps", "jump_length", "jump_n_sample", "eta")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one sentence on stderr and exit status 2."""
    if sys.stderr is None:  # closed by the shell, which progress bars do not expect
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        ImportError,
        OSError,
        MemoryError,
        RuntimeError,
    ) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"repaint-jax {options.command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"repaint-jax {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="repaint-jax",
        description="Fill holes in images with an unconditional diffusion model.",
    )
    parser.add_argument("--version", action="version", version=f"repaint-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    defaults = _HelpWithDefaults

    demo = commands.add_parser(
        "demo",
        help="inpaint bundled pictures with the bundled model",
        description="Inpaint bundled held-out pictures under different masks and write one picture.",
        formatter_class=defaults,
        epilog="Example: repaint-jax demo -o demo.png",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="picture to write")
    _add_chain_options(demo, num_samples=DEMO_SAMPLES)
    demo.set_defaults(run=_demo)

    inpaint = commands.add_parser(
        "inpaint",
        help="inpaint a picture of yours",
        description="Fill the black part of MASK in IMAGE; its white part is kept exactly, if OUT is in a "
        "lossless format such as PNG.",
        formatter_class=defaults,
        epilog="Examples: repaint-jax inpaint shoe.png mask.png -o filled.png --num-samples 4; "
        "repaint-jax inpaint shoe.png box=10,4,20,24 -o filled.png",
    )
    inpaint.add_argument("image", type=Path, metavar="IMAGE", help="picture of the model's size")
    inpaint.add_argument(
        "mask",
        metavar="MASK",
        help="picture whose white part is kept and whose black part is inpainted; or 'alpha' (what is "
        "transparent in IMAGE is inpainted), box=LEFT,TOP,RIGHT,BOTTOM in pixels, painted=PICTURE (a copy "
        "of IMAGE that was painted over), or a mask of the paper: half, expand, alternating_lines, "
        "super_resolution, wide, narrow",
    )
    inpaint.add_argument("--invert-mask", action="store_true", help="white inpaints and black keeps")
    inpaint.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="picture to write; several samples become OUT-1.png, OUT-2.png, ...",
    )
    _add_model_options(inpaint)
    _add_chain_options(inpaint, num_samples=1)
    inpaint.set_defaults(run=_inpaint)

    app = commands.add_parser(
        "app",
        help="paint holes and watch them being filled, in a web browser",
        description="Serve a web page on which pictures are uploaded, holes painted, and the results "
        "watched, compared and downloaded. Needs gradio. Ctrl-C ends it.",
        formatter_class=defaults,
        epilog="Example: repaint-jax app --port 8000",
    )
    _add_model_name(app)
    _add_dtype(app)
    app.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in"
    )
    app.add_argument("--port", type=int, default=7860, help="port to listen on")
    app.set_defaults(run=_app)

    folder = commands.add_parser(
        "folder",
        help="inpaint a folder of pictures, on all devices and many hosts",
        description="Fill the black part of every picture's mask; the white part is kept exactly. OUT gets "
        "NAME.png of the model's size, or NAME-1.png and so on for several samples. Started again, after "
        "whatever stopped it, the same command makes what is missing. Pictures that cannot be used are "
        "listed at the end (exit status 1).",
        formatter_class=defaults,
        epilog="Example: repaint-jax folder photos masks filled --num-samples 2",
    )
    folder.add_argument(
        "images", type=Path, metavar="IN", help="folder of pictures of the model's size, at any depth"
    )
    folder.add_argument(
        "masks", type=Path, metavar="MASKS", help="folder of masks of the same names, or one mask for all"
    )
    folder.add_argument("output", type=Path, metavar="OUT", help="folder for the results")
    folder.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="results a device computes at a time; a batch that is not full takes as long as a full one",
    )
    folder.add_argument(
        "--checkpoint-every", type=int, metavar="CALLS", help="save unfinished chains after so many calls"
    )
    folder.add_argument(
        "--official-layout",
        action="store_true",
        help="write the folders of the official code: inpainted, gt, gt_masked, gt_keep_mask",
    )
    _add_model_options(folder)
    hosts = folder.add_argument_group(
        "many hosts",
        "start the same command on each: on TPU pods and under Slurm with --distributed, elsewhere saying "
        "which of how many it is. They exchange nothing, but the runtime may need a coordinator to start",
    )
    hosts.add_argument("--distributed", action="store_true", help="share the work with the other processes")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")
    _add_chain_options(folder, num_samples=1)
    folder.set_defaults(run=_folder)

    schedule = commands.add_parser(
        "schedule",
        help="say what a chain costs, and draw it",
        description="Count the model calls of a chain, time one of them on this machine, and draw how much "
        "noise is in the picture over the calls.",
        formatter_class=defaults,
        epilog="Example: repaint-jax schedule --steps 250 --jump-length 10 -o schedule.png",
    )
    schedule.add_argument("-o", "--output", type=Path, help="picture to write; needs matplotlib")
    _add_schedule_options(schedule)
    schedule.set_defaults(run=_show_schedule)

    convert = commands.add_parser(
        "convert",
        help="turn an official .pt checkpoint into a folder of safetensors",
        description="Turn a checkpoint of guided-diffusion, which the official RePaint models and their "
        "classifier are, into a folder that --model and --classifier take. Needs torch, once.",
        formatter_class=defaults,
        epilog="Example: repaint-jax convert celeba256_250000.pt -o celeba256 --dtype float16",
    )
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pt file")
    convert.add_argument("-o", "--output", type=Path, required=True, help="folder to make")
    convert.add_argument(
        "--config", type=Path, help="the .yml file of its dataset, unless it is one of the 256 px models"
    )
    convert.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="of the stored weights"
    )
    convert.set_defaults(run=_convert)

    train = commands.add_parser(
        "train",
        help="train a model on a folder of pictures",
        description="Train an unconditional diffusion model; the same command again resumes it.",
        formatter_class=defaults,
        epilog="Example: repaint-jax train photos/ -o run --image-size 32 --train-steps 20000",
    )
    train.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="folder of pictures, or of Fashion-MNIST's train-images-idx3-ubyte.gz",
    )
    train.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for checkpoints, samples, model"
    )
    train.add_argument("--unet-config", type=Path, help="architecture, as diffusers' unet/config.json")
    train.add_argument("--init-model", help="go on from the weights of this model, given as --model")
    train.add_argument("--image-size", type=int, default=32, help="side of a folder's pictures")
    train.add_argument("--grey", action="store_true", help="read a folder's pictures as grey")
    train.add_argument("--train-steps", type=int, default=20_000, help="optimiser steps")
    train.add_argument("--batch-size", type=int, default=32, help="pictures a step")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="the highest")
    train.add_argument("--warmup-steps", type=int, default=500, help="up to --learning-rate")
    train.add_argument("--decay-fraction", type=float, default=0.2, help="share of steps, down to 0")
    train.add_argument("--ema-decay", type=float, default=0.999, help="of the averaged weights")
    train.add_argument("--prediction-type", default="epsilon", help="or sample, v_prediction")
    train.add_argument("--timestep-density", default="uniform", help="or lognormal")
    train.add_argument("--random-flip", action="store_true", help="mirror half of the pictures")
    train.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS", help="steps")
    train.add_argument("--seed", type=int, default=0, help="of everything random")
    train.set_defaults(run=_train)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resize",
        action="store_true",
        help="resize picture and mask together to the model's size; their proportions are not kept",
    )
    parser.add_argument("--class-label", type=int, help="for a class-conditional model or a classifier")
    parser.add_argument("--classifier", help="to guide with: .pt checkpoint, or the folder made of it")
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="how far to follow the classifier"
    )
    _add_dtype(parser)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the arithmetic"
    )


def _add_model_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="bundled",
        help="diffusers folder, repository of the Hugging Face hub, official .pt checkpoint, or 'bundled'",
    )


def _add_chain_options(parser: argparse.ArgumentParser, *, num_samples: int) -> None:
    _add_schedule_options(parser)
    parser.add_argument("--num-samples", type=int, default=num_samples, help="results per picture")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    _add_model_name(parser)
    resampling = parser.add_argument_group(
        "RePaint's own schedule, instead of --model-calls",
        "with time jumps; the paper's is --steps 250 --eta 1, with 2,410 model calls",
    )
    for group, option, kind, argument, text in (
        (
            parser,
            "--model-calls",
            int,
            "num_model_calls",
            "network calls a picture, at least 8 (default: 64)",
        ),
        (resampling, "--steps", int, "num_inference_steps", "inference steps T (default: 250)"),
        (resampling, "--jump-length", int, "jump_length", "steps a jump goes back (default: 10)"),
        (resampling, "--jump-n-sample", int, "jump_n_sample", "passes through each stretch (default: 10)"),
        (resampling, "--eta", float, "eta", "share of DDPM's noise, 0 to 1 (default: 0)"),
    ):
        # Absent where it is not given: which of them are given decides between the two kinds of chain.
        group.add_argument(
            option,
            type=kind,
            dest=argument,
            default=argparse.SUPPRESS,
            metavar=option.removeprefix("--").upper().replace("-", "_"),
            help=text,
        )


def _demo(options: argparse.Namespace) -> int:
    import jax
    import numpy as np

    from repaint_jax import masks
    from repaint_jax.images import image_to_array, open_image, save_picture
    from repaint_jax.pipeline import RePaintPipeline
    from repaint_jax.plots import inpainting_grid
    from repaint_jax.pretrained import bundled_folder

    _check_output(options.output)
    pipe = RePaintPipeline.from_pretrained(options.model)
    paths = sorted((bundled_folder() / "images").glob("*.png"))
    images = np.stack([image_to_array(open_image(path), pipe.image_shape) for path in paths])
    height, width, _ = pipe.image_shape
    wide_key, narrow_key = jax.random.split(jax.random.key(6))
    holes = {
        "Half": masks.half(height, width),
        "Wide": masks.wide(height, width, wide_key),
        "Narrow": masks.narrow(height, width, narrow_key),
        "Expand": masks.expand(height, width),
        "Alternating lines": masks.alternating_lines(height, width),
        "Super-resolution": masks.super_resolution(height, width),
    }
    mask = np.stack([np.asarray(hole) for hole in holes.values()])
    images = images[: len(mask)]
    samples = _run_pipeline(options, pipe, images, mask, output_type="jax")
    grid = inpainting_grid(
        images, mask, np.asarray(samples).reshape(len(images), -1, *pipe.image_shape), list(holes)
    )
    save_picture(grid, options.output)
    print(f"wrote {options.output}: {len(images)} pictures, {options.num_samples} samples each")
    return 0


def _inpaint(options: argparse.Namespace) -> int:
    import jax

    from repaint_jax.drawn_masks import read_mask
    from repaint_jax.images import open_image, save_picture
    from repaint_jax.pipeline import RePaintPipeline

    outputs = [options.output]
    if options.num_samples > 1:
        stem, suffix = options.output.stem, options.output.suffix
        outputs = [options.output.with_name(f"{stem}-{i + 1}{suffix}") for i in range(options.num_samples)]
    for output in outputs:
        _check_output(output)
    _check_seed(options.seed)
    image = open_image(options.image)
    mask = read_mask(options.mask, image, jax.random.key(options.seed), invert=options.invert_mask)
    pipe = RePaintPipeline.from_pretrained(
        options.model, dtype=options.dtype, classifier=options.classifier
    )
    pictures = _run_pipeline(
        options,
        pipe,
        image,
        mask,
        output_type="pil",
        resize=options.resize,
        class_labels=options.class_label,
        guidance_scale=options.guidance_scale,
    )
    for picture, output in zip(pictures, outputs, strict=True):
        save_picture(picture, output)
        print(f"wrote {output}")
    return 0


def _app(options: argparse.Namespace) -> int:
    if not 0 < options.port < 2**16:
        raise ValueError(f"--port is {options.port}, expected an integer from 1 to {2**16 - 1}")
    from repaint_jax.app import serve

    try:
        serve(options.model, dtype=options.dtype, host=options.host, port=options.port)
    except KeyboardInterrupt:
        print("repaint-jax app: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # at once: threads that compute cannot be stopped
    return 0


def _folder(options: argparse.Namespace) -> int:
    from repaint_jax.folder import inpaint_folder
    from repaint_jax.pipeline import RePaintPipeline

    _check_seed(options.seed)
    process_index, process_count = _join_processes(options)
    pipe = RePaintPipeline.from_pretrained(
        options.model, dtype=options.dtype, classifier=options.classifier
    )
    try:
        failures = inpaint_folder(
            pipe,
            options.images,
            options.masks,
            options.output,
            schedule=_schedule(options),
            seed=options.seed,
            num_samples=options.num_samples,
            batch_size=options.batch_size,
            resize=options.resize,
            class_label=options.class_label,
            guidance_scale=options.guidance_scale,
            official_layout=options.official_layout,
            checkpoint_every=options.checkpoint_every,
            described={
                "model": _absolute(options.model),
                "classifier": _absolute(options.classifier),
                "dtype": options.dtype,
            },
            process_index=process_index,
            process_count=process_count,
        )
    except KeyboardInterrupt:
        print("repaint-jax folder: interrupted; the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)  # at once: a chain that runs cannot be stopped, and no file is ever half-written
    for name, reason in sorted(failures.items()):
        print(f"repaint-jax folder: {name}: {reason}", file=sys.stderr)
    print(f"wrote {options.output}" + (f", without {len(failures)} pictures" if failures else ""))
    return 1 if failures else 0


def _absolute(model: str | None) -> str | None:
    """Name a model's folder or file as it is called from everywhere."""
    return str(Path(model).resolve()) if model is not None and Path(model).exists() else model


def _join_processes(options: argparse.Namespace) -> tuple[int, int]:
    """Return which process this is, and of how many."""
    import jax

    from repaint_jax.checks import check_int

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
        # They have nothing to say to each other, and one that dies must not take the others along.
        jax.distributed.shutdown()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes could not find each other ({error}); --coordinator, --num-processes and "
            "--process-id say where they are"
        ) from None
    return found


def _show_schedule(options: argparse.Namespace) -> int:
    from repaint_jax.pipeline import RePaintPipeline
    from repaint_jax.schedule_plot import draw_schedule

    if options.output is not None:
        _check_output(options.output)
    pipe = RePaintPipeline.from_pretrained(options.model)
    state = pipe.set_timesteps(**_schedule(options))
    if options.output is not None:
        draw_schedule(state, options.output)
        print(f"wrote {options.output}")
    seconds, calls = pipe.seconds_per_call(), state.num_model_calls or 0
    print(
        f"{calls} model calls of {1000 * seconds:.3g} ms: {calls * seconds:.3g} s a picture on this machine"
    )
    return 0


def _convert(options: argparse.Namespace) -> int:
    from repaint_jax.pretrained import convert

    convert(options.checkpoint, options.output, settings=options.config, dtype=options.dtype)
    print(f"wrote {options.output}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from repaint_jax.datasets import read_images
    from repaint_jax.models import UNet2DConfig
    from repaint_jax.training import TrainingConfig, train_unet2d

    config = TrainingConfig(
        num_steps=options.train_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        decay_fraction=options.decay_fraction,
        ema_decay=options.ema_decay,
        prediction_type=options.prediction_type,
        timestep_density=options.timestep_density,
        random_flip=options.random_flip,
        seed=options.seed,
    )
    images = read_images(options.data, options.image_size, grey=options.grey)
    model = train_unet2d(
        config,
        images,
        options.output,
        unet_config=UNet2DConfig.from_file(options.unet_config) if options.unet_config else None,
        initial_model=options.init_model,
        checkpoint_every=options.checkpoint_every,
    )
    print(f"wrote {model}")
    return 0


def _run_pipeline(options: argparse.Namespace, pipe: Any, image: Any, mask: Any, **arguments: Any) -> Any:
    import jax
    from tqdm import tqdm

    _check_seed(options.seed)
    schedule = _schedule(options)
    num_model_calls = pipe.set_timesteps(**schedule).num_model_calls
    bar = None

    def progress(calls_done: int) -> None:
        nonlocal bar
        bar = bar or tqdm(total=num_model_calls, unit="call", desc="model calls")
        bar.update(int(calls_done) - bar.n)

    try:
        return pipe(
            image,
            mask,
            **schedule,
            key=jax.random.key(options.seed),
            num_samples=options.num_samples,
            progress=progress,
            **arguments,
        ).images
    finally:
        if bar is not None:
            bar.close()


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name in _SCHEDULE_ARGUMENTS}


def _check_output(path: Path) -> None:
    """Refuse an output that cannot be written before anything is computed."""
    from PIL import Image

    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--output is {path}, expected a picture's name such as out.png")
    if not path.parent.is_dir():
        raise ValueError(f"--output is {path}, but the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output is {path}, which cannot be written")
