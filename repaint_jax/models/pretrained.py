"""Find, read and write a model together with the settings of its scheduler."""

import os
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from repaint_jax.files import (
    MODEL_PATH,
    Hub,
    StrPath,
    checked_path,
    inner_path,
    local_folder,
    read_json,
    whole_folder,
    whole_parts,
    write_json,
)
from repaint_jax.models import UNet2D, UNet2DClassifier, guided_diffusion, load_unet2d, save_unet2d
from repaint_jax.models.autoencoder import Autoencoder, check_autoencoder
from repaint_jax.models.autoencoder_checkpoints import (
    autoencoder_maker,
    load_autoencoder,
    save_autoencoder,
)
from repaint_jax.models.checkpoints import (
    CONFIG_NAME,
    download_model,
    load_unet2d_classifier,
    read_unet2d_config,
    save_unet2d_classifier,
)
from repaint_jax.models.families import Scheduler, check_time_embedding, read_scheduler, write_scheduler
from repaint_jax.models.tensor_files import TorchFile
from repaint_jax.sampling.config import CONFIG_NAME as SCHEDULER_CONFIG_NAME

INDEX_NAME = "model_index.json"
_AUTOENCODERS = {"VQModel": "vqvae", "AutoencoderKL": "vae"}  # their parts in a pipeline's folder


class Pretrained(NamedTuple):
    """A model, the settings of its scheduler, and the autoencoder of a latent model."""

    unet: UNet2D
    scheduler: Scheduler
    autoencoder: Autoencoder | None = None


def load_pretrained(
    path_or_repo: StrPath,
    *,
    dtype: Any = None,
    revision: str | None = None,
    autoencoder: StrPath | Autoencoder | None = None,
    subfolder: StrPath | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
) -> Pretrained:
    """Read a model and the settings of its scheduler.

    Args:
        path_or_repo: see `RePaintPipeline.from_pretrained`.
        dtype: see `RePaintPipeline.from_pretrained`.
        revision: see `RePaintPipeline.from_pretrained`.
        autoencoder: see `RePaintPipeline.from_pretrained`.
        subfolder: see `RePaintPipeline.from_pretrained`.
        variant: see `RePaintPipeline.from_pretrained`.
        token: see `RePaintPipeline.from_pretrained`.
        cache_dir: see `RePaintPipeline.from_pretrained`.
    """
    hub = Hub(revision, token, cache_dir)
    if autoencoder is not None and (autoencoder == "" or not isinstance(autoencoder, str | os.PathLike)):
        check_autoencoder(autoencoder)
    path = model_folder(path_or_repo)
    if _is_checkpoint(path):
        for name, value in (("subfolder", subfolder), ("variant", variant)):
            if value is not None:
                raise ValueError(f"{name} is {str(value)!r}, expected None for the checkpoint {path}")
        autoencoder = _loaded(autoencoder, dtype, hub)
        return Pretrained(*guided_diffusion.load_unet(path, dtype=dtype), autoencoder)
    places = _places(subfolder)
    networks = _join(places[0], "unet"), places[0]
    names = [INDEX_NAME, f"scheduler/{SCHEDULER_CONFIG_NAME}", SCHEDULER_CONFIG_NAME]
    names += [f"{part}/{CONFIG_NAME}" for part in _AUTOENCODERS.values()]
    other_files = tuple(_join(place, name) for place in places for name in names)
    configs = [*other_files, *(_join(network, CONFIG_NAME) for network in networks)]
    source = path_or_repo if path == Path(path_or_repo) else path  # a Path forgets that "./x" is no name
    folder = local_folder(source, configs, hub)
    where, _, _ = _checked_parts(folder, places)  # before any weights are fetched
    if where is not None and autoencoder is None:
        autoencoder_maker(folder / where)
    autoencoder = _loaded(autoencoder, dtype, hub)
    folder = download_model(source, networks, other_files, hub, variant)
    where, unet_folder, scheduler = _checked_parts(folder, places)
    if where is not None and autoencoder is None:
        autoencoder = load_autoencoder(source, where, dtype=dtype, variant=variant, **hub._asdict())
    return Pretrained(load_unet2d(unet_folder, dtype=dtype, variant=variant), scheduler, autoencoder)


def _loaded(autoencoder: StrPath | Autoencoder | None, dtype: Any, hub: Hub) -> Autoencoder | None:
    """Return the autoencoder of an argument, which may be its folder or repository."""
    if isinstance(autoencoder, str | os.PathLike):
        return load_autoencoder(autoencoder, dtype=dtype, token=hub.token, cache_dir=hub.cache_dir)
    return autoencoder


def _checked_parts(folder: Path, places: tuple[str, ...]) -> tuple[str | None, Path, Scheduler]:
    """Read the settings of a pipeline in a folder, and raise if they are not supported.

    Returns:
        The place of the autoencoder or None, the folder of the network, and the scheduler.
    """
    inner = places[0]
    if inner and not (folder / inner).is_dir():
        raise FileNotFoundError(f"subfolder is {inner!r}, expected a folder in {folder}")
    where = _autoencoder_place(folder, places)
    scheduler_folder = _component(folder, places, "scheduler", SCHEDULER_CONFIG_NAME)
    unet_folder = _component(folder, (inner,), "unet", CONFIG_NAME)
    unet_config = read_unet2d_config(unet_folder)
    scheduler = read_scheduler(scheduler_folder)
    try:
        check_time_embedding(unet_config, scheduler)
    except ValueError as error:
        raise ValueError(f"{unet_folder / CONFIG_NAME}: {error}") from None
    return where, unet_folder, scheduler


def load_classifier(path: StrPath, *, dtype: Any = None) -> UNet2DClassifier:
    """Read a classifier of noisy pictures from a guided-diffusion `.pt` file or a folder of `convert`."""
    if _is_checkpoint(checked_path("path", path, MODEL_PATH)):
        return guided_diffusion.load_classifier(path, dtype)
    return load_unet2d_classifier(path, dtype=dtype)


def save_pretrained(
    folder: StrPath,
    unet: UNet2D,
    scheduler: Scheduler,
    dtype: Any = np.float32,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a diffusers pipeline folder: `model_index.json`, `unet/`, `scheduler/`, `vqvae/` or `vae/`."""
    with whole_parts(folder) as parts:
        save_unet2d(unet, parts / "unet", dtype=dtype)
        write_scheduler(parts / "scheduler", scheduler)
        index: dict[str, Any] = {
            "_class_name": "RePaintPipeline",
            "scheduler": ["diffusers", scheduler.to_dict()["_class_name"]],
            "unet": ["diffusers", "UNet2DModel"],
        }
        if autoencoder is not None:
            class_name = autoencoder.config.class_name
            part, own_dtype = _AUTOENCODERS[class_name], autoencoder.encoder.conv_in.kernel.dtype
            save_autoencoder(autoencoder, parts / part, dtype=own_dtype)
            index.update({"_class_name": "LDMPipeline", part: ["diffusers", class_name]})
        write_json(parts / INDEX_NAME, index)


def convert(
    checkpoint: StrPath,
    folder: StrPath,
    *,
    settings: StrPath | None = None,
    dtype: Any = np.float32,
) -> None:
    """Convert a `.pt` file in guided-diffusion's layout, of a model or a classifier, to safetensors.

    Args:
        checkpoint: the file. Reading it needs torch; reading the folder does not.
        folder: the folder to write. It must not exist. It is written completely or not at all.
        settings: the `.yml` file of the model's dataset, or of its training's flags. What it does not
            tell, and the weights do not tell, is assumed, with a warning. The published models need none.
        dtype: dtype of the stored weights; float16 halves the size of the folder.

    Raises:
        ValueError: the folder exists, the settings do not fit, or the checkpoint cannot be read.
    """
    checkpoint, folder = checked_path("checkpoint", checkpoint), checked_path("folder", folder)
    if folder.exists():
        raise ValueError(f"{folder} exists, expected the name of a new folder")
    with whole_folder(folder) as unfinished:
        if guided_diffusion.is_classifier(TorchFile(checkpoint)):
            if settings is not None:
                raise ValueError(f"settings is {settings}, expected none for a classifier")
            save_unet2d_classifier(guided_diffusion.load_classifier(checkpoint), unfinished, dtype=dtype)
        else:
            values = {} if settings is None else guided_diffusion.read_settings(settings)
            save_pretrained(unfinished, *guided_diffusion.load_unet(checkpoint, values), dtype)


def bundled_folder(name: str = "fashion_mnist") -> Path:
    """Return the folder of a bundled model, with pictures that were not in its training data."""
    return Path(str(files("repaint_jax") / "bundled" / name))


def model_folder(path_or_repo: StrPath) -> Path:
    """Return the folder of "bundled" or "bundled/NAME"; return any other path unchanged.

    Raises:
        ValueError: there is no bundled model of that name.
        TypeError: it is no path.
    """
    path = checked_path("path_or_repo", path_or_repo, MODEL_PATH)
    if path == Path("bundled"):
        return bundled_folder()
    if path.parent != Path("bundled") or path.exists():
        return path
    if not bundled_folder(path.name).is_dir():
        names = sorted(f"bundled/{folder.name}" for folder in bundled_folder().parent.iterdir())
        raise ValueError(f"{path} is no bundled model, expected one of {', '.join(names)}")
    return bundled_folder(path.name)


def pictures_of_model(path_or_repo: StrPath) -> list[Path]:
    """List the pictures in the subfolder `images` of a model's folder."""
    return sorted((model_folder(path_or_repo) / "images").glob("*.png"))


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is that of a torch file, judging by its name."""
    return path.suffix == ".pt" or (path.suffix in (".pth", ".ckpt") and not path.is_dir())


def _places(subfolder: StrPath | None) -> tuple[str, ...]:
    """Return a subfolder and the folders above it, up to the model's folder, which is ""."""
    inner = PurePosixPath(inner_path(subfolder))
    if inner.is_absolute() or Path(inner).is_absolute() or ".." in inner.parts:
        raise ValueError(f"subfolder is {str(subfolder)!r}, expected a folder inside path_or_repo")
    return tuple("" if place == PurePosixPath() else str(place) for place in (inner, *inner.parents))


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _component(folder: Path, places: tuple[str, ...], name: str, config_name: str) -> Path:
    """Return the folder of a part of a pipeline. Old pipelines have all parts in one folder."""
    for place in places:
        for candidate in (folder / place / name, folder / place):
            if (candidate / config_name).is_file():
                return candidate
    inside = folder / places[0]
    message = f"{inside} has neither {name}/{config_name} nor {config_name}"
    if len(places) > 1:
        message += f", and no folder above it up to {folder} has it"
    for above in inside.absolute().parents[:2]:
        if len(places) == 1 and any((above / part / config_name).is_file() for part in (name, "")):
            inner = inside.absolute().relative_to(above).as_posix()
            message += f"; {above} has it: give that as path_or_repo, and subfolder={inner!r}"
            break
    raise FileNotFoundError(message)


def _autoencoder_place(folder: Path, places: tuple[str, ...]) -> str | None:
    """Return the folder of a pipeline's autoencoder, inside the model's folder; None for models of pixels.

    It is the one that the nearest `model_index.json` names, or else the one that is there.

    Raises:
        ValueError: a pipeline has several autoencoders, or parts that are not known.
    """
    for place in places:
        index_path = folder / place / INDEX_NAME
        if index_path.is_file():
            index = read_json(index_path)
            parts = {name for name, part in index.items() if isinstance(part, list) and part[1:] != [None]}
            others = sorted(parts - {"unet", "scheduler", *_AUTOENCODERS.values()})
            if others:
                raise ValueError(
                    f"{index_path} is of a {index.get('_class_name')} with {', '.join(others)}; only "
                    "pipelines of an unconditional unet, a scheduler and an autoencoder are supported"
                )
            named = sorted(parts & set(_AUTOENCODERS.values()))
            source = index_path
        else:
            named, source = [], folder / place
        found = named or [
            part for part in _AUTOENCODERS.values() if (folder / place / part / "config.json").is_file()
        ]
        if len(found) > 1:
            raise ValueError(f"{source} has {' and '.join(found)}, expected one autoencoder")
        if found:
            return _join(place, found[0])
    return None
