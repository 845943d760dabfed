"""The models that the web app offers: the command's, the bundled ones, those in the hub's cache."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from repaint_jax.files import StrPath
from repaint_jax.models.pretrained import INDEX_NAME, bundled_folder, model_folder
from repaint_jax.pipeline import RePaintPipeline

_PARTS = {"unet", "scheduler", "vqvae", "vae"}
_SUBJECTS = {
    "fashion": "clothes",
    "emoji": "emoji",
    "celeb": "faces",
    "ffhq": "faces",
    "church": "churches",
    "bedroom": "bedrooms",
    "cat": "cats",
    "butterfl": "butterflies",
    "mnist": "digits",
}


class Models:
    """Models that are loaded once they are chosen. The first and the one chosen last stay in memory.

    Args:
        default: the path of the first model.
        load: a function that loads a model.
        others: the names of more models, and their paths.
    """

    def __init__(
        self,
        default: StrPath,
        load: Callable[[str], RePaintPipeline],
        others: dict[str, str] | None = None,
    ):
        self.default = str(default)
        self.names = {path: name for name, path in (others or {}).items()} | {self.default: self.default}
        self._load, self._lock = load, Lock()
        self._loaded = {self.default: load(self.default)}

    @property
    def choices(self) -> list[tuple[str, str]]:
        """The names and paths, the default first."""
        return sorted(
            ((name, path) for path, name in self.names.items()), key=lambda pair: pair[1] != self.default
        )

    def get(self, path: str) -> RePaintPipeline:
        """Return a model; load it if it is not in memory."""
        with self._lock:
            if path not in self._loaded:
                loaded = self._load(path)
                self._loaded = {self.default: self._loaded[self.default], path: loaded}
            return self._loaded[path]

    def description(self, path: str) -> str:
        """Say in a line what a model can and cannot do."""
        height, width, channels = self.get(path).image_shape
        words = re.split(r"[^a-z]+", f"{self.names[path]} {model_folder(path).name}".lower())
        subject = next(
            (name for start, name in _SUBJECTS.items() if any(word.startswith(start) for word in words)),
            "what it was trained on",
        )
        colours = "grey" if channels in (1, 2) else "colour"
        return (
            f"Paint over what to fill. This model knows {subject} in {colours}, {width} x {height} pixels: "
            "it sees a hole with its surroundings at that size, continues what looks like its subject, and "
            "cannot draw other things or finer detail."
        )


def models_here(default: StrPath) -> dict[str, str]:
    """Return the names and paths of the models that are on this machine, besides the default one."""
    bundled = {f"bundled/{one.name}": one for one in sorted(bundled_folder().parent.iterdir())}
    found = {name: folder for name, folder in bundled.items() if _is_model(folder)}
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        found |= _cached_models(Path(HF_HUB_CACHE))
    taken = {Path(default), model_folder(default)}
    return {
        name: str(path) for name, path in found.items() if path not in taken and Path(name) != Path(default)
    }


def _cached_models(cache: Path) -> dict[str, Path]:
    """Return the models in a cache of the Hugging Face hub, and the folders of their newest snapshots."""
    models = {}
    for repo in sorted(cache.glob("models--*")):
        snapshots = sorted((repo / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime)
        for snapshot in filter(_is_model, snapshots):
            models[repo.name.removeprefix("models--").replace("--", "/")] = snapshot
    return models


def _is_model(folder: Path) -> bool:
    """Whether a folder has an unconditional network, judging by its configs, and weights."""
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        index = folder / INDEX_NAME
        if index.is_file():
            listed = json.loads(index.read_text()).items()
            parts = {name for name, part in listed if isinstance(part, list) and part[1:] != [None]}
            fits = parts <= _PARTS and "unet" in parts
        else:
            fits = json.loads((folder / "config.json").read_text())["_class_name"] == "UNet2DModel"
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        weights += [*folder.glob("unet/*.safetensors"), *folder.glob("unet/*.bin")]
        return fits and bool(weights)
    return False
