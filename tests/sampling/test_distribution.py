"""The sampler's output distribution is the one the mathematics says, over the whole chain.

The prior is a small Gaussian and the model its ideal denoiser, so `reference.propagate` knows the
mean and covariance that RePaint must end with. Each test draws some thousand images in one
batch and compares by the likelihood-ratio statistic `reference.gaussian_misfit`. Its limit comes
from the statistic's own chi-squared distribution: a correct sampler exceeds it for at most one key
in a million, and keys are fixed. A wrong noise level grows it in proportion to the number of
samples: `test_the_comparison_tells_...` shows by how much.
"""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import repaint_jax as rp

SIZE = 6
INDEX = np.arange(SIZE)
PRIOR_MEAN = np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.2])
PRIOR_COV = 0.25 * np.exp(-np.abs(INDEX[:, None] - INDEX) / 4)
MASK = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
MISSING = MASK == 0
SOFT_MASK = np.array([1.0, 0.75, 0.5, 0.0, 0.25, 0.6])
IMAGE = np.array([0.6, 0.1, 0.9, -0.9, 0.5, -0.5])  # its missing pixels must not matter
N_SAMPLES = 8_000


# The chain under test


@cache
def denoiser_params(prediction_type="epsilon", beta_schedule="linear"):
    """The ideal denoiser as one affine map for each training timestep."""
    alphas = reference.alphas_cumprod(reference.make_betas(beta_schedule))
    epsilon = reference.epsilon_denoiser(PRIOR_MEAN, PRIOR_COV, alphas)
    root, noise = np.sqrt(alphas), np.sqrt(1 - alphas)
    sample = (
        (np.eye(SIZE) - noise[:, None, None] * epsilon[0]) / root[:, None, None],
        -noise[:, None] * epsilon[1] / root[:, None],
    )
    velocity = (
        root[:, None, None] * epsilon[0] - noise[:, None, None] * sample[0],
        root[:, None] * epsilon[1] - noise[:, None] * sample[1],
    )
    weight, bias = {"epsilon": epsilon, "sample": sample, "v_prediction": velocity}[prediction_type]
    return {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def model_fn(params, sample, timestep):
    weight, bias = params["weight"][timestep], params["bias"][timestep]
    output = jnp.matmul(sample, weight.T, precision="highest")
    return output + jnp.broadcast_to(bias, sample.shape)


def learned_range_model_fn(params, sample, timestep):
    """2C channels: the noise, and where each channel's log variance lies in its range."""
    values = jnp.broadcast_to(params["variance_values"], sample.shape)
    return jnp.concatenate([model_fn(params, sample, timestep), values], axis=-1)


def make_state(config, num_inference_steps, jump_length, jump_n_sample):
    state = rp.create_state(config)
    return rp.set_timesteps(state, num_inference_steps, jump_length, jump_n_sample)


def batched(values, n_samples=N_SAMPLES):
    return jnp.broadcast_to(jnp.asarray(values, jnp.float32), (n_samples, SIZE))


def one_mask(mask):
    return jnp.asarray(mask, jnp.float32)[None]


# Less than half the compile time of the default, for a run a tenth slower: most chains are short.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
inpaint = quick_jit(rp.inpaint, static_argnums=1)


def draw(state, params, *, mask=MASK, model=model_fn, n_samples=N_SAMPLES, seed=0):
    """Samples of the library's chain, [n, d]."""
    image, key = batched(IMAGE, n_samples), jax.random.key(seed)
    return np.asarray(inpaint(state, model, params, image, one_mask(mask), key))


# The chain as it should be


def expected(
    num_inference_steps,
    jump_length,
    jump_n_sample,
    *,
    timestep_spacing="leading",
    beta_schedule="linear",
    mask=MASK,
    levels="diffusers",
    **how,
):
    """Mean and covariance of all pixels of the output, in closed form."""
    schedule = (num_inference_steps, jump_length, jump_n_sample)
    if levels == "diffusers":
        moves = reference.diffusers_moves(reference.diffusers_levels(*schedule))
    else:
        moves = reference.paper_moves(reference.paper_levels(*schedule))
    betas = reference.make_betas(beta_schedule)
    ladder = reference.make_ladder(timestep_spacing, len(betas), num_inference_steps)
    return reference.propagate(PRIOR_MEAN, PRIOR_COV, IMAGE, mask, betas, ladder, moves, **how)


def restrict(pixels, mean, cov):
    return mean[pixels], cov[np.ix_(pixels, pixels)]


def misfit(samples, mean, cov, pixels):
    return reference.gaussian_misfit(samples[:, pixels], *restrict(pixels, mean, cov))


def assert_distributed_as(samples, mean, cov, pixels=MISSING):
    """Mean and covariance agree within sampling error, jointly over the given pixels."""
    got, limit = misfit(samples, mean, cov, pixels), reference.gaussian_misfit_limit(pixels.sum())
    mean, cov = restrict(pixels, mean, cov)
    values = samples[:, pixels].astype(np.float64)
    errors = values.mean(0) - mean, np.cov(values.T) - cov
    assert got < limit, f"misfit {got:.1f} > {limit:.1f}; errors of mean and covariance: {errors}"


def assert_known_pixels_are_the_image(samples):
    image = np.broadcast_to(IMAGE.astype(np.float32), samples.shape)
    np.testing.assert_array_equal(samples[:, ~MISSING], image[:, ~MISSING])


# The reference itself


def test_reference_has_the_published_counts():
    counts = {(250, 10, 10): (4570, 2410), (250, 10, 5): (2170, 1210), (250, 10, 15): (6970, 3610)}
    counts |= {(250, 1, 10): (4732, 2491), (100, 10, 10): (1720, 910), (50, 10, 10): (770, 410)}
    for schedule, (transitions, calls) in counts.items():
        levels = reference.diffusers_levels(*schedule)
        moves = reference.diffusers_moves(levels)
        assert len(levels) == transitions
        assert sum(move == "step" for move, _ in moves) == calls
    assert len(reference.paper_levels(250)) == 4571  # one more level than transitions


def test_reference_has_the_known_size_of_diffusers_undo_error():
    betas = reference.make_betas()
    alphas = reference.alphas_cumprod(betas)

    def undone(steps, jump_length, anchor, undo):
        ladder = reference.make_ladder("leading", 1000, steps)
        jump = range(anchor, anchor + jump_length)
        ratio = np.prod([reference.undo_ratio(betas, ladder, k, undo) for k in jump])
        return ratio * reference.level_alpha(betas, ladder, anchor - 1)

    assert undone(250, 10, 0, "exact") == pytest.approx(alphas[36], rel=1e-12)
    excess = (1 - undone(250, 10, 0, "diffusers")) / (1 - undone(250, 10, 0, "exact"))
    assert excess == pytest.approx(1.15, abs=0.005)  # the model at t=36 sees 15 % more variance
    excess = (1 - undone(250, 1, 0, "diffusers")) / (1 - undone(250, 1, 0, "exact"))
    assert excess == pytest.approx(5.2, abs=0.05)


def test_reference_without_known_pixels_returns_the_prior():
    # With 1000 levels and nothing known, the ancestral sampler is right up to its discretisation.
    mean, cov = expected(1000, 10, 1, mask=np.zeros(SIZE), eta=1.0)
    distance = reference.wasserstein2_squared(mean, cov, PRIOR_MEAN, PRIOR_COV)
    assert distance < 1e-3 * np.trace(PRIOR_COV)


def test_reference_merging_before_the_model_or_after_the_step_is_the_same_for_missing_pixels():
    before = expected(50, 5, 4, levels="paper", eta=1.0, known_region="before_model")
    after = expected(50, 5, 4, levels="paper", eta=1.0)
    for left, right in zip(restrict(MISSING, *before), restrict(MISSING, *after), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-12)


# The whole chain


@pytest.mark.parametrize(
    ("schedule", "eta", "undo"),
    [
        ((25, 1, 4), 0.0, "exact"),
        ((25, 1, 4), 1.0, "diffusers"),
        ((25, 5, 5), 1.0, "exact"),
        ((50, 10, 4), 0.0, "diffusers"),
        ((50, 5, 3), 1.0, "exact"),
        ((250, 10, 2), 1.0, "diffusers"),
    ],
)
def test_inpaint_has_the_closed_form_distribution(schedule, eta, undo):
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=eta, undo=undo)
    samples = draw(make_state(config, *schedule), denoiser_params())
    right = expected(*schedule, eta=eta, undo=undo)
    assert_known_pixels_are_the_image(samples)
    assert_distributed_as(samples, *right)

    # The same samples refuse the other undo, so passing means something.
    wrong = expected(*schedule, eta=eta, undo="diffusers" if undo == "exact" else "exact")
    if schedule[0] < 250:  # with fine levels the undos differ little, and it takes more jumps
        assert misfit(samples, *wrong, MISSING) > reference.gaussian_misfit_limit(3)


@cache
def default_samples():
    config = rp.RePaintSchedulerConfig(clip_sample=False)
    return draw(make_state(config, 250, 10, 10), denoiser_params())


def test_the_comparison_tells_diffusers_undo_from_the_exact_one_at_the_default_settings():
    schedule, samples = (250, 10, 10), default_samples()
    assert_distributed_as(samples, *expected(*schedule))
    wrong = expected(*schedule, undo="diffusers")
    assert misfit(samples, *wrong, MISSING) > reference.gaussian_misfit_limit(3)


def test_diffusers_preset_has_the_closed_form_distribution_of_diffusers_undo():
    config = rp.RePaintSchedulerConfig.diffusers(clip_sample=False)
    samples = draw(make_state(config, 25, 5, 5), denoiser_params())
    assert_distributed_as(samples, *expected(25, 5, 5, undo="diffusers"))
    assert_known_pixels_are_the_image(samples)


@pytest.mark.parametrize(
    ("timestep_spacing", "beta_schedule"),
    [("trailing", "scaled_linear"), ("linspace", "squaredcos_cap_v2")],
)
def test_other_spacings_and_beta_schedules_have_the_closed_form_distribution(
    timestep_spacing, beta_schedule
):
    how = {"timestep_spacing": timestep_spacing, "beta_schedule": beta_schedule, "eta": 0.5}
    config = rp.RePaintSchedulerConfig(clip_sample=False, **how)
    samples = draw(make_state(config, 30, 5, 3), denoiser_params(beta_schedule=beta_schedule))
    assert_distributed_as(samples, *expected(30, 5, 3, **how))


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_prediction_types_have_the_distribution_of_epsilon(prediction_type):
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=0.5, prediction_type=prediction_type)
    samples = draw(make_state(config, 25, 5, 3), denoiser_params(prediction_type))
    assert_distributed_as(samples, *expected(25, 5, 3, eta=0.5))


def test_fixed_large_adds_the_variance_beta_around_the_same_mean():
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=1.0, variance_type="fixed_large")
    samples = draw(make_state(config, 25, 5, 3), denoiser_params())
    assert_distributed_as(samples, *expected(25, 5, 3, eta=1.0, variance_fraction=1.0))
    small = expected(25, 5, 3, eta=1.0, variance_fraction=0.0)
    assert misfit(samples, *small, MISSING) > 2 * reference.gaussian_misfit_limit(3)


@pytest.mark.parametrize("undo", ["exact", "diffusers"])
def test_soft_mask_blends_two_independent_noises_or_with_diffusers_undo_one(undo):
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=1.0, undo=undo)
    samples = draw(make_state(config, 25, 5, 3), denoiser_params(), mask=SOFT_MASK)
    soft, blended = partial(expected, 25, 5, 3, eta=1.0, undo=undo, mask=SOFT_MASK), SOFT_MASK < 1
    shared = undo == "diffusers"
    assert_distributed_as(samples, *soft(shared_noise=shared), pixels=blended)
    limit = reference.gaussian_misfit_limit(blended.sum())
    assert misfit(samples, *soft(shared_noise=not shared), blended) > limit
    np.testing.assert_array_equal(samples[:, 0], np.float32(IMAGE[0]))


def test_a_vector_of_keys_draws_from_the_same_distribution():
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=1.0)
    state = make_state(config, 25, 5, 3)
    keys = jax.random.split(jax.random.key(1), N_SAMPLES)
    samples = inpaint(state, model_fn, denoiser_params(), batched(IMAGE), one_mask(MASK), keys)
    assert_distributed_as(np.asarray(samples), *expected(25, 5, 3, eta=1.0))


def test_vmap_over_unbatched_images_draws_from_the_same_distribution():
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=0.0)
    state, params = make_state(config, 25, 5, 3), denoiser_params()
    keys = jax.random.split(jax.random.key(2), N_SAMPLES)
    mapped = jax.vmap(partial(rp.inpaint, state, model_fn, params), in_axes=(0, 0, 0))
    samples = np.asarray(quick_jit(mapped)(batched(IMAGE), batched(MASK), keys))
    assert_distributed_as(samples, *expected(25, 5, 3))
    assert_known_pixels_are_the_image(samples)


# The official order


@pytest.mark.parametrize("schedule", [(25, 5, 4), (50, 1, 2)])
def test_paper_preset_has_the_closed_form_distribution_of_the_official_chain(schedule):
    """Known pixels too: the last step has no composite, so they are the model's guess."""
    config = rp.RePaintSchedulerConfig.paper(clip_sample=False, variance_type="fixed_small")
    samples = draw(make_state(config, *schedule), denoiser_params())
    official = expected_official(*schedule)
    assert_distributed_as(samples, *official)
    assert_distributed_as(samples, *official, pixels=MASK >= 0)
    assert np.all(samples[:, ~MISSING].std(0) > 1e-4)


def expected_official(*schedule, **how):
    return expected(
        *schedule,
        timestep_spacing="linspace",
        levels="paper",
        eta=1.0,
        known_region="before_model",
        **how,
    )


@pytest.mark.parametrize(
    ("variance_values", "variance_fraction"),
    [
        ([-1.0] * SIZE, 0.0),  # fixed_small
        ([1.0] * SIZE, 1.0),  # fixed_large
        ([-1.0, 0.0, -0.5, 0.0, 0.8, 1.0], [0.0, 0.5, 0.25, 0.5, 0.9, 1.0]),
    ],
)
def test_learned_range_interpolates_the_log_variance_of_each_channel(variance_values, variance_fraction):
    params = denoiser_params() | {"variance_values": jnp.array(variance_values, jnp.float32)}
    state = make_state(rp.RePaintSchedulerConfig.paper(clip_sample=False), 25, 5, 4)
    samples = draw(state, params, model=learned_range_model_fn)
    official = partial(expected_official, 25, 5, 4)
    right = official(variance_fraction=variance_fraction)
    assert_distributed_as(samples, *right, pixels=MASK >= 0)
    wrong = official(variance_fraction=1.0 - np.asarray(variance_fraction))
    assert misfit(samples, *wrong, MASK >= 0) > reference.gaussian_misfit_limit(SIZE)


def test_the_official_list_and_order_each_work_alone():
    config = rp.RePaintSchedulerConfig(clip_sample=False, jump_schedule="paper", eta=1.0)
    samples = draw(make_state(config, 25, 5, 4), denoiser_params())
    assert_distributed_as(samples, *expected(25, 5, 4, levels="paper", eta=1.0))

    config = rp.RePaintSchedulerConfig(clip_sample=False, known_region="before_model")
    samples = draw(make_state(config, 25, 5, 4), denoiser_params())
    right = expected(25, 5, 4, known_region="before_model")
    assert_distributed_as(samples, *right, pixels=MASK >= 0)


# Stepping by hand


@quick_jit
def step_by_hand(state, params, sample, timestep, i):
    output, key = model_fn(params, sample, timestep), jax.random.fold_in(jax.random.key(3), i)
    image, mask = batched(IMAGE), one_mask(MASK)
    return rp.step(state, output, timestep, sample, image, mask, key).prev_sample


@quick_jit
def undo_by_hand(state, sample, timestep, i):
    return rp.undo_step(state, sample, timestep, jax.random.fold_in(jax.random.key(3), i))


def start_by_hand():
    noise = np.random.default_rng(3).standard_normal((N_SAMPLES, SIZE))
    return jnp.asarray(noise, jnp.float32)


@pytest.mark.parametrize(("undo", "eta"), [("exact", 0.0), ("diffusers", 1.0)])
def test_stepping_by_hand_as_diffusers_pipeline_does_has_the_closed_form_distribution(undo, eta):
    config = rp.RePaintSchedulerConfig(clip_sample=False, eta=eta, undo=undo)
    state, params = make_state(config, 25, 5, 5), denoiser_params()
    timesteps = np.asarray(state.timesteps).tolist()
    sample = start_by_hand()
    t_last = timesteps[0] + 1
    for i, t in enumerate(timesteps):
        if t < t_last:
            sample = step_by_hand(state, params, sample, t, i)
        else:
            sample = undo_by_hand(state, sample, t_last, i)
        t_last = t
    samples = np.asarray(sample)
    assert_distributed_as(samples, *expected(25, 5, 5, eta=eta, undo=undo))
    assert_known_pixels_are_the_image(samples)


def test_stepping_by_hand_through_the_official_list_has_the_closed_form_distribution():
    config = rp.RePaintSchedulerConfig.paper(clip_sample=False, variance_type="fixed_small")
    state, params = make_state(config, 25, 5, 4), denoiser_params()
    timesteps = np.asarray(state.timesteps).tolist()
    sample = start_by_hand()
    for i, (last, current) in enumerate(pairwise(timesteps)):
        if current < last:
            sample = step_by_hand(state, params, sample, last, i)
        else:
            sample = undo_by_hand(state, sample, current, i)
    official = expected_official(25, 5, 4)
    assert_distributed_as(np.asarray(sample), *official, pixels=MASK >= 0)


# What resampling is for


def test_resampling_brings_the_output_to_the_true_posterior():
    posterior = reference.posterior(PRIOR_MEAN, PRIOR_COV, IMAGE, MASK)
    outputs = {r: restrict(MISSING, *expected(250, 10, r)) for r in (1, 2, 5, 10, 20)}
    distances = {
        r: reference.wasserstein2_squared(*output, *posterior) / np.trace(posterior[1])
        for r, output in outputs.items()
    }
    assert list(distances.values()) == sorted(distances.values(), reverse=True)
    assert distances[1] > 0.3 and distances[20] < 0.01

    # So do samples, ten passes of them. Their distance d2 has a standard error of at most about
    # 2 sqrt(d2 / n), in units of the trace, from the moments' own sampling errors.
    samples = default_samples()[:, MISSING].astype(np.float64)
    moments = samples.mean(0), np.cov(samples.T)
    sampled = reference.wasserstein2_squared(*moments, *posterior) / np.trace(posterior[1])
    assert abs(sampled - distances[10]) < 5 * 2 * np.sqrt(distances[10] / N_SAMPLES)
    assert sampled < distances[5]
