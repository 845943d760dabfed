"""The Python blocks of the README and of docs/, and the short one in examples/, run as they stand."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from repaint_jax.models import VQModel, VQModelConfig
from repaint_jax.models.pretrained import load_pretrained, save_pretrained

ROOT = Path(__file__).parent.parent


def python_blocks(page: Path, *marks: Any) -> list[Any]:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [
        pytest.param(code, id=f"{page.stem}-{code.splitlines()[-1].strip()[:40]}", marks=marks)
        for code in blocks
    ]


BLOCKS = [
    *python_blocks(ROOT / "README.md"),
    *(
        block
        for page in sorted((ROOT / "docs").rglob("*.md"))
        for block in python_blocks(page, pytest.mark.slow)
    ),
]


@pytest.fixture
def models_in_the_hub_s_cache(model_folder: Path, tmp_path: Path, set_hub_constants) -> None:
    """Tiny models in the place and the layout of those that the pages name."""
    set_hub_constants(HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE=True)
    # This one has all files in one folder.
    snapshot = snapshot_of("google/ddpm-ema-celebahq-256", tmp_path)
    for folder in (model_folder, model_folder / "unet", model_folder / "scheduler"):
        shutil.copytree(
            folder, snapshot, ignore=shutil.ignore_patterns("unet", "scheduler"), dirs_exist_ok=True
        )
    autoencoder = VQModel(VQModelConfig(latent_channels=1, norm_num_groups=8), rngs=nnx.Rngs(0))
    unet, scheduler, _ = load_pretrained(model_folder)
    save_pretrained(
        snapshot_of("CompVis/ldm-celebahq-256", tmp_path), unet, scheduler, autoencoder=autoencoder
    )


def snapshot_of(repository: str, tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


@pytest.fixture
def working_directory(
    models_in_the_hub_s_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the repository's package in it, and a picture with its mask."""
    (tmp_path / "repaint_jax").symlink_to(ROOT / "repaint_jax")
    picture = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "face.png")
    Image.fromarray(np.uint8(255) * (picture[..., 0] < 128)).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("working_directory")
@pytest.mark.parametrize("code", BLOCKS)
def test_example_of_a_page_runs(code: str) -> None:
    exec(compile(code, "example", "exec"), {})


@pytest.mark.usefixtures("working_directory")
def test_inpaint_celebahq_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inpaint_celebahq.py", "face.png", "mask.png", "filled.png"])
    runpy.run_path(str(ROOT / "examples" / "inpaint_celebahq.py"), run_name="__main__")
    assert Image.open("filled.png").size == (8, 8)
