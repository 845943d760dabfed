"""Each numbered example runs as it stands and writes its picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9][0-9]_*.py"))
TEXT = next(path for path in EXAMPLES if path.stem == "09_text")


def run(example: Path, folder: Path) -> str:
    """Run an example, check the picture that it writes, and return what it prints."""
    picture = folder / "new" / "picture.png"
    done = subprocess.run(
        [sys.executable, example, "-o", picture],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {picture}"
    assert [path.name for path in folder.iterdir()] == ["new"]
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert min(pixels.shape[:2]) >= 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # a picture, not a blank
    return done.stdout


def test_examples_are_numbered_one_by_one() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{i + 1:02}" for i in range(len(EXAMPLES))]
    assert len(EXAMPLES) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("example", [path for path in EXAMPLES if path != TEXT], ids=lambda path: path.stem)
def test_a_numbered_example_writes_its_picture(example: Path, tmp_path: Path) -> None:
    run(example, tmp_path)


@pytest.mark.slow
def test_the_text_example_shows_what_the_prompt_says(tmp_path: Path) -> None:
    """Without a prompt, a result shows one of 24 captions, and rarely that of the prompt."""
    shares = {
        name.strip(): [int(share) for share in re.findall(r"(\d+)%", line)]
        for name, line in re.findall(r"^([a-z][a-z 0-9.]+?)  +(\d+%.*)$", run(TEXT, tmp_path), re.M)
    }
    assert list(shares) == ["drawn as prompted", "guidance 0", "guidance 1", "guidance 1.5"]
    assert min(shares["drawn as prompted"]) >= 97  # the rule that reads the results
    assert shares["guidance 0"][-1] <= 20
    assert shares["guidance 1"][-1] >= 85
    assert shares["guidance 1.5"][-1] >= 85
