"""The program `repaint-jax`: it runs a command, and prints an error as one sentence."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from typing import Any, NoReturn

from repaint_jax.cli.parser import make_parser
from repaint_jax.sampling.devices import use_every_core
from repaint_jax.sampling.keys import check_seed

_RESUMED = ("evaluate", "folder", "train")  # commands that resume when they are started again


def run() -> NoReturn:
    """Run the program `repaint-jax`, and exit with its status."""
    status = main()
    if status == 2:  # exit at once, as after Ctrl-C: threads may still compute unneeded results
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None if the shell closed it
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    An error prints one sentence on stderr, and gives the exit status 2.

    Args:
        arguments: the words of the command line. `sys.argv[1:]` if None.
    """
    if sys.stderr is None:  # the shell closed it, but progress bars need it
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a console may lack characters of a picture's name
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    options = make_parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, options, warnings.showwarning)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Run a command, and print its error as one sentence."""
    try:
        if "seed" in options:
            check_seed(options.seed)
        from repaint_jax.cli import commands  # after the options are checked, because the import is slow

        if options.command != "folder":  # its devices each hold a whole batch, which needs more memory
            use_every_core(options.batch_size if options.command == "train" else 0)
        return getattr(commands, options.command)(options)
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
        print(f"repaint-jax {options.command}: {_with_options(message, options)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        how_on = "; the same command resumes it" if options.command in _RESUMED else ""
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below the progress bar
        print(f"repaint-jax {options.command}: interrupted{how_on}", file=sys.stderr, flush=True)
        os._exit(130)  # exit at once: computing threads cannot be stopped, and no file is left half-written


def _show_warning(
    options: argparse.Namespace,
    show_others: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
) -> None:
    """Print a warning to the user as one sentence, as an error is printed."""
    if category is not UserWarning:
        return show_others(message, category, *place)
    text = _with_options(" ".join(str(message).split()), options)
    print(f"repaint-jax {options.command}: warning: {text}", file=sys.stderr)


def _with_options(message: str, options: argparse.Namespace) -> str:
    """Replace the names of Python arguments in a message by the options of the command line."""
    arguments = "|".join(options.option_of)
    return re.sub(
        rf"(?<![\w-])(?<!the )({arguments})(?= (?:is|are)\b|=)|`({arguments})`",
        lambda found: options.option_of[found[1] or found[2]],
        message,
    )
