"""Measure a sampler on a problem: the metrics, and the floor of each."""

import time
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import jax
import metrics
import numpy as np
from problems import Family, coarse_means, size_problem
from samplers.sampler import Problem, Sampler
from simulation import draw_results, moments

METRICS = ("w2", "sliced", "energy", "weights")
TARGET_SAMPLES = 500  # of the posterior, at least
FLOOR_SETS = 10  # sets of posterior samples whose mean distance to the posterior is the floor


def target_of(problem: Problem, family: Family) -> "Moments | Samples":
    """Return the posterior in the form that results of this family are compared with."""
    return Moments(problem, family) if is_gaussian(problem) else Samples(problem, family)


def measure(
    target: "Moments | Samples", sampler: Sampler, names: Sequence[str] = METRICS
) -> dict[str, float]:
    """Return metrics and floors, squared distances over the spread, and the seconds that they took."""
    started = time.perf_counter()
    values = target.measure(sampler, names)
    return values | {"seconds": time.perf_counter() - started}


def is_gaussian(problem: Problem) -> bool:
    """Return whether the prior is one Gaussian, so that two moments tell everything."""
    return not hasattr(problem.prior, "weights") or len(problem.prior.weights) == 1


def excess(values: dict[str, Any], metric: str) -> float:
    """Return what is left of a metric without its floor, and never less than a quarter of that."""
    return metrics.less_floor(float(values[metric]), float(values[f"{metric}_floor"]))


class Moments:
    """The posterior of a Gaussian prior: of all missing pixels, or of means of blocks of large pictures."""

    def __init__(self, problem: Problem, family: Family) -> None:
        self.problem, self.samples = problem, family.samples
        if family.make is size_problem:
            self.functionals, self.dtype = coarse_means(problem), np.float32
            self.target = problem.prior.posterior_of(self.functionals, problem.image, problem.mask)
        else:
            self.functionals, self.dtype = np.eye(len(problem.image))[problem.mask == 0], np.float64
            _, (mean,), (covariance,) = problem.prior.conditionals(problem.image, problem.mask)
            self.target = mean, covariance

    def measure(self, sampler: Sampler, _: Sequence[str]) -> dict[str, float]:
        """Return W2, exactly if the sampler is affine, and else from moments of samples."""
        if sampler.is_affine:
            problem, sampler = cast((self.problem, sampler), self.dtype)
            found = moments(problem, sampler, self.functionals.astype(self.dtype))
            return {"w2": self._distance(*found), "w2_floor": 0.0}
        results = draw(self.problem, sampler, self.samples)
        values = results @ self.functionals[:, self.problem.mask == 0].T
        return {"w2": self._distance_of_samples(values), "w2_floor": self._floor}

    @cached_property
    def _floor(self) -> float:
        rng = np.random.default_rng(1)
        sets = rng.multivariate_normal(*self.target, (FLOOR_SETS, self.samples), method="eigh")
        return float(np.mean([self._distance_of_samples(one) for one in sets]))

    def _distance_of_samples(self, values: np.ndarray) -> float:
        return self._distance(values.mean(0), np.cov(values.T).reshape(len(values.T), -1))

    def _distance(self, mean: np.ndarray, covariance: np.ndarray) -> float:
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            return np.inf
        return metrics.gaussian_w2_squared(
            mean.astype(np.float64), covariance.astype(np.float64), *self.target
        )


class Samples:
    """The posterior of any other prior, as samples."""

    def __init__(self, problem: Problem, family: Family) -> None:
        self.problem, self.samples = problem, family.samples
        self.posterior = problem.prior.posterior(problem.image, problem.mask)

    @cached_property
    def target(self) -> np.ndarray:
        """Return samples of the posterior."""
        return self.posterior.sample(np.random.default_rng(0), max(self.samples, TARGET_SAMPLES))

    def measure(self, sampler: Sampler, names: Sequence[str]) -> dict[str, float]:
        """Return the named metrics of samples, and their floors."""
        results = draw(self.problem, sampler, self.samples)
        if not np.isfinite(results).all():
            return dict.fromkeys(names, np.inf) | {f"{name}_floor": self._floor(name) for name in names}
        values = {name: self._distance(name, results) for name in names}
        return values | {f"{name}_floor": self._floor(name) for name in names}

    @cache  # noqa: B019  # as long as the problem
    def _floor(self, name: str) -> float:
        """Return the mean distance of sets of posterior samples."""
        return float(np.mean([self._distance(name, other) for other in self._others]))

    @cached_property
    def _others(self) -> list[np.ndarray]:
        sets = FLOOR_SETS if self.samples < TARGET_SAMPLES else 2
        return [self.posterior.sample(np.random.default_rng(1 + i), self.samples) for i in range(sets)]

    def _distance(self, name: str, results: np.ndarray) -> float:
        if name == "weights":
            return metrics.weights_error(self._components(results), self._target_components)
        distances = {
            "w2": metrics.w2_squared,
            "sliced": metrics.sliced_w2_squared,
            "energy": metrics.energy_distance,
        }
        return distances[name](results, self.target)

    def _components(self, results: np.ndarray) -> np.ndarray:  # [n, K]
        images = np.tile(self.problem.image, (len(results), 1))
        images[:, self.problem.mask == 0] = results
        return np.asarray(self.problem.prior.responsibilities(1.0, 0.02, images))

    @cached_property
    def _target_components(self) -> np.ndarray:
        return self._components(self.target)


def draw(problem: Problem, sampler: Sampler, count: int) -> np.ndarray:
    """Return results in float32, computed in float32."""
    return draw_results(*cast((problem, sampler), np.float32), count, jax.random.key(0))


def cast(tree: Any, dtype: Any) -> Any:
    """Return the problem and sampler with floating arrays of a dtype."""
    problem, sampler = tree

    def change(array: Any) -> Any:
        array = np.asarray(array)
        return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array

    return jax.tree.map(change, problem), sampler._replace(rows=jax.tree.map(change, sampler.rows))
