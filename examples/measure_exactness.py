"""Measure the distance of samplers' results from known posteriors, over the number of model calls.

    python examples/measure_exactness.py --plot exactness.png

This prints a Markdown table and draws it. The problems are inpainting with priors whose ideal denoiser is
known, so the errors of a network do not affect the measurement:

- Gaussian priors (signals of 32 pixels and images of 6x6 and 8x8, three kernels, correlation lengths of 2
  to 12 pixels, standard deviations of 0.2 to 0.6, offsets, the six masks of the paper). Without clipping
  every transition is affine. The script takes the matrices of each transition from the library's own code
  by differentiation, and propagates mean and covariance through the whole chain. The error is the squared
  Wasserstein-2 distance to the posterior, divided by the trace of the posterior's covariance. It involves
  no sampling, so it has no floor.
- Mixtures of 3 to 8 Gaussians in 16 dimensions. Every third mixture has modes far apart. The error is the
  sliced Wasserstein-2 distance of samples to samples of the posterior, divided by the posterior's standard
  deviation. The distance between two sets of posterior samples, the floor, is subtracted from the squares.
  The error is at least half of the floor.

Every error is divided by that of the paper's setting (T = 250, jump_length = jump_n_sample = 10, eta = 1)
on the same problem.

    python examples/measure_exactness.py --noise-levels betas edm flow ve --budgets 32 64 128 256 602

This compares call budgets on the noise levels of other families of models; `--num-levels` says how many.

The constants of the call budget, in `repaint_jax.sampling`, were chosen on other problems of these kinds,
including seeds from 100 on. Seeds from 0 on, the default, were not looked at.
"""

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import repaint_jax as rp
from repaint_jax.sampling.budget_transition import budget_transition
from repaint_jax.sampling.repaint_transition import reverse_transition

PAPER = "the paper's setting"
BUDGETS = (16, 32, 64, 128, 256, 602, 1200, 2410, 5000)
NUM_SAMPLES = 4000  # samples of a mixture's posterior
MASKS = ("wide", "narrow", "super-resolution", "alternating lines", "half", "expand")


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


class Problem(NamedTuple):
    """A prior and an image with a hole. The prior is a mixture of Gaussians with the same eigenvectors."""

    weights: np.ndarray  # [K]
    means: np.ndarray  # [K, d]
    eigenvalues: np.ndarray  # [K, d], eigenvalues of the covariances
    eigenvectors: np.ndarray  # [d, d], one in each column
    image: np.ndarray  # [d]
    mask: np.ndarray  # [d], 1 keeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gaussians", type=int, default=24, help="number of Gaussian priors")
    parser.add_argument("--mixtures", type=int, default=12, help="number of mixtures")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--beta-schedule", default="linear")
    parser.add_argument("--beta-start", type=float, default=1e-4)
    parser.add_argument("--beta-end", type=float, default=0.02)
    parser.add_argument("--noise-levels", choices=LADDERS, nargs="+", default=[], help="compare only these")
    parser.add_argument("--num-levels", type=int, nargs="+", default=[1000], help="in each ladder")
    parser.add_argument("--plot", type=Path, help="picture to write (needs matplotlib)")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    betas = {name: getattr(options, name) for name in ("beta_schedule", "beta_start", "beta_end")}
    if options.noise_levels:
        ladders = itertools.product(options.noise_levels, options.num_levels)
        chains = list(samplers_on_ladders(betas, ladders, options.budgets))
    else:
        chains = list(samplers(betas, options.budgets))
    seeds = range(options.first_seed, options.first_seed + max(options.gaussians, options.mixtures))
    gaussians = list(map(gaussian_problem, seeds[: options.gaussians]))
    mixtures = list(map(mixture_problem, seeds[: options.mixtures]))
    errors = [
        errors_of(gaussian_error, gaussians, chains),
        errors_of(mixture_error, mixtures, chains),
    ]
    tables = [of_kind / of_kind[0] for of_kind in errors]
    print(
        "| sampler | calls | Gaussians, mean | worst | mixtures, mean | worst |\n|---|---|---|---|---|---|"
    )
    for chain, *ratios in zip(chains, *tables, strict=True):
        cells = " | ".join(f"{geometric_mean(one):.3g} | {one.max(initial=0):.3g}" for one in ratios)
        print(f"| {chain.name} | {chain.num_model_calls} | {cells} |")
    if options.plot:
        floors = np.array(list(map(mixture_floor, mixtures))) / errors[1][0]
        plot(chains, tables, floors, options.plot)


def errors_of(
    error: "Callable[[Problem, Sampler], float]", problems: list[Problem], chains: "list[Sampler]"
) -> np.ndarray:  # [samplers, problems]
    return np.array(
        [[error(problem, chain) for problem in problems] for chain in tqdm(chains, error.__name__)]
    )


def geometric_mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.log(ratios).mean())) if ratios.size else np.nan


def plot(chains: "list[Sampler]", tables: list[np.ndarray], floors: np.ndarray, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, table, title in zip(axes, tables, ("Gaussian priors", "mixtures of Gaussians"), strict=True):
        for name in dict.fromkeys(chain.name for chain in chains):
            chosen = [i for i, chain in enumerate(chains) if chain.name == name]
            calls = [chains[i].num_model_calls for i in chosen]
            axis.loglog(calls, [geometric_mean(table[i]) for i in chosen], "o-", label=name)
        axis.set(xlabel="model calls", title=title)
        axis.grid(alpha=0.3)
    axes[1].axhline(geometric_mean(floors), color="grey", linestyle=":", label="floor of the sampling")
    axes[0].set_ylabel("error / error of the paper's setting")
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


# Problems


def gaussian_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    side, shape = [(32, (32,)), (6, (6, 6)), (8, (8, 8))][rng.integers(3)]
    pixels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    covariance = kernel(rng, pixels) * rng.uniform(0.2, 0.6) ** 2
    mean = np.full(len(pixels), rng.uniform(-0.4, 0.4))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    image = rng.multivariate_normal(mean, covariance)
    mask = make_mask(rng, MASKS[seed % len(MASKS)], pixels, side)
    return Problem(np.ones(1), mean[None], eigenvalues[None], eigenvectors, image, mask)


def mixture_problem(seed: int) -> Problem:
    rng = np.random.default_rng((1, seed))
    pixels, count = np.arange(16)[:, None], rng.integers(3, 9)
    smooth = kernel(rng, pixels)
    eigenvalues, eigenvectors = np.linalg.eigh(smooth)
    separation = 1.0 if seed % 3 == 2 else 0.4
    means = separation * rng.multivariate_normal(np.zeros(16), smooth, count)
    scales = rng.uniform(0.1, 0.3, count)
    weights = rng.dirichlet(np.full(count, 3.0))
    component = rng.choice(count, p=weights)
    image = rng.multivariate_normal(means[component], scales[component] ** 2 * smooth)
    mask = make_mask(rng, MASKS[seed % len(MASKS)], pixels, 16)
    return Problem(weights, means, np.outer(scales**2, eigenvalues), eigenvectors, image, mask)


def kernel(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1) / rng.uniform(2, 12)
    exponential = np.exp(-distance)
    matern = (1 + np.sqrt(3) * distance) * np.exp(-np.sqrt(3) * distance)
    smooth = (np.exp(-(distance**2) / 2) + 0.02 * np.eye(len(pixels))) / 1.02
    return [exponential, matern, smooth][rng.integers(3)]


def make_mask(rng: np.random.Generator, kind: str, pixels: np.ndarray, side: int) -> np.ndarray:
    from_centre = np.abs(pixels - (side - 1) / 2).max(1)
    if kind == "narrow":
        missing = rng.random(len(pixels)) < 0.2
        missing[[0, side // 2]] = False, True
    else:
        missing = {
            "wide": from_centre < 0.2 * side,
            "super-resolution": (pixels % 2 == 1).any(1),
            "alternating lines": pixels[:, 0] % 2 == 1,
            "half": pixels[:, -1] >= side / 2,
            "expand": from_centre > 0.25 * side,
        }[kind]
    return 1.0 - missing


# The ideal denoiser


def denoise(problem: Problem, signal: jax.Array, noise: jax.Array, sample: jax.Array) -> jax.Array:
    """Return E[x0 | x] for x = signal x0 + noise z, [..., d]."""
    basis = problem.eigenvectors
    centred = (sample[..., None, :] - signal * problem.means) @ basis  # [..., K, d]
    variance = signal**2 * problem.eigenvalues + noise**2
    logits = jnp.log(problem.weights) - jnp.sum(centred**2 / variance + jnp.log(variance), -1) / 2
    shrunk = (signal * problem.eigenvalues / variance * centred) @ basis.T + problem.means
    return jnp.einsum("...k,...kd->...d", jax.nn.softmax(logits), shrunk)


# Samplers


class Sampler(NamedTuple):
    """A chain: its transition, and a row of coefficients for each model call."""

    name: str
    config: rp.RePaintSchedulerConfig
    transition: Callable[..., jax.Array]
    rows: Any
    num_model_calls: int
    alphas_cumprod: np.ndarray


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


def resampling(name: str, config: rp.RePaintSchedulerConfig, *schedule: int) -> Sampler:
    with warnings.catch_warnings(action="ignore"):  # 64 steps warn that they start at 945 of 1000
        state = rp.set_timesteps(rp.create_state(config), *schedule)
    return as_sampler(name, state, resampling_transition, rows_of(state))


def resampling_transition(config, row, output, sample, previous_z, image, mask, z):
    return reverse_transition(config, *row, output, sample, image, mask, z)[0]


def call_budget(config: rp.RePaintSchedulerConfig, num_model_calls: int) -> Sampler:
    state = rp.set_timesteps_for_budget(rp.create_state(config), num_model_calls)
    return as_sampler("call budget", state, correlated_transition, rows_of(state))


def correlated_transition(config, row, *arrays):
    return budget_transition(config, row, *arrays)[0]


def white_renoising(config: rp.RePaintSchedulerConfig, num_model_calls: int) -> Sampler:
    """Return RePaint's own update on the noise levels of the budget: denoise, then add white noise."""
    budget = call_budget(config, num_model_calls)
    signal, noise, next_signal, next_noise = budget.rows[1:5]
    below = np.exp(-6.5 / num_model_calls**0.5) * next_signal * noise / signal
    rows = (
        *budget.rows[:5],
        np.minimum(below, next_noise),
        np.sqrt(np.maximum(next_noise**2 - below**2, 0)),
    )
    return budget._replace(name="levels alone", transition=white_renoising_transition, rows=rows)


def white_renoising_transition(config, row, eps, sample, previous_z, image, mask, z):
    _, signal, noise, next_signal, next_noise, below, renoising = row
    x0 = (sample - noise * eps) / signal
    unknown = next_signal * x0 + below * eps + renoising * z
    return mask * (next_signal * image + next_noise * z) + (1 - mask) * unknown


def rows_of(state: rp.RePaintSchedulerState) -> Any:
    return jax.tree.map(np.asarray, state.schedule.rows())


def as_sampler(name, state, transition, rows) -> Sampler:
    abar = np.cumprod(1 - state.config.betas)  # in float64; the state's own is rounded
    return Sampler(name, state.config, transition, rows, state.num_model_calls, abar)


def model_call(transition, config, problem, alphas_cumprod, row, sample, previous_z, z):
    """Run one iteration of the chain with the problem's ideal denoiser."""
    timestep = jax.tree.leaves(row)[0]
    signal, noise = jnp.sqrt(alphas_cumprod[timestep]), jnp.sqrt(1 - alphas_cumprod[timestep])
    eps = (sample - signal * denoise(problem, signal, noise, sample)) / noise
    return transition(config, row, eps, sample, previous_z, problem.image, problem.mask, z)


# Errors


def gaussian_error(problem: Problem, sampler: Sampler) -> float:
    """Return the squared Wasserstein-2 distance to the posterior, divided by the posterior's trace."""
    mean, covariance = map(
        np.asarray,
        output_distribution(
            sampler.transition, sampler.config, problem, sampler.alphas_cumprod, sampler.rows
        ),
    )
    missing = problem.mask == 0
    _, (target_mean,), (target,) = posterior(problem)
    mean, covariance = mean[missing] - target_mean, covariance[np.ix_(missing, missing)]
    root = matrix_root(target)
    cross = np.trace(matrix_root(root @ covariance @ root))
    distance = mean @ mean + np.trace(covariance) + np.trace(target) - 2 * cross
    return float(distance / np.trace(target))


@partial(jax.jit, static_argnums=(0, 1))
def output_distribution(transition, config, problem, alphas_cumprod, rows):
    """Propagate the mean and covariance of (sample, previous noise) through every transition."""
    size = len(problem.image)
    zeros = (jnp.zeros(size),) * 3

    def push(carry, row):
        mean, covariance = carry
        step = partial(model_call, transition, config, problem, alphas_cumprod, row)
        by_sample, by_previous_z, by_z = jax.jacfwd(step, (0, 1, 2))(*zeros)
        carried = jnp.block([[by_sample, by_previous_z], [jnp.zeros((size, 2 * size))]])
        drawn = jnp.concatenate([by_z, jnp.eye(size)])
        mean = carried @ mean + jnp.append(step(*zeros), zeros[0])
        return (mean, carried @ covariance @ carried.T + drawn @ drawn.T), None

    # The chain starts from standard noise, with a previous noise of zero.
    start = jnp.zeros(2 * size), jnp.diag(jnp.append(jnp.ones(size), zeros[0]))
    (mean, covariance), _ = jax.lax.scan(push, start, rows)
    return mean[:size], covariance[:size, :size]


def posterior(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights [K], means [K, m] and covariances [K, m, m] of the missing pixels given the others."""
    known, missing = problem.mask == 1, problem.mask == 0
    covariances = (problem.eigenvectors * problem.eigenvalues[:, None]) @ problem.eigenvectors.T
    log_weights, means, conditional = [], [], []
    for weight, mean, covariance in zip(problem.weights, problem.means, covariances, strict=True):
        seen, cross = covariance[np.ix_(known, known)], covariance[np.ix_(known, missing)]
        gain = np.linalg.solve(seen, cross).T
        difference = problem.image[known] - mean[known]
        means.append(mean[missing] + gain @ difference)
        conditional.append(covariance[np.ix_(missing, missing)] - gain @ cross)
        misfit = difference @ np.linalg.solve(seen, difference) + np.linalg.slogdet(seen)[1]
        log_weights.append(np.log(weight) - misfit / 2)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    return weights / weights.sum(), np.array(means), np.array(conditional)


def matrix_root(matrix: np.ndarray) -> np.ndarray:
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)
    return (eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))) @ eigenvectors.T


def mixture_error(problem: Problem, sampler: Sampler) -> float:
    """Return the sliced Wasserstein-2 distance to the posterior over its deviation, less the floor."""
    missing = problem.mask == 0
    samples = draw(
        sampler.transition, sampler.config, problem, sampler.alphas_cumprod, sampler.rows, jax.random.key(0)
    )
    samples = np.asarray(samples)[:, missing]
    target, floor = posterior_samples(problem, seed=0), mixture_floor(problem)
    squared = sliced_wasserstein2_squared(samples, target) / target.var(0).mean()
    return max(squared - 4 * floor**2, floor**2) ** 0.5


def mixture_floor(problem: Problem) -> float:
    """Return half of that distance between two sets of samples of the posterior."""
    target, other = (posterior_samples(problem, seed) for seed in (0, 1))
    return (sliced_wasserstein2_squared(other, target) / target.var(0).mean() / 4) ** 0.5


@partial(jax.jit, static_argnums=(0, 1))
def draw(transition, config, problem, alphas_cumprod, rows, key):  # [NUM_SAMPLES, d]
    shape = (NUM_SAMPLES, len(problem.image))

    def iteration(carry, row):
        sample, previous_z, key = carry
        key, z_key = jax.random.split(key)
        z = jax.random.normal(z_key, shape, jnp.float32)
        sample = model_call(transition, config, problem, alphas_cumprod, row, sample, previous_z, z)
        return (sample.astype(jnp.float32), z, key), None

    start_key, key = jax.random.split(key)
    start = jax.random.normal(start_key, shape, jnp.float32)
    (sample, _, _), _ = jax.lax.scan(iteration, (start, jnp.zeros_like(start), key), rows)
    return sample


def posterior_samples(problem: Problem, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights, means, covariances = posterior(problem)
    counts = rng.multinomial(NUM_SAMPLES, weights)
    parts = zip(means, covariances, counts, strict=True)
    return np.concatenate([rng.multivariate_normal(*part) for part in parts])


def sliced_wasserstein2_squared(a: np.ndarray, b: np.ndarray) -> float:
    directions = np.random.default_rng(0).standard_normal((a.shape[1], 64))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.mean((np.sort(a @ directions, 0) - np.sort(b @ directions, 0)) ** 2))


if __name__ == "__main__":
    main()
