"""Configs of continuous noise levels: their levels, what a ladder costs, what they refuse."""

import numpy as np
import pytest
import reference

import repaint_jax as rp
from repaint_jax.sampling.budget_schedule import budget_timesteps


def test_levels_are_those_that_were_asked_for():
    sigmas = np.geomspace(0.002, 80, 300)
    config = rp.RePaintSchedulerConfig.from_sigmas(sigmas, eta=0.5)
    abar = reference.alphas_cumprod(config.betas)
    np.testing.assert_allclose(np.sqrt(1 / abar - 1), sigmas, rtol=1e-9)
    assert (config.num_train_timesteps, config.prediction_type, config.eta) == (300, "sample", 0.5)
    karras = np.sqrt(1 / reference.alphas_cumprod(rp.RePaintSchedulerConfig.edm().betas) - 1)
    np.testing.assert_allclose(karras[[0, -1]], [0.002, 80], rtol=1e-9)
    steps = np.arange(1000) / 999  # eq. 5 of Karras et al., from the largest level on
    expected = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras[::-1], expected, rtol=1e-8)
    flow = np.sqrt(1 / reference.alphas_cumprod(rp.RePaintSchedulerConfig.flow().betas) - 1)
    np.testing.assert_allclose(flow / (1 + flow), 0.999 * np.arange(1, 1001) / 1000, rtol=1e-8)
    shifted = np.sqrt(1 / reference.alphas_cumprod(rp.RePaintSchedulerConfig.flow(shift=3.0).betas) - 1)
    times = shifted / (1 + shifted)
    even = times / (3 - 2 * times)  # undoes t -> 3 t/(1 + 2 t)
    np.testing.assert_allclose(np.diff(even), np.full(999, even[0]), rtol=1e-6)
    np.testing.assert_allclose(times[-1], 0.999)


def test_configs_of_continuous_levels_are_saved_and_loaded(tmp_path):
    config = rp.RePaintSchedulerConfig.edm()
    config.save_pretrained(tmp_path)
    assert rp.RePaintSchedulerConfig.from_pretrained(tmp_path) == config


def error_of_budget(config, calls: int) -> float:
    """Squared Wasserstein-2 distance to the posterior over its variance, in closed form; geometric mean."""
    size, rng, errors = 24, np.random.default_rng(0), []
    sigmas = np.sqrt(1 / reference.alphas_cumprod(config.betas) - 1)[
        budget_timesteps(reference.alphas_cumprod(config.betas), calls)
    ]
    for length in (1.0, 3.0, 8.0):
        cov = 0.2 * np.exp(-np.abs(np.arange(size)[:, None] - np.arange(size)) / length)
        mean = rng.normal(0, 0.2, size)
        image = mean + np.linalg.cholesky(cov) @ rng.standard_normal(size)
        for mask in (np.repeat([1.0, 0.0], size // 2), rng.integers(0, 2, size).astype(float)):
            missing = mask == 0
            made_mean, made_cov = reference.propagate_correlated(mean, cov, image, mask, sigmas)
            posterior = reference.posterior(mean, cov, image, mask)
            made = made_mean[missing], made_cov[np.ix_(missing, missing)]
            errors.append(reference.wasserstein2_squared(*made, *posterior) / np.trace(posterior[1]))
    return float(np.exp(np.mean(np.log(errors))))


def ve(num_train_timesteps: int = 1000) -> rp.RePaintSchedulerConfig:
    return rp.RePaintSchedulerConfig.from_sigmas(np.geomspace(0.01, 674, num_train_timesteps))


@pytest.mark.parametrize(
    "make",
    [rp.RePaintSchedulerConfig.edm, rp.RePaintSchedulerConfig.flow, ve],
    ids=lambda make: make.__name__,
)
def test_a_ladder_of_a_thousand_levels_costs_nothing(make):
    """Neither against DDPM's betas nor against a ladder four times as fine."""
    for calls, worst in ((64, 1.3), (256, 1.05)):
        error = error_of_budget(make(), calls)
        assert error < worst * error_of_budget(rp.RePaintSchedulerConfig(), calls)
        assert error < 1.1 * error_of_budget(make(num_train_timesteps=4000), calls)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.from_sigmas([0.1, 0.1]), ValueError, r"sigmas\[1\] is 0.1, after 0.1, expected"),
        (lambda c: c.from_sigmas([1.0, 0.5]), ValueError, r"sigmas\[1\] is 0.5, after 1, expected"),
        (lambda c: c.from_sigmas([0.0, 0.5]), ValueError, r"sigmas\[0\] is 0, expected positive"),
        (lambda c: c.from_sigmas([0.1, np.inf]), ValueError, r"sigmas\[1\] is inf, after 0.1, expected"),
        (lambda c: c.from_sigmas([]), ValueError, r"sigmas has shape \(0,\), expected a vector"),
        (lambda c: c.from_sigmas("fine"), TypeError, "sigmas is 'fine', expected a sequence of numbers"),
        (lambda c: c.edm(sigma_min=80, sigma_max=80), ValueError, "sigma_min is 80 and sigma_max is 80"),
        (lambda c: c.edm(rho=0), ValueError, "rho is 0, expected a positive number"),
        (lambda c: c.flow(shift=-1), ValueError, "shift is -1, expected a positive number"),
        (lambda c: c.edm(sigma_min="2"), TypeError, "sigma_min is '2', expected a positive number"),
        (lambda c: c.edm(sigma_max=True), TypeError, "sigma_max is True, expected a positive number"),
        (lambda c: c.edm(sigma_max=np.nan), ValueError, "sigma_max is nan, expected a positive number"),
        (lambda c: c.edm(rho=[7]), TypeError, r"rho is \[7\], expected a positive number"),
        (lambda c: c.edm(rho=10**400), ValueError, "rho is 10+, expected a positive number"),
        (lambda c: c.edm(rho=0.001), ValueError, "rho is 0.001, expected a number that gives rising noise"),
        (lambda c: c.flow(shift=np.ones(2)), TypeError, r"shift is an array of shape \(2,\) and dtype fl"),
        (
            lambda c: c.flow(shift=1e-320),
            ValueError,
            "shift is 1e-320, expected a number that gives rising",
        ),
        (
            lambda c: c.from_sigmas([1.0, 1e200]),
            ValueError,
            r"sigmas\[1\] is 1e\+200, expected noise levels",
        ),
        (lambda c: c.from_sigmas([1e-12]), ValueError, r"sigmas\[0\] is 1e-12, expected noise levels that"),
        (lambda c: c.from_sigmas(np.array(["a"] * 99)), TypeError, r"sigmas is an array of shape \(99,\)"),
        (lambda c: c.flow("9"), TypeError, "num_train_timesteps is '9', expected an integer"),
        (lambda c: c.flow(0), ValueError, "num_train_timesteps is 0, expected an integer of at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(rp.RePaintSchedulerConfig)
    assert len(str(raised.value).splitlines()) == 1
