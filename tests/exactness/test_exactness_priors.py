"""The ideal denoisers and posteriors, against sums over components and over grids of images."""

import jax
import numpy as np
import pytest
from fashion import fit
from priors.gaussian_mixture import GaussianMixture
from priors.grey_values import GreyValues
from priors.low_rank import LowRankMixture
from priors.spectrum import natural_spectrum
from problems import coarse_means, make_mask
from reference import mixture_denoiser, mixture_posterior, posterior
from samplers.sampler import Problem

RNG = np.random.default_rng(0)
SIGMAS = (0.03, 0.5, 8.0)


def gaussian_mixture() -> tuple[GaussianMixture, np.ndarray]:
    vectors = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    values = RNG.uniform(0.01, 0.3, (3, 5))
    prior = GaussianMixture(np.array([0.2, 0.5, 0.3]), RNG.standard_normal((3, 5)), values, vectors)
    return prior, np.array([vectors * one @ vectors.T for one in values])


def low_rank() -> tuple[LowRankMixture, np.ndarray]:
    factors = np.array([np.linalg.qr(RNG.standard_normal((5, 2)))[0] for _ in range(3)])
    variances = RNG.uniform(0.1, 1.0, (3, 2))
    prior = LowRankMixture(
        np.array([0.2, 0.5, 0.3]), RNG.standard_normal((3, 5)), factors, variances, np.array(0.01)
    )
    covariances = [u * v @ u.T + 0.01 * np.eye(5) for u, v in zip(factors, variances, strict=True)]
    return prior, np.array(covariances)


@pytest.mark.parametrize("make", [gaussian_mixture, low_rank])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_of_a_mixture_is_the_sum_over_its_components(make, sigma: float) -> None:
    prior, covariances = make()
    x = 0.7 * RNG.standard_normal((20, 5))
    expected = mixture_denoiser(prior.weights, prior.means, covariances, x, sigma)
    np.testing.assert_allclose(prior.denoise(1.0, sigma, x), expected, rtol=1e-6, atol=1e-7)
    # x = a (x0 + s z) is the same sample in other units
    np.testing.assert_allclose(prior.denoise(0.6, 0.6 * sigma, 0.6 * x), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [gaussian_mixture, low_rank])
def test_the_posterior_of_a_mixture_has_the_moments_of_its_conditionals(make) -> None:
    prior, covariances = make()
    mask, image = np.array([1, 0, 1, 0, 0]), prior.means[1] + 0.1
    weights, means, conditional = mixture_posterior(prior.weights, prior.means, covariances, image, mask)
    found = prior.posterior(image, mask)
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    for k in range(3):
        samples = found.draw(np.random.default_rng(k), k, 40_000)
        np.testing.assert_allclose(samples.mean(0), means[k], atol=0.02)
        np.testing.assert_allclose(np.cov(samples.T), conditional[k], atol=0.03)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_of_grey_values_is_the_sum_over_all_images(sigma: float) -> None:
    values, laws = np.array([-1.0, -0.2, 1.0]), RNG.dirichlet(np.ones(3), (2, 3))
    prior = GreyValues(np.array([0.3, 0.7]), values, laws)
    numbers = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
    shares = np.einsum(
        "k,nk->n", prior.weights, np.prod([laws[:, i, numbers[:, i]].T for i in range(3)], 0)
    )
    x = RNG.standard_normal((10, 3))
    logs = np.log(shares) - ((x[:, None] - values[numbers]) ** 2).sum(-1) / (2 * sigma**2)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    expected = weights @ values[numbers] / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(prior.denoise(1.0, sigma, x), expected, atol=1e-9)


def test_the_posterior_of_grey_values_counts_the_images_that_agree() -> None:
    values, laws = np.array([-1.0, 1.0]), RNG.dirichlet(np.ones(2), (2, 3))
    prior = GreyValues(np.array([0.3, 0.7]), values, laws)
    samples = prior.posterior(np.array([1.0, 0, 0]), np.array([1, 0, 0])).sample(
        np.random.default_rng(0), 40_000
    )
    weights = prior.weights * laws[:, 0, 1]
    both_up = (weights * laws[:, 1, 1] * laws[:, 2, 1]).sum() / weights.sum()
    assert abs(((samples == 1).all(1)).mean() - both_up) < 0.01


def test_large_pictures_have_the_posterior_of_a_dense_covariance() -> None:
    prior = natural_spectrum(8)
    basis = np.kron(prior.cosines, prior.cosines)
    covariance = basis.T * prior.eigenvalues.ravel() @ basis
    assert np.isclose(np.trace(covariance) / 64, 0.25)
    image = prior.sample(RNG)
    pixels = np.stack(np.meshgrid(range(8), range(8), indexing="ij"), -1).reshape(-1, 2)
    mask = make_mask(RNG, "expand", pixels, 8)
    functionals = coarse_means(Problem(prior, image, mask))
    assert len(functionals) == 12
    found_mean, found = prior.posterior_of(functionals, image, mask)
    mean, conditional = posterior(np.zeros(64), covariance, image, mask)
    of_missing = functionals[:, mask == 0]
    np.testing.assert_allclose(found_mean, of_missing @ mean, atol=1e-6)
    np.testing.assert_allclose(found, of_missing @ conditional @ of_missing.T, atol=1e-6)
    x = RNG.standard_normal((2, 64))
    expected = x @ covariance @ np.linalg.inv(covariance + 0.09 * np.eye(64))
    np.testing.assert_allclose(prior.denoise(1.0, 0.3, x), expected, atol=1e-9)


@pytest.mark.slow
def test_a_fitted_mixture_finds_the_clusters_and_directions_of_its_data() -> None:
    rng, ways = np.random.default_rng(0), np.eye(6)
    parts = [
        5.0 * ways[k] + rng.standard_normal((300, 1)) * ways[k + 2] + 0.1 * rng.standard_normal((300, 6))
        for k in range(2)
    ]
    prior = fit(np.concatenate(parts), components=2, rank=1)
    order = np.argsort(-prior.means[:, 0])
    np.testing.assert_allclose(prior.weights, 0.5, atol=0.01)
    np.testing.assert_allclose(prior.means[order, :2], 5 * np.eye(2), atol=0.1)
    for k, component in enumerate(order):
        assert abs(prior.factors[component, k + 2, 0]) > 0.99
    np.testing.assert_allclose(prior.variances, 1.0, atol=0.2)


def test_responsibilities_sum_to_one_and_know_the_component() -> None:
    prior, _ = gaussian_mixture()
    shares = jax.device_get(prior.responsibilities(1.0, 0.02, prior.means))
    np.testing.assert_allclose(shares.sum(-1), 1.0)
    assert (shares.argmax(-1) == np.arange(3)).all()
