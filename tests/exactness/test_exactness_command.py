"""The command, as a user runs it, with few problems and samples."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fashion import DATA, FITTED
from problems import FAMILIES

ROOT = Path(__file__).parents[2]
HAS_IMAGES = DATA.exists() or FITTED.exists()

pytestmark = pytest.mark.slow


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "exactness", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_peers_run_on_all_families_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.csv", tmp_path / "peers.png"
    families = [name for name in FAMILIES if name != "images" or HAS_IMAGES]
    quick = ("--peers", "--quick", "--results", results, "--calls", 24, "--families", *families)
    plot = ("--plot", picture) if find_spec("matplotlib") else ()
    table = run(*quick, *plot)
    assert re.search(r"^\| RePaint \| 2,410 \|( 1 \|){5}", table, re.M)
    for name in ("call budget", "LanPaint", "DING, delayed", "TDS"):
        (line,) = re.findall(rf"^\| {name} \| 24 \| (.*) \|$", table, re.M)
        assert len([cell for cell in line.split(" | ") if cell]) == len(families)
    assert picture.exists() == bool(plot)
    before = results.read_text()
    assert run(*quick) == table
    assert results.read_text() == before


def test_the_errors_of_the_call_budget_are_printed() -> None:
    table = run("--gaussians", 1, "--mixtures", 1, "--budgets", 16, "--noise-levels", "betas", "edm")
    assert "| the paper's setting | 2410 | 1 | 1 | 1 | 1 |" in table
    assert re.search(r"^\| edm, 1,000 levels \| 16 \|", table, re.M)
