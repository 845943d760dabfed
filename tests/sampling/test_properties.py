"""What must hold for every schedule, tried on random ones and compared with `reference`."""

from itertools import pairwise

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import assume, given, settings

import repaint_jax as rp

# Random betas rarely reach pure noise, and the library says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*starts from pure noise:UserWarning")

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
SPACINGS = ["leading", "trailing", "linspace"]

many = settings(derandomize=True, deadline=None, max_examples=60)
few = settings(derandomize=True, deadline=None, max_examples=12)  # each compiles


@st.composite
def schedules(draw, max_inference_steps=60):
    """N, T, j, r that the library accepts: j < T wherever anything is resampled."""
    num_train_timesteps = draw(st.integers(1, 1000))
    num_inference_steps = draw(st.integers(1, min(num_train_timesteps, max_inference_steps)))
    jump_n_sample = draw(st.integers(1, 5 if num_inference_steps > 1 else 1))
    longest = num_inference_steps - 1 if jump_n_sample > 1 else 20
    jump_length = draw(st.integers(1, longest))
    return num_train_timesteps, num_inference_steps, jump_length, jump_n_sample


@st.composite
def noise_schedules(draw, num_train_timesteps):
    """Config fields that choose the betas, and the betas themselves."""
    if draw(st.booleans()):
        # alphas_cumprod stays above about 1e-9, as in schedules in use.
        largest = min(40 / num_train_timesteps, draw(st.sampled_from([0.01, 0.3])))
        seed = draw(st.integers(0, 99))
        betas = np.random.default_rng(seed).uniform(1e-5, largest, num_train_timesteps)
        return {"trained_betas": tuple(betas.tolist())}, betas
    beta_schedule = draw(st.sampled_from(BETA_SCHEDULES))
    beta_start = draw(st.floats(1e-5, 1e-2))
    beta_end = draw(st.floats(beta_start, 0.05))
    betas = reference.make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
    fields = {"beta_schedule": beta_schedule, "beta_start": beta_start, "beta_end": beta_end}
    return fields, betas


@st.composite
def samplers(draw, max_inference_steps=60):
    """A schedule, a spacing and betas: the state, and what the reference needs to follow it."""
    n, steps, jump_length, jump_n_sample = draw(schedules(max_inference_steps))
    fields, betas = draw(noise_schedules(n))
    spacing = draw(st.sampled_from(SPACINGS))
    config = rp.RePaintSchedulerConfig(
        num_train_timesteps=n, timestep_spacing=spacing, clip_sample=False, **fields
    )
    state = rp.set_timesteps(rp.create_state(config), steps, jump_length, jump_n_sample)
    ladder = reference.make_ladder(spacing, n, steps)
    return state, betas, ladder, reference.diffusers_levels(steps, jump_length, jump_n_sample)


def float32_steps_apart(got, expected):
    """How many representable numbers lie between a float32 array and float64 values."""
    expected = np.asarray(expected, np.float32)
    return np.abs(np.asarray(got) - expected) / np.spacing(np.abs(expected))


# Noise levels


@many
@given(st.data(), st.integers(1, 1000))
def test_alphas_cumprod_is_float64_rounded_once(data, num_train_timesteps):
    fields, betas = data.draw(noise_schedules(num_train_timesteps))
    config = rp.RePaintSchedulerConfig(num_train_timesteps=num_train_timesteps, **fields)
    got = np.asarray(rp.create_state(config).alphas_cumprod)
    assert got.dtype == np.float32
    # One step is the rounding of a float64 value that differs in its last digits.
    assert np.all(float32_steps_apart(got, reference.alphas_cumprod(betas)) <= 1)
    assert np.all(np.diff(got) <= 0) and np.all((got >= 0) & (got < 1))


@many
@given(samplers(max_inference_steps=250))
def test_every_array_of_the_state_is_finite(sampler):
    state, *_ = sampler
    for leaf in jax.tree.leaves(state):
        assert np.all(np.isfinite(np.asarray(leaf)))


# Lists of timesteps


@many
@given(samplers(max_inference_steps=250))
def test_timesteps_are_the_reference_list_and_move_by_one_level_down_to_level_0(sampler):
    state, _, ladder, expected = sampler
    timesteps = np.asarray(state.timesteps)
    assert timesteps.dtype == np.int32
    np.testing.assert_array_equal(timesteps, ladder[expected])
    assert np.all(np.diff(ladder) > 0)
    levels = np.searchsorted(ladder, timesteps)
    assert levels[0] == len(ladder) - 1 and levels[-1] == 0
    assert np.all(np.abs(np.diff(levels)) == 1)


@pytest.mark.parametrize("num_inference_steps", [48, 80, 250])
def test_trailing_timesteps_are_those_of_diffusers_where_rounding_meets_a_tie(num_inference_steps):
    # 1000 - 12.5 i and 1000 - 1000 / 48 i hit halves; diffusers rounds np.arange's values.
    config = rp.RePaintSchedulerConfig(timestep_spacing="trailing")
    state = rp.set_timesteps(rp.create_state(config), num_inference_steps, 1, 1)
    expected = np.round(np.arange(1000, 0, -1000 / num_inference_steps)).astype(np.int32) - 1
    np.testing.assert_array_equal(np.asarray(state.timesteps), expected)


@many
@given(samplers(max_inference_steps=250), schedules(max_inference_steps=250))
def test_counts_of_model_calls_add_up(sampler, schedule):
    state, _, _, levels = sampler
    assert isinstance(state.num_model_calls, int)
    downs = sum(move == "step" for move, _ in reference.diffusers_moves(levels))
    assert state.num_model_calls == downs
    n, steps, jump_length, jump_n_sample = schedule
    state = rp.create_state(rp.RePaintSchedulerConfig(num_train_timesteps=n))
    state = rp.set_timesteps(state, steps, jump_length, jump_n_sample)
    anchors = len(range(0, steps - jump_length, jump_length))
    assert state.num_model_calls == steps + jump_length * (jump_n_sample - 1) * anchors
    assert len(state.timesteps) == 2 * state.num_model_calls - steps


@st.composite
def paper_options(draw, num_inference_steps):
    top = num_inference_steps - 1
    lengths = st.integers(1, max(top, 1))
    return {
        "n_sample": draw(st.integers(1, 3)),
        "start_resampling": draw(st.none() | st.integers(0, num_inference_steps + 2)),
        "jump2_length": draw(lengths),
        "jump2_n_sample": draw(st.integers(1, 3)),
        "jump3_length": draw(lengths),
        "jump3_n_sample": draw(st.integers(1, 3)),
    }


@many
@given(st.data(), schedules(max_inference_steps=30))
def test_official_list_is_the_reference_list_with_all_its_options(data, schedule):
    n, steps, jump_length, jump_n_sample = schedule
    assume(steps > 1)
    options = data.draw(paper_options(steps))
    levels = reference.paper_levels(steps, jump_length, jump_n_sample, **options)
    assume(len(levels) < 20_000)
    assert levels[0] == steps - 1 and levels[-1] == -1 and max(levels) == steps - 1
    assert all(abs(level - last) == 1 for last, level in pairwise(levels))

    state = rp.create_state(rp.RePaintSchedulerConfig.paper(num_train_timesteps=n))
    state = rp.set_timesteps(state, steps, jump_length, jump_n_sample, **options)
    ladder = np.append(reference.make_ladder("linspace", n, steps), -1)  # level -1 is last
    np.testing.assert_array_equal(np.asarray(state.timesteps), ladder[levels])
    downs = sum(move == "step" for move, _ in reference.paper_moves(levels))
    assert state.num_model_calls == downs


@many
@given(schedules(max_inference_steps=250))
def test_official_list_without_options_has_as_many_calls_as_diffusers_list(schedule):
    n, *arguments = schedule
    states = [
        rp.set_timesteps(rp.create_state(config), *arguments)
        for config in (
            rp.RePaintSchedulerConfig(num_train_timesteps=n, jump_schedule="diffusers"),
            rp.RePaintSchedulerConfig(num_train_timesteps=n, jump_schedule="paper"),
        )
    ]
    assert states[0].num_model_calls == states[1].num_model_calls
    np.testing.assert_array_equal(
        np.append(np.asarray(states[0].timesteps), -1), np.asarray(states[1].timesteps)
    )


def test_official_list_of_the_paper_spans_the_whole_training_range():
    state = rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig.paper()), 250, 10, 10)
    timesteps = np.asarray(state.timesteps)
    assert timesteps[:2].tolist() == [999, 995] and timesteps[-2:].tolist() == [0, -1]
    assert len(timesteps) == 4571 and state.num_model_calls == 2410


# Transitions


@few
@given(st.data(), samplers(max_inference_steps=20))
def test_step_without_a_mask_is_the_reference_reverse_step(data, sampler):
    state, betas, ladder, _ = sampler
    level = data.draw(st.integers(0, len(ladder) - 1))
    alpha, alpha_prev = (reference.level_alpha(betas, ladder, k) for k in (level, level - 1))
    rng = np.random.default_rng(level)
    x0, epsilon = rng.normal(size=(2, 64))
    sample = np.sqrt(alpha) * x0 + np.sqrt(1 - alpha) * epsilon
    zeros = jnp.zeros(64)
    output = rp.step(
        state,
        jnp.asarray(epsilon, jnp.float32),
        int(ladder[level]),
        jnp.asarray(sample, jnp.float32),
        zeros,
        zeros,
        jax.random.key(0),
    )
    prev_sample, _ = reference.reverse_step(sample, epsilon, alpha, alpha_prev)
    # x0 comes from a difference of float32 numbers of size 4 or less, divided by sqrt(alpha).
    tolerance = 2e-6 / np.sqrt(alpha)
    np.testing.assert_allclose(output.pred_original_sample, x0, atol=tolerance)
    np.testing.assert_allclose(output.prev_sample, prev_sample, atol=np.sqrt(alpha_prev) * tolerance + 2e-6)


def responses(transition):
    """The factor and the noise variance of x -> factor x + noise, from two runs with one key."""
    at_zero, at_one = (np.asarray(transition(value), np.float64) for value in (0.0, 1.0))
    return np.mean(at_one - at_zero), np.var(at_zero)


N_VALUES = 20_000
VARIANCE_RTOL = 5 * np.sqrt(2 / N_VALUES)  # five standard errors of a variance


@few
@given(st.data(), samplers(max_inference_steps=20))
def test_step_noises_known_pixels_to_the_level_it_returns(data, sampler):
    state, betas, ladder, _ = sampler
    level = data.draw(st.integers(0, len(ladder) - 1))
    zeros, ones = jnp.zeros(N_VALUES), jnp.ones(N_VALUES)
    timestep, key = int(ladder[level]), jax.random.key(0)
    factor, variance = responses(
        lambda value: rp.step(state, zeros, timestep, zeros, value * ones, ones, key).prev_sample
    )
    alpha_prev = reference.level_alpha(betas, ladder, level - 1)
    np.testing.assert_allclose(factor, np.sqrt(alpha_prev), atol=1e-6)
    np.testing.assert_allclose(variance, 1 - alpha_prev, rtol=VARIANCE_RTOL)


@few
@given(st.data(), samplers(max_inference_steps=20))
def test_undo_step_raises_the_noise_from_one_level_to_the_next(data, sampler):
    state, betas, ladder, _ = sampler
    level = data.draw(st.integers(0, len(ladder) - 1))
    timestep, key = int(ladder[level]), jax.random.key(0)
    factor, variance = responses(
        lambda value: rp.undo_step(state, jnp.full(N_VALUES, value), timestep, key)
    )
    ratio = reference.undo_ratio(betas, ladder, level)
    np.testing.assert_allclose(factor, np.sqrt(ratio), atol=1e-6)
    # 1 - ratio loses up to eight digits to rounding where ratio is within 1e-5 of 1.
    np.testing.assert_allclose(variance, 1 - ratio, rtol=VARIANCE_RTOL + 0.01)
