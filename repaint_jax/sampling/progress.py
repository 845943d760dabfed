"""Report a chain's progress to a function on the host, without compiling the chain for that function."""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

Result = TypeVar("Result")

_numbers = itertools.count()
_listeners: dict[int, "_Listener"] = {}


class _Listener:
    """A function to report to. The first error it raises ends the reports.

    Attributes:
        waited_for: whether a call waits for the reports and raises their error. Otherwise JAX raises it.
    """

    def __init__(self, progress: Callable[[int], None]):
        self._progress = progress
        self.error: BaseException | None = None
        self.waited_for = True

    def tell(self, calls_done: int) -> None:
        if self.error is None:
            try:
                self._progress(calls_done)
            except BaseException as error:  # JAX would log it and raise another one
                if not self.waited_for:
                    raise
                self.error = error


def with_progress(run: Callable[[Any], Result], progress: Callable[[int], None] | None) -> Result:
    """Return `run(number)`, where the program reports with that number to `progress`.

    The number is an argument of the compiled program. A new function for each call therefore compiles
    nothing, and is forgotten after the call. Under `jax.jit` and `jax.vmap` the call only traces the
    program, so the function is kept for the program's runs.

    An error of the function, or Ctrl-C in it, is raised when the program is done.

    Args:
        run: makes the call. Its argument is an int32 number, or None to report nothing.
        progress: called as `progress(calls_done)`; None means to report nothing.
    """
    if progress is None:
        return run(None)
    number, listener = next(_numbers), _Listener(progress)
    _listeners[number] = listener
    keep = False
    try:
        result = run(np.int32(number))
        keep = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(result))
        listener.waited_for = not keep
        if not keep:
            jax.block_until_ready(result)
            jax.effects_barrier()
        if listener.error is not None:
            raise listener.error
        return result
    finally:
        if not keep:
            del _listeners[number]


def report(number: jax.Array, calls_done: jax.Array) -> None:
    """Call the function of this number on the host, from inside a program."""
    jax.debug.callback(_tell, number, calls_done)


def _tell(number: jax.Array, calls_done: jax.Array) -> None:
    listener = _listeners.get(int(number))  # None if the call was interrupted
    if listener is not None:
        listener.tell(int(calls_done))
