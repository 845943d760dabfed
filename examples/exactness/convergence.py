"""The errors of the library's samplers over the number of model calls, on Gaussians and mixtures.

Every error is divided by that of the paper's setting (T = 250, jump_length = jump_n_sample = 10, eta = 1)
on the same problem. Gaussians are computed without sampling. Mixtures are sampled, and the floor of the
sampling is subtracted from the squares of their errors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import metrics
import numpy as np
from problems import Problem, gaussian_problem, mixture_problem
from samplers.chains import call_budget, resampling, white_renoising
from samplers.sampler import Sampler
from simulation import draw_results, moments
from tqdm import tqdm

import repaint_jax as rp

PAPER = "the paper's setting"
BUDGETS = (16, 32, 64, 128, 256, 602, 1200, 2410, 5000)
NUM_SAMPLES = 4000  # samples of a mixture's posterior

# Noise levels of families of models, over data in [-1, 1], from (betas, number of levels).
LADDERS: dict[str, Callable[..., rp.RePaintSchedulerConfig]] = {
    "betas": lambda betas, count, **options: rp.RePaintSchedulerConfig(count, **betas, **options),
    "edm": lambda _, count, **options: rp.RePaintSchedulerConfig.edm(num_train_timesteps=count, **options),
    "edm-geometric": lambda _, count, **options: geometric(0.002, 80, count, **options),
    "flow": lambda _, count, **options: rp.RePaintSchedulerConfig.flow(count, **options),
    "flow-shift-3": lambda _, count, **options: rp.RePaintSchedulerConfig.flow(count, 3.0, **options),
    "ve": lambda _, count, **options: geometric(0.02, 2 * 1348, count, **options),
}


def geometric(first: float, last: float, count: int, **options: Any) -> rp.RePaintSchedulerConfig:
    return rp.RePaintSchedulerConfig.from_sigmas(np.geomspace(first, last, count), **options)


def samplers(betas: dict[str, Any], budgets: Sequence[int]) -> Iterator[Sampler]:
    """Yield the samplers. The first is the paper's setting, with which the others are compared."""
    config = partial(rp.RePaintSchedulerConfig, clip_sample=False, **betas)
    official = rp.RePaintSchedulerConfig.paper(clip_sample=False, variance_type="fixed_small", **betas)
    upstream = rp.RePaintSchedulerConfig.diffusers(clip_sample=False, **betas)
    yield resampling(PAPER, config(eta=1.0), 250, 10, 10)
    yield resampling("official order", official, 250, 10, 10)
    yield resampling("diffusers' defaults", upstream, 250, 10, 10)
    for schedule in ((250, 10, 4), (50, 5, 5), (25, 1, 4)):
        yield resampling("fewer passes and steps", config(eta=1.0), *schedule)
    for steps in (32, 64, 125, 250, 500):
        yield resampling("no resampling", config(eta=1.0), steps, 1, 1)
    for budget in budgets:
        yield white_renoising(config(), budget)
    for budget in budgets:
        yield call_budget(config(), budget)


def samplers_on_ladders(
    betas: dict[str, Any], ladders: Iterable[tuple[str, int]], budgets: Sequence[int]
) -> Iterator[Sampler]:
    """Yield the paper's setting on the betas, and call budgets on ladders (name, number of levels)."""
    yield resampling(PAPER, rp.RePaintSchedulerConfig(eta=1.0, clip_sample=False, **betas), 250, 10, 10)
    for name, count in ladders:
        config = LADDERS[name](betas, count, clip_sample=False, prediction_type="epsilon")
        for budget in budgets:
            yield call_budget(config, budget)._replace(name=f"{name}, {count:,} levels")


def run(
    chains: list[Sampler], first_seed: int, gaussians: int, mixtures: int, picture: Path | None
) -> None:
    """Print the table, and draw it."""
    seeds = range(first_seed, first_seed + max(gaussians, mixtures))
    of_gaussians = list(map(gaussian_problem, seeds[:gaussians]))
    of_mixtures = list(map(mixture_problem, seeds[:mixtures]))
    errors = [
        errors_of(gaussian_error, of_gaussians, chains),
        errors_of(mixture_error, of_mixtures, chains),
    ]
    tables = [of_kind / of_kind[0] for of_kind in errors]
    print(
        "| sampler | calls | Gaussians, mean | worst | mixtures, mean | worst |\n|---|---|---|---|---|---|"
    )
    for chain, *ratios in zip(chains, *tables, strict=True):
        cells = " | ".join(f"{geometric_mean(one):.3g} | {one.max(initial=0):.3g}" for one in ratios)
        print(f"| {chain.name} | {chain.calls} | {cells} |")
    if picture:
        floors = np.array([mixture_floor(problem) ** 0.5 / 2 for problem in of_mixtures]) / errors[1][0]
        plot(chains, tables, floors, picture)


def errors_of(
    error: Callable[[Problem, Sampler], float], problems: list[Problem], chains: list[Sampler]
) -> np.ndarray:  # [samplers, problems]
    return np.array(
        [[error(problem, chain) for problem in problems] for chain in tqdm(chains, error.__name__)]
    )


def gaussian_error(problem: Problem, sampler: Sampler) -> float:
    """Return the squared Wasserstein-2 distance to the posterior, divided by the posterior's trace."""
    mean, covariance = moments(problem, sampler, np.eye(len(problem.image))[problem.mask == 0])
    _, (target_mean,), (target,) = problem.prior.conditionals(problem.image, problem.mask)
    return metrics.gaussian_w2_squared(mean, covariance, target_mean, target)


def mixture_error(problem: Problem, sampler: Sampler) -> float:
    """Return the sliced Wasserstein-2 distance to the posterior over its deviation, less the floor."""
    results = draw_results(problem, sampler, NUM_SAMPLES, jax.random.key(0))
    squared = metrics.sliced_w2_squared(results, posterior_samples(problem, seed=0))
    return metrics.less_floor(squared, mixture_floor(problem)) ** 0.5


def mixture_floor(problem: Problem) -> float:
    """Return the square of that distance between two sets of samples of the posterior."""
    target, other = (posterior_samples(problem, seed) for seed in (0, 1))
    return metrics.sliced_w2_squared(other, target)


def posterior_samples(problem: Problem, seed: int) -> np.ndarray:
    posterior = problem.prior.posterior(problem.image, problem.mask)
    return posterior.sample(np.random.default_rng(seed), NUM_SAMPLES)


def geometric_mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.log(ratios).mean())) if ratios.size else np.nan


def plot(chains: list[Sampler], tables: list[np.ndarray], floors: np.ndarray, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, table, title in zip(axes, tables, ("Gaussian priors", "mixtures of Gaussians"), strict=True):
        for name in dict.fromkeys(chain.name for chain in chains):
            chosen = [i for i, chain in enumerate(chains) if chain.name == name]
            calls = [chains[i].calls for i in chosen]
            axis.loglog(calls, [geometric_mean(table[i]) for i in chosen], "o-", label=name)
        axis.set(xlabel="model calls", title=title)
        axis.grid(alpha=0.3)
    axes[1].axhline(geometric_mean(floors), color="grey", linestyle=":", label="floor of the sampling")
    axes[0].set_ylabel("error / error of the paper's setting")
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120)
