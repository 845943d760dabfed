"""The chain of a call budget: its distribution, its distance to the posterior, what it keeps and refuses.

The problem, a small Gaussian prior with its ideal denoiser, is that of test_distribution, and samples are
compared as there, with the mean and covariance of `reference.propagate_correlated`.
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
    PRIOR_COV,
    PRIOR_MEAN,
    assert_distributed_as,
    assert_known_pixels_are_the_image,
    batched,
    denoiser_params,
    inpaint,
    misfit,
    model_fn,
    one_mask,
)

import repaint_jax as rp
from repaint_jax.sampling.budget_schedule import budget_timesteps

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
pytestmark = pytest.mark.usefixtures("strict_promotion")


def budget_state(num_model_calls, **config) -> rp.RePaintSchedulerState:
    config = rp.RePaintSchedulerConfig(**{"clip_sample": False, **config})
    return rp.set_timesteps_for_budget(rp.create_state(config), num_model_calls)


def draw(state, *, key=None, model=model_fn, image=IMAGE):
    params = denoiser_params(state.config.prediction_type, state.config.beta_schedule)
    key = jax.random.key(0) if key is None else key
    return np.asarray(inpaint(state, model, params, batched(image), one_mask(MASK), key))


def sigmas(state) -> np.ndarray:
    alphas = reference.alphas_cumprod(state.config.betas)[np.asarray(state.timesteps)]
    return np.sqrt((1 - alphas) / alphas)


def assert_distributed_as_reference(samples, state):
    expected = reference.propagate_correlated(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK, sigmas(state))
    assert_distributed_as(samples, *expected)
    assert_known_pixels_are_the_image(samples)


# Its distribution


@pytest.mark.parametrize("num_model_calls", [8, 24, 200])
def test_inpaint_has_the_closed_form_distribution(num_model_calls):
    state = budget_state(num_model_calls)
    assert_distributed_as_reference(draw(state), state)


def test_the_comparison_tells_the_constants_apart():
    state = budget_state(8)
    samples = draw(state)
    for other in ({"feedback": 0.5}, {"correction": 0.0}, {"denoise_to": 0.6}, {"balance": 0}):
        wrong = reference.propagate_correlated(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK, sigmas(state), **other)
        assert misfit(samples, *wrong, MISSING) > reference.gaussian_misfit_limit(MISSING.sum()), other


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES[1:])
def test_other_beta_schedules_have_the_closed_form_distribution(beta_schedule):
    state = budget_state(24, beta_schedule=beta_schedule)
    assert_distributed_as_reference(draw(state), state)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_prediction_types_have_the_distribution_of_epsilon(prediction_type):
    state = budget_state(24, prediction_type=prediction_type)
    assert_distributed_as_reference(draw(state), state)


def test_a_learned_variance_is_not_used():
    def learned(params, sample, timestep):
        output = model_fn(params, sample, timestep)
        return jnp.concatenate([output, 7 * output], -1)

    state = budget_state(24, variance_type="learned_range")
    np.testing.assert_allclose(draw(state, model=learned), draw(budget_state(24)), atol=1e-4)


def test_clipping_far_outside_the_data_changes_nothing():
    wide = budget_state(24, clip_sample=True, clip_sample_range=50.0)
    np.testing.assert_allclose(draw(wide), draw(budget_state(24)), atol=1e-4)


def test_pixels_at_the_limit_of_the_clip_range_are_renoised_afresh_below_it():
    limit = 6.0
    image = np.where(np.arange(len(IMAGE)) == np.argmax(MASK), limit, IMAGE)
    state = budget_state(24, clip_sample=True, clip_sample_range=limit)
    problem = PRIOR_MEAN, PRIOR_COV, image, MASK, sigmas(state)
    samples = draw(state, image=image)
    assert_distributed_as(samples, *reference.propagate_correlated(*problem, limit=limit))
    wrong = reference.propagate_correlated(*problem)
    assert misfit(samples, *wrong, MISSING) > reference.gaussian_misfit_limit(MISSING.sum())


def test_what_belongs_to_the_other_chain_changes_nothing():
    other = budget_state(
        24,
        eta=1.0,
        timestep_spacing="trailing",
        known_region="before_model",
        undo="diffusers",
        jump_schedule="paper",
        use_clipped_model_output=True,
    )
    np.testing.assert_array_equal(draw(other), draw(budget_state(24)))


def test_a_vector_of_keys_draws_from_the_same_distribution():
    state = budget_state(24)
    assert_distributed_as_reference(
        draw(state, key=jax.random.split(jax.random.key(1), len(batched(IMAGE)))), state
    )


def test_stepping_by_hand_has_the_closed_form_distribution():
    state = budget_state(24)
    params, image, mask = denoiser_params(), batched(IMAGE), batched(MASK)
    step = jax.jit(rp.budget_step)
    sample = jax.random.normal(jax.random.key(5), image.shape)
    noise = jnp.zeros_like(sample)
    for call, t in enumerate(state.timesteps):
        output = model_fn(params, sample, t)
        key = jax.random.key(call)
        sample, noise, x0 = step(state, output, call, sample, noise, image, mask, key)
    assert_distributed_as_reference(np.asarray(sample), state)
    np.testing.assert_array_equal(sample[:, MISSING], x0[:, MISSING])  # the last step adds nothing


# Its distance to the posterior


@cache
def distance(beta_schedule, num_model_calls):
    state = budget_state(num_model_calls, beta_schedule=beta_schedule)
    mean, cov = reference.propagate_correlated(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK, sigmas(state))
    posterior = reference.posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK)
    output = mean[MISSING], cov[np.ix_(MISSING, MISSING)]
    return reference.wasserstein2_squared(*output, *posterior) / np.trace(posterior[1])


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_more_calls_come_closer_to_the_posterior(beta_schedule):
    distances = [distance(beta_schedule, calls) for calls in (8, 16, 32, 64, 128, 256, 602)]
    assert distances == sorted(distances, reverse=True)


def test_32_calls_come_closer_than_the_papers_setting_and_128_thirty_times():
    betas = reference.make_betas()
    moves = reference.diffusers_moves(reference.diffusers_levels(250, 10, 10))
    ladder = reference.make_ladder("leading", 1000, 250)
    mean, cov = reference.propagate(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK, betas, ladder, moves, eta=1.0)
    posterior = reference.posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK)
    output = mean[MISSING], cov[np.ix_(MISSING, MISSING)]
    papers = reference.wasserstein2_squared(*output, *posterior) / np.trace(posterior[1])
    assert distance("linear", 32) < papers
    assert distance("linear", 128) < papers / 30


# Its levels


@pytest.mark.parametrize("num_train_timesteps", [1, 2, 10, 1000])
@pytest.mark.parametrize("num_model_calls", [8, 64, 3000])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_levels_fall_from_the_noisiest_that_matters_to_the_cleanest(
    beta_schedule, num_model_calls, num_train_timesteps
):
    alphas = reference.alphas_cumprod(reference.make_betas(beta_schedule, num_train_timesteps))
    timesteps = budget_timesteps(alphas, num_model_calls)
    assert len(timesteps) == num_model_calls and timesteps[-1] == 0
    assert np.all(np.diff(timesteps) <= 0)
    sigma = np.sqrt((1 - alphas) / alphas)
    assert timesteps[0] == np.argmin(np.abs(np.log(sigma / min(sigma[-1], 40.0))))


# The loop


def tiny_model(params, sample, timestep):
    return jnp.tanh(params * sample + (timestep / 1000).astype(sample.dtype))


GAIN = np.float32(0.7)


def test_batch_is_single_is_vmap():
    state = rp.set_timesteps_for_budget(rp.create_state(), 12)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
    masks = rng.integers(0, 2, (3, 4, 4, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), 3)
    inpaint = partial(rp.inpaint, state, tiny_model, GAIN)
    batch = inpaint(images, masks, keys)
    single = np.stack([inpaint(*one) for one in zip(images, masks, keys, strict=True)])
    np.testing.assert_allclose(batch, single, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(inpaint)(images, masks, keys), single, atol=1e-5)


def test_the_model_is_traced_once_and_new_values_compile_nothing(image, mask):
    traces = []

    def counted(params, sample, timestep):
        traces.append(sample)
        return tiny_model(params, sample, timestep)

    state = rp.set_timesteps_for_budget(rp.create_state(), 12)
    for seed in range(3):
        rp.inpaint(state, counted, GAIN, image * seed / 3, mask, jax.random.key(seed))
    assert len(traces) == 1


def test_the_chain_is_one_scan_with_an_iteration_per_call_and_no_branches(image, mask):
    state = rp.set_timesteps_for_budget(rp.create_state(), 12)
    chain = jax.make_jaxpr(partial(rp.inpaint, state, tiny_model))(GAIN, image, mask, jax.random.key(0))
    text = str(chain)
    assert text.count("scan[") == 1 and "length=12" in text and "cond[" not in text
    assert "while[" not in text


def test_previews_end_with_the_result_and_progress_counts_calls(image, mask):
    state = rp.set_timesteps_for_budget(rp.create_state(), 12)
    counted = []
    result, previews = rp.inpaint(
        state,
        tiny_model,
        GAIN,
        image,
        mask,
        jax.random.key(0),
        preview_calls=(0, 11),
        progress=counted.append,
    )
    jax.effects_barrier()
    assert sorted(counted) == list(range(1, 13))
    np.testing.assert_array_equal(np.where(mask == 0, previews[1], image), result)


def test_bfloat16_and_gradients(image, mask):
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    half = rp.inpaint(
        state,
        tiny_model,
        jnp.bfloat16(0.7),
        *(jnp.asarray(array, jnp.bfloat16) for array in (image, mask)),
        jax.random.key(0),
    )
    assert half.dtype == jnp.bfloat16 and bool(jnp.isfinite(half).all())

    smooth = budget_state(8)  # finite differences meet no clipping

    def total(gain):
        return rp.inpaint(smooth, tiny_model, gain, image, mask, jax.random.key(0)).sum()

    gradient = jax.grad(total)(jnp.float32(0.7))
    difference = (total(jnp.float32(0.701)) - total(jnp.float32(0.699))) / 0.002
    np.testing.assert_allclose(gradient, difference, rtol=0.02)


def test_it_is_set_under_jit_as_well():
    def timesteps(state):
        return rp.set_timesteps_for_budget(state, 20).timesteps

    state = rp.create_state()
    np.testing.assert_array_equal(jax.jit(timesteps)(state), timesteps(state))


# Refusals


@pytest.mark.parametrize(
    ("num_model_calls", "error", "message"),
    [
        (7, ValueError, "num_model_calls is 7, expected an integer of at least 8"),
        (-64, ValueError, "num_model_calls is -64, expected an integer of at least 8"),
        (64.0, TypeError, "num_model_calls is 64.0, expected an integer"),
        (True, TypeError, "num_model_calls is True, expected an integer"),
        ("64", TypeError, "num_model_calls is '64', expected an integer"),
        (None, TypeError, "num_model_calls is None, expected an integer"),
    ],
)
def test_budgets_that_are_none(num_model_calls, error, message):
    with pytest.raises(error, match=message):
        rp.set_timesteps_for_budget(rp.create_state(), num_model_calls)


def test_what_is_no_state():
    with pytest.raises(TypeError, match="state is None, expected a RePaintSchedulerState"):
        rp.set_timesteps_for_budget(None, 64)


def test_the_steps_of_one_sampler_refuse_the_state_of_the_other(state, image, mask):
    budget = rp.set_timesteps_for_budget(rp.create_state(), 8)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="state has a budget of model calls, expected a schedule of set_t"):
        rp.step(budget, image, 0, image, image, mask, key)
    with pytest.raises(ValueError, match="state has a budget of model calls, expected a schedule of set_t"):
        rp.undo_step(budget, image, 0, key)
    with pytest.raises(ValueError, match="expected one of set_timesteps_for_budget"):
        rp.budget_step(state, image, 0, image, image, image, mask, key)
    with pytest.raises(ValueError, match="state has no schedule"):
        rp.budget_step(rp.create_state(), image, 0, image, image, image, mask, key)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"call": 8}, ValueError, "call is 8, expected 0 to num_model_calls - 1 = 7"),
        ({"call": -1}, ValueError, "call is -1, expected 0 to num_model_calls - 1 = 7"),
        ({"call": 1.0}, TypeError, "call is 1.0, expected an integer"),
        ({"call": "0"}, TypeError, "call is '0', expected an integer"),
        ({"call": True}, TypeError, "call is True, expected an integer"),
        ({"call": jnp.float32(0)}, TypeError, "call is .*0.* expected an integer"),
        ({"sample": np.zeros(3, np.float32)}, ValueError, r"sample has shape \(3,\), expected original_i"),
        ({"previous_noise": np.zeros(3, np.float32)}, ValueError, r"previous_noise has shape \(3,\)"),
        ({"previous_noise": np.zeros((8, 8, 1), np.int32)}, TypeError, "previous_noise has dtype int32"),
        (
            {"model_output": np.zeros((8, 8, 2), np.float32)},
            ValueError,
            r"model_output has shape \(8, 8, 2",
        ),
        ({"model_output": None}, TypeError, "model_output is a NoneType, expected an array"),
        ({"mask": np.zeros((8, 8), np.float32)}, ValueError, r"mask has shape \(8, 8\), expected the rank"),
        ({"key": 0}, TypeError, "key is 0, expected a key"),
    ],
)
def test_budget_steps_that_do_not_fit(image, mask, changed, error, message):
    arguments = {
        "model_output": image,
        "call": 0,
        "sample": image,
        "previous_noise": image,
        "original_image": image,
        "mask": mask,
        "key": jax.random.key(0),
    }
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    with pytest.raises(error, match=message):
        rp.budget_step(state, **{**arguments, **changed})
