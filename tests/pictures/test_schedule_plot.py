"""The path of a chain over its model calls, and the command that draws it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax.cli.main import main
from repaint_jax.pictures.schedule_plot import chain_path


@pytest.mark.parametrize("jump_schedule", ["diffusers", "paper"])
def test_jumps_take_no_call_and_steps_take_one(jump_schedule: str):
    config = rp.RePaintSchedulerConfig(jump_schedule=jump_schedule)
    state = rp.set_timesteps(rp.create_state(config), 20, 3, 4)
    calls, noise = chain_path(state)
    assert calls[-1] == state.num_model_calls
    np.testing.assert_array_equal(np.diff(calls), np.resize([1, 0], len(calls) - 1))
    assert (np.diff(noise)[::2] < 0).all()
    assert noise[0] == noise.max() and noise[-1] == 0


def test_jumps_lead_where_the_schedule_says():
    """Five steps, with jumps of two levels: diffusers starts each one level lower than the paper does."""
    for jump_schedule, expected in (
        ("diffusers", [4, 3, 3, 2, 2, 1, 3, 2, 2, 1, 1, 0, 0, -1, 1, 0, 0, -1]),
        ("paper", [4, 3, 3, 2, 4, 3, 3, 2, 2, 1, 1, 0, 2, 1, 1, 0, 0, -1]),
    ):
        config = rp.RePaintSchedulerConfig(jump_schedule=jump_schedule)
        state = rp.set_timesteps(rp.create_state(config), 5, 2, 2)
        noise = np.append(state.sqrt_one_minus_alphas_cumprod[np.arange(0, 1000, 200)], np.float32(0))
        np.testing.assert_array_equal(chain_path(state)[1], noise[np.array(expected)])


def test_a_budget_goes_down_once():
    state = rp.set_timesteps_for_budget(rp.create_state(), 200)
    calls, noise = chain_path(state)
    np.testing.assert_array_equal(calls, np.repeat(np.arange(201), 2)[1:-1])
    assert (np.diff(noise) <= 0).all() and noise[-1] == 0


def command(model_folder: Path, *words: str) -> int:
    return main(["schedule", "--model", str(model_folder), "--steps", "3", "--jump-length", "1", *words])


def test_the_command_counts_and_times_calls(model_folder, capsys):
    assert command(model_folder, "--jump-n-sample", "2") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("5 model calls of ") and line.endswith(" s a picture on this machine")


def test_the_command_draws_the_chain(model_folder, tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "schedule.png"
    assert command(model_folder, "-o", str(path)) == 0
    assert capsys.readouterr().out.startswith(f"wrote {path}\n")
    assert np.asarray(Image.open(path)).std() > 1


def test_without_matplotlib_it_says_what_to_install(model_folder, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command(model_folder, "-o", str(tmp_path / "schedule.png")) == 2
    assert "install repaint_jax[plots]" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
