"""check_model passes ideal models of every family, and finds those of another convention."""

import dataclasses
from functools import partial

import ideal_networks as ideal
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp
from repaint_jax.models.families import Flow
from repaint_jax.models.pretrained import pictures_of_model
from repaint_jax.pictures.images import image_to_array, open_image

KEY = jax.random.key(0)
SIZE = 64
MEAN = np.full(SIZE, 0.1)
DISTANCE = np.abs(np.arange(SIZE)[:, None] - np.arange(SIZE))
KINDS = ("sample", "epsilon", "v_prediction")


def prior(correlations):
    """An ideal denoiser, and an image of its prior."""
    image = np.random.default_rng(0).multivariate_normal(MEAN, 0.1 * correlations)
    denoise = ideal.mixture_denoiser(np.ones(1), MEAN[None], 0.1 * correlations[None])
    return denoise, jnp.asarray(np.clip(image, -1, 1), jnp.float32)


ROUGH, SMOOTH = prior(np.exp(-DISTANCE / 4)), prior(np.exp(-((DISTANCE / 60) ** 2)))


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("declared", KINDS)
@pytest.mark.parametrize("predicted", KINDS)
def test_a_prediction_of_another_kind_is_found(predicted, declared, clip_sample):
    config = rp.RePaintSchedulerConfig(prediction_type=declared, clip_sample=clip_sample)
    denoise, image = SMOOTH
    model_fn = partial(ideal.in_ddpm_terms, denoise, predicted, tuple(config.betas))
    if predicted == declared:
        return rp.check_model(model_fn, None, config, image, KEY)
    with pytest.raises(ValueError, match=r"model_fn predicts .*, sigma = .*, expected"):
        rp.check_model(model_fn, None, config, image, KEY)
    return None


def test_in_rough_images_a_clean_image_that_is_declared_as_v_is_not_found():
    config = rp.RePaintSchedulerConfig(prediction_type="v_prediction", clip_sample=False)
    denoise, image = ROUGH
    model_fn = partial(ideal.in_ddpm_terms, denoise, "sample", tuple(config.betas))
    rp.check_model(model_fn, None, config, image, KEY)


@pytest.mark.slow
def test_a_trained_network_passes_and_another_kind_is_found_on_every_picture():
    pipe = rp.RePaintPipeline.from_pretrained("bundled")
    config = pipe.state.config  # its prediction_type is "v_prediction"

    def clean(params, sample, timestep):
        signal, noise, _ = ideal.levels_of(config.betas, sample, timestep)
        return signal * sample - noise * pipe.model_fn(params, sample, timestep)

    for path in pictures_of_model("bundled"):
        picture = jnp.asarray(image_to_array(open_image(path), pipe.image_shape))
        rp.check_model(pipe.model_fn, pipe.params, config, picture, KEY)
        other = dataclasses.replace(config, prediction_type="epsilon")
        with pytest.raises(ValueError, match="prediction_type is 'epsilon': is that what it predicts"):
            rp.check_model(pipe.model_fn, pipe.params, other, picture, KEY)
        with pytest.raises(ValueError, match=r"expected .* as with prediction_type='sample'"):
            rp.check_model(clean, pipe.params, config, picture, KEY)


def test_a_flow_of_another_convention_is_found():
    config = rp.RePaintSchedulerConfig.flow()
    denoise, image = ROUGH
    velocity, to_data = partial(ideal.velocity, denoise), partial(ideal.velocity_to_data, denoise)
    wrong = {
        "its sign": rp.flow_model_fn(lambda params, x, t: -velocity(params, x, t), config),
        "its time": rp.flow_model_fn(lambda params, x, t: velocity(params, x, 1 - t), config),
        "its data's end": rp.flow_model_fn(to_data, config),
        "its data's end, too": rp.flow_model_fn(velocity, config, data_at=1),
        "a score": rp.denoiser_model_fn(partial(ideal.ve_score, denoise), config),
    }
    for model_fn in wrong.values():
        with pytest.raises(ValueError, match=r"model_fn predicts .*, sigma = .*, expected"):
            rp.check_model(model_fn, None, config, image, KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_fn": None}, "model_fn is a NoneType, expected a function"),
        (
            {"config": Flow()},
            "config is Flow(num_train_timesteps=1000, shift=1.0), expected a RePaintSched",
        ),
        ({"config": None}, "config is None, expected a RePaintSchedulerConfig"),
        ({"config": {"eta": 0}}, "config is {'eta': 0}, expected a RePaintSchedulerConfig"),
        (
            {"image": np.zeros((0, 8, 1), np.float32)},
            "image has shape (0, 8, 1), expected at least one pix",
        ),
        (
            {"image": np.float32([0, np.nan])},
            "image has values that are not finite, expected a clean image",
        ),
        (
            {"image": jnp.array([0, jnp.inf], jnp.bfloat16)},
            "image has values that are not finite, expected",
        ),
        ({"image": np.zeros((8, 8, 1), np.uint8)}, "image has dtype uint8, expected a floating dtype"),
        ({"image": [0.0]}, "image is a list, expected a floating array"),
        ({"key": None}, "key is None, expected a key such as jax.random.key(0)"),
        ({"key": 0}, "key is 0, expected a key such as jax.random.key(0)"),
        ({"key": jnp.zeros(2)}, "key has dtype float32, expected a key such as jax.random.key(0)"),
        (
            {"key": np.zeros(5, np.uint32)},
            "key has shape (5,) and dtype uint32, expected a key such as jax",
        ),
        ({"key": jax.random.split(KEY, 3)}, "key is a vector of 3 keys, expected a single key"),
        (
            {"model_fn": lambda params, sample, timestep: sample / 0},
            "model_fn returns values that are not finite at timestep 0, sigma = 0.01, expected a finite ou",
        ),
        (
            {"model_fn": lambda params, sample, timestep: sample[:3]},
            "model_output has shape (3,), expected (64,)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(changes, message):
    arguments = {"model_fn": lambda params, sample, timestep: sample, "params": None, "key": KEY}
    arguments |= {"config": rp.RePaintSchedulerConfig(), "image": ROUGH[1]}
    with pytest.raises((TypeError, ValueError)) as error:
        rp.check_model(**arguments | changes)
    assert str(error.value).startswith(message) and len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_every_family_passes():
    denoise, image = ROUGH
    for family in ideal.families(denoise).values():
        config, model_fn = ideal.config_and_model_fn(family, rp.RePaintSchedulerConfig.flow())
        rp.check_model(model_fn, None, config, image, KEY)
