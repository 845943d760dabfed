"""Adapters for continuous noise levels, around the ideal denoiser of a Gaussian prior.

Each family of networks is derived from that denoiser by the family's own definition. The chain must then be
that of the noise prediction on the same levels, and its samples those of the posterior.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import repaint_jax as rp
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.images import image_to_array, open_image
from repaint_jax.sampling.budget_schedule import budget_timesteps

SIZE = 6
MEAN = np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.2], np.float32)
COV = 0.25 * np.exp(-np.abs(np.arange(SIZE)[:, None] - np.arange(SIZE)) / 4)
VALUES, VECTORS = (part.astype(np.float32) for part in np.linalg.eigh(COV))
MASK = np.array([1, 1, 0, 0, 0, 1], np.float32)
IMAGE = np.array([0.6, 0.1, 0.9, -0.9, 0.5, -0.5], np.float32)
KEY = jax.random.key(0)
CONFIGS = {
    "edm": rp.RePaintSchedulerConfig.edm(clip_sample=False),
    "flow": rp.RePaintSchedulerConfig.flow(clip_sample=False),
    "shifted flow": rp.RePaintSchedulerConfig.flow(shift=3.0, clip_sample=False),
    "ddpm": rp.RePaintSchedulerConfig.from_sigmas(
        np.sqrt(1 / reference.alphas_cumprod(reference.make_betas()) - 1), clip_sample=False
    ),
}


def matmul(x, matrix):
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision="highest")


def denoise(params, x, sigma):
    """E[x0 | x0 + sigma z] for x0 ~ N(MEAN, COV)."""
    mean = jnp.asarray(MEAN, x.dtype).reshape((1,) * (x.ndim - 1) + (SIZE,))
    shrink = jnp.asarray(VALUES, x.dtype) / (jnp.asarray(VALUES, x.dtype) + sigma.astype(x.dtype) ** 2)
    along = matmul(x - mean, VECTORS) * shrink.reshape((1,) * (x.ndim - 1) + (SIZE,))
    return mean + matmul(along, VECTORS.T)


def edm_network(params, scaled, c_noise, sigma_data=0.5):
    sigma = jnp.exp(4 * c_noise).astype(scaled.dtype)
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    x = scaled * total
    skip, out = sigma_data**2 / total**2, sigma * sigma_data / total
    return (denoise(params, x, sigma) - skip * x) / out


def velocity(params, x, t):
    """Of x = (1 - t) x0 + t z, which is (1 - t)(x0 + t/(1 - t) z)."""
    t = t.astype(x.dtype)
    x0 = denoise(params, x / (1 - t), t / (1 - t))
    return (x - (1 - t) * x0) / t - x0  # z - x0


def velocity_to_data(params, x, t):
    """Of x = t x0 + (1 - t) z."""
    t = t.astype(x.dtype)
    x0 = denoise(params, x / t, (1 - t) / t)
    return x0 - (x - t * x0) / (1 - t)  # x0 - z


def score(params, x, sigma):
    return (denoise(params, x, sigma) - x) / sigma.astype(x.dtype) ** 2


FAMILIES = {
    "denoiser": partial(rp.denoiser_model_fn, denoise),
    "edm": partial(rp.edm_model_fn, edm_network),
    "edm, other data": partial(rp.edm_model_fn, partial(edm_network, sigma_data=0.3), sigma_data=0.3),
    "flow": partial(rp.flow_model_fn, velocity),
    "flow to data": partial(rp.flow_model_fn, velocity_to_data, data_at=1),
    "score": partial(rp.score_model_fn, score),
}
SCHEDULES = {
    "budget": lambda config: rp.set_timesteps_for_budget(rp.create_state(config), 32),
    "resampling": lambda config: rp.set_timesteps(rp.create_state(config), 20, 4, 2),
}


def noise_prediction(config):
    """A model_fn in DDPM's terms, for the same noise levels."""
    abar = jnp.asarray(reference.alphas_cumprod(config.betas), jnp.float32)

    def model_fn(params, sample, timestep):
        signal, noise = jnp.sqrt(abar[timestep]), jnp.sqrt(1 - abar[timestep])
        return (sample - signal * denoise(params, sample / signal, noise / signal)) / noise

    return model_fn


@pytest.mark.parametrize(
    ("levels", "schedule"), [("edm", "resampling"), *((levels, "budget") for levels in CONFIGS)]
)
def test_every_family_makes_the_chain_of_the_noise_prediction_on_its_levels(levels, schedule):
    config = CONFIGS[levels]
    in_ddpm_terms = dataclasses.replace(config, prediction_type="epsilon")
    expected = rp.inpaint(
        SCHEDULES[schedule](in_ddpm_terms), noise_prediction(config), None, IMAGE, MASK, KEY
    )
    state = SCHEDULES[schedule](config)
    families = FAMILIES if (levels, schedule) == ("edm", "budget") else ("denoiser", "flow to data")
    for family in families:
        adapter = FAMILIES[family]
        made = rp.inpaint(state, adapter(config=config), None, IMAGE, MASK, KEY)
        np.testing.assert_allclose(made, expected, atol=3e-3, err_msg=family)


@pytest.mark.parametrize("levels", ["edm", "shifted flow"])
def test_samples_are_those_of_the_posterior(levels):
    config = CONFIGS[levels]
    state = rp.set_timesteps_for_budget(rp.create_state(config), 256)
    images, masks = (np.broadcast_to(array, (4000, SIZE)) for array in (IMAGE, MASK))
    samples = rp.inpaint(state, FAMILIES["flow"](config=config), None, images, masks, KEY)
    missing = MASK == 0
    posterior = reference.posterior(MEAN, COV, IMAGE, MASK)
    misfit = reference.gaussian_misfit(np.asarray(samples)[:, missing], *posterior)
    assert misfit < reference.gaussian_misfit_limit(missing.sum())


def scaled_by_level(params, x, level, labels=None):
    """Any network that takes its level, and labels, as a scalar or as [B]."""
    by = jnp.asarray(level, x.dtype) if labels is None else jnp.asarray(level + labels, x.dtype)
    return params * jnp.sin(x * by.reshape(by.shape + (1,) * (x.ndim - by.ndim)))


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (rp.denoiser_model_fn, CONFIGS["edm"]),
        (rp.edm_model_fn, CONFIGS["edm"]),
        (rp.flow_model_fn, CONFIGS["flow"]),
        (partial(rp.flow_model_fn, data_at=1), CONFIGS["flow"]),
        (rp.score_model_fn, CONFIGS["edm"]),
        (partial(rp.score_model_fn, process="vp"), rp.RePaintSchedulerConfig()),
    ],
)
def test_a_timestep_for_each_image_is_that_image_alone(make, config):
    levels = []

    def network(params, x, level, labels=None):
        levels.append(level)
        return scaled_by_level(params, x, level, labels)

    model_fn, gain = make(network, config), jnp.float32(0.3)
    samples = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
    timesteps, labels = jnp.array([0, 500, 999]), jnp.arange(3)
    batch = model_fn(gain, samples, timesteps)
    labelled = model_fn(gain, samples, timesteps, labels.astype(levels[0].dtype))
    assert [level.shape for level in levels] == [(3,), (3,)]
    for sample, timestep, label, one, one_labelled in zip(
        samples, timesteps, labels, batch, labelled, strict=True
    ):
        np.testing.assert_allclose(one, model_fn(gain, sample, timestep), rtol=1e-5, atol=1e-5)
        alone = model_fn(gain, sample, timestep, label.astype(levels[0].dtype))
        np.testing.assert_allclose(one_labelled, alone, rtol=1e-5, atol=1e-5)
    assert {level.shape for level in levels[2:]} == {()}
    with pytest.raises(ValueError, match=r"timestep has shape \(2,\), expected a scalar or one for each"):
        model_fn(gain, samples, timesteps[:2])
    wider = make(lambda params, x, level: jnp.concatenate([x, x], -1), config)
    with pytest.raises(ValueError, match=r"network returned shape \(3, 4, 4, 4\), expected \(3, 4, 4, 2\)"):
        wider(gain, samples, timesteps)


def test_the_score_of_vp_makes_the_chain_of_the_noise_prediction():
    config = rp.RePaintSchedulerConfig(clip_sample=False)
    abar = jnp.asarray(reference.alphas_cumprod(config.betas), jnp.float32)

    def vp_score(params, x, timestep):
        """Of N(sqrt(abar) MEAN, abar COV + 1 - abar)."""
        a = abar[timestep]
        along = matmul(x - jnp.sqrt(a) * MEAN.reshape((1,) * (x.ndim - 1) + (SIZE,)), VECTORS)
        by = -1 / (a * jnp.asarray(VALUES) + 1 - a)
        return matmul(along * by.reshape((1,) * (x.ndim - 1) + (SIZE,)), VECTORS.T)

    for make in SCHEDULES.values():
        state = make(config)
        expected = rp.inpaint(state, noise_prediction(config), None, IMAGE, MASK, KEY)
        model_fn = rp.score_model_fn(vp_score, config, process="vp")
        made = rp.inpaint(state, model_fn, None, IMAGE, MASK, KEY)
        np.testing.assert_allclose(made, expected, atol=3e-3)


@pytest.mark.parametrize("family", ["edm, other data", "flow to data"])
def test_families_work_under_vmap_and_in_bfloat16(family):
    config = CONFIGS["edm"]
    state = rp.set_timesteps_for_budget(rp.create_state(config), 16)
    model_fn = FAMILIES[family](config=config)
    assert model_fn == FAMILIES[family](config=config)
    keys = jax.random.split(KEY, 3)
    images, masks = np.broadcast_to(IMAGE, (3, SIZE)), np.broadcast_to(MASK, (3, SIZE))
    batch = rp.inpaint(state, model_fn, None, images, masks, keys)
    mapped = jax.vmap(rp.inpaint, in_axes=(None, None, None, 0, 0, 0))(
        state, model_fn, None, images, masks, keys
    )
    np.testing.assert_allclose(mapped, batch, atol=1e-4)
    image, mask = (jnp.asarray(array, jnp.bfloat16) for array in (IMAGE, MASK))
    half = rp.inpaint(state, model_fn, None, image, mask, KEY)
    assert half.dtype == jnp.bfloat16 and np.isfinite(half.astype(jnp.float32)).all()


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


@pytest.mark.parametrize("family", ["edm", "flow"])
def test_a_ladder_of_a_thousand_levels_costs_nothing(family):
    """Neither against DDPM's betas nor against a ladder four times as fine."""
    make = getattr(rp.RePaintSchedulerConfig, family)
    for calls, worst in ((64, 1.3), (256, 1.0)):
        error = error_of_budget(make(), calls)
        assert error < worst * error_of_budget(rp.RePaintSchedulerConfig(), calls)
        assert error < 1.1 * error_of_budget(make(num_train_timesteps=4000), calls)


# Conventions


def in_terms_of(kind):
    """A model_fn that predicts this kind, ideally, on DDPM's levels."""
    abar = jnp.asarray(reference.alphas_cumprod(reference.make_betas()), jnp.float32)

    def model_fn(params, sample, timestep):
        signal, noise = jnp.sqrt(abar[timestep]), jnp.sqrt(1 - abar[timestep])
        x0 = denoise(params, sample / signal, noise / signal)
        eps = (sample - signal * x0) / noise
        return {"sample": x0, "epsilon": eps, "v_prediction": signal * eps - noise * x0}[kind]

    return model_fn


KINDS = ("sample", "epsilon", "v_prediction")


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("declared", KINDS)
@pytest.mark.parametrize("predicted", KINDS)
def test_a_prediction_of_another_kind_is_found(predicted, declared, clip_sample):
    config = rp.RePaintSchedulerConfig(prediction_type=declared, clip_sample=clip_sample)
    arguments = in_terms_of(predicted), None, config, jnp.asarray(IMAGE), KEY
    if predicted == declared or (predicted, declared) == ("sample", "v_prediction"):  # not found
        return rp.check_model(*arguments)
    with pytest.raises(ValueError, match=r"model_fn predicts .*, sigma = .*, expected"):
        rp.check_model(*arguments)
    return None


def test_a_trained_network_passes_the_check():
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    picture = image_to_array(open_image(pictures_of_model("bundled")[0]), pipe.image_shape)
    rp.check_model(pipe.model_fn, pipe.params, pipe.state.config, jnp.asarray(picture), KEY)
    other = dataclasses.replace(pipe.state.config, prediction_type="epsilon")  # it predicts v
    with pytest.raises(ValueError, match="prediction_type is 'epsilon': is that what it predicts"):
        rp.check_model(pipe.model_fn, pipe.params, other, jnp.asarray(picture), KEY)


@pytest.mark.parametrize("clip_sample", [False, True])
def test_a_flow_of_another_convention_is_found(clip_sample):
    config = rp.RePaintSchedulerConfig.flow(clip_sample=clip_sample)
    for family in FAMILIES.values():
        rp.check_model(family(config=config), None, config, jnp.asarray(IMAGE), KEY)
    wrong = {
        "its sign": rp.flow_model_fn(lambda params, x, t: -velocity(params, x, t), config),
        "its time": rp.flow_model_fn(lambda params, x, t: velocity(params, x, 1 - t), config),
        "its data's end": rp.flow_model_fn(velocity_to_data, config),
        "its data's end, too": rp.flow_model_fn(velocity, config, data_at=1),
        "a score": rp.denoiser_model_fn(score, config),
    }
    for model_fn in wrong.values():
        with pytest.raises(ValueError, match=r"model_fn predicts .*, sigma = .*, expected"):
            rp.check_model(model_fn, None, config, jnp.asarray(IMAGE), KEY)


def test_levels_are_those_that_were_asked_for():
    sigmas = np.geomspace(0.002, 80, 300)
    config = rp.RePaintSchedulerConfig.from_sigmas(sigmas, eta=0.5)
    abar = reference.alphas_cumprod(config.betas)
    np.testing.assert_allclose(np.sqrt(1 / abar - 1), sigmas, rtol=1e-9)
    assert (config.num_train_timesteps, config.prediction_type, config.eta) == (300, "sample", 0.5)
    karras = np.sqrt(1 / reference.alphas_cumprod(CONFIGS["edm"].betas) - 1)
    np.testing.assert_allclose(karras[[0, -1]], [0.002, 80], rtol=1e-9)
    steps = np.arange(1000) / 999  # eq. 5 of Karras et al., from the largest level on
    expected = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras[::-1], expected, rtol=1e-8)
    flow = np.sqrt(1 / reference.alphas_cumprod(CONFIGS["flow"].betas) - 1)
    np.testing.assert_allclose(flow / (1 + flow), 0.999 * np.arange(1, 1001) / 1000, rtol=1e-8)
    shifted = np.sqrt(1 / reference.alphas_cumprod(CONFIGS["shifted flow"].betas) - 1)
    times = shifted / (1 + shifted)
    even = times / (3 - 2 * times)  # undoes t -> 3 t/(1 + 2 t)
    np.testing.assert_allclose(np.diff(even), np.full(999, even[0]), rtol=1e-6)
    np.testing.assert_allclose(times[-1], 0.999)


def test_configs_of_continuous_levels_are_saved_and_loaded(tmp_path):
    config = CONFIGS["edm"]
    config.save_pretrained(tmp_path)
    assert rp.RePaintSchedulerConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda c: c.from_sigmas([0.1, 0.1]),
            ValueError,
            r"sigmas\[1\] is 0.1, after 0.1, expected",
        ),
        (
            lambda c: c.from_sigmas([1.0, 0.5]),
            ValueError,
            r"sigmas\[1\] is 0.5, after 1, expected",
        ),
        (
            lambda c: c.from_sigmas([0.0, 0.5]),
            ValueError,
            r"sigmas\[0\] is 0, expected positive",
        ),
        (lambda c: c.from_sigmas([0.1, np.inf]), ValueError, r"sigmas\[1\] is inf, after 0.1, expected"),
        (
            lambda c: c.from_sigmas([]),
            ValueError,
            r"sigmas has shape \(0,\), expected a vector",
        ),
        (lambda c: c.from_sigmas("fine"), TypeError, "sigmas is 'fine', expected a sequence of numbers"),
        (
            lambda c: c.edm(sigma_min=80, sigma_max=80),
            ValueError,
            "sigma_min is 80 and sigma_max is 80",
        ),
        (lambda c: c.edm(rho=0), ValueError, "rho is 0, expected a positive number"),
        (lambda c: c.flow(shift=-1), ValueError, "shift is -1, expected a positive number"),
        (lambda c: c.flow(0), ValueError, "num_train_timesteps is 0, expected an integer of at least 1"),
        (lambda c: rp.flow_model_fn(velocity, c.flow(), 2), ValueError, "data_at is 2, expected 0 or 1"),
        (lambda c: rp.edm_model_fn(edm_network, c.edm(), 0), ValueError, "sigma_data is 0, expected a pos"),
        (
            lambda c: rp.denoiser_model_fn(None, c.edm()),
            TypeError,
            "denoiser is a NoneType, expected",
        ),
        (
            lambda c: rp.score_model_fn(score, "edm"),
            TypeError,
            "config is 'edm', expected a RePaint",
        ),
        (
            lambda c: rp.denoiser_model_fn(denoise, c()),
            ValueError,
            "prediction_type is 'epsilon', expected",
        ),
        (
            lambda c: rp.score_model_fn(score, c.edm(), "vp"),
            ValueError,
            "prediction_type is 'sample', expected 'epsilon'",
        ),
        (
            lambda c: rp.score_model_fn(score, c.edm(), "sub-vp"),
            ValueError,
            "process is 'sub-vp', expected 've' or 'vp'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call(rp.RePaintSchedulerConfig)
