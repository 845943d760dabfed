"""Training: a run that learns, stops, goes on and exports; and what it refuses."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from safetensors.numpy import load_file

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.models import UNet2DConfig, nnx_model_fn
from repaint_jax.models.families import EDM, Flow, ScoreVE
from repaint_jax.models.pretrained import save_pretrained
from repaint_jax.sampling import noise_levels
from repaint_jax.training import (
    TrainingConfig,
    batches,
    create_train_state,
    learning_rate_schedule,
    make_train_step,
    optimizer,
    timestep_probabilities,
    train,
)
from repaint_jax.training_run import _forget_later_steps, small_unet_config, train_unet2d

ABAR = noise_levels.alphas_cumprod(rp.RePaintSchedulerConfig().betas)
CONFIG = TrainingConfig(num_steps=6, batch_size=4, warmup_steps=1, learning_rate=0.01)


@pytest.fixture(scope="module")
def images() -> np.ndarray:  # [12, 8, 8, 1] uint8
    """Every picture is of one grey: soon learned."""
    greys = np.linspace(60, 255, 12).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (12, 8, 8, 1))


@pytest.fixture(scope="module")
def model():
    """A denoiser that can learn one grey, and its first params; it compiles in no time."""

    def model_fn(params, sample, timesteps):
        gain, bias = (params[name][None, None, None] for name in ("gain", "bias"))
        return gain * sample + bias

    return model_fn, {"gain": np.float32([0.0]), "bias": np.float32([0.0])}


def assert_equal_leaves(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_loss_falls(model, images, tmp_path) -> None:
    losses = []
    config = dataclasses.replace(CONFIG, num_steps=60)
    train(config, *model, images, ABAR, tmp_path, on_step=lambda step, loss: losses.append(loss))
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


class StoppedError(Exception):
    """As Ctrl-C would."""


def stop_at_step_5(step: int, loss: float) -> None:
    if step == 5:
        raise StoppedError


def test_stopped_and_resumed_run_ends_bit_for_bit_as_one_that_was_not(model, images, tmp_path) -> None:
    whole = train(CONFIG, *model, images, ABAR, tmp_path / "whole")
    run = (*model, images, ABAR, tmp_path / "stopped")
    with pytest.raises(StoppedError):
        train(CONFIG, *run, checkpoint_every=2, on_step=stop_at_step_5)
    steps = []
    resumed = train(CONFIG, *run, on_step=lambda step, loss: steps.append(step))
    assert steps == [5, 6]
    assert_equal_leaves(resumed, whole)
    with pytest.raises(ValueError, match="num_steps is 3, expected at least the 6 steps that are done"):
        train(dataclasses.replace(CONFIG, num_steps=3), *run)


def test_a_loss_that_is_not_finite_ends_the_run_before_its_checkpoint(model, images, tmp_path) -> None:
    _, params = model

    def diverged(params, sample, timesteps):
        return sample * jnp.nan

    with pytest.raises(FloatingPointError, match="the loss is nan in step 1, expected a finite number"):
        train(CONFIG, diverged, params, images, ABAR, tmp_path, checkpoint_every=1)
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_forgets_what_was_logged_after_its_checkpoint(tmp_path) -> None:
    log = tmp_path / "log.csv"
    _forget_later_steps(log, 100)
    assert not log.exists()
    log.write_text("step,loss,time\n50,0.3,a\n100,0.2,b\n150,0.1,c\n")
    _forget_later_steps(log, 100)
    assert log.read_text() == "step,loss,time\n50,0.3,a\n100,0.2,b\n"


@pytest.mark.parametrize("damage", ["\n", "\0\0\0\0", "\0\0\0\0\n", "100,0.2", "100,0.2,"])
def test_damaged_rows_of_a_log_are_dropped(tmp_path, damage) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss,time\n50,0.3,a\n" + damage)
    _forget_later_steps(log, 100)
    assert log.read_text() == "step,loss,time\n50,0.3,a\n"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumes(model, images, tmp_path) -> None:
    run = (*model, images, ABAR, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(CONFIG, *run, checkpoint_every=2, on_step=stop_at_step_5)
    for path in (tmp_path / "run" / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run/4 is a damaged checkpoint .*; delete it to resume from"):
        train(CONFIG, *run)
    shutil.rmtree(tmp_path / "run" / "4")
    assert_equal_leaves(train(CONFIG, *run), train(CONFIG, *model, images, ABAR, tmp_path / "whole"))


@pytest.mark.slow
def test_run_resumed_with_more_steps_before_its_decay_ends_as_a_long_one(model, images, tmp_path) -> None:
    long = dataclasses.replace(CONFIG, num_steps=10)
    run = (*model, images, ABAR, tmp_path / "extended")
    with pytest.raises(StoppedError):
        train(CONFIG, *run, checkpoint_every=4, on_step=stop_at_step_5)
    extended = train(long, *run)
    assert_equal_leaves(extended, train(long, *model, images, ABAR, tmp_path / "whole"))


def test_learning_rate_warms_up_stays_and_decays() -> None:
    schedule = learning_rate_schedule(TrainingConfig(num_steps=100, warmup_steps=10, learning_rate=0.5))
    rates = [float(schedule(step)) for step in (0, 5, 10, 79, 80, 90, 100)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.5, 0.5, 0.25, 0], atol=1e-6)


def test_learning_rate_without_a_warm_up_starts_at_its_highest() -> None:
    schedule = learning_rate_schedule(TrainingConfig(num_steps=100, warmup_steps=0, learning_rate=0.5))
    np.testing.assert_allclose([schedule(0), schedule(50)], 0.5)


def test_learning_rate_never_jumps_even_where_the_warm_up_is_longer_than_the_run() -> None:
    schedule = learning_rate_schedule(TrainingConfig(num_steps=100, warmup_steps=1000, learning_rate=0.5))
    rates = np.array([schedule(step) for step in range(101)])
    assert np.abs(np.diff(rates)).max() <= 0.05


@pytest.mark.parametrize(
    ("prediction_type", "abar", "expected"),
    [
        ("epsilon", 1e-7, 1.0),
        ("sample", 1e-7, 0.25),
        ("v_prediction", 1e-7, 0.25),
        ("v_prediction", 1 - 1e-7, 1.0),
    ],
)
def test_loss_of_a_network_that_returns_zero_is_the_mean_square_of_its_target(
    model, prediction_type: str, abar: float, expected: float
) -> None:
    # The image is 0.5 everywhere and the noise a unit Gaussian; v is the image or the noise at either end.
    config = dataclasses.replace(CONFIG, prediction_type=prediction_type)
    train_step = make_train_step(config, model[0], np.array([abar]))
    _, loss = train_step(create_train_state(config, model[1]), np.full((512, 2, 2, 1), 0.5, np.float32))
    assert float(loss) == pytest.approx(expected, abs=0.15)  # 2048 values: five standard errors


@pytest.mark.slow
def test_seed_decides_the_noise(model) -> None:
    losses = []
    for seed in (0, 0, 1):
        config = dataclasses.replace(CONFIG, seed=seed)
        train_step = make_train_step(config, model[0], ABAR)
        _, loss = train_step(create_train_state(config, model[1]), np.zeros((4, 2, 2, 1), np.float32))
        losses.append(float(loss))
    assert losses[0] == losses[1] != losses[2]


def test_gradients_are_clipped_to_their_global_norm() -> None:
    tx = optimizer(TrainingConfig(warmup_steps=0, max_grad_norm=1.0))
    gradients = {"a": np.float32([300.0]), "b": np.float32([400.0])}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer
        _, state = tx.update(gradients, tx.init(gradients))
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(first_moment["a"], 0.1 * 0.6, rtol=1e-5)
    np.testing.assert_allclose(first_moment["b"], 0.1 * 0.8, rtol=1e-5)


def test_bfloat16_is_the_arithmetic_of_the_network_alone(unet, images) -> None:
    model_fn, params = nnx_model_fn(unet)
    batch = np.repeat(images[:1] / np.float32(127.5) - 1, 32, axis=0)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        seen = set()

        def watched(params, sample, timesteps, seen=seen):
            seen.update({sample.dtype.name, *(leaf.dtype.name for leaf in jax.tree.leaves(params))})
            return model_fn(params, sample, timesteps)

        train_step = make_train_step(dataclasses.replace(CONFIG, dtype=dtype), watched, ABAR)
        state, loss = train_step(create_train_state(CONFIG, params), batch)
        assert seen == {dtype}
        assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema_params))} == {
            "float32"
        }
        losses[dtype] = float(loss)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_average_follows_the_weights(model, images) -> None:
    model_fn, params = model
    train_step = make_train_step(CONFIG, model_fn, ABAR)
    state = create_train_state(CONFIG, params)
    batch = images[:4].astype(np.float32) / 127.5 - 1
    for step in range(2):
        before, (state, _) = state, train_step(state, batch)
        decay = (1 + step) / (10 + step)
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, before.ema_params, state.params)
        for got, want in zip(jax.tree.leaves(state.ema_params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


def test_an_epoch_has_every_image_once_and_each_epoch_another_order() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    stream = batches(CONFIG, images)
    epochs = [np.concatenate([next(stream).ravel() for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        np.testing.assert_allclose(np.sort(epoch), np.arange(12) / 127.5 - 1, atol=1e-6)
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(next(batches(CONFIG, images, first_step=4)).ravel(), epochs[1][4:8])


def test_random_flip_mirrors_half_of_the_images_and_no_others() -> None:
    images = np.stack([np.arange(200), np.arange(200) + 1], axis=1).astype(np.uint8)  # right is brighter
    config = dataclasses.replace(CONFIG, batch_size=100, random_flip=True)
    stream = batches(config, images.reshape(200, 1, 2, 1))
    left, right = np.concatenate([next(stream), next(stream)])[:, 0, :, 0].T
    np.testing.assert_allclose(np.sort(np.minimum(left, right)), np.arange(200) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(left - right), 1 / 127.5, atol=1e-6)
    assert 70 <= np.sum(left > right) <= 130  # four standard deviations


def test_random_shift_moves_images_by_so_many_pixels_and_repeats_their_edge() -> None:
    image = np.pad(np.full((1, 1), 200, np.uint8), 3)[None, ..., None]  # 7 x 7, bright in the middle
    config = dataclasses.replace(CONFIG, batch_size=100, random_shift=2)
    bright = np.argwhere(next(batches(config, image.repeat(100, axis=0)))[..., 0] > 0)
    assert len(bright) == 100
    for axis in (1, 2):
        assert set(bright[:, axis]) == {1, 2, 3, 4, 5}
    gradient = np.arange(1, 8, dtype=np.uint8).reshape(1, 7, 1, 1).repeat(100, axis=0).repeat(7, axis=2)
    levels = np.round((next(batches(config, gradient))[..., 0] + 1) * 127.5)
    for image in levels:
        np.testing.assert_array_equal(image[:, :1], np.clip(np.arange(7)[:, None] + image[3, 0] - 3, 1, 7))


@pytest.mark.parametrize("density", ["uniform", "lognormal"])
def test_timestep_densities_are_probabilities_that_leave_no_timestep_out(density: str) -> None:
    probabilities = timestep_probabilities(density, ABAR)
    np.testing.assert_allclose(probabilities.sum(), 1)
    assert probabilities.min() >= 0.1 / len(ABAR) * (1 - 1e-9)


def test_lognormal_density_has_the_median_it_is_named_after() -> None:
    probabilities = timestep_probabilities("lognormal", ABAR) - 0.1 / len(ABAR)
    median = np.searchsorted(np.cumsum(probabilities), 0.45)
    log_sigma = 0.5 * np.log((1 - ABAR[median]) / ABAR[median])
    np.testing.assert_allclose(log_sigma, -0.5, atol=0.05)


# The whole run, as `repaint-jax train` makes it


@pytest.fixture(scope="module")
def finished_run(unet_config, images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    pictures = folder / "pictures" / "nested"
    pictures.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels[..., 0]).save(pictures / f"{i}.png")
    (folder / "unet.json").write_text(json.dumps(unet_config.to_dict()))
    assert main(command(folder)) == 0
    return folder


def command(folder: Path, **changed: object) -> list[str]:
    options = {
        "--unet-config": folder / "unet.json",
        "--image-size": 8,
        "--train-steps": 51,
        "--batch-size": 4,
        "--checkpoint-every": 50,
        "--warmup-steps": 1,
        **{f"--{name.replace('_', '-')}": value for name, value in changed.items()},
    }
    words = [str(word) for option in options.items() for word in option]
    return ["train", str(folder / "pictures"), "-o", str(folder / "run"), "--grey", *words]


@pytest.mark.slow
def test_command_writes_a_model_that_the_pipeline_loads_and_inpaints_with(finished_run, mask) -> None:
    pipe = rp.RePaintPipeline.from_pretrained(finished_run / "run" / "model")
    assert pipe.image_shape == (8, 8, 1)
    picture = Image.new("L", (8, 8), 200)
    assert len(pipe(picture, mask, 3, jump_n_sample=1, key=jax.random.key(0)).images) == 1


@pytest.mark.slow
def test_command_keeps_a_log_its_settings_and_samples(finished_run) -> None:
    run = finished_run / "run"
    header, row = csv.reader((run / "log.csv").open())
    assert header == ["step", "loss", "time"]
    assert row[0] == "50"
    assert float(row[1]) > 0
    assert json.loads((run / "training_config.json").read_text())["training"]["num_steps"] == 51
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        "step_0000050.png",
        "step_0000051.png",
    ]
    assert Image.open(run / "samples" / "step_0000051.png").size > (4 * 8, 4 * 8)


@pytest.mark.slow
def test_finished_run_is_exported_again_without_a_step(finished_run, capsys) -> None:
    weights = finished_run / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert main(command(finished_run)) == 0
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_other_settings_are_refused_to_go_on_with(finished_run, capsys) -> None:
    assert main(command(finished_run, learning_rate=0.5)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--learning-rate=0.001" in message
    assert "0.5" in message
    assert main(command(finished_run, train_steps=60)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--train-steps is 60, expected the run's own 51: after 51 steps its learning rate" in message
    assert main(command(finished_run, train_steps=3)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--train-steps is 3, expected at least the 51 steps that are done" in message
    record = json.loads((finished_run / "run" / "training_config.json").read_text())
    assert record["training"]["num_steps"] == 51


@pytest.mark.slow
def test_other_pictures_and_another_noise_schedule_are_refused_to_go_on_with(
    finished_run, images, tmp_path
) -> None:
    initial, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(finished_run / "run" / "model", initial)
    config = dataclasses.replace(CONFIG, num_steps=1)
    run.mkdir()
    (run / "training_config.json").write_text('{"training": {"learning_rate": 0.5}}')  # it never began
    train_unet2d(config, images, run, initial_model=initial)
    architecture = UNet2DConfig.from_file(initial / "unet" / "config.json")
    with pytest.raises(ValueError, match=r"holds a run with digest of the initial model='.*not None"):
        train_unet2d(config, images, run, unet_config=architecture)
    with pytest.raises(ValueError, match="holds a run with digest of the pictures="):
        train_unet2d(config, images[::-1], run, initial_model=initial)
    scheduler = initial / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.01}))
    with pytest.raises(ValueError, match=r"holds a run with beta_end=0\.02"):
        train_unet2d(config, images, run, initial_model=initial)


@pytest.mark.slow
def test_run_from_a_model_starts_with_its_weights_and_keeps_its_architecture(
    finished_run, images, tmp_path
) -> None:
    initial = finished_run / "run" / "model"
    config = dataclasses.replace(CONFIG, num_steps=1, warmup_steps=10**6)  # learns next to nothing
    model = train_unet2d(config, images, tmp_path / "run", initial_model=initial)
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(initial / name), load_file(model / name)
    for key, weight in before.items():
        np.testing.assert_allclose(after[key], weight, atol=1e-3)


@pytest.mark.slow
def test_run_from_a_model_refuses_another_prediction_and_another_architecture(
    finished_run, images, unet_config, tmp_path
) -> None:
    initial = finished_run / "run" / "model"
    run = tmp_path / "run"
    v_prediction = dataclasses.replace(CONFIG, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="'v_prediction', expected 'epsilon', that of `initial_model`"):
        train_unet2d(v_prediction, images, run, initial_model=initial)
    with pytest.raises(ValueError, match="unet_config is given and initial_model is given"):
        train_unet2d(CONFIG, images, run, initial_model=initial, unet_config=unet_config)


# Refusals


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"train_steps": 0}, "--train-steps is 0, expected an integer of at least 1"),
        ({"batch_size": 13}, "--batch-size is 13, but there are only 12 images"),
        ({"image_size": 0}, "--image-size is 0, expected an integer of at least 1"),
        ({"image_size": 16}, "images have shape (16, 16, 1), expected the model's (8, 8, 1)"),
        ({"checkpoint_every": 0}, "--checkpoint-every is 0, expected an integer of at least 1"),
        ({"unet_config": "missing.json"}, "missing.json"),
        ({"prediction_type": "noise"}, "--prediction-type is 'noise', expected one of"),
    ],
)
def test_command_refuses_in_one_line_and_leaves_no_folder(
    finished_run, tmp_path, capsys, changed, expected
) -> None:
    run = tmp_path / "new"
    assert main([*command(finished_run, **changed), "-o", str(run)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("repaint-jax train: ")
    assert output.err.count("\n") == 1
    assert expected in output.err
    # What is left behind would refuse the corrected command.
    assert not run.exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_steps", 0, "num_steps is 0, expected an integer of at least 1"),
        ("batch_size", 0, "batch_size is 0, expected an integer of at least 1"),
        ("warmup_steps", -1, "warmup_steps is -1, expected an integer of at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0, expected a positive number"),
        ("learning_rate", "fast", "learning_rate is 'fast', expected a positive number"),
        ("learning_rate", True, "learning_rate is True, expected a positive number"),
        ("decay_fraction", "0.2", r"decay_fraction is '0.2', expected a number in \[0, 1\]"),
        ("ema_decay", float("nan"), r"ema_decay is nan, expected a number in \[0, 1\]"),
        ("random_flip", 1, "random_flip is 1, expected True or False"),
        ("learning_rate", float("nan"), "learning_rate is nan, expected a positive number"),
        ("max_grad_norm", 0.0, "max_grad_norm is 0.0, expected a positive number"),
        ("decay_fraction", 1.5, r"decay_fraction is 1.5, expected a number in \[0, 1\]"),
        ("ema_decay", -0.1, r"ema_decay is -0.1, expected a number in \[0, 1\]"),
        ("prediction_type", "x", "prediction_type is 'x', expected one of epsilon, sample, v_prediction"),
        ("timestep_density", "x", "timestep_density is 'x', expected one of uniform, lognormal"),
        ("random_shift", -1, "random_shift is -1, expected an integer of at least 0"),
        ("seed", -1, r"seed is -1, expected an integer from 0 to 2\*\*32 - 1"),
        ("seed", 2**32, r"seed is 4294967296, expected an integer from 0 to 2\*\*32 - 1"),
    ],
)
def test_config_refuses(name: str, value: object, expected: str) -> None:
    with pytest.raises((ValueError, TypeError), match=expected):
        TrainingConfig(**{name: value})


def test_too_few_images_are_refused(model, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="batch_size is 4, but there are only 3 images"):
        train(CONFIG, *model, images[:3], ABAR, tmp_path)


def test_checkpoint_every_zero_is_refused(unet_config, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every is 0, expected an integer of at least 1"):
        train_unet2d(CONFIG, images, tmp_path / "run", unet_config=unet_config, checkpoint_every=0)
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_fit_the_architecture_are_refused(unet_config, tmp_path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"images have shape \(8, 8, 3\), expected the model's \(8, 8, 1\)"
    ):
        train_unet2d(CONFIG, images, tmp_path / "run", unet_config=unet_config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dropout": 0.1}, "dropout is 0.1, expected 0"),
        ({"out_channels": 2}, "out_channels is 2, expected in_channels=1"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', expected 'positional' for"),
        ({"num_class_embeds": 3}, "the model is class-conditional, expected one that is not"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 100},
            "num_train_timesteps is 100, expected the scheduler's 1000",
        ),
    ],
)
def test_architectures_that_cannot_be_trained_are_refused(unet_config, images, tmp_path, changes, expected):
    unet_config = dataclasses.replace(unet_config, **changes)
    with pytest.raises(ValueError, match=expected):
        train_unet2d(CONFIG, images, tmp_path / "run", unet_config=unet_config)
    assert not (tmp_path / "run").exists()


class SmallAutoencoder:
    """What the check of sides needs of one."""

    factor, latent_channels = 2, 4


@pytest.mark.parametrize("size", [15, 20])
def test_pictures_that_do_not_fit_latents_are_told_their_own_size(
    images, tmp_path, monkeypatch, size
) -> None:
    monkeypatch.setattr("repaint_jax.training_run.load_autoencoder", lambda path: SmallAutoencoder())
    pictures = np.zeros((4, size, size, 3), np.uint8)
    message = (
        f"^images are {size}x{size}, expected sides that are multiples of 8: 4 times the 2 pixels of a"
    )
    with pytest.raises(ValueError, match=message):
        train_unet2d(CONFIG, pictures, tmp_path / "run", autoencoder="autoencoder")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def of_scheduler(unet, tmp_path):
    """A function that writes a model with a scheduler."""

    def write(scheduler) -> Path:
        save_pretrained(tmp_path / "model", unet, scheduler)
        return tmp_path / "model"

    return write


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        (
            rp.RePaintSchedulerConfig(),
            ["--objective", "edm"],
            "--objective is 'edm', expected 'ddpm', that of --i",
        ),
        (EDM(), ["--objective", "flow"], "--objective is 'flow', expected 'edm', that of --init-model"),
        (Flow(), [], "--objective is 'ddpm', expected 'flow', that of --init-model"),
        (
            ScoreVE(),
            [],
            "--init-model is one with the scheduler ScoreSdeVeScheduler, expected a model of one of the",
        ),
        (
            rp.RePaintSchedulerConfig(),
            ["--prediction-type", "sample"],
            "--prediction-type is 'sample', expected 'epsilon', that of --init-model",
        ),
        (
            rp.RePaintSchedulerConfig(),
            ["--unet-config", "UNET"],
            "--unet-config is given and --init-model is given, expected one of the two",
        ),
    ],
)
def test_train_says_what_does_not_go_with_its_initial_model(
    of_scheduler, images, tmp_path, capsys, scheduler, options, expected
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "pictures" / "a.png")
    model = of_scheduler(scheduler)
    options = [str(model / "unet" / "config.json") if word == "UNET" else word for word in options]
    words = [
        "train",
        str(tmp_path / "pictures"),
        "-o",
        str(tmp_path / "run"),
        "--image-size",
        "8",
        "--grey",
    ]
    assert main([*words, "--init-model", str(model), *options]) == 2
    assert capsys.readouterr().err.startswith(f"repaint-jax train: {expected}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("channels", "options", "hint"),
    [(1, [], "; --grey reads pictures as grey"), (3, ["--grey"], "; pictures have colours without --grey")],
)
def test_train_says_how_pictures_get_the_channels_of_a_model(
    unet_config, random_unet, images, tmp_path, capsys, channels, options, hint
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "pictures" / "a.png")
    config = dataclasses.replace(unet_config, in_channels=channels, out_channels=channels)
    save_pretrained(tmp_path / "model", random_unet(config), rp.RePaintSchedulerConfig())
    words = ["train", str(tmp_path / "pictures"), "-o", str(tmp_path / "run"), "--image-size", "8"]
    assert main([*words, "--init-model", str(tmp_path / "model"), *options]) == 2
    assert capsys.readouterr().err.endswith(
        f"expected the model's (8, 8, {channels}) (height, width, channels){hint}\n"
    )


def test_default_architecture_needs_sides_that_can_be_halved_twice() -> None:
    assert small_unet_config((28, 32, 3)).sample_size == (28, 32)
    with pytest.raises(ValueError, match="images are 30x32, expected sides that are multiples of 4"):
        small_unet_config((30, 32, 3))
