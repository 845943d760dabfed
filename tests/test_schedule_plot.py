"""The path of a chain over its model calls, and the command that draws it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repaint_jax as rp
from repaint_jax import cli
from repaint_jax.schedule_plot import chain_path


@pytest.mark.parametrize("jump_schedule", ["diffusers", "paper"])
def test_jumps_take_no_call_and_steps_take_one(jump_schedule: str):
    config = rp.RePaintSchedulerConfig(jump_schedule=jump_schedule)
    state = rp.set_timesteps(rp.create_state(config), 20, 3, 4)
    calls, noise = chain_path(state)
    assert calls[-1] == state.num_model_calls
    np.testing.assert_array_equal(np.diff(calls), np.diff(noise) <= 0)
    assert noise[0] == noise.max() and noise[-1] == 0


def test_a_budget_goes_down_once():
    state = rp.set_timesteps_for_budget(rp.create_state(), 200)
    calls, noise = chain_path(state)
    np.testing.assert_array_equal(calls, np.arange(201))
    assert (np.diff(noise) <= 0).all() and noise[-1] == 0


def command(model_folder: Path, *words: str) -> int:
    return cli.main(
        ["schedule", "--model", str(model_folder), "--steps", "3", "--jump-length", "1", *words]
    )


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
