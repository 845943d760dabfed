"""Metrics against closed forms, and what the table makes of rows of results."""

from pathlib import Path

import metrics
import numpy as np
import pytest
from measurement import excess
from peers import COLUMNS, Results, errors
from reference import wasserstein2_squared
from tables import markdown

RNG = np.random.default_rng(0)


def test_w2_of_gaussians_is_that_of_the_reference() -> None:
    a, b = RNG.standard_normal((2, 3, 3))
    cov_a, cov_b = a @ a.T + np.eye(3), b @ b.T
    mean_a, mean_b = RNG.standard_normal((2, 3))
    expected = wasserstein2_squared(mean_a, cov_a, mean_b, cov_b) / np.trace(cov_b)
    assert np.isclose(metrics.gaussian_w2_squared(mean_a, cov_a, mean_b, cov_b), expected)


def test_a_shifted_set_has_the_distances_of_its_shift() -> None:
    target = RNG.standard_normal((400, 3))
    shift, spread = np.array([0.3, -0.2, 0.1]), target.var(0)
    assert np.isclose(metrics.w2_squared(target + shift, target), shift @ shift / spread.sum())
    # Along random directions, the mean squared shift is a third of the whole.
    assert metrics.sliced_w2_squared(target + shift, target) == pytest.approx(
        shift @ shift / 3 / spread.mean(), rel=0.3
    )
    assert metrics.w2_squared(target, target) == metrics.sliced_w2_squared(target, target) == 0


def test_the_energy_distance_of_two_points_and_three() -> None:
    """E|X - Y| = 1/2, E|X - X'| = 4/9, E|Y - Y'| = 1/2 for X in 0, 0, 1 and Y in 0, 1."""
    found = metrics.energy_distance(np.array([[0.0], [0.0], [1.0]]), np.array([[0.0], [1.0]]))
    assert np.isclose(found, (2 * 0.5 - 4 / 9 - 0.5) / 0.5)


def test_the_error_of_weights_is_their_total_variation() -> None:
    assert metrics.weights_error(np.array([[1, 0], [0, 1.0]]), np.array([[0.8, 0.2]])) == pytest.approx(0.3)


def row(**values: object) -> dict[str, object]:
    return dict.fromkeys(COLUMNS, "") | {"settings": "{}", "split": "report"} | values


def test_errors_are_over_those_of_repaint_and_without_the_floor(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.csv")
    for sampler, calls, seed, sliced in [
        ("RePaint", 2410, 0, 0.41),
        ("RePaint", 2410, 1, 0.10),
        ("DDNM", 64, 0, 1.61),
        ("DDNM", 64, 1, 0.05),
    ]:
        values = {"family": "mixtures", "seed": seed, "sampler": sampler, "calls": calls, "cost": calls}
        results.add(row(sliced=sliced, sliced_floor=0.01, **values))
    assert excess(results.rows[0], "sliced") == pytest.approx(0.40)
    assert excess(row(sliced=0.011, sliced_floor=0.01), "sliced") == pytest.approx(0.0025)
    found = {sampler: (error, count) for sampler, _, error, count in errors(results.rows, "mixtures")}
    assert found["RePaint"] == (pytest.approx(1.0), 2)
    assert found["DDNM"] == (pytest.approx((4 * 0.04 / 0.09) ** 0.25), 2)
    assert "| DDNM | 64 |  | 1.2 |" in markdown(results.rows)


def test_results_are_found_again_in_their_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    key = {
        "family": "sizes",
        "split": "tune",
        "seed": 100,
        "sampler": "DDNM",
        "settings": "{}",
        "calls": 24,
    }
    Results(path).add(key | {"cost": 24, "w2": 0.123456})
    found = Results(path).find(key)
    assert found is not None
    assert found["w2"] == "0.12346"
    assert Results(path).find(key | {"seed": 101}) is None
