"""Each numbered example runs as it stands and writes its picture."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9][0-9]_*.py"))


def test_examples_are_numbered_one_by_one() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{i + 1:02}" for i in range(len(EXAMPLES))]
    assert len(EXAMPLES) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_numbered_example_writes_its_picture(example: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "picture.png"
    done = subprocess.run(
        [sys.executable, example, "-o", picture],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {picture}"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert min(pixels.shape[:2]) >= 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # a picture, not a blank
