"""The program `repaint-jax`: runs a command, and makes one sentence of an error."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from repaint_jax.cli.parser import make_parser
from repaint_jax.sampling.devices import use_every_core
from repaint_jax.sampling.keys import check_seed

_RESUMED = ("evaluate", "folder", "train")  # the same command goes on where it was stopped


def run() -> NoReturn:
    """Be the program `repaint-jax`."""
    status = main()
    if status == 2:  # at once, as after Ctrl-C: threads may still compute what is not wanted any more
        for stream in filter(None, (sys.stdout, sys.stderr)):  # none where the shell closed it
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one sentence on stderr and exit status 2."""
    if sys.stderr is None:  # closed by the shell, which progress bars do not expect
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    options = make_parser().parse_args(arguments)
    try:
        if "seed" in options:
            check_seed(options.seed)
        from repaint_jax.cli import commands  # not before the words are known to be right: it imports much

        if options.command != "folder":  # each device has a whole batch there: that much memory more
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
        how_on = "; the same command goes on" if options.command in _RESUMED else ""
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below the progress bar
        print(f"repaint-jax {options.command}: interrupted{how_on}", file=sys.stderr, flush=True)
        os._exit(130)  # at once: threads that compute cannot be stopped, and no file is ever half-written


def _with_options(message: str, options: argparse.Namespace) -> str:
    """Name options in a message as they are typed, where it names them as Python's arguments."""
    arguments = "|".join(options.option_of)
    return re.sub(
        rf"(?<![\w-])(?<!the )({arguments})(?= (?:is|are)\b|=)|`({arguments})`",
        lambda found: options.option_of[found[1] or found[2]],
        message,
    )
