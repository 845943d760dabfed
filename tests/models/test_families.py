"""Families of networks on continuous noise levels: the networks' calls, the loss's weights, the files."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_files import SCHEDULER, WEIGHTS, edit_json, sentence_of
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.models.families import (
    EDM,
    Family,
    Flow,
    ScoreVE,
    config_of,
    read_scheduler,
    write_scheduler,
)
from repaint_jax.models.pretrained import load_pretrained, save_pretrained

FAMILIES: list[Family] = [
    EDM(),
    EDM(num_train_timesteps=50, sigma_min=0.01, sigma_max=30.0, rho=3.0, sigma_data=0.25),
    EDM(noise_scale=250.0),
    Flow(),
    Flow(num_train_timesteps=200, shift=3.0),
    ScoreVE(),
    ScoreVE(num_train_timesteps=100, sigma_min=0.02, sigma_max=50.0),
]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=repr)
MEAN, VARIANCE = 0.3, 0.16  # of the data, which are Gaussian


def sigmas_of(family: Family) -> np.ndarray:
    alphas_cumprod = np.cumprod(1 - family.config().betas)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def ideal_clean(x, sigma):
    """E[x0 | x0 + sigma z = x]."""
    return (VARIANCE * x + sigma**2 * MEAN) / (VARIANCE + sigma**2)


def ideal_network(family: Family):
    """The ideal network as the family's papers define it, from what the network is told alone."""

    def edm(params, x, told):
        sigma, sd = jnp.exp(told / family.noise_scale), family.sigma_data
        noisy = x * jnp.sqrt(sigma**2 + sd**2)
        clean = ideal_clean(noisy, sigma)
        return (clean - sd**2 / (sigma**2 + sd**2) * noisy) * jnp.sqrt(sigma**2 + sd**2) / (sigma * sd)

    def flow(params, x, told):
        t = told / family.num_train_timesteps
        clean = ideal_clean(x / (1 - t), t / (1 - t))
        return (x - clean) / t

    def score_ve(params, x, told):
        clean = ideal_clean(2 * x - 1, 2 * told)  # of data in [-1, 1]
        return ((clean + 1) / 2 - x) / told**2

    return {EDM: edm, Flow: flow, ScoreVE: score_ve}[type(family)]


@EVERY_FAMILY
def test_the_network_is_told_what_its_paper_says_and_gives_the_clean_image(family: Family) -> None:
    x0, z = (jax.random.normal(jax.random.key(i), (2, 4, 4, 1)) for i in range(2))
    model_fn, sigmas = family.model_fn(ideal_network(family)), sigmas_of(family)
    for timestep in np.linspace(0, len(sigmas) - 1, 5).astype(int):
        sigma = sigmas[timestep]
        noisy = np.asarray(x0, np.float64) + sigma * np.asarray(z, np.float64)
        sample = jnp.asarray(noisy / np.sqrt(1 + sigma**2), jnp.float32)
        clean = model_fn(None, sample, jnp.int32(timestep))
        rounding = 3e-7 * np.abs(noisy).max()  # of x, from which nearly as much is taken away
        np.testing.assert_allclose(clean, ideal_clean(noisy, sigma), atol=2e-4 + rounding)


@EVERY_FAMILY
def test_a_weight_of_the_loss_makes_it_the_network_s_own_error(family: Family) -> None:
    errors = {  # of the clean image, if the network's output is off by 1
        EDM: lambda sigma: sigma * family.sigma_data / np.sqrt(sigma**2 + family.sigma_data**2),
        Flow: lambda sigma: sigma / (1 + sigma),
        ScoreVE: lambda sigma: sigma,
    }
    error = errors[type(family)](sigmas_of(family))
    np.testing.assert_allclose(family.loss_weights() * error**2, 1, rtol=1e-6)


@EVERY_FAMILY
def test_a_file_brings_a_family_back(family: Family, tmp_path: Path) -> None:
    write_scheduler(tmp_path, family)
    assert read_scheduler(tmp_path) == family
    assert family.model_fn(abs) == read_scheduler(tmp_path).model_fn(abs)  # so nothing compiles twice


def test_edm_with_another_noise_scale_has_a_class_that_diffusers_does_not_know() -> None:
    assert EDM(noise_scale=250.0).to_dict()["_class_name"] == "ScaledEDMScheduler"
    assert "noise_scale" not in EDM().to_dict()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "prediction_type is 'v_prediction', expected 'epsilon': it is not supported",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
            "invert_sigmas is True, expected False: it is not supported",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_data": 0},
            "sigma_data is 0, expected a positive number",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_min": 90.0},
            "sigma_min is 90.0 and sigma_max is 80.0, expected rising positive numbers",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": -1},
            "shift is -1, expected a positive number",
        ),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_min": "small"},
            "sigma_min is 'small', expected a positive number",
        ),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 0.001},
            "sigma_min is 0.01 and sigma_max is 0.001, expected rising positive numbers",
        ),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(file, message, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(file))
    assert sentence_of(lambda: read_scheduler(tmp_path)) == f"{path}: {message}"


NUMBERS = {EDM: ("sigma_min", "sigma_max", "rho", "sigma_data"), Flow: ("shift",)}
NUMBERS[ScoreVE] = ("sigma_min", "sigma_max")


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in NUMBERS.items() for name in names]
)
def test_what_is_no_positive_number_in_a_file_is_named(family, name: str, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    for value in ("1", True, float("nan"), [1.0], {}):
        path.write_text(json.dumps({"_class_name": family.class_name, name: value}))
        expected = f"{path}: {name} is {value!r}, expected a positive number"
        assert sentence_of(lambda: read_scheduler(tmp_path)) == expected
        with pytest.raises((TypeError, ValueError), match=f"^{name} is .*, expected a positive number$"):
            family(**{name: value})


@pytest.mark.parametrize("family", NUMBERS)
@pytest.mark.parametrize("value", [1.5, "9", 0, True, [9]])
def test_a_number_of_levels_in_a_file_is_a_positive_integer(family, value, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": family.class_name, "num_train_timesteps": value}))
    sentence = sentence_of(lambda: read_scheduler(tmp_path))
    assert sentence.startswith(f"{path}: num_train_timesteps is {value!r}, expected an integer")


def test_numbers_of_any_type_make_equal_families_of_equal_text() -> None:
    one, other = EDM(sigma_max=80, sigma_data=np.float32(0.5)), EDM()
    assert (one, repr(one), one.to_dict()) == (other, repr(other), other.to_dict())


@pytest.mark.parametrize("class_name", ["FooScheduler", "LCMScheduler", "ScoreSdeVpScheduler"])
def test_a_class_that_is_not_read_brings_those_that_are(class_name: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": class_name}))
    sentence = sentence_of(lambda: read_scheduler(tmp_path))
    assert f"the scheduler's config is of a {class_name}, expected a scheduler with betas" in sentence
    families = [family.class_name for family in (EDM, Flow, ScoreVE)]
    for name in ("RePaintScheduler", "DDPMScheduler", "DDIMScheduler", *families):
        assert name in sentence
    for family in families:
        (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": family}))
        assert f"or in a model's folder one of {', '.join(families)}" in sentence_of(
            lambda: rp.RePaintSchedulerConfig.from_pretrained(tmp_path)
        )


@pytest.mark.parametrize("class_name", [["EDMEulerScheduler"], {}, 3])
def test_a_class_name_that_is_no_text_is_refused(class_name, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": class_name}))
    expected = f"{path}: _class_name is {class_name!r}, expected the name of a scheduler"
    assert sentence_of(lambda: read_scheduler(tmp_path)) == expected


@pytest.mark.parametrize("family", [EDM(noise_scale=250.0), Flow(), ScoreVE()], ids=repr)
def test_a_pipeline_of_a_family_is_saved_and_loaded(
    family: Family, unet, image, mask, tmp_path: Path
) -> None:
    pipe = rp.RePaintPipeline.from_unet2d(unet, family)
    pipe.save_pretrained(tmp_path / "model")
    again = rp.RePaintPipeline.from_pretrained(tmp_path / "model")
    assert (again.family, again.state.config) == (family, family.config())
    assert again.digest() == pipe.digest()
    options = {"num_model_calls": 8, "key": jax.random.key(0), "output_type": "jax"}
    results = [one(image, mask, **options).images for one in (pipe, again)]
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(results[0][0] * mask, image * mask)


def test_digests_tell_families_apart(unet) -> None:
    digests = {rp.RePaintPipeline.from_unet2d(unet, family).digest() for family in FAMILIES}
    assert len(digests) == len(FAMILIES)


def test_a_folder_s_scheduler_may_be_changed_to_a_family_by_hand(folder: Path) -> None:
    edit_json(folder / SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler", shift=2.0)
    assert load_pretrained(folder).scheduler == Flow(shift=2.0)


FOURIER = {"time_embedding_type": "fourier"}
LEARNED = {"time_embedding_type": "learned", "num_train_timesteps": 9}
NOT_POSITIVE = ": the network takes the logarithm of what it is told, which must be a positive number"


@pytest.mark.parametrize(
    ("changes", "scheduler", "message"),
    [
        (FOURIER, rp.RePaintSchedulerConfig(), f"not one with betas{NOT_POSITIVE}"),
        (FOURIER, EDM(), f"not EDMEulerScheduler{NOT_POSITIVE}"),
        (FOURIER, EDM(noise_scale=250.0), f"not ScaledEDMScheduler{NOT_POSITIVE}"),
        (
            LEARNED,
            Flow(),
            "not FlowMatchEulerDiscreteScheduler: the network has an embedding for each time",
        ),
        (LEARNED, rp.RePaintSchedulerConfig(), "is 9, expected at least the 1000 of the scheduler"),
    ],
)
def test_a_time_embedding_that_cannot_take_the_levels_is_refused(
    random_unet, unet_config, changes: dict, scheduler, message: str, tmp_path: Path
) -> None:
    unet = random_unet(dataclasses.replace(unet_config, **changes))
    in_python = sentence_of(lambda: rp.RePaintPipeline.from_unet2d(unet, scheduler))
    assert message in in_python
    save_pretrained(tmp_path, unet, scheduler)
    (tmp_path / "unet" / WEIGHTS).unlink()  # they are not read
    sentence = sentence_of(lambda: rp.RePaintPipeline.from_pretrained(tmp_path))
    assert sentence == f"{tmp_path / 'unet' / 'config.json'}: {in_python}"


@pytest.mark.parametrize(
    ("changes", "scheduler"),
    [
        (FOURIER, ScoreVE(num_train_timesteps=50)),
        (FOURIER, Flow(num_train_timesteps=50)),
        (LEARNED, rp.RePaintSchedulerConfig(9, beta_start=0.3, beta_end=0.9)),
        (LEARNED, rp.RePaintSchedulerConfig(8, beta_start=0.3, beta_end=0.9)),
    ],
)
def test_a_time_embedding_that_takes_the_levels_has_a_finite_chain(
    random_unet, unet_config, changes: dict, scheduler, image, mask
) -> None:
    pipe = rp.RePaintPipeline.from_unet2d(
        random_unet(dataclasses.replace(unet_config, **changes)), scheduler
    )
    filled = pipe(image, mask, num_model_calls=8, key=jax.random.key(0), output_type="jax").images
    assert np.isfinite(filled).all()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_train_writes_a_model_of_its_objective_that_the_commands_inpaint_with(
    objective: str, unet_config, tmp_path: Path, mask
) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "unet.json").write_text(json.dumps(unet_config.to_dict()))
    run = ["train", str(tmp_path / "pictures"), "-o", str(tmp_path / "run"), "--grey", "--image-size", "8"]
    options = ["--objective", objective, "--unet-config", str(tmp_path / "unet.json"), "--train-steps", "4"]
    assert main([*run, *options, "--batch-size", "4", "--warmup-steps", "1"]) == 0
    model = tmp_path / "run" / "model"
    expected = {"edm": EDM(), "flow": Flow()}[objective]
    assert load_pretrained(model).scheduler == expected
    Image.fromarray(np.uint8(mask[..., 0] * 255)).save(tmp_path / "mask.png")
    words = ["inpaint", str(tmp_path / "pictures" / "0.png"), str(tmp_path / "mask.png")]
    assert (
        main([*words, "-o", str(tmp_path / "filled.png"), "--model", str(model), "--model-calls", "8"]) == 0
    )
    before, after = (np.asarray(Image.open(tmp_path / name)) for name in ("pictures/0.png", "filled.png"))
    known = mask[..., 0] == 1
    np.testing.assert_array_equal(before[known], after[known])
    # The same command with another objective does not go on with this run.
    other = {"edm": "flow", "flow": "edm"}[objective]
    assert main([*run, *options[:1], other, *options[2:], "--batch-size", "4", "--warmup-steps", "1"]) == 2


@pytest.mark.parametrize("scheduler", [None, {}, "flow", EDM, rp.create_state()], ids=lambda one: type(one))
def test_a_pipeline_of_no_scheduler_is_refused(unet, scheduler) -> None:
    sentence = sentence_of(lambda: rp.RePaintPipeline.from_unet2d(unet, scheduler))
    assert sentence.startswith("scheduler is ")
    assert sentence.endswith(", expected a RePaintSchedulerConfig or one of models.families")


def test_a_pipeline_of_no_network_is_refused(unet_config) -> None:
    for unet, described in (
        (None, "a NoneType"),
        (unet_config, "a UNet2DConfig"),
        ("bundled", "'bundled'"),
    ):
        sentence = sentence_of(lambda unet=unet: rp.RePaintPipeline.from_unet2d(unet, Flow()))
        assert sentence == f"unet is {described}, expected a UNet2D"


def test_config_of_a_config_is_itself() -> None:
    config = rp.RePaintSchedulerConfig()
    assert config_of(config) is config
