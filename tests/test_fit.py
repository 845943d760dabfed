"""Pictures of any size through the pipeline: fit="crop" and fit="native"."""

import io
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

import repaint_jax as rp

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (60, 80, 3), np.uint8)


def keep_all_but(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (80, 60)) -> Image.Image:
    mask = Image.new("L", size, 255)
    for box in boxes:
        mask.paste(0, box)
    return mask


MASK = keep_all_but((10, 10, 20, 18), (60, 40, 80, 60), (40, 30, 41, 31))


def run(pipe, image, mask, **options):
    given = {"num_model_calls": 8, "key": KEY, "fit": "crop"} | options
    return pipe(image, mask, **given)


@pytest.fixture(scope="module")
def pipe() -> rp.RePaintPipeline:
    """The exact model of independent standard Gaussian pixels, for pictures of 8 x 8, grey."""
    state = rp.create_state()
    noise_levels = jnp.sqrt(1 - jnp.asarray(state.alphas_cumprod, jnp.float32))
    return rp.RePaintPipeline(lambda levels, x, t: levels[t] * x, noise_levels, state, (8, 8, 1))


@pytest.fixture(scope="module")
def unet_pipe(model_folder) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


# Known pixels


@pytest.mark.parametrize(
    "boxes",
    [
        [(30, 20, 50, 40)],
        [(0, 0, 5, 5)],
        [(70, 25, 80, 35)],
        [(33, 44, 34, 45)],
        [(0, 0, 80, 60)],
        [(0, 30, 80, 32)],
        [(x, y, x + 2, y + 2) for x, y in RANDOM.integers(0, 58, (100, 2))],
    ],
    ids=["middle", "corner", "edge", "pixel", "all", "line", "100 holes"],
)
def test_pixels_outside_the_holes_stay_and_all_others_are_filled(pipe, boxes) -> None:
    photo = Image.fromarray(PHOTO[..., 0])
    mask = keep_all_but(*boxes)
    (picture,) = run(pipe, photo, mask).images
    known = np.asarray(mask) == 255
    assert (picture.size, picture.mode) == (photo.size, "L")
    np.testing.assert_array_equal(np.asarray(picture)[known], PHOTO[..., 0][known])
    assert (np.asarray(picture) != PHOTO[..., 0])[~known].mean() > 0.5


@pytest.mark.parametrize("size", [(5, 4), (3, 90), (1, 50), (50, 1), (1, 1), (8, 8), (9, 8)])
def test_pictures_of_any_size_are_filled(pipe, size) -> None:
    photo = Image.fromarray(RANDOM.integers(0, 256, size[::-1], np.uint8))
    mask = Image.new("L", size, 255)
    mask.putpixel((size[0] // 2, size[1] // 2), 0)
    (picture,) = run(pipe, photo, mask).images
    known = np.asarray(mask) == 255
    np.testing.assert_array_equal(np.asarray(picture)[known], np.asarray(photo)[known])


def test_without_a_hole_nothing_changes_and_nothing_is_computed(pipe) -> None:
    calls = []
    photo = Image.fromarray(PHOTO[..., 0])
    made = run(pipe, photo, keep_all_but(), progress=calls.append, preview_calls=[0])
    assert made.images[0].tobytes() == made.previews[0][0].tobytes() == photo.tobytes()
    assert calls == []


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "LA", "RGBA", "CMYK"])
def test_pictures_of_any_mode_are_filled(pipe, mode) -> None:
    photo = Image.fromarray(PHOTO)
    photo = photo.convert("RGB").quantize(16) if mode == "P" else photo.convert(mode)
    (picture,) = run(pipe, photo, MASK).images
    known = np.asarray(MASK) == 255
    (whole,) = run(pipe, photo, keep_all_but()).images
    np.testing.assert_array_equal(np.asarray(picture)[known], np.asarray(whole)[known])


def test_alpha_orientation_and_profile_are_those_of_the_picture(pipe) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo = Image.fromarray(PHOTO).convert("LA")
    photo.putalpha(Image.fromarray(PHOTO[..., 2]))
    photo.save(file, "PNG", exif=exif)
    turned = Image.open(file)
    (picture,) = run(pipe, turned, MASK.transpose(Image.Transpose.ROTATE_270), keep_alpha=True).images
    assert (picture.mode, picture.size) == ("LA", (60, 80))
    upright = Image.fromarray(PHOTO[..., 2]).transpose(Image.Transpose.ROTATE_270)
    assert picture.getchannel("A").tobytes() == upright.tobytes()


def test_soft_pixels_of_a_window_stay_near_what_is_there(pipe) -> None:
    photo = Image.fromarray(PHOTO[..., 0] // 2 + 64)
    soft = np.full((60, 80), 255, np.uint8)
    soft[20:30, 30:42] = 253  # known up to noise of .089 in [-1, 1], which is 11 levels
    (picture,) = run(pipe, photo, Image.fromarray(soft), soft_mask=True, num_model_calls=32).images
    difference = np.abs(np.asarray(picture).astype(int) - np.asarray(photo))
    assert (difference[soft == 255] == 0).all()
    assert 3 < difference[soft < 255].mean() < 20


def test_a_window_is_edited_from_what_is_there(pipe) -> None:
    photo = Image.fromarray(np.full((60, 80), 200, np.uint8))
    (picture,) = run(pipe, photo, MASK, strength=0.05, num_model_calls=32).images
    hole = np.asarray(MASK) == 0
    difference = np.abs(np.asarray(picture).astype(int) - 200)
    assert (difference[~hole] == 0).all()
    assert 0 < difference[hole].mean() < 30  # of about 80 if it were filled anew


def test_noise_around_windows_is_refused(pipe) -> None:
    with pytest.raises(ValueError, match=r"observation_noise is 0\.1, expected 0 with fit='crop'"):
        run(pipe, Image.fromarray(PHOTO[..., 0]), MASK, observation_noise=0.1)
    noisy = Image.fromarray(PHOTO[:16, :24, 0])
    mask = Image.new("L", (24, 16), 255)
    (picture,) = run(pipe, noisy, mask, observation_noise=0.1, fit="native").images
    assert (np.asarray(picture) != np.asarray(noisy)).mean() > 0.9


# Batches, arrays and keys


def test_a_result_depends_on_its_own_picture_and_key_alone(pipe) -> None:
    photos = [Image.fromarray(PHOTO[..., channel]) for channel in range(3)]
    masks = [MASK, keep_all_but((0, 0, 30, 30)), keep_all_but((50, 5, 55, 50))]
    keys = jax.random.split(KEY, 3)
    together = run(pipe, photos, masks, key=keys, num_samples=2).images
    for number in range(3):
        alone = run(pipe, [photos[number]], [masks[number]], key=keys[number : number + 1], num_samples=2)
        for one, other in zip(together[2 * number : 2 * number + 2], alone.images, strict=True):
            # Rounding differs with the number of rows.
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert together[0].tobytes() != together[1].tobytes()


def test_arrays_are_taken_and_returned(pipe) -> None:
    grey = PHOTO[..., :1]
    mask = np.asarray(MASK) == 255
    (picture,) = run(pipe, Image.fromarray(grey[..., 0]), MASK).images
    unit = run(pipe, grey[None], mask, output_type="np").images
    np.testing.assert_array_equal(np.round(unit[0, ..., 0] * 255), np.asarray(picture))
    floating = (grey / 127.5 - 1).astype(np.float32)
    floating[~mask] = np.nan
    results = run(pipe, floating, mask, output_type="jax").images
    assert isinstance(results, jax.Array)
    np.testing.assert_array_equal(results[0][mask], floating[mask])
    assert np.abs(np.asarray(results[0, ..., 0]) - (np.asarray(picture) / 127.5 - 1)).max() < 0.02


def test_pictures_of_two_sizes_come_back_as_pictures_and_not_as_one_array(pipe) -> None:
    photos = [Image.fromarray(PHOTO[:20, :30, 0]), Image.fromarray(PHOTO[..., 0])]
    masks = [keep_all_but((3, 3, 9, 9), size=(30, 20)), MASK]
    assert [one.size for one in run(pipe, photos, masks).images] == [(30, 20), (80, 60)]
    with pytest.raises(
        ValueError, match="image has pictures of 20 x 30 and of 60 x 80 pixels, expected one size"
    ):
        run(pipe, photos, masks, output_type="np")


# Watching


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([(10, 10, 20, 18), (60, 40, 80, 60)], id="two", marks=pytest.mark.slow),
        pytest.param([(0, 30, 80, 32)], id="line"),
    ],
)
def test_watching_ends_with_the_result_after_the_calls_of_all_windows(pipe, boxes) -> None:
    photo, mask = Image.fromarray(PHOTO[..., 0]), keep_all_but(*boxes)
    calls = []
    made = run(pipe, photo, mask, progress=calls.append, preview_calls=[2, 7])
    watched = list(pipe.watch(photo, mask, num_model_calls=8, key=KEY, fit="crop"))
    assert [one.calls_done for one in watched] == sorted(set(calls)) == list(range(1, len(watched) + 1))
    assert {one.num_model_calls for one in watched} == {len(watched)}
    assert len(watched) == 8 * (1 if len(boxes) == 2 else 2)
    assert watched[-1].images[0].tobytes() == made.images[0].tobytes()
    assert made.previews[1][0].tobytes() != made.previews[0][0].tobytes() != photo.tobytes()


# Exact


def test_a_window_of_an_exact_model_samples_the_posterior_given_what_it_shows() -> None:
    # The prior is a Gaussian field on 24 x 24 pixels, and the model's the same field on 8 x 8.
    grid = np.array(list(itertools.product(range(24), range(24))))
    covariance = 0.1 * np.exp(-np.linalg.norm(grid[:, None] - grid[None], axis=-1) / 6)
    of_model = covariance[np.ix_(*[[24 * row + column for row in range(8) for column in range(8)]] * 2)]
    values, vectors = map(jnp.asarray, np.linalg.eigh(of_model))
    vectors = vectors.astype(jnp.float32)

    def denoiser(params, x, sigma):
        # The matrix that shrinks x along the covariance's axes.
        shrink = vectors @ jnp.diag(values / (values + sigma**2)) @ vectors.T
        return (x.reshape(-1, 64) @ shrink.astype(x.dtype)).reshape(x.shape)

    config = rp.RePaintSchedulerConfig(prediction_type="sample", clip_sample=False)
    model_fn = rp.denoiser_model_fn(denoiser, config)
    pipe = rp.RePaintPipeline(model_fn, None, rp.create_state(config), (8, 8, 1))
    field = np.linalg.cholesky(covariance + 1e-9 * np.eye(576)) @ np.random.default_rng(1).normal(size=576)
    hole = np.zeros((24, 24), bool)
    hole[10:14, 9:13] = True
    image = field.reshape(24, 24, 1).astype(np.float32)
    made = pipe(
        image, ~hole, num_model_calls=64, key=KEY, fit="crop", num_samples=400, output_type="jax"
    ).images
    samples = np.asarray(made)[:, hole, 0]

    inside = hole.ravel()
    gain = covariance[np.ix_(inside, ~inside)] @ np.linalg.inv(covariance[np.ix_(~inside, ~inside)])
    mean = gain @ field[~inside]
    spread = covariance[np.ix_(inside, inside)] - gain @ covariance[np.ix_(~inside, inside)]
    assert ((samples.mean(0) - mean) ** 2).sum() < 0.02 * np.trace(spread)
    np.testing.assert_allclose(np.trace(np.cov(samples.T)), np.trace(spread), rtol=0.1)


# The network at the picture's own size


@pytest.mark.slow
def test_native_runs_the_network_at_the_pictures_size(unet_pipe) -> None:
    photo = Image.fromarray(PHOTO[:13, :21, 0])
    mask = keep_all_but((3, 3, 9, 9), size=(21, 13))
    (picture,) = run(unet_pipe, photo, mask, fit="native").images
    assert picture.size == (21, 13)
    known = np.asarray(mask) == 255
    np.testing.assert_array_equal(np.asarray(picture)[known], np.asarray(photo)[known])
    # A picture whose sides fit is what the loop makes of it.
    image = (PHOTO[:16, :24, :1] / 127.5 - 1).astype(np.float32)
    hole = np.ones((16, 24, 1), np.float32)
    hole[3:9, 3:9] = 0
    own = run(unet_pipe, image, hole[..., 0], fit="native", output_type="jax", input_range=(-1, 1)).images
    state = rp.set_timesteps_for_budget(unet_pipe.state, 8)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), 0)
    expected = rp.inpaint(
        state, unet_pipe.model_fn, unet_pipe.params, jnp.asarray(image), jnp.asarray(hole), key
    )
    np.testing.assert_allclose(own[0], expected, atol=1e-5)


def test_a_picture_for_which_there_is_no_memory_is_refused_beforehand(pipe, monkeypatch) -> None:
    monkeypatch.setattr("repaint_jax.pipeline.memory_of_device", lambda device: 1000)
    photo = Image.fromarray(PHOTO[..., 0])
    with pytest.raises(MemoryError, match=r"image is of 60 x 80 pixels, for which the network needs .* GB"):
        run(pipe, photo, MASK, fit="native")


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "cut"}, "fit is 'cut', expected one of exact, resize, crop, native"),
        ({"fit": "crop", "resize": True}, "resize is True and fit is 'crop', expected one of the two"),
        ({"context": -0.5}, "context is -0.5, expected a number from 0 on"),
        ({"context": float("nan")}, "context is nan, expected a number from 0 on"),
        ({"context": "wide"}, "context is 'wide', expected a number"),
        ({"context": True}, "context is True, expected a number"),
    ],
)
def test_wrong_options_are_named(pipe, options, words) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        run(pipe, Image.fromarray(PHOTO[..., 0]), MASK, **options)
    with pytest.raises((TypeError, ValueError), match=words):
        pipe.watch(Image.fromarray(PHOTO[..., 0]), MASK, key=KEY, **{"fit": "crop"} | options)


def test_a_mask_of_another_size_is_refused(pipe) -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(30, 40, 1\), expected \(60, 80, 1\)"):
        run(pipe, Image.fromarray(PHOTO[..., 0]), MASK.resize((40, 30)))


def test_sizes_of_native_pictures_differ(pipe) -> None:
    photos = [Image.fromarray(PHOTO[:20, :30, 0]), Image.fromarray(PHOTO[..., 0])]
    masks = [keep_all_but((3, 3, 9, 9), size=(30, 20)), MASK]
    with warnings.catch_warnings(), pytest.raises(ValueError, match="expected one size with fit='native'"):
        run(pipe, photos, masks, fit="native")
