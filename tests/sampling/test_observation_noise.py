"""Pixels that are known with noise, and chains that start from the image.

The problem, a small Gaussian prior with its ideal denoiser, is that of test_distribution. The reference has
the law of the library's chain (`propagate_observed`, `propagate_correlated_observed`) and the posterior
(`observed_posterior`) in closed form.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from test_distribution import (
    IMAGE,
    MASK,
    MISSING,
    N_SAMPLES,
    PRIOR_COV,
    PRIOR_MEAN,
    SIZE,
    batched,
    denoiser_params,
    model_fn,
    one_mask,
)

import repaint_jax as rp

pytestmark = pytest.mark.usefixtures("strict_promotion")

NOISES = (0.05, 0.3, 1.0)
MIXED = np.array([0.0, 0.05, np.inf, np.inf, np.inf, 1.0])  # of the pixels of MASK
ALL = np.ones(SIZE, bool)
inpaint = partial(
    jax.jit,
    static_argnums=1,
    compiler_options={"xla_backend_optimization_level": 1},
)(rp.inpaint)
RESAMPLING = (25, 5, 5)


def noise_of_pixels(noise) -> np.ndarray:
    return np.where(MISSING, np.inf, noise)


def budget_state(num_model_calls, **how):
    state = rp.create_state(rp.RePaintSchedulerConfig(clip_sample=False))
    return rp.set_timesteps_for_budget(state, num_model_calls, **how)


def resampling_state(*schedule, strength=1.0, **config):
    state = rp.create_state(rp.RePaintSchedulerConfig(clip_sample=False, **config))
    return rp.set_timesteps(state, *schedule, strength=strength)


def draw(state, noise, *, model=model_fn, params=None, image=IMAGE, n_samples=N_SAMPLES, seed=0):
    params = denoiser_params() if params is None else params
    if isinstance(noise, np.ndarray):
        noise = jnp.asarray(np.where(np.isinf(noise), 0, noise), jnp.float32)[None]
    key = jax.random.key(seed)
    image = batched(image, n_samples)
    return np.asarray(
        inpaint(state, model, params, image, one_mask(MASK), key, observation_noise=noise)
    ).astype(np.float64)


def sigmas(state) -> np.ndarray:
    alphas = reference.alphas_cumprod(state.config.betas)[np.asarray(state.timesteps)]
    return np.sqrt((1 - alphas) / alphas)


def law_of_budget(state, noise, **how):
    return reference.propagate_correlated_observed(
        PRIOR_MEAN, PRIOR_COV, IMAGE, noise, sigmas(state), **how
    )


def law_of_resampling(schedule, noise, *, levels=None, **how):
    """`levels` is the number of levels that a strength leaves."""
    betas = reference.make_betas()
    ladder = reference.make_ladder("leading", len(betas), schedule[0])[:levels]
    moves = reference.diffusers_moves(reference.diffusers_levels(len(ladder), *schedule[1:]))
    return reference.propagate_observed(PRIOR_MEAN, PRIOR_COV, IMAGE, noise, betas, ladder, moves, **how)


def restrict(law, pixels):
    return law[0][pixels], law[1][np.ix_(pixels, pixels)]


def misfit(samples, law, pixels):
    return reference.gaussian_misfit(samples[:, pixels], *restrict(law, pixels))


def assert_distributed_as(samples, law, pixels):
    assert misfit(samples, law, pixels) < reference.gaussian_misfit_limit(pixels.sum())


def distance(law, target, pixels=ALL):
    """The squared Wasserstein-2 distance over the trace of the target's covariance."""
    law, target = restrict(law, pixels), restrict(target, pixels)
    return reference.wasserstein2_squared(*law, *target) / np.trace(target[1])


# The law of the chain


@pytest.mark.parametrize(
    ("num_model_calls", "noise"), [(24, 0.05), (8, 0.3), (24, 1.0), (8, MIXED)], ids=str
)
def test_the_budgets_chain_has_the_closed_form_law(num_model_calls, noise):
    state, of_pixels = budget_state(num_model_calls), noise_of_pixels(noise)
    samples = draw(state, noise)
    assert_distributed_as(samples, law_of_budget(state, of_pixels), of_pixels > 0)
    np.testing.assert_array_equal(samples[:, of_pixels == 0], batched(IMAGE)[:, of_pixels == 0])


@pytest.mark.parametrize(
    ("eta", "noise"),
    [(0.0, 0.05), (1.0, 0.3), (1.0, 1.0), (0.0, MIXED)],
    ids=str,
)
def test_repaints_chain_has_the_closed_form_law(eta, noise):
    state, of_pixels = resampling_state(*RESAMPLING, eta=eta), noise_of_pixels(noise)
    law = law_of_resampling(RESAMPLING, of_pixels, eta=eta)
    samples = draw(state, noise)
    assert_distributed_as(samples, law, of_pixels > 0)
    np.testing.assert_array_equal(samples[:, of_pixels == 0], batched(IMAGE)[:, of_pixels == 0])


def test_the_comparison_tells_the_constants_and_the_noise_apart():
    state, of_pixels = budget_state(8), noise_of_pixels(0.05)
    samples = draw(state, 0.05)
    limit = reference.gaussian_misfit_limit(SIZE)
    for other in ({"feedback": 0.5}, {"correction": 0.0}):
        assert misfit(samples, law_of_budget(state, of_pixels, **other), ALL) > limit
    assert misfit(samples, law_of_budget(state, 1.1 * of_pixels), ALL) > limit


def test_the_reference_without_noise_is_the_reference_of_exact_pixels():
    state, exact = budget_state(24), noise_of_pixels(0.0)
    law = law_of_budget(state, exact)
    other = reference.propagate_correlated(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK, sigmas(state))
    for ours, theirs in zip(law, other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    betas, ladder = reference.make_betas(), reference.make_ladder("leading", 1000, RESAMPLING[0])
    moves = reference.diffusers_moves(reference.diffusers_levels(*RESAMPLING))
    problem = PRIOR_MEAN, PRIOR_COV, IMAGE
    other = reference.propagate(*problem, MASK, betas, ladder, moves, eta=0.5)
    for ours, theirs in zip(law_of_resampling(RESAMPLING, exact, eta=0.5), other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


# Its distance to the posterior


@cache
def budgets_distance(noise, num_model_calls, missing_only=False):
    of_pixels = noise_of_pixels(noise)
    law = law_of_budget(budget_state(num_model_calls), of_pixels)
    target = reference.observed_posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, of_pixels)
    return distance(law, target, MISSING if missing_only else of_pixels > 0)


def naive_distance(law, noise):
    """The distance of a chain that takes noisy pixels for exact ones to the posterior given noise."""
    return distance(law, reference.observed_posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, noise_of_pixels(noise)))


@pytest.mark.parametrize("noise", NOISES)
def test_more_calls_come_closer_to_the_posterior_than_without_noise(noise):
    calls = (8, 16, 32, 64, 128, 256)
    distances = [budgets_distance(noise, count) for count in calls]
    assert distances == sorted(distances, reverse=True)
    for count in calls:
        assert budgets_distance(noise, count, missing_only=True) < budgets_distance(0.0, count)
    naive = naive_distance(law_of_budget(budget_state(64), noise_of_pixels(0.0)), noise)
    assert budgets_distance(noise, 64) < 1e-4 < 0.02 < naive


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("noise", "largest"), [(0.05, 0.02), (0.3, 0.01), (1.0, 0.005)])
def test_resampling_comes_close_to_the_posterior(noise, largest, eta):
    target = reference.observed_posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, noise_of_pixels(noise))
    law = law_of_resampling((250, 10, 10), noise_of_pixels(noise), eta=eta)
    naive = law_of_resampling((250, 10, 10), noise_of_pixels(0.0), eta=eta)
    assert distance(law, target) < largest
    assert distance(law, target) < naive_distance(naive, noise) / 2


# Mixtures


WEIGHTS = np.array([0.3, 0.7])
MEANS = np.stack([PRIOR_MEAN + 0.5, PRIOR_MEAN - 0.4])
SCALES = np.array([0.3, 0.15])  # of the covariances
COVS = SCALES[:, None, None] * PRIOR_COV
EIGENVALUES, EIGENVECTORS = np.linalg.eigh(PRIOR_COV)
DIRECTIONS = np.vstack([np.eye(SIZE), np.ones((1, SIZE)) / np.sqrt(SIZE)])


def mixture_model_fn(alphas, sample, timestep):
    """The noise that the mixture's ideal denoiser finds in a sample [n, d], in the eigenvectors' basis."""
    signal, noise = jnp.sqrt(alphas[timestep]), jnp.sqrt(1 - alphas[timestep])
    basis, means = (jnp.asarray(array, jnp.float32) for array in (EIGENVECTORS, MEANS))
    variances = jnp.asarray(np.outer(SCALES, EIGENVALUES), jnp.float32)
    off = jnp.matmul(sample[:, None] - (signal * means)[None], basis, precision="highest")  # [n, K, d]
    noisy = (signal**2 * variances + noise**2)[None]
    logits = jnp.asarray(np.log(WEIGHTS), jnp.float32)[None] - (off**2 / noisy + jnp.log(noisy)).sum(-1) / 2
    eps = (jax.nn.softmax(logits)[..., None] * off / noisy).sum(1) * noise
    return jnp.matmul(eps, basis.T, precision="highest")


@pytest.mark.parametrize(
    ("noise", "state", "tolerance"),
    [
        (0.05, budget_state(128), 0.035),
        (0.3, budget_state(128), 0.035),
        (1.0, budget_state(128), 0.035),
        (0.3, resampling_state(50, 5, 5, eta=1.0), 0.1),
    ],
    ids=["budget, 0.05", "budget, 0.3", "budget, 1", "repaint, 0.3"],
)
def test_the_posterior_of_a_mixture_has_its_weights(noise, state, tolerance):
    """The tolerance is a distance of distribution functions; 4,000 exact samples stay below 0.03."""
    image = np.array([0.2, -0.1, 0.0, 0.0, 0.0, 0.1])  # between the two means
    posterior = reference.observed_mixture_posterior(WEIGHTS, MEANS, COVS, image, noise_of_pixels(noise))
    assert 0.1 < posterior[0][0] < 0.9
    params = jnp.asarray(reference.alphas_cumprod(state.config.betas), jnp.float32)
    how = {"model": mixture_model_fn, "params": params, "image": image, "n_samples": 4000}
    found = reference.mixture_distance(draw(state, noise, **how), *posterior, DIRECTIONS)
    naive = reference.mixture_distance(draw(state, 0.0, **how), *posterior, np.eye(SIZE)[MISSING])
    print(found, naive)
    assert found < tolerance < naive


# Strength


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_a_chain_from_the_image_has_the_closed_form_law(strength, noise):
    budget = budget_state(24, strength=strength)
    level = sigmas(budget)[0]
    of_pixels = np.where(MISSING, level, min(noise, level))
    start = reference.noised_start(IMAGE, MISSING, level)
    samples = draw(budget, noise)
    assert_distributed_as(samples, law_of_budget(budget, of_pixels, start=start), of_pixels > 0)

    resampling = resampling_state(*RESAMPLING, strength=strength + 0.3)
    level = sigmas(resampling)[0]
    of_pixels = np.where(MISSING, level, min(noise, level))
    start, levels = reference.noised_start(IMAGE, MISSING, level), int(25 * (strength + 0.3))
    law = law_of_resampling(RESAMPLING, of_pixels, start=start, levels=levels)
    assert_distributed_as(draw(resampling, noise), law, of_pixels > 0)


def distance_from_limit(state, strength, law_of):
    """The distance of a chain from the image to the law that it has in the limit, for missing pixels."""
    level = sigmas(state)[0]
    of_pixels = np.where(MISSING, level, 0.0)
    law = law_of(of_pixels, start=reference.noised_start(IMAGE, MISSING, level))
    return distance(
        law, reference.observed_posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, of_pixels, of_pixels), MISSING
    )


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_more_calls_come_closer_to_the_law_given_the_noised_content(strength):
    by_calls = {}
    for num_model_calls in (8, 16, 64, 256):
        state = budget_state(num_model_calls, strength=strength)
        by_calls[num_model_calls] = distance_from_limit(state, strength, partial(law_of_budget, state))
    assert by_calls[8] > by_calls[16] > 10 * by_calls[64]
    assert by_calls[64] < 1e-4 and by_calls[256] < 1e-5  # calls do not make it forget the content

    schedules = [(250, 10, repeats) for repeats in (1, 10)]
    few, many = (
        distance_from_limit(
            resampling_state(*schedule, strength=strength),
            strength,
            partial(law_of_resampling, schedule, levels=int(250 * strength)),
        )
        for schedule in schedules
    )
    assert many < few / 4 and many < 0.01


# What it does not change, and what it refuses


STATES = {"budget": budget_state(8), "repaint": resampling_state(6, 2, 2, eta=1.0)}


def tiny_model(params, sample, timestep):
    return jnp.tanh(params * sample)


GAIN = np.float32(0.7)


@pytest.mark.parametrize("name", STATES)
def test_noise_zero_is_the_same_program_and_an_array_of_zeros_the_same_result(name, image, mask):
    chain = partial(rp.inpaint, STATES[name], tiny_model)
    arguments = GAIN, image, mask, jax.random.key(0)
    without = str(jax.make_jaxpr(chain)(*arguments))
    for zero in (0, 0.0, np.float32(0)):
        assert str(jax.make_jaxpr(partial(chain, observation_noise=zero))(*arguments)) == without
    zeros = jnp.zeros((1, 1, 1))
    result = chain(*arguments, observation_noise=zeros)
    np.testing.assert_allclose(result, chain(*arguments), rtol=1e-5, atol=1e-5)
    known = np.broadcast_to(mask == 1, image.shape)
    np.testing.assert_array_equal(np.asarray(result)[known], image[known])


@pytest.mark.parametrize("name", STATES)
def test_strength_one_is_the_default(name):
    one = {"budget": budget_state(8, strength=1), "repaint": resampling_state(6, 2, 2, strength=1, eta=1.0)}
    assert one[name] == STATES[name] and not one[name].starts_from_image


def test_another_noise_compiles_nothing(image, mask):
    traces = []

    def counted(params, sample, timestep):
        traces.append(sample)
        return tiny_model(params, sample, timestep)

    for noise in (0.1, 0.2, np.float32(0.3)):
        arguments = STATES["budget"], counted, GAIN, image, mask, jax.random.key(0)
        rp.inpaint(*arguments, observation_noise=noise)
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_a_chain_in_stretches_is_the_chain_in_one(name, strength, image, mask):
    state = {
        "budget": budget_state(8, strength=strength),
        "repaint": resampling_state(6, 2, 2, strength=strength),
    }[name]
    arguments = state, tiny_model, GAIN, image, mask, jax.random.key(0)
    noise = 0.2 * jnp.ones((8, 8, 1))
    carry = rp.start_chain(state, image, jax.random.key(0))
    for count in (3, state.num_model_calls - 3):
        carry = rp.continue_chain(*arguments, carry, count, observation_noise=noise)
    np.testing.assert_array_equal(carry.sample, rp.inpaint(*arguments, observation_noise=noise))


@pytest.mark.parametrize("name", STATES)
def test_gradients_are_finite(name, image, mask):
    def total(gain, noise):
        arguments = STATES[name], tiny_model, gain, image, mask, jax.random.key(0)
        return rp.inpaint(*arguments, observation_noise=noise).sum()

    noise = jnp.linspace(0, 1, 8, dtype=jnp.float32)[:, None, None]
    assert bool(jnp.isfinite(jax.grad(total)(jnp.float32(0.7), noise)))


def test_the_start_is_the_image_at_the_first_level(image):
    for state in (budget_state(8, strength=0.5), resampling_state(20, 2, 2, strength=0.5)):
        start = rp.start_chain(state, image, jax.random.key(3)).sample
        z = jax.random.normal(jax.random.fold_in(jax.random.key(3), 0), image.shape)
        expected = rp.add_noise(state, jnp.asarray(image), z, state.timesteps[0])
        np.testing.assert_allclose(start, expected, atol=1e-6)
    assert int(budget_state(8, strength=0.5).timesteps[0]) == 499
    assert int(resampling_state(20, 2, 2, strength=0.5).timesteps[0]) == 450


@pytest.mark.slow
def test_bfloat16(image, mask):
    half = [jnp.asarray(array, jnp.bfloat16) for array in (image, mask)]
    for state in (budget_state(8, strength=0.5), STATES["repaint"]):
        result = rp.inpaint(
            state, tiny_model, jnp.bfloat16(0.7), *half, jax.random.key(0), observation_noise=0.2
        )
        assert result.dtype == jnp.bfloat16 and bool(jnp.isfinite(result).all())


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (-0.1, ValueError, "observation_noise is -0.1, expected a finite number of at least 0"),
        (np.nan, ValueError, "observation_noise is nan, expected a finite number of at least 0"),
        (np.inf, ValueError, "observation_noise is inf, expected a finite number of at least 0"),
        ("0.1", TypeError, "observation_noise is '0.1', expected a number of at least 0"),
        (True, TypeError, "observation_noise is True, expected a number of at least 0"),
        (None, TypeError, "observation_noise is None, expected a number of at least 0"),
        (np.zeros((8, 8), np.float32), ValueError, r"observation_noise has shape \(8, 8\), expected a num"),
        (np.zeros((8, 8, 1), np.int32), TypeError, "observation_noise has dtype int32, expected a float"),
    ],
)
def test_noise_that_is_none(image, mask, noise, error, message):
    arguments = STATES["budget"], tiny_model, GAIN, image, mask, jax.random.key(0)
    with pytest.raises(error, match=message):
        rp.inpaint(*arguments, observation_noise=noise)


@pytest.mark.parametrize(
    ("strength", "error", "message"),
    [
        (0, ValueError, "strength is 0, expected a number above 0 and at most 1"),
        (-0.5, ValueError, "strength is -0.5, expected a number above 0 and at most 1"),
        (1.5, ValueError, "strength is 1.5, expected a number above 0 and at most 1"),
        (np.nan, ValueError, "strength is nan, expected a number above 0 and at most 1"),
        ("0.5", TypeError, "strength is '0.5', expected a number above 0 and at most 1"),
        (True, TypeError, "strength is True, expected a number above 0 and at most 1"),
        (None, TypeError, "strength is None, expected a number above 0 and at most 1"),
    ],
)
def test_strengths_that_are_none(strength, error, message):
    with pytest.raises(error, match=message):
        budget_state(8, strength=strength)
    with pytest.raises(error, match=message):
        resampling_state(6, 2, 2, strength=strength)


def test_strengths_that_leave_too_little(image):
    with pytest.raises(
        ValueError, match=r"strength is 0\.0001, expected at least 1/1000: it leaves none of"
    ):
        budget_state(8, strength=0.0001)
    with pytest.raises(
        ValueError, match=r"strength is 0\.1, expected at least 1/6: it leaves none of the no"
    ):
        resampling_state(6, 2, 2, strength=0.1)
    with pytest.raises(
        ValueError, match=r"jump_length is 2, expected less than the 2 that strength=0\.4 leav"
    ):
        resampling_state(6, 2, 2, strength=0.4)
    with pytest.raises(
        ValueError, match="initial_sample is given and state has a strength below 1, expect"
    ):
        rp.start_chain(
            budget_state(8, strength=0.5), image, jax.random.key(0), initial_sample=jnp.asarray(image)
        )
