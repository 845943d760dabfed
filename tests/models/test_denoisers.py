"""Adapters for continuous noise levels, around the ideal denoiser of a mixture of Gaussians.

Each family of networks is derived from that denoiser by the family's own definition. Its predictions must
be those of the mixture in closed form, its chain that of the noise prediction on the same levels, and its
samples those of the mixture's posterior.
"""

import dataclasses
from functools import partial

import ideal_networks as ideal
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen, nnx

import repaint_jax as rp
from repaint_jax.models.guidance import ClassifierGradient

SIZE = 6
DISTANCE = np.abs(np.arange(SIZE)[:, None] - np.arange(SIZE))
MEANS = [[0.09, -0.06, 0.03, 0.12, -0.09, 0.06], [-0.15, 0.18, -0.12, 0.06, 0.15, 0.03]]
COVS = [0.04 * np.exp(-DISTANCE / 4), 0.02 * np.exp(-DISTANCE / 2), 0.06 * np.exp(-DISTANCE / 8)]
MIXTURE = (
    np.array([0.5, 0.3, 0.2]),
    np.array([*MEANS, [0.03, 0.06, 0.24, -0.18, 0.06, -0.12]]),
    np.array(COVS),
)
MASK = np.array([1, 0, 0, 0, 0, 1], np.float32)
IMAGE = np.array([0, 0.1, 0.9, -0.9, 0.5, -0.05], np.float32)  # its missing pixels must not matter
KEY = jax.random.key(0)
LEVELS = {
    "edm": rp.RePaintSchedulerConfig.edm(clip_sample=False),
    "flow": rp.RePaintSchedulerConfig.flow(clip_sample=False),
    "shifted flow": rp.RePaintSchedulerConfig.flow(shift=3.0, clip_sample=False),
    "ve": rp.RePaintSchedulerConfig.from_sigmas(np.geomspace(0.01, 674, 500), clip_sample=False),
    "ddpm": rp.RePaintSchedulerConfig(clip_sample=False),
}
FAMILIES = ideal.families(ideal.mixture_denoiser(*MIXTURE))
SCHEDULES = {
    "budget": lambda config: rp.set_timesteps_for_budget(rp.create_state(config), 32),
    "resampling": lambda config: rp.set_timesteps(rp.create_state(config), 20, 4, 2),
}


def run(family, levels, schedule, image=IMAGE, mask=MASK):
    config, model_fn = ideal.config_and_model_fn(FAMILIES[family], LEVELS[levels])
    return np.asarray(rp.inpaint(SCHEDULES[schedule](config), model_fn, None, image, mask, KEY))


# Predictions


@pytest.mark.parametrize("levels", LEVELS)
def test_predictions_are_those_of_the_mixture(levels):
    """From sigma = 0.001 to 674; predictions are about 1, so that 3e-4 is a relative error."""
    rng, betas = np.random.default_rng(0), LEVELS[levels].betas
    timesteps = np.linspace(0, len(betas) - 1, 12).astype(np.int32)
    abar = reference.alphas_cumprod(betas)[timesteps, None]
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    u = signal * rng.multivariate_normal(MIXTURE[1][0], MIXTURE[2][0], 12)
    u = (u + noise * rng.standard_normal(u.shape)).astype(np.float32)
    x0 = np.concatenate(
        [
            reference.mixture_denoiser(*MIXTURE, (u[i] / signal[i])[None], (noise / signal)[i, 0])
            for i in range(12)
        ]
    )
    eps = (u - signal * x0) / noise
    expected = {"sample": x0, "epsilon": eps, "v_prediction": signal * eps - noise * x0}
    for name, family in FAMILIES.items():
        config, model_fn = ideal.config_and_model_fn(family, LEVELS[levels])
        made = model_fn(None, u, timesteps)
        np.testing.assert_allclose(made, expected[config.prediction_type], atol=3e-4, err_msg=name)


NETWORKS = {
    "denoiser": (rp.denoiser_model_fn, LEVELS["edm"]),
    "edm": (rp.edm_model_fn, LEVELS["edm"]),
    "flow": (rp.flow_model_fn, LEVELS["flow"]),
    "flow to data": (partial(rp.flow_model_fn, data_at=1), LEVELS["flow"]),
    "score of VE": (rp.score_model_fn, LEVELS["edm"]),
    "score of VP": (partial(rp.score_model_fn, process="vp"), LEVELS["ddpm"]),
}


@pytest.mark.parametrize("family", NETWORKS)
def test_a_timestep_and_a_label_for_each_image_are_those_of_that_image_alone(family):
    make, config = NETWORKS[family]
    seen = []

    def network(params, x, level, labels):
        seen.append((level.shape, labels.shape))
        by = level.astype(x.dtype) + labels.astype(x.dtype)
        return params * jnp.sin(x * by.reshape(by.shape + (1,) * (x.ndim - by.ndim)))

    model_fn, gain = make(network, config), jnp.float32(0.3)
    samples = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
    timesteps, labels = jnp.array([0, 500, 999]), jnp.array([5, 6, 7])
    batch = model_fn(gain, samples, timesteps, labels)
    alone = [model_fn(gain, samples[i], timesteps[i], labels[i]) for i in range(3)]
    np.testing.assert_allclose(batch, np.stack(alone), rtol=1e-5, atol=1e-5)
    assert seen == [((3,), (3,)), *[((), ())] * 3]
    with pytest.raises(ValueError, match=r"timestep has shape \(2,\), expected a scalar or one for each"):
        model_fn(gain, samples, timesteps[:2], labels)
    wider = make(lambda params, x, level: jnp.concatenate([x, x], -1), config)
    with pytest.raises(ValueError, match=r"network returned shape \(3, 4, 4, 4\), expected \(3, 4, 4, 2\)"):
        wider(gain, samples, timesteps)


# Chains


@pytest.mark.parametrize(
    ("levels", "schedule", "families"),
    [
        ("edm", "budget", ("flow to data",)),
        ("flow", "resampling", ("score of VE",)),
        *(
            pytest.param(levels, schedule, tuple(FAMILIES), marks=pytest.mark.slow)
            for levels, schedule in (("edm", "budget"), ("edm", "resampling"), ("ddpm", "budget"))
        ),
    ],
)
def test_families_make_the_chain_of_the_noise_prediction_on_their_levels(levels, schedule, families):
    expected = run("noise", levels, schedule)
    for family in families:
        np.testing.assert_allclose(run(family, levels, schedule), expected, atol=5e-4, err_msg=family)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("levels", ["edm", "ddpm"])
def test_in_double_precision_the_chains_differ_by_the_rounding_of_the_stored_levels(levels, schedule):
    """The state stores them in float32."""
    image, mask = IMAGE.astype(np.float64), MASK.astype(np.float64)
    expected = run("noise", levels, schedule, image, mask)
    for family in FAMILIES:
        made = run(family, levels, schedule, image, mask)
        np.testing.assert_allclose(made, expected, atol=1e-5, err_msg=family)


NUM_SAMPLES = 4000
DIRECTIONS = np.concatenate([np.eye(4), np.random.default_rng(0).standard_normal((4, 4))])


@pytest.mark.parametrize(
    ("family", "levels"),
    [
        ("edm", "edm"),
        *(
            pytest.param(family, levels, marks=pytest.mark.slow)
            for family, levels in (
                *((family, "edm") for family in FAMILIES),
                *(("flow", levels) for levels in ("shifted flow", "ve", "ddpm")),
            )
        ),
    ],
)
def test_samples_are_those_of_the_posterior(family, levels):
    """And not those of the Gaussian with the posterior's mean and covariance."""
    config, model_fn = ideal.config_and_model_fn(FAMILIES[family], LEVELS[levels])
    state = rp.set_timesteps_for_budget(rp.create_state(config), 64)
    images, masks = (np.broadcast_to(array, (NUM_SAMPLES, SIZE)) for array in (IMAGE, MASK))
    samples = np.asarray(rp.inpaint(state, model_fn, None, images, masks, KEY), np.float64)[:, MASK == 0]
    posterior = reference.mixture_posterior(*MIXTURE, IMAGE, MASK)
    limit = reference.mixture_distance_limit(NUM_SAMPLES, len(DIRECTIONS))
    assert reference.mixture_distance(samples, *posterior, DIRECTIONS) < limit
    weights, means, covs = posterior
    mean = weights @ means
    cov = np.einsum("k,kde->de", weights, covs + np.einsum("kd,ke->kde", means - mean, means - mean))
    gaussian = np.ones(1), mean[None], cov[None]
    assert reference.mixture_distance(samples, *gaussian, DIRECTIONS) > limit


@pytest.mark.slow
@pytest.mark.parametrize("family", ["denoiser", "edm, other data", "flow to data", "score of VP"])
def test_families_work_under_vmap_and_in_bfloat16(family):
    config, model_fn = ideal.config_and_model_fn(FAMILIES[family], LEVELS["edm"])
    state = rp.set_timesteps_for_budget(rp.create_state(config), 8)
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


def test_equal_adapters_are_equal():
    _, make = FAMILIES["flow to data"]
    config = LEVELS["flow"]
    assert make(config) == make(config) and hash(make(config)) == hash(make(config))
    assert make(config) != make(LEVELS["shifted flow"])
    assert make(config) != rp.flow_model_fn(make(config).network, config)


# Flax modules


class Linen(linen.Module):
    """Takes c_noise [B] and labels [B]."""

    @linen.compact
    def __call__(self, x, c_noise, labels):
        return linen.Conv(2, (3, 3))(x) + linen.Dense(2)(jnp.stack([c_noise, labels], -1))[:, None, None]


class Nnx(nnx.Module):
    """Takes c_noise [B] and labels [B]."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.dense = nnx.Conv(2, 2, (3, 3), rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, c_noise, labels):
        return self.conv(x) + self.dense(jnp.stack([c_noise, labels], -1))[:, None, None]


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_modules_with_a_noise_level_for_each_image_are_trained(kind):
    rng = np.random.default_rng(0)
    u, labels = rng.standard_normal((3, 4, 4, 2)).astype(np.float32), np.array([0, 1, 2], np.float32)
    if kind == "linen":
        params = jax.jit(Linen().init)(KEY, u, labels, labels)
        network, apply = rp.linen_model_fn(Linen(), timestep_per_image=True), partial(Linen().apply, params)
    else:
        apply = Nnx()
        network, params = rp.nnx_model_fn(apply, timestep_per_image=True)
    config = LEVELS["edm"]
    model_fn = rp.edm_model_fn(network, config)
    # Table 1 of Karras et al. with sigma_data = 0.5, in NumPy.
    timesteps = np.array([1, 500, 998], np.int32)
    sigma = np.sqrt(1 / reference.alphas_cumprod(config.betas) - 1)[timesteps]
    x, over = u * np.sqrt(1 + sigma**2)[:, None, None, None], (sigma**2 + 0.25)[:, None, None, None]
    scaled, c_noise = (x / np.sqrt(over)).astype(np.float32), (np.log(sigma) / 4).astype(np.float32)
    c_out = 0.5 * sigma[:, None, None, None] / np.sqrt(over)
    expected = 0.25 / over * x + c_out * np.asarray(apply(scaled, c_noise, labels))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient_and_prediction(params):
        prediction = model_fn(params, u, timesteps, labels)
        return jnp.sum(prediction), prediction

    gradient, made = gradient_and_prediction(params)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


# Guidance, of one pixel that is near -0.6 or 0.6

MEAN, STD, BOTH = 0.6, 0.1, 2


def denoise_component(params, x, sigma, labels=BOTH):
    """E[x0 | x = x0 + sigma z] if x0 is of the component 0 or 1, or of either of them."""
    component, labels = jnp.arange(2), ideal.of_rank(x, labels)[..., None].astype(jnp.int32)
    along = (1,) * x.ndim + (2,)
    means = MEAN * (2 * component - 1).astype(x.dtype).reshape(along)
    variance = STD**2 + ideal.of_rank(x, sigma)[..., None] ** 2
    possible = (labels == component.reshape(along)) | (labels == BOTH)
    logits = jnp.where(possible, -((x[..., None] - means) ** 2) / (2 * variance), -jnp.inf)
    return (jax.nn.softmax(logits) * (means + STD**2 / variance * (x[..., None] - means))).sum(-1)


ONE_PIXEL = ideal.families(denoise_component)
LABELS = np.arange(8, dtype=np.int32) % 2


def one_pixel_pipe(family, unet_config=None):
    config, model_fn = ideal.config_and_model_fn(ONE_PIXEL[family], LEVELS["edm"])
    return rp.RePaintPipeline(model_fn, None, rp.create_state(config), (1, 1, 1), unet_config)


def draw(pipe, **options):
    image = np.full((8, 1, 1, 1), -0.5, np.float32)
    options = {"key": KEY, "output_type": "jax", "num_model_calls": 16, **options}
    return np.asarray(pipe(image, np.zeros_like(image), **options).images).ravel()


@pytest.mark.parametrize(
    "family", ["edm", *(pytest.param(family, marks=pytest.mark.slow) for family in ONE_PIXEL)]
)
def test_classifier_free_guidance_is_that_of_the_noise_prediction(family, unet_config):
    conditional = dataclasses.replace(unet_config, num_class_embeds=3)
    guidance = {"class_labels": LABELS, "null_label": BOTH, "guidance_scale": 1.5}
    made, expected = (draw(one_pixel_pipe(name, conditional), **guidance) for name in (family, "noise"))
    np.testing.assert_allclose(made, expected, atol=1e-3)
    assert ((made > 0) == LABELS).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_PIXEL)
def test_an_exact_classifier_makes_the_chain_that_of_the_conditional_model(family, unet_config):
    def logits(params, sample, timestep):
        signal, noise, _ = ideal.levels_of(LEVELS["edm"].betas, sample, timestep)
        means = signal * MEAN * jnp.array([-1.0, 1.0]).reshape((1,) * (sample.ndim - 1) + (2,))
        return (-((sample - means) ** 2) / (2 * (signal**2 * STD**2 + noise**2)))[:, 0, 0]

    made = draw(one_pixel_pipe(family), cond_fn=ClassifierGradient(logits), cond_params=(None, LABELS))
    conditional = dataclasses.replace(unet_config, num_class_embeds=3)
    expected = draw(one_pixel_pipe("noise", conditional), class_labels=LABELS)
    np.testing.assert_allclose(made, expected, atol=1e-3)
    assert ((made > 0) == LABELS).all()


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: rp.flow_model_fn(abs, c.flow(), 2), ValueError, "data_at is 2, expected 0 or 1"),
        (lambda c: rp.edm_model_fn(abs, c.edm(), 0), ValueError, "sigma_data is 0, expected a positive"),
        (lambda c: rp.edm_model_fn(abs, c.edm(), "1"), TypeError, "sigma_data is '1', expected a positive"),
        (lambda c: rp.edm_model_fn(abs, c.edm(), True), TypeError, "sigma_data is True, expected a posit"),
        (lambda c: rp.edm_model_fn(abs, c.edm(), np.nan), ValueError, "sigma_data is nan, expected a pos"),
        (lambda c: rp.edm_model_fn(abs, c.edm(), np.ones(3)), TypeError, "sigma_data is an array of shape"),
        (lambda c: rp.flow_model_fn(abs, c.flow(), True), TypeError, "data_at is True, expected 0 or 1"),
        (lambda c: rp.flow_model_fn(abs, c.flow(), "0"), TypeError, "data_at is '0', expected 0 or 1"),
        (lambda c: rp.flow_model_fn(abs, c.flow(), jnp.ones(2)), TypeError, "data_at is an array of shape"),
        (lambda c: rp.score_model_fn(abs, c(), np.array(["ve", "vp"])), ValueError, "process is an array"),
        (lambda c: rp.score_model_fn(abs, np.ones((9, 9))), TypeError, "config is an array of shape"),
        (lambda c: rp.denoiser_model_fn(None, c.edm()), TypeError, "denoiser is a NoneType, expected"),
        (lambda c: rp.score_model_fn(abs, "edm"), TypeError, "config is 'edm', expected a RePaint"),
        (lambda c: rp.denoiser_model_fn(abs, c()), ValueError, "prediction_type is 'epsilon', expected 's"),
        (
            lambda c: rp.score_model_fn(abs, c.edm(), "vp"),
            ValueError,
            "prediction_type is 'sample', expected 'epsilon'",
        ),
        (
            lambda c: rp.score_model_fn(abs, c.edm(), "sub-vp"),
            ValueError,
            "process is 'sub-vp', expected one of ve, vp",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(rp.RePaintSchedulerConfig)
    assert len(str(raised.value).splitlines()) == 1
