"""Measure the distance of samplers' results from known posteriors, over the number of model calls.

    python examples/exactness --plot exactness.png

This prints the errors of the library's samplers as a Markdown table, and draws it (`convergence.py`). The
problems are inpainting with priors whose ideal denoiser is known, so the errors of a network do not affect
the measurement.

    python examples/exactness --noise-levels betas edm flow ve --budgets 32 64 128 256 602

This compares call budgets on the noise levels of other families of models; `--num-levels` says how many.

    python examples/exactness --peers --plot peers.png
    python examples/exactness --peers --families images --samplers DDNM LanPaint

This compares the call budget with its peers on seven families of problems (`peers.py`). What the file of
results has is not measured again. `--quick` takes one problem of each family and eight samples.

The constants of the call budget, in `repaint_jax.sampling`, were chosen on other problems of these kinds,
including seeds from 100 on. Seeds from 0 on, the default, were not looked at.
"""

import argparse
import itertools
from pathlib import Path

import convergence
import jax
import peers
import tables
from problems import FAMILIES

RESULTS = Path(__file__).with_name("results.csv")


def main() -> None:
    parser = argparse.ArgumentParser(prog="exactness", description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="picture to write (needs matplotlib)")
    own = parser.add_argument_group("the library's samplers")
    own.add_argument("--gaussians", type=int, default=24, help="number of Gaussian priors")
    own.add_argument("--mixtures", type=int, default=12, help="number of mixtures")
    own.add_argument("--first-seed", type=int, default=0)
    own.add_argument("--budgets", type=int, nargs="+", default=convergence.BUDGETS)
    own.add_argument("--beta-schedule", default="linear")
    own.add_argument("--beta-start", type=float, default=1e-4)
    own.add_argument("--beta-end", type=float, default=0.02)
    own.add_argument(
        "--noise-levels", choices=convergence.LADDERS, nargs="+", default=[], help="compare only these"
    )
    own.add_argument("--num-levels", type=int, nargs="+", default=[1000], help="in each ladder")
    others = parser.add_argument_group("the peers")
    others.add_argument("--peers", action="store_true", help="compare with peers")
    others.add_argument("--families", choices=FAMILIES, nargs="+", default=list(FAMILIES), metavar="NAME")
    others.add_argument(
        "--samplers", choices=peers.SAMPLERS, nargs="+", default=peers.SAMPLERS, metavar="NAME"
    )
    others.add_argument("--calls", type=int, nargs="+", default=peers.CALLS, help="of each peer")
    others.add_argument("--results", type=Path, default=RESULTS, help="CSV file of all measurements")
    others.add_argument("--quick", action="store_true", help="one problem of each family, eight samples")
    others.add_argument("--only-table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.peers:
        compare_with_peers(options)
    else:
        compare_own(options)


def compare_own(options: argparse.Namespace) -> None:
    betas = {name: getattr(options, name) for name in ("beta_schedule", "beta_start", "beta_end")}
    if options.noise_levels:
        ladders = itertools.product(options.noise_levels, options.num_levels)
        chains = list(convergence.samplers_on_ladders(betas, ladders, options.budgets))
    else:
        chains = list(convergence.samplers(betas, options.budgets))
    convergence.run(chains, options.first_seed, options.gaussians, options.mixtures, options.plot)


def compare_with_peers(options: argparse.Namespace) -> None:
    if options.quick and options.results == RESULTS:
        raise SystemExit("--quick needs a file of its own, expected --results PATH")
    families = () if options.only_table else options.families
    rows = peers.run(families, options.samplers, tuple(options.calls), options.results, options.quick)
    print(tables.markdown(rows))
    if options.plot:
        tables.plot(rows, options.plot)


if __name__ == "__main__":
    main()
