"""Each numbered example runs as it stands and writes its picture; what a training script refuses."""

import importlib.util
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pictures"], "--batch-size is 16, but there are only 2 images"),
        (["missing"], "missing is not a folder"),
        (["pictures", "--widths", "10"], "--widths has 10, expected a multiple of norm_num_groups=8"),
        (["pictures", "--train-steps", "0"], "--train-steps is 0, expected an integer of at least 1"),
        (
            ["pictures", "--image-size", "15"],
            "--image-size is 15, expected a multiple of the 4 pixels of a",
        ),
        (["pictures", "--learning-rate", "nan"], "--learning-rate is nan, expected a positive number"),
        (
            ["pictures", "--batch-size", "2", "-o", "pictures/0.png"],
            "--output is pictures/0.png, expected a",
        ),
    ],
)
def test_train_autoencoder_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, words, message) -> None:
    path = EXAMPLES[0].with_name("train_autoencoder.py")
    spec = importlib.util.spec_from_file_location("train_autoencoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_autoencoder.py", *words])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_script_for_an_accelerator_can_be_rehearsed(tmp_path: Path) -> None:
    script = EXAMPLES[0].parent / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out", "--rehearse"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, row = (tmp_path / "out" / "benchmarks.md").read_text().splitlines()
    assert re.match(r"\| tiny, 8 px \| 2 \| [\d.]+ ms \| [\d.]+ ms \| [\d.]+ \| [\d.]+ s \|", row)
    assert (tmp_path / "out" / "model" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) <= 8 and max(path.stat().st_size for path in files) < 2**24
