"""The problems: families of priors, with images and masks. A seed makes a problem.

Seeds from 0 on are for reporting. Those from `TUNING_SEED` on are for tuning: the constants of the call
budget and the settings of its peers are chosen on them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from fashion import fashion_prior
from priors.gaussian_mixture import GaussianMixture
from priors.grey_values import GreyValues
from priors.spectrum import natural_spectrum
from samplers.sampler import Problem
from scipy.special import ndtr
from scipy.stats import norm

TUNING_SEED = 100
MASKS = ("wide", "narrow", "super-resolution", "alternating lines", "half", "expand")
IMAGE_MASKS = ("half", "expand", "wide", "alternating lines", "super-resolution")
SIDES = (16, 32, 64, 128, 256)


def gaussian_problem(seed: int) -> Problem:
    """Return a Gaussian prior of signals of 32 pixels or images of 6x6 or 8x8."""
    rng = np.random.default_rng(seed)
    side, shape = [(32, (32,)), (6, (6, 6)), (8, (8, 8))][rng.integers(3)]
    pixels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    covariance = kernel(rng, pixels) * rng.uniform(0.2, 0.6) ** 2
    mean = np.full(len(pixels), rng.uniform(-0.4, 0.4))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    image = rng.multivariate_normal(mean, covariance)
    mask = make_mask(rng, MASKS[seed % len(MASKS)], pixels, side)
    prior = GaussianMixture(np.ones(1), mean[None], eigenvalues[None], eigenvectors)
    return Problem(prior, image, mask)


def mixture_problem(seed: int) -> Problem:
    """Return a mixture of 3 to 8 Gaussians in 16 dimensions. Posteriors mostly have one mode."""
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
    prior = GaussianMixture(weights, means, np.outer(scales**2, eigenvalues), eigenvectors)
    return Problem(prior, image, mask)


def padded_mixture_problem(seed: int) -> Problem:
    """Return the same with 8 components, some of them all but absent, so that all problems share code."""
    problem = mixture_problem(seed)
    prior, missing = problem.prior, 8 - len(problem.prior.weights)
    padded = GaussianMixture(
        np.append(prior.weights, np.full(missing, 1e-30)),
        np.append(prior.means, np.zeros((missing, 16)), 0),
        np.append(prior.eigenvalues, np.repeat(prior.eigenvalues[:1], missing, 0), 0),
        prior.eigenvectors,
    )
    return problem._replace(prior=padded)


def several_modes_problem(seed: int) -> Problem:
    """Return a mixture in 16 dimensions whose posterior has two to four modes: the first such draw.

    The known pixels tell the components apart, but not well: there the means differ less than elsewhere.
    """
    rng = np.random.default_rng((2, seed))
    pixels, count, fewest = np.arange(16)[:, None], 8, 2 + seed % 2
    mask = make_mask(rng, ("half", "expand", "wide")[seed % 3], pixels, 16)
    known = mask == 1
    while True:
        smooth = kernel(rng, pixels)
        eigenvalues, eigenvectors = np.linalg.eigh(smooth)
        draws = 0.6 * rng.multivariate_normal(np.zeros(16), smooth, count)
        gain = np.linalg.solve(smooth[np.ix_(known, known)], smooth[known])
        means = draws - 0.6 * draws[:, known] @ gain
        scales = rng.uniform(0.1, 0.3, count)
        weights = rng.dirichlet(np.full(count, 3.0))
        prior = GaussianMixture(weights, means, np.outer(scales**2, eigenvalues), eigenvectors)
        component = rng.choice(count, p=weights)
        image = rng.multivariate_normal(means[component], scales[component] ** 2 * smooth)
        if fewest <= count_modes(prior, image, mask) <= 4:
            return Problem(prior, image, mask)


def count_modes(prior: GaussianMixture, image: np.ndarray, mask: np.ndarray) -> int:
    """Return the number of components that have a tenth of the posterior, if they lie apart, and else 1."""
    weights, means, covariances = prior.conditionals(image, mask)
    heavy = np.flatnonzero(weights > 0.1)
    spread = np.sqrt(np.trace(covariances[heavy], axis1=1, axis2=2).mean())
    distances = np.linalg.norm(means[heavy, None] - means[heavy], axis=-1)
    are_apart = (distances + 1e9 * np.eye(len(heavy)) > 2 * spread).all()
    return len(heavy) if are_apart and weights[heavy].sum() > 0.9 else 1


def high_dimensional_problem(seed: int) -> Problem:
    """Return a mixture of 20 components in 64 to 256 dimensions whose posterior has up to four modes."""
    rng = np.random.default_rng((3, seed))
    side = (8, 12, 16)[seed % 3]
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    mask = make_mask(rng, ("half", "expand", "wide", "alternating lines")[seed % 4], pixels, side)
    return grouped_problem(rng, pixels, mask, groups=5, modes=4, widths=(1.0, 1.0))


def grouped_problem(rng, pixels, mask, groups, modes, widths) -> Problem:
    """Return groups of components that differ only where pixels are missing: an image tells the group."""
    smooth = kernel(rng, pixels)
    eigenvalues, eigenvectors = np.linalg.eigh(smooth)
    known, missing = mask == 1, mask == 0
    gain = np.linalg.solve(smooth[np.ix_(known, known)], smooth[known])
    centres = 0.5 * rng.multivariate_normal(np.zeros(len(mask)), smooth, groups)
    draws = 0.7 * rng.multivariate_normal(np.zeros(len(mask)), smooth, (groups, modes))
    offsets = (draws - draws[..., known] @ gain) * missing  # draws given zeros at the known pixels
    means = (centres[:, None] + offsets).reshape(groups * modes, -1)
    scales = np.repeat(rng.uniform(0.1, 0.2, groups), modes) * rng.uniform(*widths, groups * modes)
    weights = rng.dirichlet(np.full(groups * modes, 3.0))
    component = rng.choice(groups * modes, p=weights)
    image = rng.multivariate_normal(means[component], scales[component] ** 2 * smooth)
    return Problem(
        GaussianMixture(weights, means, np.outer(scales**2, eigenvalues), eigenvectors), image, mask
    )


def clip_limit_problem(seed: int) -> Problem:
    """Return 16 pixels at the limits -1 and 1: laws of two points, or mixtures of clipped Gaussians."""
    rng = np.random.default_rng((4, seed))
    pixels, count = np.arange(16)[:, None], 6
    fields = rng.multivariate_normal(np.zeros(16), kernel(rng, pixels), count)
    if seed % 2 == 0:
        values = np.array([-1.0, 1.0])
        up = np.clip(ndtr(3 * fields), 0.02, 0.98)
        laws = np.stack([1 - up, up], -1)
    else:
        values = np.linspace(-1, 1, 41)
        edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
        scales = rng.uniform(0.15, 0.4, (count, 1, 1))
        laws = np.diff(norm.cdf((edges - 1.2 * fields[..., None]) / scales), axis=-1) + 1e-9
        laws /= laws.sum(-1, keepdims=True)
    prior = GreyValues(rng.dirichlet(np.full(count, 3.0)), values, laws)
    return Problem(prior, prior.sample(rng), make_mask(rng, MASKS[seed % len(MASKS)], pixels, 16))


def image_problem(seed: int) -> Problem:
    """Return an image of the prior fitted to Fashion-MNIST, under one of five masks."""
    rng = np.random.default_rng((5, seed // len(IMAGE_MASKS)))
    pixels = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij"), -1).reshape(-1, 2)
    prior = fashion_prior()
    mask = make_mask(rng, IMAGE_MASKS[seed % len(IMAGE_MASKS)], pixels, 28)
    return Problem(prior, prior.sample(rng), mask)


def size_problem(seed: int) -> Problem:
    """Return a picture of 16 to 256 pixels a side with a natural spectrum, whose centre is known."""
    rng = np.random.default_rng((6, seed))
    side = SIDES[seed % len(SIDES)]
    prior = natural_spectrum(side)
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    return Problem(prior, prior.sample(rng), make_mask(rng, "expand", pixels, side))


def coarse_means(problem: Problem) -> np.ndarray:  # [m, d]
    """Return the functions that take the means of missing blocks, of a quarter of the side."""
    side = round(len(problem.image) ** 0.5)
    block = np.arange(side) * 4 // side
    number = (4 * block[:, None] + block).ravel()
    blocks = np.arange(16)[:, None] == number
    blocks = blocks[(blocks * problem.mask).sum(1) == 0]
    return blocks / blocks.sum(1, keepdims=True)


def kernel(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Return the correlations of pixels under one of three kernels, of random length."""
    distance = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1) / rng.uniform(2, 12)
    exponential = np.exp(-distance)
    matern = (1 + np.sqrt(3) * distance) * np.exp(-np.sqrt(3) * distance)
    smooth = (np.exp(-(distance**2) / 2) + 0.02 * np.eye(len(pixels))) / 1.02
    return [exponential, matern, smooth][rng.integers(3)]


def make_mask(rng: np.random.Generator, kind: str, pixels: np.ndarray, side: int) -> np.ndarray:
    """Return one of the paper's masks for pixels [d, 1 or 2] of a signal or image."""
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


class Family(NamedTuple):
    """Problems of one kind, and how many of them and of samples are measured."""

    make: Callable[[int], Problem]  # from a seed
    metric: str  # the error in the tables: see `measurement`
    report: int  # problems
    tune: int  # problems
    samples: int


FAMILIES = {
    "gaussians": Family(gaussian_problem, "w2", 10, 3, 2000),
    "mixtures": Family(padded_mixture_problem, "sliced", 12, 3, 1000),
    "several modes": Family(several_modes_problem, "sliced", 6, 3, 1000),
    "clip limit": Family(clip_limit_problem, "sliced", 6, 3, 1000),
    "high dimensions": Family(high_dimensional_problem, "sliced", 5, 3, 400),
    "images": Family(image_problem, "energy", 10, 2, 24),
    "sizes": Family(size_problem, "w2", 5, 2, 32),
}
