"""Time two things alternately, and write the rows of the table."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax


class Row(NamedTuple):
    """A line of the table: two things, in seconds or bytes, and the first over the second."""

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
    """Return the median time of either, and the median of the ratios of neighbours.

    Each is called once before, for compilation, and then in turns for about `seconds`, `at_least`
    times: what else the machine does falls upon both. Both must wait for their results.
    """
    this(), other()
    once = timed(this) + timed(other)
    pairs = [(timed(this), timed(other)) for _ in range(max(at_least, round(seconds / once)))]
    mine, others = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(mine), statistics.median(others), ratio


def ready(call: Callable[..., jax.Array], *arguments: object) -> None:
    """Call, and wait for the result."""
    call(*arguments).block_until_ready()


def timed(call: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def markdown(rows: Rows) -> Iterator[str]:
    """Yield the lines of the table as the rows come in."""
    yield "| what | | compared with | | ratio | goal |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        value, other = (quantity(number, row.unit) for number in (row.value, row.other))
        yield (
            f"| {row.what} | {value} | {row.compared_with} | {other} | **{row.ratio:.3g}** | {row.goal} |"
        )


def quantity(number: float, unit: str) -> str:
    """Write a number of seconds or bytes with a fitting prefix."""
    if unit == "s":
        return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"
    return f"{number / 2**20:.3g} MiB"
