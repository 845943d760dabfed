"""The parser of the command line `repaint-jax`: its commands and their options."""

import argparse
from pathlib import Path
from typing import NoReturn

from repaint_jax import __version__, masks
from repaint_jax.pictures.fillings import FITS
from repaint_jax.pictures.windows import DEFAULT_CONTEXT

DEMO_SAMPLES = 3

_SETTING_HELP = (
    "a number of model calls; STEPS/JUMP_LENGTH/JUMP_N_SAMPLE, with eta 1, or the same with another /ETA; "
    "'paper' or 'diffusers'"
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Each command sets `option_of`, which maps the names of its arguments to their options.
    """
    parser = _Parser(
        prog="repaint-jax",
        description="Fill holes in images with an unconditional diffusion model.",
    )
    parser.add_argument("--version", action="version", version=f"repaint-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        _add_demo,
        _add_inpaint,
        _add_app,
        _add_folder,
        _add_schedule,
        _add_evaluate,
        _add_convert,
        _add_train,
    ):
        add_command(commands)
    for command in commands.choices.values():
        spelled = {action.dest: action.option_strings for action in command._actions}
        option_of = {name: options[-1] for name, options in spelled.items() if options}
        if "class_label" in option_of:  # Python code for several pictures calls it class_labels
            option_of["class_labels"] = option_of["class_label"]
        for argument in ("model", "initial_model"):
            if argument in option_of:  # Python code calls it path_or_repo
                option_of["path_or_repo"] = option_of[argument]
        command.set_defaults(option_of=option_of)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[_Parser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="inpaint the pictures that come with a bundled model",
        description="Inpaint the pictures that come with a model, which were not in its training data, "
        "under six masks, and write all results into one picture.",
        formatter_class=_HelpWithDefaults,
        epilog="Examples: repaint-jax demo -o demo.png; repaint-jax demo --model bundled/emoji",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="picture to write")
    _add_chain_options(demo, num_samples=DEMO_SAMPLES)


def _add_inpaint(commands: "argparse._SubParsersAction[_Parser]") -> None:
    inpaint = commands.add_parser(
        "inpaint",
        help="inpaint a picture",
        description="Fill the pixels of IMAGE that are black in MASK. Pixels that are white in MASK are "
        "kept exactly if OUT has a lossless format such as PNG.",
        formatter_class=_HelpWithDefaults,
        epilog="Examples: repaint-jax inpaint shoe.png mask.png -o filled.png --num-samples 4; "
        "repaint-jax inpaint shoe.png box=10,4,20,24 -o filled.png --preview how.gif; "
        "repaint-jax inpaint shoe.png half -o compared.png --compare 16 64 250/10/1 --num-samples 3",
    )
    inpaint.add_argument("image", type=Path, metavar="IMAGE", help="picture of the model's size")
    inpaint.add_argument(
        "mask",
        metavar="MASK",
        help="a picture, in which white keeps and black inpaints; or 'alpha' (inpaint the transparent "
        "pixels of IMAGE), alpha=PICTURE (those of another picture), box=LEFT,TOP,RIGHT,BOTTOM in pixels, "
        "painted=PICTURE (inpaint where PICTURE, a copy of IMAGE, was painted over in another colour), "
        "outpaint=LEFT,TOP,RIGHT,BOTTOM (enlarge IMAGE by pixels at each side, and inpaint them), or a "
        f"mask of the paper: {', '.join(masks.NAMES)}",
    )
    _add_mask_options(inpaint)
    inpaint.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="picture to write; several samples become OUT-1.png, OUT-2.png, ...",
    )
    inpaint.add_argument(
        "--preview", type=Path, help="also write the predictions during the chain, as a .gif or a grid"
    )
    inpaint.add_argument(
        "--compare",
        nargs="+",
        metavar="SETTING",
        help=f"write one picture OUT with a row of results for each setting: {_SETTING_HELP}",
    )
    _add_model_options(inpaint)
    _add_chain_options(inpaint, num_samples=1)


def _add_app(commands: "argparse._SubParsersAction[_Parser]") -> None:
    app = commands.add_parser(
        "app",
        help="paint holes and fill them in a web browser",
        description="Serve a web page to upload pictures, paint holes, and watch, compare and download the "
        "results. Needs gradio. Ctrl-C stops it.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax app --port 8000",
    )
    _add_model_name(app)
    _add_dtype(app)
    _add_background(app)
    app.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other machines"
    )
    app.add_argument("--port", type=int, default=7860, help="port to listen on")


def _add_folder(commands: "argparse._SubParsersAction[_Parser]") -> None:
    folder = commands.add_parser(
        "folder",
        help="inpaint a folder of pictures on all devices and many hosts",
        description="Fill the pixels that are black in each picture's mask, and keep white ones exactly. "
        "The results are OUT/NAME.png of the model's size, or NAME-1.png and so on for several samples. "
        "The same command resumes a run that was stopped, with the missing results. Pictures that cannot "
        "be used are listed at the end, and the exit status is then 1.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax folder photos masks filled --num-samples 2",
    )
    folder.add_argument(
        "images", type=Path, metavar="IN", help="folder of pictures of the model's size, at any depth"
    )
    folder.add_argument(
        "masks",
        metavar="MASKS",
        help="folder of masks with the names of the pictures, or one mask for all; or another MASK of "
        "repaint-jax inpaint for each picture, where alpha=FOLDER and painted=FOLDER take a folder, too",
    )
    folder.add_argument("output", type=Path, metavar="OUT", help="folder for the results")
    _add_mask_options(folder)
    folder.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="number of results that a device computes at a time; an incomplete batch takes as long as a "
        "full one",
    )
    folder.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="CALLS",
        help="save unfinished chains every CALLS model calls",
    )
    folder.add_argument(
        "--sheet",
        type=Path,
        metavar="PICTURE",
        help="draw pictures, holes and results side by side at the end",
    )
    folder.add_argument(
        "--official-layout",
        action="store_true",
        help="write the folders of the official code: inpainted, gt, gt_masked, gt_keep_mask",
    )
    _add_model_options(folder)
    hosts = folder.add_argument_group(
        "many hosts",
        "start the same command on each host: with --distributed on TPU pods and under Slurm, and with "
        "--num-processes and --process-id elsewhere. The processes exchange nothing, but the runtime may "
        "need a coordinator to start",
    )
    hosts.add_argument(
        "--distributed", action="store_true", help="share the work with the other processes of the cluster"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    hosts.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")
    _add_chain_options(folder, num_samples=1)


def _add_schedule(commands: "argparse._SubParsersAction[_Parser]") -> None:
    schedule = commands.add_parser(
        "schedule",
        help="print the cost of a chain, and draw its schedule",
        description="Count the model calls of a chain, time one of them on this machine, and draw the "
        "noise in the picture over the model calls.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax schedule --steps 250 --jump-length 10 -o schedule.png",
    )
    schedule.add_argument("-o", "--output", type=Path, help="picture to write; needs matplotlib")
    _add_schedule_options(schedule)


def _add_evaluate(commands: "argparse._SubParsersAction[_Parser]") -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score settings on a folder of pictures",
        description="Inpaint held-out pictures under several masks with several settings, and print a "
        "table for each metric: the energy score (lower is better; lowest for samples of the true "
        "posterior), the RMSE of the samples' mean, the diversity, and LPIPS if repaint_jax[lpips] is "
        "installed. OUT gets the tables as Markdown and CSV, the scores of every picture, the first "
        "results as pictures, and all samples. The same command resumes a run that was stopped, and a "
        "larger one computes only the missing samples.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax evaluate photos -o evaluation --settings 64 250/1/1 --masks half wide",
    )
    evaluate.add_argument(
        "data",
        metavar="DATA",
        help="folder of pictures or with Fashion-MNIST's t10k-images-idx3-ubyte.gz; or 'bundled' or "
        "'bundled/emoji' for the pictures of these models",
    )
    evaluate.add_argument("-o", "--output", type=Path, required=True, help="folder for all results")
    evaluate.add_argument(
        "--settings",
        nargs="+",
        default=["32", "64", "128"],
        metavar="SETTING",
        help=f"settings: {_SETTING_HELP}; the others are compared with the first one",
    )
    evaluate.add_argument(
        "--masks", nargs="+", default=list(masks.NAMES), metavar="MASK", help="masks to evaluate under"
    )
    evaluate.add_argument(
        "--num-images",
        nargs="+",
        type=int,
        default=[16],
        metavar="N",
        help="largest number of pictures, for all settings or for each; they are a fair sample of a folder",
    )
    evaluate.add_argument(
        "--num-samples", type=int, default=8, help="number of results per picture and mask"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the masks and the noise")
    evaluate.add_argument(
        "--scores",
        type=Path,
        metavar="SCORES.CSV",
        help="copy of OUT/scores.csv of an earlier evaluation, whose scores are not computed again",
    )
    _add_background(evaluate)
    _add_model_name(evaluate)


def _add_convert(commands: "argparse._SubParsersAction[_Parser]") -> None:
    convert = commands.add_parser(
        "convert",
        help="convert an official .pt checkpoint to a folder of safetensors",
        description="Convert a checkpoint of guided-diffusion, the format of the official RePaint models "
        "and their classifier, or an EDM teacher of consistency_models, to a folder for --model or "
        "--classifier. Only this conversion needs torch.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax convert celeba256_250000.pt -o celeba256 --dtype float16",
    )
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pt file")
    convert.add_argument("-o", "--output", type=Path, required=True, help="folder to create")
    convert.add_argument(
        "--config",
        type=Path,
        dest="settings",
        help="the official .yml file of its dataset; the 256 px models do not need it",
    )
    convert.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="dtype of the stored weights"
    )


def _add_train(commands: "argparse._SubParsersAction[_Parser]") -> None:
    train = commands.add_parser(
        "train",
        help="train a model on a folder of pictures",
        description="Train an unconditional diffusion model. The same command resumes a run that was "
        "stopped.",
        formatter_class=_HelpWithDefaults,
        epilog="Example: repaint-jax train photos/ -o run --image-size 32 --train-steps 20000",
    )
    train.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="folder of pictures or with Fashion-MNIST's train-images-idx3-ubyte.gz",
    )
    train.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for checkpoints, samples and model"
    )
    train.add_argument("--unet-config", type=Path, help="architecture, as diffusers' unet/config.json")
    train.add_argument(
        "--init-model",
        dest="initial_model",
        metavar="INIT_MODEL",
        help="start from the weights of this model, given as --model in the other commands",
    )
    _add_autoencoder(train, "train in the latents of this autoencoder: diffusers folder or repository")
    train.add_argument(
        "--image-size", type=int, default=32, help="side to which a folder's pictures are resized"
    )
    train.add_argument("--grey", action="store_true", help="read a folder's pictures as grey")
    _add_background(train)
    train.add_argument(
        "--train-steps",
        type=int,
        dest="num_steps",
        default=20_000,
        metavar="N",
        help="number of optimiser steps",
    )
    train.add_argument("--batch-size", type=int, default=32, help="number of pictures per step")
    train.add_argument("--learning-rate", type=float, default=1e-3, help="highest learning rate")
    train.add_argument(
        "--warmup-steps", type=int, default=500, help="steps of the warm-up to --learning-rate"
    )
    train.add_argument(
        "--decay-fraction", type=float, default=0.2, help="share of the steps in which it decays to 0"
    )
    train.add_argument("--ema-decay", type=float, default=0.999, help="decay of the averaged weights")
    train.add_argument(
        "--objective", default="ddpm", help="ddpm (noise levels of DDPM), edm or flow (a rectified flow)"
    )
    train.add_argument(
        "--prediction-type",
        default="",
        help="epsilon (default), sample or v_prediction, with --objective ddpm",
    )
    train.add_argument(
        "--timestep-density", default="", help="uniform or lognormal (default with --objective edm)"
    )
    train.add_argument("--random-flip", action="store_true", help="mirror half of the pictures")
    train.add_argument(
        "--random-shift",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shift pictures by up to PIXELS pixels",
    )
    train.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype of the network's arithmetic; bfloat16 is faster on accelerators",
    )
    train.add_argument(
        "--checkpoint-every", type=int, default=1000, metavar="STEPS", help="steps between checkpoints"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of everything random")


class _Parser(argparse.ArgumentParser):
    """A parser that prints an error as one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """A formatter that shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if action.default is None else super()._get_help_string(action)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    _add_background(parser)
    parser.add_argument(
        "--keep-alpha",
        action="store_true",
        help="give results the alpha channel of their picture, if it has one",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="exact",
        help="pictures of another size than the model's: exact refuses them; resize resizes them to the "
        "model's size, without keeping proportions; crop inpaints windows around the holes and puts the "
        "results back at full resolution; native runs the network on the picture's own size",
    )
    parser.add_argument(
        "--resize", action="store_const", dest="fit", const="resize", help="short for --fit resize"
    )
    parser.add_argument(
        "--context",
        type=float,
        default=DEFAULT_CONTEXT,
        metavar="SHARE",
        help="what --fit crop shows on each side of a hole, as a share of the hole's longer side",
    )
    parser.add_argument(
        "--class-label", type=int, help="label for a class-conditional model or a classifier"
    )
    parser.add_argument(
        "--classifier", help="classifier for guidance: a .pt checkpoint, or the folder converted from it"
    )
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="strength of the classifier's guidance"
    )
    _add_dtype(parser)
    known = parser.add_argument_group("what is known of a picture")
    known.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="share of the noise levels to use, above 0 and at most 1; below 1, the hole is filled "
        "starting from what is there",
    )
    known.add_argument(
        "--soft-mask",
        action="store_true",
        help="keep grey in the mask: results may deviate there, the more the darker it is",
    )
    known.add_argument(
        "--observation-noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="standard deviation of the noise in known pixels, which is then removed; black is -1 and "
        "white 1",
    )


def _add_mask_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--invert-mask", action="store_true", help="invert the mask: white inpaints and black keeps"
    )
    parser.add_argument(
        "--mask-colour",
        metavar="COLOUR",
        help="inpaint the pixels of this colour in the mask's picture, instead of black ones: a name, or a "
        "code such as #ff0000",
    )
    parser.add_argument(
        "--grow-mask",
        type=int,
        default=0,
        metavar="PIXELS",
        help="grow the hole by pixels of the result to each side; a negative number shrinks it",
    )
    parser.add_argument(
        "--feather",
        type=int,
        default=0,
        metavar="PIXELS",
        help="let the result fade into the picture in so many pixels around the hole; these are inpainted, "
        "too, and do not stay exactly as they were",
    )


def _add_background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="colour behind transparent pixels: a name, or a code such as #808080",
    )


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the arithmetic",
    )


def _add_model_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="bundled",
        help="diffusers folder, repository of the Hugging Face hub, official .pt checkpoint, or a model of "
        "this package: 'bundled' (clothes, grey, 28 x 28) or 'bundled/emoji' (colour, 32 x 32)",
    )
    _add_autoencoder(
        parser, "diffusers folder or repository of a latent model's autoencoder, if not in --model"
    )


def _add_autoencoder(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--autoencoder", metavar="AUTOENCODER", help=text)


def _add_chain_options(parser: argparse.ArgumentParser, *, num_samples: int) -> None:
    _add_schedule_options(parser)
    parser.add_argument(
        "--num-samples", type=int, default=num_samples, help="number of results per picture"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    _add_model_name(parser)
    resampling = parser.add_argument_group(
        "RePaint's own schedule, instead of --model-calls",
        "it has time jumps; the paper's setting is --steps 250 --eta 1, with 2,410 model calls",
    )
    for group, option, kind, argument, text in (
        (
            parser,
            "--model-calls",
            int,
            "num_model_calls",
            "number of network calls per picture, at least 8 (default: 64)",
        ),
        (resampling, "--steps", int, "num_inference_steps", "number of inference steps T (default: 250)"),
        (
            resampling,
            "--jump-length",
            int,
            "jump_length",
            "number of steps that a jump goes back (default: 10)",
        ),
        (
            resampling,
            "--jump-n-sample",
            int,
            "jump_n_sample",
            "number of passes through each stretch (default: 10)",
        ),
        (resampling, "--eta", float, "eta", "share of DDPM's noise, 0 to 1 (default: 0)"),
    ):
        # SUPPRESS leaves an option out if it is not given. The given ones select the kind of schedule.
        group.add_argument(
            option,
            type=kind,
            dest=argument,
            default=argparse.SUPPRESS,
            metavar=option.removeprefix("--").upper().replace("-", "_"),
            help=text,
        )
