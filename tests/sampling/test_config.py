"""RePaintSchedulerConfig: its defaults, its file, its presets, and what it refuses."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from repaint_jax import RePaintSchedulerConfig

SCHEDULERS = json.loads((Path(__file__).parents[1] / "golden" / "schedulers.json").read_text())

DIFFUSERS_DEFAULTS = {  # of RePaintScheduler, in its order
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "eta": 0.0,
    "trained_betas": None,
    "clip_sample": True,
}
OUR_DEFAULTS = {
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "timestep_spacing": "leading",
    "known_region": "after_step",
    "undo": "exact",
    "jump_schedule": "diffusers",
    "use_clipped_model_output": False,
}
DDPM_FILE = {  # google/ddpm-cifar10-32
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
DDIM_FILE = {  # a DDIMScheduler's, as diffusers saves it
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.35.1",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


def differences_from_default(config: RePaintSchedulerConfig) -> dict:
    default = dataclasses.asdict(RePaintSchedulerConfig())
    return {name: value for name, value in dataclasses.asdict(config).items() if value != default[name]}


# Values


def test_defaults_and_their_order_are_those_of_diffusers_followed_by_ours():
    fields = dataclasses.asdict(RePaintSchedulerConfig())
    assert list(fields.items())[: len(DIFFUSERS_DEFAULTS)] == list(DIFFUSERS_DEFAULTS.items())
    assert fields == DIFFUSERS_DEFAULTS | OUR_DEFAULTS


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RePaintSchedulerConfig().eta = 1.0


def test_equal_settings_are_equal_and_hash_alike_whatever_their_number_types():
    config = RePaintSchedulerConfig(num_train_timesteps=2, eta=1.0, trained_betas=(0.1, 0.2))
    same = RePaintSchedulerConfig(
        num_train_timesteps=np.int64(2), eta=1, trained_betas=np.array([0.1, 0.2]), clip_sample=np.True_
    )
    assert config == same
    assert hash(config) == hash(same)
    assert config != dataclasses.replace(config, eta=0.5)


def test_betas_of_the_linear_schedule_run_from_start_to_end():
    betas = RePaintSchedulerConfig(num_train_timesteps=3, beta_start=0.1, beta_end=0.3).betas
    np.testing.assert_allclose(betas, [0.1, 0.2, 0.3], rtol=1e-12)


def test_trained_betas_replace_the_schedule():
    config = RePaintSchedulerConfig(
        num_train_timesteps=2, trained_betas=(0.25, 0.5), beta_schedule="sigmoid"
    )
    np.testing.assert_array_equal(config.betas, [0.25, 0.5])


# Presets


def test_diffusers_preset_differs_from_the_default_in_the_undo_step_alone():
    assert differences_from_default(RePaintSchedulerConfig.diffusers()) == {"undo": "diffusers"}


def test_paper_preset_is_the_official_code():
    assert differences_from_default(RePaintSchedulerConfig.paper()) == {
        "eta": 1.0,
        "variance_type": "learned_range",
        "timestep_spacing": "linspace",
        "known_region": "before_model",
        "jump_schedule": "paper",
        "use_clipped_model_output": True,
    }


@pytest.mark.parametrize("preset", [RePaintSchedulerConfig.diffusers, RePaintSchedulerConfig.paper])
def test_presets_take_overrides(preset):
    config = preset(eta=0.5, undo="exact", variance_type="fixed_large", num_train_timesteps=10)
    assert (config.eta, config.undo, config.variance_type) == (0.5, "exact", "fixed_large")
    assert config.num_train_timesteps == 10


@pytest.mark.parametrize(
    "make",
    [RePaintSchedulerConfig, RePaintSchedulerConfig.diffusers, RePaintSchedulerConfig.paper],
)
def test_unknown_setting_is_refused(make):
    with pytest.raises(TypeError, match="beta_stop"):
        make(beta_stop=0.02)


# Dicts and files


@pytest.mark.parametrize(
    "config",
    [
        RePaintSchedulerConfig(),
        RePaintSchedulerConfig.diffusers(num_train_timesteps=np.int64(7), eta=np.float32(0.25)),
        RePaintSchedulerConfig.paper(beta_schedule="squaredcos_cap_v2", clip_sample=np.False_),
    ],
)
def test_dict_and_file_hold_every_setting(config: RePaintSchedulerConfig, tmp_path: Path):
    assert RePaintSchedulerConfig.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path / "new" / "folder")
    assert RePaintSchedulerConfig.from_pretrained(tmp_path / "new" / "folder") == config
    assert RePaintSchedulerConfig.from_pretrained(str(tmp_path / "new"), subfolder="folder") == config


@pytest.mark.parametrize(
    "trained_betas", [[0.1, 0.25], (0.1, 0.25), np.array([0.1, 0.25])], ids=["list", "tuple", "array"]
)
def test_trained_betas_of_any_sequence_come_back_from_the_file(trained_betas, tmp_path: Path):
    config = RePaintSchedulerConfig(num_train_timesteps=2, trained_betas=trained_betas)
    assert config.trained_betas == (0.1, 0.25)
    config.save_pretrained(tmp_path)
    reloaded = RePaintSchedulerConfig.from_pretrained(tmp_path)
    assert reloaded == config
    assert hash(reloaded) == hash(config)


def test_file_is_named_and_labelled_as_diffusers_does(tmp_path: Path):
    RePaintSchedulerConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved.pop("_class_name") == "RePaintScheduler"
    assert saved == DIFFUSERS_DEFAULTS | OUR_DEFAULTS


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (DDPM_FILE, {"variance_type": "fixed_large"}),
        (DDPM_FILE | {"variance_type": "fixed_small_log"}, {}),
        ({"_class_name": "DDPMScheduler"}, {}),
        (
            {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "predict_epsilon": False},
            {"prediction_type": "sample"},
        ),
        (DDPM_FILE | {"variance_type": "fixed_large_log"}, {"variance_type": "fixed_large"}),
        (
            DDIM_FILE,
            {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "clip_sample": False,
                "prediction_type": "v_prediction",
                "timestep_spacing": "trailing",
            },
        ),
    ],
    ids=["ddpm", "ddpm small log", "ddpm alone", "ddpm of clean images", "ddpm large log", "ddim"],
)
def test_files_of_other_schedulers_load(file: dict, expected: dict, tmp_path: Path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(file))
    config = RePaintSchedulerConfig.from_pretrained(tmp_path)
    assert differences_from_default(config) == expected


CLASSES = [name for name in SCHEDULERS if name != "recorded_with"]
CONSISTENCY = "which do not predict noise"
REFUSED_WITH_BETAS = {
    "LCMScheduler": CONSISTENCY,
    "TCDScheduler": CONSISTENCY,
    "CogVideoXDDIMScheduler": "its networks are of videos",
    "CogVideoXDPMScheduler": "its networks are of videos",
}


@pytest.mark.parametrize("name", CLASSES)
def test_default_config_of_each_scheduler_of_diffusers_has_its_noise_levels_or_is_refused_by_name(
    name: str,
):
    file, levels = SCHEDULERS[name]["config"], SCHEDULERS[name]["alphas_cumprod"]
    reason = REFUSED_WITH_BETAS.get(name, "expected a scheduler with betas" if levels is None else None)
    if reason is not None:
        with pytest.raises(ValueError, match=f"the scheduler's config is of a {name}, .*{reason}") as error:
            RePaintSchedulerConfig.from_dict(file)
        assert len(str(error.value).splitlines()) == 1
        return
    config = RePaintSchedulerConfig.from_dict(file)
    alphas_cumprod = np.cumprod(1 - config.betas)
    for timestep, expected in levels.items():
        np.testing.assert_allclose(alphas_cumprod[int(timestep)], expected, rtol=5e-5, err_msg=timestep)
    assert config.prediction_type == file.get("prediction_type", "epsilon")
    assert config.num_train_timesteps == file["num_train_timesteps"]


def test_most_schedulers_of_diffusers_with_betas_load():
    with_betas = {name for name in CLASSES if SCHEDULERS[name]["alphas_cumprod"] is not None}
    assert len(CLASSES) > 40 and len(with_betas - set(REFUSED_WITH_BETAS)) == 21


@pytest.mark.parametrize("name", [*DIFFUSERS_DEFAULTS, *OUR_DEFAULTS])
def test_null_in_a_file_means_the_default(name: str, tmp_path: Path):
    for file in (DDPM_FILE, DDIM_FILE | {"_class_name": "DPMSolverMultistepScheduler"}):
        without = {key: value for key, value in file.items() if key != name}
        if name == "beta_schedule" and file is not DDPM_FILE:
            continue  # such a file is known by it
        (tmp_path / "scheduler_config.json").write_text(json.dumps(file | {name: None}))
        loaded = RePaintSchedulerConfig.from_pretrained(tmp_path)
        assert loaded == RePaintSchedulerConfig.from_dict(without)
        assert getattr(loaded, name) == getattr(RePaintSchedulerConfig(), name)


def test_null_does_not_switch_on_what_is_refused():
    nulls = dict.fromkeys(("rescale_betas_zero_snr", "thresholding", "use_flow_sigmas", "snr_shift_scale"))
    assert RePaintSchedulerConfig.from_dict(DDPM_FILE | nulls) == RePaintSchedulerConfig.from_dict(
        DDPM_FILE
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("use_flow_sigmas", True, "false"),
        ("timestep_type", "continuous", "'discrete'"),
        ("snr_shift_scale", 3.0, "1"),
    ],
)
def test_options_that_move_the_noise_levels_are_refused(name: str, value, expected: str):
    message = re.escape(f"{name} is {value!r}, expected {expected}: it is not supported")
    with pytest.raises(ValueError, match=message):
        RePaintSchedulerConfig.from_dict(DDIM_FILE | {name: value})


class Elsewhere:
    """A path that is no `pathlib.Path`, as of py.path or of an upload."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Elsewhere])
def test_paths_of_any_kind_are_taken(kind, tmp_path: Path):
    config = RePaintSchedulerConfig(num_train_timesteps=7)
    config.save_pretrained(kind(tmp_path / "a" / "scheduler"))
    assert RePaintSchedulerConfig.from_pretrained(kind(tmp_path / "a" / "scheduler")) == config
    assert RePaintSchedulerConfig.from_pretrained(kind(tmp_path), kind(Path("a/scheduler"))) == config


@pytest.mark.parametrize("config", [None, 3, [("eta", 0)], "scheduler_config.json"])
def test_what_is_no_dict_is_refused(config):
    with pytest.raises(TypeError, match=f"config is {re.escape(repr(config))}, expected a dict"):
        RePaintSchedulerConfig.from_dict(config)


@pytest.mark.parametrize("name", ["variance_type", "beta_schedule", "undo"])
@pytest.mark.parametrize("value", [["a"], {}, 1])
def test_choice_in_a_file_that_is_no_text_is_refused(name: str, value):
    with pytest.raises(ValueError, match=f"{name} is {re.escape(repr(value))}, expected one of "):
        RePaintSchedulerConfig.from_dict(DDPM_FILE | {name: value})


@pytest.mark.parametrize("name", ["rescale_betas_zero_snr", "thresholding"])
def test_options_of_other_schedulers_that_would_change_the_result_are_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} is True, expected false"):
        RePaintSchedulerConfig.from_dict(DDIM_FILE | {name: True})


def test_learned_variance_without_a_range_is_refused():
    with pytest.raises(ValueError, match=r"variance_type is 'learned', expected one of .*learned_range"):
        RePaintSchedulerConfig.from_dict(DDPM_FILE | {"variance_type": "learned"})


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=re.escape("scheduler_config.json does not exist")):
        RePaintSchedulerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "scheduler_config.json is not a JSON file"), ("[1]", "holds list, expected a JSON object")],
)
def test_damaged_file_is_named(text: str, message: str, tmp_path: Path):
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RePaintSchedulerConfig.from_pretrained(tmp_path)


# Refusals


def refused(name, values, error, expected):
    return [pytest.param(name, value, error, expected, id=f"{name}={value}") for value in values]


CHOICES = (
    "beta_schedule",
    "prediction_type",
    "variance_type",
    "timestep_spacing",
    "known_region",
    "undo",
    "jump_schedule",
)


@pytest.mark.parametrize(
    ("name", "value", "error", "expected"),
    [
        *refused("num_train_timesteps", [0, -1], ValueError, "an integer of at least 1"),
        *refused("num_train_timesteps", [10.0, True, "10", None], TypeError, "an integer"),
        *refused("beta_start", [0.0, 1.0, -0.1, math.nan], ValueError, "a variance in (0, 1)"),
        *refused("beta_end", [0.0, 1.0, 2.0, math.inf], ValueError, "a variance in (0, 1)"),
        *refused("eta", [-0.1, 1.1, math.nan, math.inf], ValueError, "a number in [0, 1]"),
        *refused("clip_sample_range", [0.0, -1.0, math.inf, math.nan], ValueError, "a positive number"),
        *refused("beta_start", ["0.1", None, True, [0.1]], TypeError, "a number"),
        *refused("eta", ["1", None, False, 1j], TypeError, "a number"),
        *refused("clip_sample", [1, "yes", None], TypeError, "True or False"),
        *refused("use_clipped_model_output", [0, "no", None], TypeError, "True or False"),
        *(case for name in CHOICES for case in refused(name, ["other", None, 0], ValueError, "one of ")),
    ],
)
def test_wrong_setting_is_refused_by_name_value_and_expectation(name, value, error, expected):
    with pytest.raises(error, match=re.escape(f"{name} is {value!r}, expected {expected}")):
        RePaintSchedulerConfig(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_refused_choice_lists_the_choices(name: str):
    default = getattr(RePaintSchedulerConfig(), name)
    with pytest.raises(ValueError, match=f"expected one of .*{default}"):
        RePaintSchedulerConfig(**{name: "other"})


@pytest.mark.parametrize(
    ("trained_betas", "error", "message"),
    [
        ([0.1], ValueError, " has shape (1,), expected one beta for each of num_train_timesteps=2"),
        ([[0.1, 0.2]], ValueError, " has shape (1, 2), expected one beta for each"),
        (0.1, ValueError, " has shape (), expected one beta for each"),
        ([0.1, 0.0], ValueError, "[1] is 0.0, expected a variance in (0, 1)"),
        ([1.0, 0.1], ValueError, "[0] is 1.0, expected a variance in (0, 1)"),
        ([0.1, math.nan], ValueError, "[1] is nan, expected a variance in (0, 1)"),
        ("linear", TypeError, " is 'linear', expected a sequence of numbers"),
        ([[0.1], [0.1, 0.2]], TypeError, " is [[0.1], [0.1, 0.2]], expected a sequence of numbers"),
    ],
)
def test_wrong_trained_betas_are_refused(trained_betas, error, message: str):
    with pytest.raises(error, match=re.escape(f"trained_betas{message}")):
        RePaintSchedulerConfig(num_train_timesteps=2, trained_betas=trained_betas)
