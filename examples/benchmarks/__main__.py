"""Measure the time and memory of model calls and of the code around them.

    python examples/benchmarks
    python examples/benchmarks loop memory

This prints a Markdown table with a row for each comparison. Two things are timed alternately in one run,
and the ratio is the first one's time, or memory, divided by the second's. Comparisons with torch and
diffusers are omitted if these are not installed (`pip install -r tests/golden/requirements.txt`).
"""

import argparse
import importlib.util

import batches
import convolutions
import loop
import memory
import network
import startup
import whole
from machine import machine
from timing import markdown

PARTS = {
    "loop": (loop.over_calls, loop.over_diffusers),
    "network": (network.over_matmul, network.over_torch),
    "convolutions": (convolutions.over_other_ways,),
    "whole": (whole.over_diffusers,),
    "startup": (startup.imports, startup.compilation, startup.first_picture),
    "memory": (memory.temporary_bytes,),
    "batches": (batches.per_picture, batches.per_device),
}
WITH_DIFFUSERS = {loop.over_diffusers, network.over_torch, whole.over_diffusers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"PART is {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    print(machine(), end="\n\n")
    wanted = [compare for part in options.parts or PARTS for compare in PARTS[part]]
    if importlib.util.find_spec("diffusers") is None:
        wanted = [compare for compare in wanted if compare not in WITH_DIFFUSERS]
    for line in markdown(row for compare in wanted for row in compare()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
