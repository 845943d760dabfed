"""Find, read and write a model together with the settings of its scheduler."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from repaint_jax.files import read_json, whole_folder, write_json
from repaint_jax.models import UNet2D, UNet2DClassifier, guided_diffusion, load_unet2d, save_unet2d
from repaint_jax.models.checkpoints import (
    download_model,
    load_unet2d_classifier,
    save_unet2d_classifier,
)
from repaint_jax.models.tensor_files import TorchFile
from repaint_jax.sampling.config import CONFIG_NAME as SCHEDULER_CONFIG_NAME
from repaint_jax.sampling.config import RePaintSchedulerConfig

INDEX_NAME = "model_index.json"


def load_pretrained(
    path_or_repo: str | Path, *, dtype: Any = None, revision: str | None = None
) -> tuple[UNet2D, RePaintSchedulerConfig]:
    """Read a model and the settings of its scheduler.

    Args:
        path_or_repo: see `RePaintPipeline.from_pretrained`.
        dtype: see `RePaintPipeline.from_pretrained`.
        revision: see `RePaintPipeline.from_pretrained`.
    """
    path = model_folder(path_or_repo)
    if path.suffix == ".pt":
        return guided_diffusion.load_unet(path, dtype=dtype)
    folder = download_model(
        path,
        ("unet", ""),
        (INDEX_NAME, f"scheduler/{SCHEDULER_CONFIG_NAME}", SCHEDULER_CONFIG_NAME),
        revision,
    )
    if (folder / INDEX_NAME).is_file():
        _check_pixel_model(folder / INDEX_NAME)
    scheduler_folder = _component(folder, "scheduler", SCHEDULER_CONFIG_NAME)
    config = RePaintSchedulerConfig.from_pretrained(scheduler_folder)
    return load_unet2d(_component(folder, "unet", "config.json"), dtype=dtype), config


def load_classifier(path: str | Path, *, dtype: Any = None) -> UNet2DClassifier:
    """Read a classifier of noisy pictures from a guided-diffusion `.pt` file or a folder of `convert`."""
    if Path(path).suffix == ".pt":
        return guided_diffusion.load_classifier(Path(path), dtype)
    return load_unet2d_classifier(path, dtype=dtype)


def save_pretrained(
    folder: str | Path, unet: UNet2D, config: RePaintSchedulerConfig, dtype: Any = np.float32
) -> None:
    """Write a diffusers pipeline folder: `model_index.json`, `unet/` and `scheduler/`."""
    folder = Path(folder)
    save_unet2d(unet, folder / "unet", dtype=dtype)
    config.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "RePaintPipeline",
        "scheduler": ["diffusers", "RePaintScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / INDEX_NAME, index)


def convert(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    settings: str | Path | None = None,
    dtype: Any = np.float32,
) -> None:
    """Convert a guided-diffusion `.pt` file, of a model or a classifier, to a folder of safetensors.

    Args:
        checkpoint: the file. Reading it needs torch; reading the folder does not.
        folder: the folder to write. It must not exist. It is written completely or not at all.
        settings: the `.yml` file of the model's dataset; None means the settings of the published 256 px
            models.
        dtype: dtype of the stored weights; float16 halves the size of the folder.

    Raises:
        ValueError: the folder exists, the settings do not fit, or the checkpoint cannot be read.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists, expected the name of a new folder")
    with whole_folder(folder) as unfinished:
        if guided_diffusion.is_classifier(TorchFile(checkpoint)):
            if settings is not None:
                raise ValueError(f"settings is {settings}, expected none for a classifier")
            save_unet2d_classifier(guided_diffusion.load_classifier(checkpoint), unfinished, dtype=dtype)
        else:
            values = {} if settings is None else guided_diffusion.read_settings(Path(settings))
            save_pretrained(unfinished, *guided_diffusion.load_unet(checkpoint, values), dtype)


def bundled_folder(name: str = "fashion_mnist") -> Path:
    """Return the folder of a bundled model, with pictures that were not in its training data."""
    return Path(str(files("repaint_jax") / "bundled" / name))


def model_folder(path_or_repo: str | Path) -> Path:
    """Return the folder of "bundled" or "bundled/NAME"; return any other path unchanged.

    Raises:
        ValueError: there is no bundled model of that name.
    """
    path = Path(path_or_repo)
    if path == Path("bundled"):
        return bundled_folder()
    if path.parent != Path("bundled") or path.exists():
        return path
    if not bundled_folder(path.name).is_dir():
        names = sorted(f"bundled/{folder.name}" for folder in bundled_folder().parent.iterdir())
        raise ValueError(f"{path_or_repo} is no bundled model, expected one of {', '.join(names)}")
    return bundled_folder(path.name)


def pictures_of_model(path_or_repo: str | Path) -> list[Path]:
    """List the pictures in the subfolder `images` of a model's folder."""
    return sorted((model_folder(path_or_repo) / "images").glob("*.png"))


def _component(folder: Path, name: str, config_name: str) -> Path:
    """Return the folder of a part of a pipeline. Old pipelines have all parts in one folder."""
    if (folder / name / config_name).is_file():
        return folder / name
    if (folder / config_name).is_file():
        return folder
    raise FileNotFoundError(f"{folder} has neither {name}/{config_name} nor {config_name}")


def _check_pixel_model(index_path: Path) -> None:
    """Raise if a pipeline has other parts than an unet and a scheduler, such as an autoencoder."""
    index = read_json(index_path)
    parts = {name for name, part in index.items() if isinstance(part, list) and part[1:] != [None]}
    others = sorted(parts - {"unet", "scheduler"})
    if others:
        raise ValueError(
            f"{index_path} is of a {index.get('_class_name')} with {', '.join(others)}; only pipelines of "
            "an unconditional unet and a scheduler are supported"
        )
