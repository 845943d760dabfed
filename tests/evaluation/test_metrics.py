"""Scores of a set of inpainted samples."""

import numpy as np
import pytest

from repaint_jax.evaluation.metrics import diversity, energy_score, rmse_of_mean

HOLE = np.zeros((1, 1, 1))  # every pixel counts


def test_scores_of_a_case_worked_out_by_hand():
    samples = np.array([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1)
    truth = np.array([[[1.0]]])
    # |X - y| is 1, 1, 3; |X - X'| is 2, 2, 4 over the three pairs.
    assert energy_score(samples, truth, HOLE) == pytest.approx(5 / 3 - 8 / 3 / 2)
    assert diversity(samples, HOLE) == pytest.approx(8 / 3)
    assert rmse_of_mean(samples, truth, HOLE) == pytest.approx(1)


def test_distances_are_euclidean_over_the_inpainted_pixels_alone():
    samples = np.zeros((2, 1, 3, 1))
    samples[1, 0] = [[3], [4], [100]]
    truth, mask = np.zeros((1, 3, 1)), np.array([[[0], [0], [1]]])
    assert diversity(samples, mask) == pytest.approx(5)
    assert energy_score(samples, truth, mask) == pytest.approx(5 / 2 - 5 / 2)
    assert rmse_of_mean(samples, truth, mask) == pytest.approx(np.sqrt((1.5**2 + 2**2) / 2))


def test_mask_broadcasts_over_channels():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(4, 2, 2, 3)), rng.normal(size=(2, 2, 3))
    mask = np.array([[0, 1], [1, 0]])[..., None]
    for score in (energy_score, rmse_of_mean):
        full = score(samples, truth, np.broadcast_to(mask, truth.shape))
        assert score(samples, truth, mask) == pytest.approx(full)


def test_energy_score_is_lowest_for_the_true_distribution():
    rng = np.random.default_rng(0)
    noise, truths = rng.normal(size=(400, 50, 1, 2, 1)), rng.normal(size=(400, 1, 2, 1))

    def mean_score(shift: float, scale: float) -> float:
        pairs = zip(shift + scale * noise, truths, strict=True)
        return float(np.mean([energy_score(samples, truth, HOLE) for samples, truth in pairs]))

    best = mean_score(0, 1)
    # E|X - y| - E|X - X'|/2 of two-dimensional standard normals is sqrt(pi) / 2; five standard errors.
    assert best == pytest.approx(np.sqrt(np.pi) / 2, abs=0.15)
    for shift, scale in ((0.5, 1), (-0.5, 1), (0, 0.5), (0, 2), (0, 0)):
        assert mean_score(shift, scale) > best + 0.02


def energy_score_of(samples) -> float:
    return energy_score(samples, HOLE, HOLE)


def diversity_of(samples) -> float:
    return diversity(samples, HOLE)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("score", [energy_score_of, diversity_of])
def test_fewer_than_two_samples_are_refused(score, count: int):
    with pytest.raises(ValueError, match=f"samples has {count} entries, expected at least 2"):
        score(np.zeros((count, 1, 1, 1)))
