"""RePaintPipeline: pictures in, pictures out, for the tiny model of 8x8 grey pixels."""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path

import icc_profiles as profiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import ExifTags, Image
from safetensors.numpy import load_file, save_file

import repaint_jax as rp
from repaint_jax.models.pretrained import save_pretrained

KEY = jax.random.key(0)
SCHEDULE = {"num_inference_steps": 4, "jump_length": 2, "jump_n_sample": 2}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """A picture whose bytes are all different."""
    return np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


@pytest.fixture(scope="module")
def keep() -> np.ndarray:
    """White over the left half."""
    return np.repeat(np.array([[255] * 4 + [0] * 4], np.uint8), 8, axis=0)


def run(pipe, image, mask, key=KEY, **options):
    return pipe(image, mask, **SCHEDULE | {"key": key} | options).images


@pytest.fixture(scope="module")
def result(pipe, pixels, keep) -> np.ndarray:
    """What one key makes of the picture, in [-1, 1]."""
    return np.asarray(run(pipe, pixels, keep, output_type="jax"))


# Loading


def test_loaded_pipeline_has_a_model_its_params_and_a_scheduler_without_schedule(pipe):
    assert pipe.image_shape == (8, 8, 1)
    assert pipe.state.config == rp.RePaintSchedulerConfig()
    assert pipe.state.timesteps is None
    output = jax.eval_shape(pipe.model_fn, pipe.params, jnp.zeros((8, 8, 1)), jnp.int32(5))
    assert output.shape == (8, 8, 1)


def test_flat_folder_and_strings_load_too(model_folder: Path, tmp_path: Path):
    shutil.copytree(model_folder / "unet", tmp_path, dirs_exist_ok=True)
    shutil.copytree(model_folder / "scheduler", tmp_path, dirs_exist_ok=True)
    assert rp.RePaintPipeline.from_pretrained(str(tmp_path)).image_shape == (8, 8, 1)


def test_dtype_of_the_parameters_can_be_chosen(model_folder: Path):
    params = rp.RePaintPipeline.from_pretrained(model_folder, dtype=jnp.bfloat16).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_saved_folder_names_the_classes_of_diffusers(model_folder: Path):
    index = json.loads((model_folder / "model_index.json").read_text())
    assert index["_class_name"] == "RePaintPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "RePaintScheduler"]


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_part_of_a_pipeline_is_named(model_folder: Path, tmp_path: Path, missing: str):
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"has neither {missing} nor")):
        rp.RePaintPipeline.from_pretrained(tmp_path)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist, expected a folder here"):
        rp.RePaintPipeline.from_pretrained(tmp_path / "nowhere")


def test_model_without_a_size_is_refused(unet):
    module = nnx.clone(unet)
    module.config = dataclasses.replace(unet.config, sample_size=None)
    with pytest.raises(ValueError, match="sample_size, expected its height and width"):
        rp.RePaintPipeline.from_unet2d(module, rp.RePaintSchedulerConfig())


# Pictures in and out


def test_picture_comes_back_with_its_white_part_kept_exactly(pipe, pixels, keep, result):
    (picture,) = run(pipe, Image.fromarray(pixels), Image.fromarray(keep))
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == ("L", (8, 8))
    out = np.asarray(picture)
    np.testing.assert_array_equal(out[keep == 255], pixels[keep == 255])
    np.testing.assert_array_equal(out, np.round(np.clip((result[0, ..., 0] + 1) * 127.5, 0, 255)))
    assert (out != pixels)[keep == 0].mean() > 0.5


@pytest.mark.parametrize("as_mask", [lambda m: m, lambda m: m == 255, lambda m: (m / 255)[..., None]])
@pytest.mark.parametrize("as_image", [Image.fromarray, lambda p: p / 127.5 - 1, lambda p: [p[..., None]]])
def test_every_kind_of_picture_and_mask_gives_the_same(pipe, pixels, keep, result, as_image, as_mask):
    same = run(pipe, as_image(pixels), as_mask(keep), output_type="jax")
    np.testing.assert_allclose(same, result, atol=1e-5)


def test_output_types_are_pictures_values_from_0_to_1_and_the_model_s_own(pipe, pixels, keep, result):
    assert result.shape == (1, 8, 8, 1)
    values = run(pipe, pixels, keep, output_type="np")
    assert isinstance(values, np.ndarray)
    assert (values.min() >= 0) & (values.max() <= 1)
    np.testing.assert_allclose(values, np.clip(result / 2 + 0.5, 0, 1), atol=1e-6)
    assert isinstance(run(pipe, pixels, keep, output_type="jax"), jax.Array)


def test_lists_and_batches_of_pictures_take_one_mask_or_one_each(pipe, pixels, keep):
    keys, pictures = jax.random.split(KEY, 2), [pixels, pixels[::-1]]
    one_mask = run(pipe, [Image.fromarray(each) for each in pictures], keep, keys, output_type="jax")
    mask_each = run(pipe, np.stack(pictures)[..., None], [keep, keep], keys, output_type="jax")
    assert one_mask.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(one_mask, mask_each)


def test_samples_of_an_image_differ_and_follow_one_another(pipe, pixels, keep, result):
    samples = np.asarray(run(pipe, [pixels, pixels], keep, num_samples=2, output_type="jax"))
    assert samples.shape == (4, 8, 8, 1)
    for sample in samples:
        np.testing.assert_array_equal(sample[:, :4], result[0][:, :4])
    holes = samples[:, :, 4:].reshape(4, -1)
    assert all(np.abs(holes[i] - holes[j]).max() > 0.01 for i in range(4) for j in range(i))
    np.testing.assert_allclose(samples[0], result[0], atol=1e-5, err_msg="the first sample is that of one")


def test_an_image_depends_on_its_own_key_alone(pipe, pixels, keep):
    keys = jax.random.split(KEY, 2)
    both = run(pipe, [pixels, pixels[::-1]], keep, keys, output_type="jax")
    swapped = run(pipe, [pixels[::-1], pixels], keep, keys[::-1], output_type="jax")
    np.testing.assert_allclose(both, swapped[::-1], atol=1e-5)
    alone = run(pipe, pixels, keep, keys[:1], output_type="jax")
    np.testing.assert_allclose(alone[0], both[0], atol=1e-5)


def test_equal_keys_give_equal_pictures_and_other_keys_others(pipe, pixels, keep, result):
    np.testing.assert_array_equal(run(pipe, pixels, keep, output_type="jax"), result)
    old_style = run(pipe, pixels, keep, jax.random.PRNGKey(0), output_type="jax")
    np.testing.assert_array_equal(old_style, result)
    other = run(pipe, pixels, keep, jax.random.key(1), output_type="jax")
    assert np.abs(other - result).max() > 0.01


def test_eta_is_that_of_the_call(pipe, pixels, keep, result):
    noisy = run(pipe, pixels, keep, eta=1.0, output_type="jax")
    assert np.abs(noisy - result).max() > 0.001
    assert pipe.state.config.eta == 0


def test_progress_is_told_each_model_call(pipe, pixels, keep):
    calls = []
    run(pipe, pixels, keep, progress=lambda done: calls.append(int(done)))
    jax.effects_barrier()
    assert sorted(calls) == [1, 2, 3, 4, 5, 6]


def test_model_for_colour_takes_grey_and_transparent_pictures(
    unet_config, random_unet, tmp_path: Path, keep
):
    config = dataclasses.replace(unet_config, in_channels=3, out_channels=3, sample_size=(4, 8))
    save_pretrained(tmp_path, random_unet(config), rp.RePaintSchedulerConfig(), np.float32)
    pipe = rp.RePaintPipeline.from_pretrained(tmp_path)
    assert pipe.image_shape == (4, 8, 3)
    modes = ("RGB", "L", "RGBA", "LA")
    pictures = run(pipe, [Image.new("RGB", (8, 4), "grey").convert(mode) for mode in modes], keep[:4])
    for picture in pictures:
        assert (picture.mode, picture.size) == ("RGB", (8, 4))
        np.testing.assert_array_equal(np.asarray(picture)[:, :4], 128)


def test_what_is_under_the_hole_does_not_matter(pipe, pixels, keep, result):
    image = np.where(keep == 255, pixels / 127.5 - 1, np.nan)
    for hidden in (np.nan, np.inf, -7e300, 0.3):
        image[keep == 0] = hidden
        image[0, 7] = np.nan
        np.testing.assert_allclose(run(pipe, image, keep, output_type="jax"), result, atol=1e-5)
    *_, last = pipe.watch(image, keep, **SCHEDULE, key=KEY, output_type="jax")
    np.testing.assert_allclose(last.images, result, atol=1e-5)
    image[2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"image has values that are not in \[-1, 1\]: nan in row 2, column 3"
    ):
        run(pipe, image, keep)


def test_results_in_np_go_back_in_as_they_are_with_their_range(pipe, pixels, keep):
    first = run(pipe, pixels, keep, output_type="np")
    again = first
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = run(pipe, again, keep, output_type="np", input_range=(0, 1))
        np.testing.assert_array_equal(
            np.round(255 * again)[:, :, :4], np.broadcast_to(pixels[:, :4, None], (1, 8, 4, 1))
        )
        np.testing.assert_allclose(again[:, :, :4].mean(), first[:, :, :4].mean(), atol=1e-6)
    with pytest.warns(UserWarning, match=r"give input_range=\(0, 1\) for images in \[0, 1\]"):
        run(pipe, first, keep)
    with pytest.raises(
        ValueError, match=r"input_range is \(1, 0\), expected the values of black and white"
    ):
        run(pipe, first, keep, input_range=(1, 0))


def test_a_picture_and_its_mask_are_turned_upright(pipe, pixels, keep):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = run(pipe, Image.fromarray(pixels), Image.fromarray(keep))
    turned = [Image.fromarray(one).rotate(90) for one in (pixels, keep)]
    for one in turned:
        one.info["exif"] = exif.tobytes()
    (picture,) = run(pipe, *turned)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(upright[0]))
    (picture,) = run(pipe, *turned, resize=True)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(upright[0]))


def test_a_valid_profile_stays_with_the_results(pipe, pixels, keep, tmp_path: Path):
    grey, colour = Image.fromarray(pixels), Image.fromarray(pixels).convert("RGB")
    grey.info["icc_profile"], colour.info["icc_profile"] = profiles.LINEAR_GREY, profiles.SRGB
    results = run(pipe, [grey, colour], keep, num_samples=2)
    kept = [one.info.get("icc_profile") for one in results]
    assert kept == [profiles.LINEAR_GREY, profiles.LINEAR_GREY, None, None]
    results[0].save(tmp_path / "kept.png")
    assert Image.open(tmp_path / "kept.png").info["icc_profile"] == profiles.LINEAR_GREY
    *_, last = pipe.watch(grey, keep, **SCHEDULE, key=KEY)
    assert last.images[0].info["icc_profile"] == profiles.LINEAR_GREY


def test_transparency_becomes_white_and_comes_back_on_request(pipe, pixels, keep):
    picture = Image.fromarray(pixels).convert("LA")
    alpha = Image.fromarray(np.roll(pixels, 3, axis=0))
    picture.putalpha(alpha)
    on_white = np.asarray(run(pipe, picture, keep)[0])
    expected = np.asarray(alpha, float)[:, :4] / 255 * (pixels[:, :4].astype(float) - 255) + 255
    np.testing.assert_allclose(on_white[:, :4], expected, atol=1)
    on_black = np.asarray(run(pipe, picture, keep, background="black")[0])
    np.testing.assert_allclose(on_black[:, :4], expected - 255 + np.asarray(alpha)[:, :4], atol=1)
    output = pipe(picture, keep, **SCHEDULE, key=KEY, keep_alpha=True, preview_calls=(0,))
    for one in (output.images[0], output.previews[0][0]):
        np.testing.assert_array_equal(np.asarray(one)[..., 1], np.asarray(alpha))
    np.testing.assert_array_equal(np.asarray(output.images[0])[..., 0], on_white)
    assert next(pipe.watch(picture, keep, key=KEY, keep_alpha=True)).images[0].mode == "LA"
    for call in (pipe, pipe.watch):
        with pytest.raises(
            ValueError, match="output_type is 'jax', expected 'pil' together with keep_alpha"
        ):
            call(picture, keep, key=KEY, keep_alpha=True, output_type="jax")


def test_models_of_four_channels_see_hidden_colours(unet_config, random_unet, keep):
    config = dataclasses.replace(unet_config, in_channels=4, out_channels=4)
    pipe = rp.RePaintPipeline.from_unet2d(random_unet(config), rp.RePaintSchedulerConfig())
    picture = Image.new("RGBA", (8, 8), (10, 20, 30, 40))
    (result,) = run(pipe, picture, keep)
    assert result.getpixel((0, 0)) == (10, 20, 30, 40)


# Refusals


def test_a_result_fades_into_the_picture_around_the_whole_hole(pipe, pixels, keep, result):
    """The filling is that of the larger hole, and the weights are those of the distance from the hole."""
    image = pixels.astype(np.float32) / 127.5 - 1
    filling = np.asarray(run(pipe, pixels, keep, output_type="jax", grow_mask=2))
    assert (filling[0, :, :2, 0] == image[:, :2]).all() and (filling != result).any()
    soft = np.asarray(run(pipe, pixels, keep, output_type="jax", feather=2))
    weights = np.array([1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])[:, None]
    expected = weights * image[..., None] + (1 - weights) * filling[0].astype(np.float64)
    np.testing.assert_allclose(soft[0], expected, atol=1e-6)
    np.testing.assert_array_equal(soft[0, :, :2, 0], image[:, :2])
    np.testing.assert_array_equal(soft[0, :, 4:], filling[0, :, 4:])
    (picture,) = run(pipe, Image.fromarray(pixels), keep, feather=2)
    np.testing.assert_array_equal(np.asarray(picture)[:, :2], pixels[:, :2])
    np.testing.assert_allclose(
        np.asarray(picture), np.clip(soft[0, ..., 0] + 1, 0, 2) * 127.5, atol=0.500001
    )


def test_the_hole_of_each_sample_grows_and_fades_also_while_it_is_watched(pipe, pixels, keep):
    options = {"grow_mask": -1, "feather": 1, "num_samples": 2, "output_type": "jax"}
    images, masks = [pixels, 255 - pixels], [keep, 255 - keep]
    whole = run(pipe, images, masks, **options)
    *_, last = pipe.watch(images, masks, **SCHEDULE, key=KEY, **options)
    np.testing.assert_allclose(last.images, whole, atol=1e-6)
    for row, (image, known) in enumerate(zip(images, (slice(0, 4), slice(4, 8)), strict=True)):
        for sample in np.asarray(whole[2 * row : 2 * row + 2]):
            np.testing.assert_array_equal(
                sample[:, known, 0], image[:, known].astype(np.float32) / 127.5 - 1
            )


def test_a_larger_canvas_is_filled_around_its_picture(pipe, pixels):
    picture = Image.fromarray(pixels[:5, :6])
    (filled,) = run(pipe, *rp.outpaint(picture, 1, 3, 1, 0))
    np.testing.assert_array_equal(np.asarray(filled)[3:, 1:7], pixels[:5, :6])
    batch = np.stack([pixels[:5, :6], 255 - pixels[:5, :6]])[..., None]
    filled = run(pipe, *rp.outpaint(batch, 1, 3, 1, 0), output_type="np")
    np.testing.assert_array_equal(np.round(255 * filled)[:, 3:, 1:7], batch)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grow_mask": -4}, ValueError, "grow_mask is -4, which leaves nothing of the hole"),
        ({"grow_mask": 0.5}, TypeError, "grow_mask is 0.5, expected an integer"),
        ({"feather": -1}, ValueError, "feather is -1, expected an integer of at least 0"),
        ({"output_type": "latent"}, ValueError, "output_type is 'latent', expected one of pil, np, jax"),
        ({"num_samples": 0}, ValueError, "num_samples is 0, expected an integer of at least 1"),
        ({"num_samples": 1.5}, TypeError, "num_samples is 1.5, expected an integer"),
        ({"eta": 2.0}, ValueError, "eta is 2.0, expected a number in [0, 1]"),
        ({"eta": "0"}, TypeError, "eta is '0', expected a number"),
        (
            {"num_inference_steps": 0},
            ValueError,
            "num_inference_steps is 0, expected an integer of at least 1",
        ),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps is 1001, expected at most"),
        ({"jump_length": 4}, ValueError, "jump_length is 4, expected less than num_inference_steps=4"),
        ({"jump_n_sample": 0}, ValueError, "jump_n_sample is 0, expected an integer of at least 1"),
        (
            {"key": jax.random.split(KEY, 3)},
            ValueError,
            "key is a vector of 3 keys, expected one for each of 1 images",
        ),
    ],
)
def test_wrong_option_is_refused(pipe, pixels, keep, options: dict, error, message: str):
    with pytest.raises(error, match=re.escape(message)):
        run(pipe, pixels, keep, **options)


@pytest.mark.parametrize(
    ("arguments", "num_model_calls", "eta"),
    [
        ({}, 64, 0.0),  # a call budget
        ({"num_model_calls": 20}, 20, 0.0),
        ({"num_inference_steps": 250}, 2410, 0.0),  # diffusers' defaults
        ({"eta": 1.0}, 2410, 1.0),
        ({"jump_n_sample": 5}, 1210, 0.0),
        ({"num_inference_steps": 50, "jump_length": 5, "jump_n_sample": 5}, 230, 0.0),
    ],
)
def test_set_timesteps_takes_a_budget_unless_a_resampling_schedule_is_given(
    pipe, arguments, num_model_calls, eta
):
    state = pipe.set_timesteps(**arguments)
    assert (state.num_model_calls, state.config.eta) == (num_model_calls, eta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_model_calls": 7}, "num_model_calls is 7, expected an integer of at least 8"),
        ({"num_model_calls": 64, "eta": 0.0}, "num_model_calls is 64 and eta is 0.0, expected only one"),
        (
            {"num_model_calls": 64, "num_inference_steps": 250},
            "num_model_calls is 64 and num_inference_steps is 250, expected only one of them",
        ),
    ],
)
def test_budgets_that_are_refused(pipe, pixels, keep, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(pixels, keep, key=KEY, **arguments)


def test_a_call_runs_its_budget(pipe, pixels, keep):
    calls = []
    pipe(pixels, keep, key=KEY, num_model_calls=9, progress=calls.append)
    assert max(calls) == 9


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((4, 8), np.uint8), None, "image has shape (4, 8, 1), expected the model's (8, 8, 1)"),
        (np.zeros((8, 8, 3), np.uint8), None, "image has shape (8, 8, 3), expected the model's (8, 8, 1)"),
        (np.full((8, 8), 2.0), None, "image has values that are not in [-1, 1]"),
        (np.full((8, 8), np.nan), None, "image has values that are not in [-1, 1]"),
        (None, np.zeros((4, 8), np.uint8), "mask has shape (4, 8, 1), expected (8, 8, 1)"),
        (None, np.full((8, 8), 1.5), "mask has values that are not in [0, 1]"),
        (None, [np.ones((8, 8))] * 2, "mask_image has 2 masks, expected 1 or one for each of 1 images"),
        ([], None, "image is empty, expected"),
        (np.zeros((0, 8, 8, 1), np.uint8), None, "image is empty, expected"),
        (None, [], "mask_image is empty, expected"),
        ("shoe.png", None, "image is 'shoe.png', expected"),
        (None, "mask.png", "mask_image is 'mask.png', expected"),
    ],
    ids=[
        "image size",
        "image channels",
        "image range",
        "image nan",
        "mask size",
        "mask range",
        "mask count",
        "no image",
        "no batch",
        "no mask",
        "image path",
        "mask path",
    ],
)
def test_picture_or_mask_that_does_not_fit_is_refused(pipe, pixels, keep, image, mask, message: str):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        run(pipe, pixels if image is None else image, keep if mask is None else mask)


def test_key_is_asked_for(pipe, pixels, keep):
    with pytest.raises(TypeError, match="key"):
        pipe(pixels, keep)
    for key in (None, 0):
        with pytest.raises((TypeError, ValueError), match=f"key is {key!r}, expected"):
            run(pipe, pixels, keep, key)


def test_model_trained_with_dropout_inpaints_without_it(unet_config, random_unet, pixels, keep, tmp_path):
    config = dataclasses.replace(unet_config, dropout=0.5)
    save_pretrained(tmp_path, random_unet(unet_config), rp.RePaintSchedulerConfig(), np.float32)
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config.to_dict()))
    with_dropout = rp.RePaintPipeline.from_pretrained(tmp_path)
    images = [run(with_dropout, pixels, keep, output_type="jax") for _ in range(2)]
    np.testing.assert_array_equal(*images)


def test_weights_that_are_not_finite_give_an_error_and_no_picture(
    pipe, pixels, keep, model_folder, tmp_path
):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, pipe.params)
    pipe_with_nan = rp.RePaintPipeline(pipe.model_fn, broken, pipe.state, pipe.image_shape)
    with pytest.raises(FloatingPointError, match="the model's result has values that are not finite"):
        run(pipe_with_nan, pixels, keep)
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    (weights_file,) = tmp_path.glob("unet/*.safetensors")
    weights = load_file(weights_file)
    weights["conv_out.bias"] = weights["conv_out.bias"] * np.nan
    save_file(weights, weights_file)
    with pytest.raises(ValueError, match=r"conv_out\.bias has values that are not finite"):
        rp.RePaintPipeline.from_pretrained(tmp_path)


def test_digest_tells_models_apart_whatever_their_params_are(pipe):
    def digest(seed: int) -> str:
        params = {"weight": jnp.ones(3), "key": jax.random.key(seed), "count": 2}
        return dataclasses.replace(pipe, params=params).digest()

    assert digest(0) == digest(0) != digest(1)


# Sizes, modes and previews


def test_pictures_and_masks_of_another_size_are_resized_together_on_request(pipe):
    image, mask = Image.new("RGB", (20, 30), "white"), Image.new("L", (20, 30), 0)
    mask.paste(255, (0, 0, 20, 15))
    with pytest.raises(
        ValueError, match=r"image has shape \(30, 20, 1\), expected the model's \(8, 8, 1\)"
    ):
        run(pipe, image, mask)
    (picture,) = run(pipe, image, mask, resize=True)
    assert picture.size == (8, 8)
    assert (np.asarray(picture)[:3] == 255).all()  # the fourth row has something of the hole in it
    with pytest.raises(ValueError, match=r"mask is of size \(8, 8\), expected \(20, 30\) as its image"):
        run(pipe, image, mask.resize((8, 8)), resize=True)
    with pytest.raises(TypeError, match="image is a ndarray, expected a PIL image to be resized"):
        run(pipe, np.asarray(image), mask, resize=True)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pictures_of_every_mode_of_eight_bits_are_read(pipe, keep, mode):
    picture = Image.fromarray(np.where(np.indices((8, 8))[0] < 4, 0, 255).astype(np.uint8)).convert(mode)
    (out,) = run(pipe, picture, Image.fromarray(keep))
    np.testing.assert_array_equal(np.asarray(out)[:, :4], np.asarray(picture.convert("L"))[:, :4])
    (resized,) = run(pipe, picture.resize((16, 16)), Image.fromarray(keep).resize((16, 16)), resize=True)
    assert resized.mode == "L"


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_of_more_than_eight_bits_are_refused(pipe, keep, mode):
    with pytest.raises(ValueError, match=f"image has mode {mode}, expected 8 bits per channel"):
        run(pipe, Image.new(mode, (8, 8)), Image.fromarray(keep))


def test_previews_of_chosen_calls_come_in_the_output_type(pipe, pixels, keep):
    def outputs(output_type: str):
        options = {**SCHEDULE, "key": KEY, "num_samples": 2, "preview_calls": (0, 5)}
        return pipe(pixels, keep, output_type=output_type, **options)

    in_jax, in_np, in_pil = outputs("jax"), outputs("np"), outputs("pil")
    assert in_jax.previews.shape == in_np.previews.shape == (2, 2, 8, 8, 1)
    np.testing.assert_allclose(in_np.previews, np.clip(in_jax.previews / 2 + 0.5, 0, 1), atol=1e-6)
    assert [[one.size for one in call] for call in in_pil.previews] == [[(8, 8)] * 2] * 2
    without = run(pipe, pixels, keep, num_samples=2, output_type="jax")
    np.testing.assert_allclose(in_jax.images, without, atol=1e-5)
    assert pipe(pixels, keep, **SCHEDULE, key=KEY).previews is None


@pytest.mark.parametrize("schedule", [SCHEDULE, {"num_model_calls": 9}])
def test_a_prepared_schedule_makes_what_its_arguments_make(pipe, pixels, keep, schedule):
    state = pipe.set_timesteps(**schedule)
    expected = pipe(pixels, keep, **schedule, key=KEY, output_type="jax").images
    np.testing.assert_array_equal(
        pipe(pixels, keep, state=state, key=KEY, output_type="jax").images, expected
    )
    *_, last = pipe.watch(pixels, keep, state=state, key=KEY, output_type="jax")
    np.testing.assert_array_equal(last.images, expected)


def test_a_prepared_schedule_beside_other_arguments_or_without_calls_is_refused(pipe, pixels, keep):
    with pytest.raises(ValueError, match="state is given together with arguments of a schedule, expected"):
        pipe(pixels, keep, state=pipe.set_timesteps(num_model_calls=9), num_model_calls=9, key=KEY)
    with pytest.raises(ValueError, match="state has no schedule, expected one from set_timesteps"):
        pipe(pixels, keep, state=pipe.state, key=KEY)
    with pytest.raises(TypeError, match="state is 64, expected a RePaintSchedulerState"):
        pipe.watch(pixels, keep, state=64, key=KEY)


@pytest.mark.parametrize("schedule", [SCHEDULE, {"num_model_calls": 9}])
def test_watched_pictures_end_with_those_of_a_call(pipe, pixels, keep, schedule):
    options = {**schedule, "key": KEY, "num_samples": 2, "output_type": "np"}
    watched = list(pipe.watch(pixels, keep, **options))
    total = pipe.set_timesteps(**schedule).num_model_calls
    assert [(one.calls_done, one.num_model_calls) for one in watched] == [
        (i + 1, total) for i in range(total)
    ]
    result = pipe(pixels, keep, preview_calls=(0, total - 2), **options)
    np.testing.assert_array_equal(watched[-1].images, result.images)
    for one, preview in zip((watched[0], watched[-2]), result.previews, strict=True):
        known = np.broadcast_to(keep[None, ..., None] == 255, preview.shape)
        np.testing.assert_array_equal(one.images[~known], preview[~known])
        np.testing.assert_array_equal(one.images[known], result.images[known])


def test_preview_calls_may_be_an_array(pipe, pixels, keep):
    options = {"num_model_calls": 9, "key": KEY, "num_samples": 2, "output_type": "np"}
    results = [pipe(pixels, keep, preview_calls=calls, **options) for calls in ((0, 7), np.array([0, 7]))]
    np.testing.assert_array_equal(results[0].previews, results[1].previews)


def test_watching_compiles_one_call_and_may_stop_early(pipe, pixels, keep):
    traced = []

    def model_fn(params, sample, timestep):
        traced.append(timestep)
        return pipe.model_fn(params, sample, timestep)

    counted = dataclasses.replace(pipe, model_fn=model_fn)
    assert len(list(counted.watch(pixels, keep, key=KEY, num_model_calls=9))) == 9
    first = next(counted.watch(pixels, keep, key=jax.random.key(2), num_model_calls=9))
    assert first.images[0].size == (8, 8)
    assert len(traced) == 1


def test_watching_refuses_at_once(pipe, pixels, keep):
    with pytest.raises(ValueError, match="output_type is 'x', expected one of"):
        pipe.watch(pixels, keep, key=KEY, output_type="x")
    with pytest.raises(ValueError, match="num_samples is 0"):
        pipe.watch(pixels, keep, key=KEY, num_samples=0)


def test_pictures_of_eight_channels_are_arrays(pixels, keep):
    state = rp.create_state()
    pipe = rp.RePaintPipeline(lambda params, sample, timestep: sample, None, state, (8, 8, 8))
    message = "PIL images have 1 to 4 channels, the model's have 8: use arrays"
    with pytest.raises(ValueError, match=message):
        pipe(np.zeros((8, 8, 8)), keep, key=KEY, num_model_calls=8)
    with pytest.raises(ValueError, match=message):
        pipe(Image.new("L", (8, 8)), keep, key=KEY, num_model_calls=8, output_type="np")
    zeros = {"image": np.zeros((8, 8, 8)), "input_range": (-1, 1)}
    made = pipe(mask_image=keep, key=KEY, num_model_calls=8, output_type="np", **zeros)
    assert made.images.shape == (1, 8, 8, 8)


def test_saved_pipeline_loads_as_it_was(pipe, tmp_path: Path):
    pipe.save_pretrained(tmp_path / "again")
    again = rp.RePaintPipeline.from_pretrained(tmp_path / "again")
    assert (again.state.config, again.unet_config) == (pipe.state.config, pipe.unet_config)
    jax.tree.map(np.testing.assert_array_equal, again.params, pipe.params)
    own = dataclasses.replace(pipe, unet_config=None)
    with pytest.raises(ValueError, match="unet_config is None, expected a pipeline of a UNet2D"):
        own.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
