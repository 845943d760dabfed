"""What pipelines, folders and commands know of pictures: noise, soft masks, the content of the hole.

tests/sampling/test_observation_noise.py compares samples with posteriors. Here the ideal denoiser of a
Gaussian prior proves the meaning of a soft mask, and the tiny model that every way in leads to one chain.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.sampling.noisy_pixels import noise_of_mask

KEY = jax.random.key(0)
CALLS = {"num_model_calls": 8, "key": KEY, "output_type": "jax"}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture(scope="module")
def keep() -> np.ndarray:
    """1 at the left, 0 at the right."""
    return np.repeat([[1.0] * 4 + [0.0] * 4], 8, axis=0).astype(np.float32)


@pytest.fixture(scope="module")
def soft() -> np.ndarray:
    """From 1 at the left to 0 at the right."""
    return np.repeat([[1.0, 1.0, 0.99, 0.9, 0.5, 0.1, 0.0, 0.0]], 8, axis=0).astype(np.float32)


def in_range(pixels: np.ndarray) -> np.ndarray:
    return (pixels / 127.5 - 1).astype(np.float32)[..., None]


def by_hand(pipe, image, mask, noise, strength=1.0):
    """The same chain with `inpaint`, for a single picture [H, W, 1]."""
    state = rp.set_timesteps_for_budget(pipe.state, 8, strength=strength)
    keys = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)[None]
    arguments = jnp.asarray(image)[None], jnp.asarray(mask)[None], keys
    return rp.inpaint(state, pipe.model_fn, pipe.params, *arguments, observation_noise=noise)


# The meaning of a soft mask


def test_the_noise_of_a_mask_is_that_of_the_level_with_its_abar():
    mask = np.array([1.0, 0.99, 0.5, 0.0]).reshape(2, 2, 1)
    known, noise = noise_of_mask(mask, 0.0)
    np.testing.assert_array_equal(known.ravel(), [1, 1, 1, 0])
    np.testing.assert_allclose(1 / (1 + noise.ravel()[:3] ** 2), mask.ravel()[:3], rtol=1e-5)
    _, both = noise_of_mask(mask, 0.2)
    np.testing.assert_allclose(both**2, noise**2 + 0.04, rtol=1e-5)
    known, noise = noise_of_mask(np.round(mask), 0.2)
    assert noise == 0.2
    np.testing.assert_array_equal(known, np.round(mask))


@pytest.mark.slow
def test_a_soft_mask_draws_from_the_posterior_of_its_noise():
    """2 x 4 pixels of a Gaussian prior, with its ideal denoiser as the model."""
    places = np.stack(np.meshgrid(np.arange(2), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    mean, cov = np.full(8, 0.1), 0.16 * np.exp(-distances / 4)
    image = np.array([[0.3, 0.5, -0.2, 0.9], [0.0, 0.4, -0.3, 0.9]])
    soft = np.array([[1.0, 0.9, 0.5, 0.0], [0.99, 0.75, 0.2, 0.0]])
    state = rp.create_state(rp.RePaintSchedulerConfig(clip_sample=False))
    weight, bias = reference.epsilon_denoiser(mean, cov, reference.alphas_cumprod(state.config.betas))
    params = jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)

    def ideal(params, sample, timestep):
        weight, bias = params
        eps = jnp.matmul(sample.reshape(-1, 8), weight[timestep].T, precision="highest")
        return (eps + bias[timestep][None]).reshape(sample.shape)

    pipe = rp.RePaintPipeline(ideal, params, state, (2, 4, 1))
    images = np.broadcast_to(image[..., None], (1500, 2, 4, 1))
    options = {"num_model_calls": 64, "key": KEY, "output_type": "jax"}
    samples = np.asarray(pipe(images, soft, soft_mask=True, **options).images).reshape(-1, 8)
    with np.errstate(divide="ignore"):
        noise = np.sqrt((1 - soft.ravel()) / soft.ravel())
    free = noise > 0
    posterior = reference.observed_posterior(mean, cov, image.ravel(), noise)
    moments = posterior[0][free], posterior[1][np.ix_(free, free)]
    limit = reference.gaussian_misfit_limit(free.sum())
    assert reference.gaussian_misfit(samples[:, free], *moments) < limit
    np.testing.assert_array_equal(samples[:, ~free], np.float32(image.ravel()[~free])[None].repeat(1500, 0))
    rounded = np.asarray(pipe(images, soft, **options).images).reshape(-1, 8)
    assert np.all(np.ptp(rounded[:, soft.ravel() >= 0.5], axis=0) == 0)


# Every way in leads to the same chain


def test_the_pipeline_runs_the_chain_of_inpaint(pipe, pixels, keep, soft):
    image, mask = in_range(pixels), keep[..., None]
    noisy = pipe(pixels, keep, observation_noise=0.2, **CALLS).images
    np.testing.assert_allclose(noisy, by_hand(pipe, image, mask, 0.2), atol=1e-5)
    assert np.abs(np.asarray(noisy)[0] - image)[mask == 1].max() > 0.01

    known, noise = noise_of_mask(soft[..., None], 0.0)
    softly = pipe(pixels, soft, soft_mask=True, **CALLS).images
    np.testing.assert_allclose(softly, by_hand(pipe, image, known, noise[None]), atol=1e-5)
    as_picture = Image.fromarray((soft * 255).round().astype(np.uint8))
    near = pipe(pixels, as_picture, soft_mask=True, **CALLS).images
    np.testing.assert_allclose(near, softly, atol=0.2)  # a picture's mask has 256 levels

    edited = pipe(pixels, keep, strength=0.3, **CALLS).images
    np.testing.assert_allclose(edited, by_hand(pipe, image, mask, 0.0, 0.3), atol=1e-5)
    np.testing.assert_allclose(np.asarray(edited)[0][mask == 1], image[mask == 1], atol=1e-7)
    state = pipe.set_timesteps(num_model_calls=8, strength=0.3)
    options = {name: value for name, value in CALLS.items() if name != "num_model_calls"}
    np.testing.assert_array_equal(pipe(pixels, keep, state=state, **options).images, edited)


@pytest.mark.slow
def test_rows_of_a_batch_have_their_own_noise(pipe, pixels, keep, soft):
    options = {**CALLS, "soft_mask": True, "observation_noise": 0.1, "strength": 0.6}
    both = pipe([pixels, pixels], [soft, keep], num_samples=2, **options).images
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(2)])
    for i, mask in enumerate((soft, keep)):
        alone = pipe(pixels, mask, num_samples=2, **options | {"key": keys[i : i + 1]}).images
        np.testing.assert_allclose(alone, both[2 * i : 2 * i + 2], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"soft_mask": True}, {"observation_noise": 0.2}, {"strength": 0.4}], ids=str
)
def test_the_last_watched_picture_is_the_result(pipe, pixels, soft, options):
    *_, last = pipe.watch(pixels, soft, **CALLS, **options)
    np.testing.assert_allclose(last.images, pipe(pixels, soft, **CALLS, **options).images, atol=1e-6)


@pytest.mark.slow
def test_folders_and_commands_have_the_result_of_the_pipeline(pipe, model_folder, pixels, soft, tmp_path):
    grey = (soft * 255).round().astype(np.uint8)
    for kind, array in (("images", pixels), ("masks", grey)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "one.png")
    paths = [str(tmp_path / kind / "one.png") for kind in ("images", "masks")]
    output = tmp_path / "by_command.png"
    words = ["--soft-mask", "--observation-noise", "0.1", "--strength", "0.5", "--model-calls", "8"]
    assert main(["inpaint", *paths, "-o", str(output), "--model", str(model_folder), *words]) == 0
    options = {"soft_mask": True, "observation_noise": 0.1, "strength": 0.5, "num_model_calls": 8}
    (picture,) = pipe(*map(Image.open, paths), key=jax.random.key(0), **options).images
    assert np.abs(np.asarray(Image.open(output), int) - np.asarray(picture, int)).max() <= 1

    folders = [str(tmp_path / name) for name in ("images", "masks", "by_folder")]
    assert main(["folder", *folders, "--model", str(model_folder), "--batch-size", "2", *words]) == 0
    results = [np.asarray(Image.open(tmp_path / "by_folder" / "one.png"), int)]
    schedule = {"num_model_calls": 8, "strength": 0.5}
    for name, observed in (
        ("same", {"soft_mask": True, "observation_noise": 0.1}),
        ("exact", {}),
    ):
        inpaint_folder(pipe, *folders[:2], tmp_path / name, schedule=schedule, batch_size=2, **observed)
        results.append(np.asarray(Image.open(tmp_path / name / "one.png"), int))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert np.abs(results[0] - results[2]).max() > 1


@pytest.mark.slow
def test_a_chain_that_was_stopped_goes_on_with_its_noise(pipe, pixels, soft, tmp_path):
    for kind, array in (("images", pixels), ("masks", (soft * 255).round().astype(np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "one.png")
    folders = tmp_path / "images", tmp_path / "masks"
    options = {"schedule": {"num_model_calls": 8, "strength": 0.5}, "soft_mask": True, "batch_size": 1}
    inpaint_folder(pipe, *folders, tmp_path / "once", **options)
    inpaint_folder(pipe, *folders, tmp_path / "often", checkpoint_every=3, **options)
    once, often = (np.asarray(Image.open(tmp_path / name / "one.png")) for name in ("once", "often"))
    np.testing.assert_array_equal(once, often)


# What pictures may hold


def test_noisy_arrays_may_leave_the_range_and_must_be_finite(pipe, pixels, keep):
    noisy = in_range(pixels) + 0.5
    with pytest.raises(ValueError, match=r"image has values that are not in \[-1, 1\]"):
        pipe(noisy, keep, **CALLS)
    by_pipe = pipe(noisy, keep, observation_noise=0.5, **CALLS).images
    np.testing.assert_allclose(by_pipe, by_hand(pipe, noisy, keep[..., None], 0.5), atol=1e-5)
    unit = pipe(noisy / 2 + 0.5, keep, observation_noise=0.5, input_range=(0, 1), **CALLS).images
    np.testing.assert_allclose(unit, by_pipe, atol=1e-4)
    noisy[0, 0] = np.inf
    with pytest.raises(ValueError, match="image has values that are not finite: inf in row 0, column 0"):
        pipe(noisy, keep, observation_noise=0.5, **CALLS)


def test_the_content_of_the_hole_must_be_finite_where_the_chain_starts_from_it(pipe, pixels, keep):
    image = in_range(pixels)
    image[0, 7] = np.nan
    pipe(image, keep, **CALLS)
    with pytest.raises(ValueError, match=r"image has values that are not in \[-1, 1\]: nan in row 0, col"):
        pipe(image, keep, strength=0.5, **CALLS)


def test_soft_masks_are_resized_without_a_trace_of_the_hole(pipe, soft):
    grey = Image.fromarray((soft * 255).round().astype(np.uint8)).resize((16, 16), Image.Resampling.NEAREST)
    hole = np.asarray(grey) == 0
    how = {**CALLS, "soft_mask": True, "resize": True}
    pictures = [Image.fromarray(np.where(hole, content, 90).astype(np.uint8)) for content in (0, 255)]
    results = [pipe(picture, grey, **how).images for picture in pictures]
    np.testing.assert_array_equal(*results)
    deviation = np.abs(np.asarray(results[0])[0, ..., 0] - (90 / 127.5 - 1))
    assert np.all(deviation[:, 0] < 1e-6) and np.all(deviation[:, 3:].max(0) > 0.01)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"soft_mask": 1}, TypeError, "soft_mask is 1, expected True or False"),
        ({"soft_mask": "yes"}, TypeError, "soft_mask is 'yes', expected True or False"),
        ({"observation_noise": -1}, ValueError, "observation_noise is -1, expected a finite number of at"),
        ({"observation_noise": "1"}, TypeError, "observation_noise is '1', expected a number of at least"),
        ({"strength": 0}, ValueError, "strength is 0, expected a number above 0 and at most 1"),
        ({"strength": "1"}, TypeError, "strength is '1', expected a number above 0 and at most 1"),
    ],
)
def test_options_that_are_none(pipe, pixels, keep, options, error, message):
    with pytest.raises(error, match=message):
        pipe(pixels, keep, **CALLS, **options)


def test_a_state_has_its_own_strength(pipe, pixels, keep):
    state = pipe.set_timesteps(num_model_calls=8)
    with pytest.raises(ValueError, match="state is given together with arguments of a schedule"):
        pipe(pixels, keep, state=state, strength=0.5, key=KEY)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "2"], "strength is 2.0, expected a number above 0 and at most 1"),
        (["--observation-noise", "-1"], "observation-noise is -1.0, expected a finite number"),
        (
            ["--strength", "0.5", "--compare", "8", "16"],
            "expected it without --preview and without another schedule",
        ),
    ],
)
def test_commands_refuse_in_one_sentence(model_folder, pixels, tmp_path, capsys, words, message):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    paths = [str(tmp_path / "image.png"), "half", "-o", str(tmp_path / "out.png")]
    assert main(["inpaint", *paths, "--model", str(model_folder), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
