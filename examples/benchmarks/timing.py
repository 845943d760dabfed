"""Time two things alternately, and write the rows of the table."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax


class Row(NamedTuple):
    """A row of the table: two values in seconds or bytes, and the first divided by the second."""

    what: str
    compared_with: str
    value: float
    other: float
    ratio: float
    goal: str = ""
    unit: str = "s"


Rows = Iterator[Row]


def alternately(
    this: Callable[[], object], other: Callable[[], object], seconds: float = 6.0, at_least: int = 5
) -> tuple[float, float, float]:
    """Time two functions alternately.

    Each function is called once first, to compile. Then they are called alternately for about `seconds`,
    and at least `at_least` times each. So other work on the machine affects both equally. Both must wait
    for their results.

    Args:
        this: the first function.
        other: the second function.
        seconds: the approximate total time.
        at_least: the smallest number of calls of each function.

    Returns:
        The median time of each function, and the median of the ratios of successive calls.
    """
    this(), other()
    once = timed(this) + timed(other)
    pairs = [(timed(this), timed(other)) for _ in range(max(at_least, round(seconds / once)))]
    mine, others = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(mine), statistics.median(others), ratio


def ready(call: Callable[..., jax.Array], *arguments: object) -> None:
    """Call a function and wait for its result."""
    call(*arguments).block_until_ready()


def timed(call: Callable[[], object]) -> float:
    """Return the time of a call, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def markdown(rows: Rows) -> Iterator[str]:
    """Yield the lines of the table, each as soon as its row is measured."""
    yield "| what | | compared with | | ratio | goal |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        value, other = (quantity(number, row.unit) for number in (row.value, row.other))
        yield (
            f"| {row.what} | {value} | {row.compared_with} | {other} | **{row.ratio:.3g}** | {row.goal} |"
        )


def quantity(number: float, unit: str) -> str:
    """Format a number of seconds or bytes with a suitable prefix."""
    if unit == "s":
        return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"
    return f"{number / 2**20:.3g} MiB"
