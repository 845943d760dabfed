"""Short names of schedules."""

import numpy as np
import pytest

import repaint_jax as rp
from repaint_jax.evaluation.named_schedules import with_setting


@pytest.fixture(scope="module")
def pipe(model_folder) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


@pytest.mark.parametrize(
    ("name", "num_model_calls", "eta", "undo"),
    [
        ("64", 64, None, "exact"),
        ("20/2/3", 56, 1.0, "exact"),
        ("20/2/3/0.5", 56, 0.5, "exact"),
        ("250/1/1", 250, 1.0, "exact"),
        ("paper", 2410, 1.0, "exact"),
        ("diffusers", 2410, 0.0, "diffusers"),
    ],
)
def test_name_stands_for_a_schedule(pipe, name: str, num_model_calls: int, eta: float | None, undo: str):
    _, state = with_setting(pipe, name)
    assert state.num_model_calls == num_model_calls
    assert eta is None or state.config.eta == eta
    assert state.config.undo == undo


def test_diffusers_is_what_its_preset_makes(pipe):
    _, state = with_setting(pipe, "diffusers")
    preset = rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig.diffusers()), 250)
    np.testing.assert_array_equal(state.timesteps, preset.timesteps)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, f"setting is '{name}', expected a number of")
            for name in ("", "x", "6.5", "250/10", "a/b/c")
        ),
        ("250/10/10/1/1", "setting is '250/10/10/1/1', expected a number of"),
        ("7", "setting '7': the num_model_calls is 7"),
        ("2000/10/10", "setting '2000/10/10': the num_inference_steps is 2000"),
        ("250/10/10/2", "setting '250/10/10/2': the eta is 2.0"),
    ],
)
def test_name_that_is_none_is_refused(pipe, name: str, expected: str):
    with pytest.raises(ValueError, match=expected):
        with_setting(pipe, name)
