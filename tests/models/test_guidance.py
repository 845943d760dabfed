"""Class labels and guidance, held against priors whose conditional predictions are known.

The guided prediction must be the prediction of the conditional distribution: for a Gaussian prior with a
noisy measurement, and for a mixture of two Gaussians with the component as its class, both are known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp
from repaint_jax.models.guidance import (
    ClassConditional,
    ClassifierFreeGuidance,
    ClassifierGradient,
    ClassifierGuidance,
)
from repaint_jax.sampling.noise_levels import alphas_cumprod

KEY = jax.random.key(0)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SHAPE = (2, 4, 4, 3)


def labelled_model_fn(params, sample, timestep, class_labels):
    """Tell apart every argument: the params, the sample, the timestep and each image's label."""
    labels = jnp.asarray(class_labels, sample.dtype)
    labels = labels.reshape(labels.shape + (1,) * (sample.ndim - labels.ndim))
    return params * sample + 0.01 * jnp.asarray(timestep, sample.dtype) + labels


def random_sample(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


# Class labels


def test_class_labels_reach_the_model_beside_its_params():
    sample, labels = random_sample(), np.array([3, 5])
    model_fn = ClassConditional(labelled_model_fn)
    np.testing.assert_allclose(
        model_fn((2.0, labels), sample, 7), 2 * sample + 0.07 + labels.reshape(2, 1, 1, 1), atol=1e-6
    )
    np.testing.assert_allclose(model_fn((2.0, 3), sample[0], 7), 2 * sample[0] + 3.07, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("batched", [True, False])
def test_classifier_free_guidance_extrapolates_from_unconditional_to_conditional(guidance_scale, batched):
    sample, labels, null_labels = random_sample(), np.array([3, 5]), np.array([9, 9])
    if not batched:
        sample, labels, null_labels = sample[0], labels[0], null_labels[0]
    guided = ClassifierFreeGuidance(labelled_model_fn)(
        (2.0, labels, null_labels, guidance_scale), sample, 7
    )
    conditional = np.asarray(labelled_model_fn(2.0, sample, 7, labels), np.float64)
    unconditional = np.asarray(labelled_model_fn(2.0, sample, 7, null_labels), np.float64)
    expected = (1 - guidance_scale) * unconditional + guidance_scale * conditional
    np.testing.assert_allclose(guided, expected, atol=1e-5)


def test_classifier_free_guidance_leaves_the_conditional_variance():
    def model_fn(params, sample, timestep, label):
        return jnp.concatenate([sample + label, jnp.full_like(sample, 0.1) * label], axis=-1)

    guided = ClassifierFreeGuidance(model_fn)((None, 2, 5, 3.0), jnp.zeros((4, 4, 3)), 7)
    np.testing.assert_allclose(guided[..., :3], 5 + 3 * (2 - 5))
    np.testing.assert_allclose(guided[..., 3:], 0.2, rtol=1e-6)


# Gradients


@pytest.mark.parametrize("batched", [True, False])
def test_classifier_gradient_is_that_of_the_log_probability(batched):
    """For logits W x it is W[label] - sum_c p(c) W[c]."""
    rng = np.random.default_rng(0)
    weights, sample, labels = rng.standard_normal((5, 48)), random_sample(), np.array([3, 0])

    def classifier_fn(params, sample, timestep):
        return sample.reshape(*sample.shape[:-3], 48) @ params.T

    flat = sample.reshape(2, 48).astype(np.float64)
    probabilities = np.exp(flat @ weights.T)
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = (weights[labels] - probabilities @ weights).reshape(SHAPE)
    if not batched:
        sample, labels, expected = sample[0], labels[0], expected[0]
    params = jnp.asarray(weights, jnp.float32)
    gradient = ClassifierGradient(classifier_fn)((params, labels), jnp.asarray(sample), 5)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [0, 10, 500, 999])
def test_guided_prediction_is_that_of_the_conditional_gaussian(prediction_type: str, timestep: int):
    """Prior x0 ~ N(0, 1), y = x0 + N(0, 1/4): x0 given x_t and y is the Gaussian of two measurements."""
    config = rp.RePaintSchedulerConfig(prediction_type=prediction_type)
    a = alphas_cumprod(config.betas)[timestep]
    sample, y = random_sample().astype(np.float64), 0.7

    def prediction(x0: np.ndarray) -> np.ndarray:
        eps = (sample - a**0.5 * x0) / (1 - a) ** 0.5
        return {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0,
        }[prediction_type]

    # Precisions add: 1 of the prior, abar/(1 - abar) of x_t, 4 of y.
    precision = 1 / (1 - a)
    unconditional = a**0.5 / (1 - a) * sample / precision
    conditional = (a**0.5 / (1 - a) * sample + 4 * y) / (precision + 4)
    # y given x_t is N(E[x0 | x_t], Var[x0 | x_t] + 1/4), and E[x0 | x_t] is sqrt(abar) x_t.
    gradient = a**0.5 * (y - a**0.5 * sample) / (1 - a + 0.25)

    guided = ClassifierGuidance(
        lambda params, sample, timestep: jnp.asarray(params, jnp.float32),
        lambda params, sample, timestep: jnp.asarray(params, jnp.float32),
        config,
    )((prediction(unconditional), gradient, 1.0), jnp.asarray(sample, jnp.float32), jnp.int32(timestep))
    expected = prediction(conditional)
    np.testing.assert_allclose(guided, expected, atol=2e-5 * np.abs(expected).max())


def test_guidance_leaves_a_learned_variance():
    model_output = jnp.ones((4, 4, 6))
    guided = ClassifierGuidance(
        lambda params, sample, timestep: model_output,
        lambda params, sample, timestep: sample,
        rp.RePaintSchedulerConfig.paper(),
    )((None, None, 2.0), jnp.ones((4, 4, 3)), jnp.int32(500))
    np.testing.assert_array_equal(guided[..., 3:], 1)
    assert (np.asarray(guided[..., :3]) < 0).all()


def test_cond_fn_of_another_shape_is_refused():
    guidance = ClassifierGuidance(
        lambda params, sample, timestep: sample,
        lambda params, sample, timestep: sample.sum(),
        rp.RePaintSchedulerConfig(),
    )
    with pytest.raises(ValueError, match=r"cond_fn returned shape \(\), expected \(4, 4, 3\)"):
        guidance((None, None, 1.0), jnp.ones((4, 4, 3)), jnp.int32(5))


# In the chain

MEAN, STD = 0.6, 0.1


def signs(sample):
    """-1 and 1 on an axis behind the sample's."""
    return jnp.array([-1.0, 1.0]).reshape((1,) * sample.ndim + (2,))


def mixture_log_weights(sample, a):
    """log p(component) p(x_t | component), for x0 ~ N(+-MEAN, STD^2) with equal weights."""
    means = jnp.sqrt(a) * MEAN * signs(sample)
    return -((sample[..., None] - means) ** 2) / (2 * (a * STD**2 + 1 - a))


def mixture_model_fn(abar, sample, timestep):
    """The exact noise prediction for the mixture."""
    a = abar[timestep]
    weights = jax.nn.softmax(mixture_log_weights(sample, a))
    means = MEAN * signs(sample)
    gain = jnp.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
    x0 = (weights * (means + gain * (sample[..., None] - jnp.sqrt(a) * means))).sum(-1)
    return (sample - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)


def mixture_classifier_fn(abar, sample, timestep):
    """The exact logits of the component; one pixel per image."""
    return mixture_log_weights(sample, abar[timestep])[..., 0, 0, 0, :]


@pytest.fixture(scope="module")
def unmasked_state():
    return rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig(eta=1.0)), 100, 1, 1)


def test_exact_classifier_makes_the_chain_that_of_the_conditional_model(unmasked_state):
    """Guided by the exact p(component | x_t), the mixture's prediction is that of the one component."""
    abar = jnp.asarray(alphas_cumprod(unmasked_state.config.betas), jnp.float32)
    labels = jnp.arange(400) % 2
    image = jnp.zeros((400, 1, 1, 1))

    def component_model_fn(abar, sample, timestep):
        a = abar[timestep]
        mean = MEAN * jnp.where(labels == 1, 1.0, -1.0)[:, None, None, None]
        return (sample - jnp.sqrt(a) * mean) * jnp.sqrt(1 - a) / (a * STD**2 + 1 - a)

    def samples(model_fn, params) -> np.ndarray:
        return np.asarray(rp.inpaint(unmasked_state, model_fn, params, image, image, KEY)).ravel()

    gradient = ClassifierGradient(mixture_classifier_fn)
    model_fn = ClassifierGuidance(mixture_model_fn, gradient, unmasked_state.config)
    guided = samples(model_fn, (abar, (abar, labels), 1.0))
    np.testing.assert_allclose(guided, samples(component_model_fn, abar), atol=1e-3)
    assert ((guided > 0) == np.asarray(labels)).all()
    unguided = samples(model_fn, (abar, (abar, labels), 0.0))
    assert 0.4 < ((unguided > 0) == np.asarray(labels)).mean() < 0.6


def test_new_labels_scales_and_wrappers_compile_nothing_new(state):
    traces = 0

    def model_fn(params, sample, timestep, class_labels):
        nonlocal traces
        traces += 1
        return labelled_model_fn(params, sample, timestep, class_labels)

    image = jnp.zeros(SHAPE)
    for labels, scale in (([0, 1], 1.0), ([2, 3], 4.0)):
        params = (1.0, jnp.array(labels), jnp.array([9, 9]), scale)
        rp.inpaint(state, ClassifierFreeGuidance(model_fn), params, image, image, KEY)
    assert traces == 1
    assert ClassConditional(model_fn) == ClassConditional(model_fn)
    assert ClassConditional(model_fn) != ClassConditional(labelled_model_fn)


# In the pipeline


@pytest.fixture(scope="module")
def conditional_pipe(unet_config, random_unet) -> rp.RePaintPipeline:
    config = dataclasses.replace(unet_config, num_class_embeds=5)
    return rp.RePaintPipeline.from_unet2d(random_unet(config), rp.RePaintSchedulerConfig())


@pytest.fixture(scope="module")
def classifier(unet_config, random_unet) -> rp.models.UNet2DClassifier:
    config = dataclasses.replace(unet_config, out_channels=3, attention_head_dim=2, add_attention=True)
    return random_unet(config, rp.models.UNet2DClassifier)


def run(pipe, image, mask, num_images=1, **options):
    arguments = {"num_inference_steps": 4, "jump_length": 2, "jump_n_sample": 2, "key": KEY}
    pictures = np.broadcast_to(image, (num_images, *image.shape))
    return pipe(pictures, mask, **arguments | {"output_type": "np"} | options).images


def test_each_image_gets_its_label_and_each_label_its_picture(conditional_pipe, image, mask):
    keys = jnp.stack([KEY, KEY])
    both = run(conditional_pipe, image, mask, 2, class_labels=[1, 4], key=keys, num_samples=2)
    assert both.shape == (4, 8, 8, 1)
    for i, label in enumerate((1, 4)):
        one = run(conditional_pipe, image, mask, class_labels=label, key=keys[:1], num_samples=2)
        np.testing.assert_allclose(both[2 * i : 2 * i + 2], one, atol=1e-5)
    assert np.abs(both[0] - both[2]).max() > 1e-2


def test_classifier_free_guidance_of_scale_one_is_the_conditional_model(conditional_pipe, image, mask):
    plain = run(conditional_pipe, image, mask, class_labels=1)
    guided = run(conditional_pipe, image, mask, class_labels=1, null_label=4, guidance_scale=1.0)
    np.testing.assert_allclose(guided, plain, atol=1e-5)
    unguided = run(conditional_pipe, image, mask, class_labels=1, null_label=4, guidance_scale=0.0)
    np.testing.assert_allclose(unguided, run(conditional_pipe, image, mask, class_labels=4), atol=1e-5)


@pytest.mark.slow
def test_classifier_guides_conditional_and_unconditional_models(
    pipe, conditional_pipe, classifier, image, mask
):
    for plain in (pipe, conditional_pipe):
        labels = {} if plain is pipe else {"class_labels": 2}
        guided = plain.with_classifier(classifier)
        without = run(plain, image, mask, **labels)
        none = run(guided, image, mask, class_labels=2, guidance_scale=0.0)
        np.testing.assert_allclose(none, without, atol=1e-5)
        some = run(guided, image, mask, class_labels=2, guidance_scale=500.0)
        assert np.abs(some - without).max() > 1e-2


def test_a_classifier_of_other_pictures_is_refused(pipe, classifier):
    wider = dataclasses.replace(pipe, image_shape=(16, 16, 1))
    with pytest.raises(
        ValueError, match=r"classifier takes pictures of shape .*, expected the model's \(16, 16, 1\)"
    ):
        wider.with_classifier(classifier)


def test_the_digest_knows_the_classifier(pipe, classifier):
    assert pipe.with_classifier(classifier).digest() != pipe.digest()


def test_labels_are_refused_where_the_model_takes_embeddings(pipe, image, mask):
    config = dataclasses.replace(pipe.unet_config, class_embed_type="identity")
    embedded = dataclasses.replace(pipe, unet_config=config)
    with pytest.raises(ValueError, match=r"class_labels is 1, expected none: .* 'identity'"):
        run(embedded, image, mask, class_labels=1)


def test_cond_fn_guides_instead_of_the_classifier(pipe, classifier, image, mask):
    def towards(params, sample, timestep):
        return params - sample

    result = run(pipe, image, mask, cond_fn=towards, cond_params=1.0, guidance_scale=3.0)
    same = run(
        pipe.with_classifier(classifier),
        image,
        mask,
        cond_fn=towards,
        cond_params=1.0,
        guidance_scale=3.0,
    )
    np.testing.assert_array_equal(result, same)
    assert result[:, mask[..., 0] == 0].mean() > run(pipe, image, mask)[:, mask[..., 0] == 0].mean() + 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "class_labels is None, expected labels: the model is class-conditional"),
        ({"class_labels": 5}, "class_labels is 5, expected labels from 0 to 4"),
        ({"class_labels": -1}, "class_labels is -1, expected labels from 0 to 4"),
        (
            {"class_labels": [1, 2]},
            r"class_labels is \[1, 2\], expected an integer, or one for each of 1 images",
        ),
        ({"class_labels": 0.5}, "class_labels is 0.5, expected an integer"),
        ({"class_labels": 1, "null_label": 7}, "null_label is 7, expected labels from 0 to 4"),
        (
            {"class_labels": 1, "guidance_scale": 2.0},
            "guidance_scale is 2.0, but there is nothing to guide",
        ),
    ],
)
def test_labels_that_do_not_fit_a_conditional_model_are_refused(
    conditional_pipe, image, mask, options, message
):
    with pytest.raises(ValueError, match=message):
        run(conditional_pipe, image, mask, **options)


def test_labels_without_a_use_for_them_are_refused(pipe, classifier, image, mask):
    with pytest.raises(ValueError, match=r"class_labels is \[1\], but the model is not class-conditional"):
        run(pipe, image, mask, class_labels=1)
    guided = pipe.with_classifier(classifier)
    with pytest.raises(ValueError, match="class_labels is None, expected labels for the classifier"):
        run(guided, image, mask)
    with pytest.raises(ValueError, match="class_labels is 3, expected labels from 0 to 2"):
        run(guided, image, mask, class_labels=3)
    with pytest.raises(ValueError, match="null_label is 1, expected it only with a class-conditional"):
        run(guided, image, mask, class_labels=1, null_label=1)
