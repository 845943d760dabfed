"""Latent models in the pipeline, the commands and the training, with small random networks."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.folder.run import inpaint_folder
from repaint_jax.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    UNet2DConfig,
    VQModel,
    VQModelConfig,
    save_autoencoder,
    save_unet2d,
)
from repaint_jax.models.families import Flow
from repaint_jax.models.pretrained import load_pretrained
from repaint_jax.sampling.keys import sample_keys

LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
}
CONFIGS = {
    "kl": AutoencoderKLConfig(**LEVELS, latent_channels=3, scaling_factor=0.7, shift_factor=0.1),
    "vq": VQModelConfig(**LEVELS, latent_channels=3, num_vq_embeddings=16),
}
SHAPE = (8, 16, 3)  # of pictures; latents are [4, 8, 3]
MASK = np.ones((*SHAPE[:2], 1), np.float32)
MASK[2:6, 6:12] = 0
IMAGE = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
CALLS = {"num_model_calls": 8, "key": jax.random.key(0)}


def autoencoder_of(kind: str):
    network = {"kl": AutoencoderKL, "vq": VQModel}[kind]
    return network(CONFIGS[kind], rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def latent_unet(unet_config: UNet2DConfig, random_unet):
    return random_unet(dataclasses.replace(unet_config, in_channels=3, out_channels=3, sample_size=(4, 8)))


@pytest.fixture(scope="module", params=["kl", pytest.param("vq", marks=pytest.mark.slow)])
def latent_pipe(request, latent_unet) -> rp.RePaintPipeline:
    config = rp.RePaintSchedulerConfig(beta_schedule="scaled_linear")
    return rp.RePaintPipeline.from_unet2d(latent_unet, config, autoencoder=autoencoder_of(request.param))


def test_a_latent_pipeline_does_what_the_recipe_says(latent_pipe) -> None:
    """The recipe of the FAQ, with the public functions alone."""
    assert (latent_pipe.image_shape, latent_pipe.latent_shape) == (SHAPE, (4, 8, 3))
    result = latent_pipe(IMAGE, MASK, **CALLS, output_type="jax").images[0]
    module = latent_pipe.latents.autoencoder()
    shift, scale = (0.1, 0.7) if isinstance(module, AutoencoderKL) else (0.0, 1.0)
    encode, decode = jax.jit(module.encode), jax.jit(module.decode)
    known = (encode(reference.continued(IMAGE, MASK)) - shift) * scale
    config = rp.RePaintSchedulerConfig(beta_schedule="scaled_linear", clip_sample=False)
    state = rp.set_timesteps_for_budget(rp.create_state(config), 8)
    latent_mask = jnp.asarray([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 1, 1]], jnp.float32)
    latent_mask = jnp.concatenate([latent_mask, latent_mask[::-1]])[..., None]
    keys = sample_keys(CALLS["key"], 1, 1)
    model = latent_pipe.model_fn, latent_pipe.params
    filled = rp.inpaint(state, *model, known[None], latent_mask[None], keys)
    decoded = np.clip(decode(filled[0] / scale + shift), -1, 1)
    expected = decoded + reference.continued(IMAGE - decoded, MASK, reach=2)
    np.testing.assert_allclose(result, np.where(MASK == 1, IMAGE, np.clip(expected, -1, 1)), atol=3e-3)


def test_the_result_of_a_latent_pipeline_fades_into_its_picture(latent_pipe) -> None:
    larger = latent_pipe(IMAGE, MASK, **CALLS, output_type="jax", grow_mask=1).images[0]
    soft = np.asarray(latent_pipe(IMAGE, MASK, **CALLS, output_type="jax", feather=1).images[0])
    weights = np.pad(np.zeros((4, 6)), 1, constant_values=0.5)[..., None]
    expected = IMAGE.copy()
    expected[1:7, 5:13] = weights * IMAGE[1:7, 5:13] + (1 - weights) * np.asarray(larger)[1:7, 5:13]
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    outside = np.pad(weights, ((1, 1), (5, 3), (0, 0)), constant_values=1) == 1
    np.testing.assert_array_equal(soft[outside[..., 0]], IMAGE[outside[..., 0]])


def test_known_pixels_come_back_exactly_and_what_is_in_the_hole_does_not_matter(latent_pipe) -> None:
    other = np.where(MASK == 1, IMAGE, np.nan)
    results = [latent_pipe(one, MASK, **CALLS, output_type="jax").images for one in (IMAGE, other)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(np.where(MASK == 1, results[0][0], 0), np.where(MASK == 1, IMAGE, 0))
    assert np.abs(results[0]).max() <= 1


def test_strength_starts_from_the_latents_of_the_whole_picture(latent_pipe) -> None:
    """At the cleanest level alone, little of the picture changes: its latents come back decoded."""
    result = latent_pipe(IMAGE, MASK, **CALLS, strength=0.001, output_type="jax").images[0]
    autoencoder = latent_pipe.latents.autoencoder()
    decoded = autoencoder.decode(autoencoder.encode(IMAGE[None]))[0]
    corrected = np.clip(decoded, -1, 1)
    corrected = corrected + reference.continued(IMAGE - corrected, MASK, reach=2)
    inside = (MASK == 0)[..., 0]
    there = np.abs(np.asarray(result) - np.clip(corrected, -1, 1))[inside].mean()
    without = latent_pipe(IMAGE, MASK, **CALLS, output_type="jax").images[0]
    assert there < np.abs(np.asarray(without) - corrected)[inside].mean() / 4
    np.testing.assert_array_equal(np.where(MASK == 1, result, 0), np.where(MASK == 1, IMAGE, 0))
    with pytest.raises(ValueError, match=r"image has values that are not in \[-1, 1\]: nan"):
        latent_pipe(np.where(MASK == 1, IMAGE, np.nan), MASK, **CALLS, strength=0.5)


def test_noise_of_pixels_is_refused(latent_pipe) -> None:
    with pytest.raises(ValueError, match=r"soft_mask is True, expected False: .* this is a latent model"):
        latent_pipe(IMAGE, MASK, **CALLS, soft_mask=True)
    with pytest.raises(ValueError, match=r"observation_noise is 0\.1, expected 0\.0: .* a latent model"):
        latent_pipe(IMAGE, MASK, **CALLS, observation_noise=0.1)


@pytest.mark.slow
def test_previews_and_watched_pictures_are_pictures(latent_pipe) -> None:
    picture = Image.fromarray(np.uint8(127.5 * (IMAGE + 1)))
    output = latent_pipe(picture, MASK, **CALLS, preview_calls=(0, 7), num_samples=2)
    assert [[one.size for one in call] for call in output.previews] == [[(16, 8)] * 2] * 2
    *_, last = latent_pipe.watch(picture, MASK, **CALLS, num_samples=2)
    for one, other in zip(last.images, output.images, strict=True):
        np.testing.assert_array_equal(one, other)
    known = MASK[..., 0] == 1
    np.testing.assert_array_equal(np.asarray(output.images[0])[known], np.asarray(picture)[known])


@pytest.mark.slow
def test_a_saved_latent_model_loads_again_as_diffusers_lays_it_out(latent_pipe, tmp_path: Path) -> None:
    latent_pipe.save_pretrained(tmp_path / "model")
    part = "vae" if isinstance(latent_pipe.latents.autoencoder(), AutoencoderKL) else "vqvae"
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "LDMPipeline" and part in index
    again = rp.RePaintPipeline.from_pretrained(tmp_path / "model")
    assert again.digest() == latent_pipe.digest()
    results = [one(IMAGE, MASK, **CALLS, output_type="jax").images for one in (latent_pipe, again)]
    np.testing.assert_array_equal(*results)


@pytest.fixture(scope="module")
def latent_folder(latent_unet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent") / "model"
    scheduler = Flow()
    pipe = rp.RePaintPipeline.from_unet2d(latent_unet, scheduler, autoencoder=autoencoder_of("kl"))
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_an_autoencoder_can_come_from_elsewhere(latent_folder: Path, latent_unet, tmp_path: Path) -> None:
    save_unet2d(latent_unet, tmp_path / "unet")
    shutil.copytree(latent_folder / "scheduler", tmp_path / "scheduler")
    whole = rp.RePaintPipeline.from_pretrained(latent_folder)
    for autoencoder in (latent_folder / "vae", str(latent_folder / "vae"), autoencoder_of("kl")):
        pipe = rp.RePaintPipeline.from_pretrained(tmp_path, autoencoder=autoencoder)
        assert pipe.digest() == whole.digest()
    other = rp.RePaintPipeline.from_pretrained(latent_folder, autoencoder=autoencoder_of("vq"))
    assert isinstance(other.latents.autoencoder(), VQModel)


@pytest.mark.slow
def test_commands_inpaint_with_a_latent_model(latent_folder: Path, tmp_path: Path) -> None:
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()
    pixels = np.uint8(127.5 * (IMAGE + 1))
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.uint8(255 * MASK[..., 0])).save(tmp_path / "masks" / "a.png")
    model = ["--model", str(latent_folder), "--model-calls", "8"]
    words = [
        str(tmp_path / "in" / "a.png"),
        str(tmp_path / "masks" / "a.png"),
        "-o",
        str(tmp_path / "b.png"),
    ]
    assert main(["inpaint", *words, *model]) == 0
    assert main(["schedule", *model]) == 0
    pipe = rp.RePaintPipeline.from_pretrained(latent_folder)
    failures = inpaint_folder(
        pipe, tmp_path / "in", tmp_path / "masks", tmp_path / "out", schedule={"num_model_calls": 8}
    )
    assert not failures
    for path in (tmp_path / "b.png", tmp_path / "out" / "a.png"):
        filled = np.asarray(Image.open(path))
        np.testing.assert_array_equal(filled[MASK[..., 0] == 1], pixels[MASK[..., 0] == 1])
        assert (filled[MASK[..., 0] == 0] != pixels[MASK[..., 0] == 0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_train_teaches_a_model_in_latents(objective: str, unet_config, tmp_path: Path) -> None:
    save_autoencoder(autoencoder_of("kl"), tmp_path / "autoencoder")
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    config = dataclasses.replace(unet_config, in_channels=3, out_channels=3)
    (tmp_path / "unet.json").write_text(json.dumps(config.to_dict()))
    words = ["train", str(tmp_path / "pictures"), "-o", str(tmp_path / "run"), "--image-size", "16"]
    words += ["--autoencoder", str(tmp_path / "autoencoder"), "--unet-config", str(tmp_path / "unet.json")]
    assert main([*words, "--objective", objective, "--batch-size", "4", "--train-steps", "3"]) == 0
    pipe = rp.RePaintPipeline.from_pretrained(tmp_path / "run" / "model")
    assert (pipe.image_shape, pipe.latent_shape) == ((16, 16, 3), (8, 8, 3))
    assert not pipe.state.config.clip_sample
    (samples,) = (tmp_path / "run" / "samples").iterdir()
    assert Image.open(samples).mode == "RGB"
    again = ["--init-model", str(tmp_path / "run" / "model"), "-o", str(tmp_path / "second")]
    words = ["train", str(tmp_path / "pictures"), *again, "--image-size", "16", "--objective", objective]
    assert main([*words, "--batch-size", "4", "--train-steps", "2"]) == 0
    second = load_pretrained(tmp_path / "second" / "model")
    assert isinstance(second.autoencoder, AutoencoderKL)


def test_an_autoencoder_with_other_channels_is_refused(unet) -> None:
    with pytest.raises(ValueError, match="autoencoder has latents of 3 channels, expected the 1 of the"):
        rp.RePaintPipeline.from_unet2d(unet, rp.RePaintSchedulerConfig(), autoencoder=autoencoder_of("kl"))


@pytest.mark.parametrize(
    ("autoencoder", "described"),
    [
        (5, "5"),
        (b"x", "b'x'"),
        ("", "''"),
        (["vae"], "a list"),
        (CONFIGS["kl"], "a AutoencoderKLConfig"),
        (AutoencoderKL, "the class AutoencoderKL"),
        (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "a Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_autoencoder_is_described(latent_folder: Path, autoencoder, described: str) -> None:
    sentence = (
        f"autoencoder is {described}, expected an AutoencoderKL or a VQModel, or its folder or repository"
    )
    with pytest.raises(TypeError) as error:
        rp.RePaintPipeline.from_pretrained(latent_folder, autoencoder=autoencoder)
    assert str(error.value) == sentence


def test_an_autoencoder_that_changes_the_channels_is_refused(latent_unet) -> None:
    grey = AutoencoderKL(dataclasses.replace(CONFIGS["kl"], out_channels=1), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match="takes pictures of 3 channels and makes pictures of 1, expected as"
    ):
        rp.RePaintPipeline.from_unet2d(latent_unet, Flow(), autoencoder=grey)


def test_another_scale_of_the_latents_is_another_model(latent_unet) -> None:
    autoencoder = autoencoder_of("kl")
    before = rp.RePaintPipeline.from_unet2d(latent_unet, Flow(), autoencoder=autoencoder).digest()
    autoencoder.config = dataclasses.replace(autoencoder.config, scaling_factor=0.5)
    assert rp.RePaintPipeline.from_unet2d(latent_unet, Flow(), autoencoder=autoencoder).digest() != before


def test_an_autoencoder_is_found_without_an_index_and_two_are_refused(
    latent_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(latent_folder, tmp_path / "model")
    (tmp_path / "model" / "model_index.json").unlink()
    assert isinstance(load_pretrained(tmp_path / "model").autoencoder, AutoencoderKL)
    shutil.copytree(tmp_path / "model" / "vae", tmp_path / "model" / "vqvae")
    with pytest.raises(ValueError, match="has vqvae and vae, expected one autoencoder"):
        load_pretrained(tmp_path / "model")


def test_an_error_while_saving_leaves_the_folder_as_it_was(latent_folder: Path, tmp_path: Path) -> None:
    pipe = rp.RePaintPipeline.from_pretrained(latent_folder)
    pipe.params["conv_in"]["bias"][...] = jnp.full_like(pipe.params["conv_in"]["bias"][...], 1e6)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"conv_in\.bias has values that are not finite in float16"):
        pipe.save_pretrained(tmp_path / "model", dtype=np.float16)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]
    pipe.save_pretrained(tmp_path / "model")
    pipe.save_pretrained(tmp_path / "model")  # again, over the first
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        *("notes.txt", "model_index.json", "scheduler", "unet", "vae"),
    }


def test_schedule_says_that_its_time_is_without_the_autoencoder(latent_folder: Path, capsys) -> None:
    assert main(["schedule", "--model", str(latent_folder), "--model-calls", "8"]) == 0
    time, note = capsys.readouterr().out.splitlines()
    assert time.startswith("8 model calls of ")
    assert note == "the model is latent: encoding and decoding of the picture come on top"


def test_a_folder_whose_autoencoder_is_missing_says_so(latent_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(latent_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    with pytest.raises(FileNotFoundError, match="vae"):
        rp.RePaintPipeline.from_pretrained(tmp_path / "model")
