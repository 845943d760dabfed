"""Read and write autoencoders in diffusers' folder layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from repaint_jax.files import Hub, StrPath, inner_path, local_folder, read_json
from repaint_jax.models.autoencoder import Autoencoder, AutoencoderKL, VQModel
from repaint_jax.models.autoencoder_config import AutoencoderKLConfig, VQModelConfig
from repaint_jax.models.checkpoints import (
    CONFIG_NAME,
    download_model,
    load_module,
    open_weights,
    save_module,
)
from repaint_jax.sampling.checks import kind_of

_SUBFOLDERS = ("vae", "vqvae")  # those of diffusers' pipelines


def load_autoencoder(
    path_or_repo: StrPath,
    subfolder: StrPath | None = None,
    *,
    dtype: Any = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
) -> AutoencoderKL | VQModel:
    """Load an `AutoencoderKL` or a `VQModel` that diffusers or `save_autoencoder` saved.

    The class is that in `config.json`, `_class_name`.

    Args:
        path_or_repo: see `load_unet2d`.
        subfolder: the subfolder that has the autoencoder. If None, path_or_repo may also be a pipeline
            with the subfolder "vae" or "vqvae".
        dtype: dtype of the parameters and of the arithmetic; None means float32. In float16 the
            autoencoders of Stable Diffusion XL overflow.
        revision: see `load_unet2d`.
        variant: see `load_unet2d`.
        token: see `load_unet2d`.
        cache_dir: see `load_unet2d`.

    Returns:
        The autoencoder.

    Raises:
        FileNotFoundError: the folder or a file does not exist.
        ValueError: the folder has a model of another class, a file is damaged, or its tensors do not fit
            the architecture.
    """
    places = ("", *_SUBFOLDERS) if subfolder is None else (inner_path(subfolder),)
    hub = Hub(revision, token, cache_dir)
    config_names = [f"{place}/{CONFIG_NAME}" if place else CONFIG_NAME for place in places]
    autoencoder_maker(
        _folder_of(local_folder(path_or_repo, config_names, hub), places)
    )  # before weights are fetched
    folder = _folder_of(download_model(path_or_repo, places, (), hub, variant), places)
    weights, source = open_weights(folder, variant)
    return load_module(autoencoder_maker(folder), weights, source, dtype)


def save_autoencoder(module: Autoencoder, folder: StrPath, *, dtype: Any = np.float32) -> None:
    """Write `config.json` and safetensors weights that diffusers can load.

    Args:
        module: the autoencoder.
        folder: the folder to write. It is created if it is missing.
        dtype: NumPy dtype of the stored weights; float16 halves the size of the file.

    Raises:
        TypeError: module is no `AutoencoderKL` and no `VQModel`.
        ValueError: a weight is not finite in dtype.
    """
    if not isinstance(module, AutoencoderKL | VQModel):
        raise TypeError(f"module is {kind_of(module)}, expected an AutoencoderKL or a VQModel")
    save_module(module, module.config.to_dict(), folder, dtype)


def _folder_of(root: Path, places: tuple[str, ...]) -> Path:
    """Return the first of the places that has a `config.json`, or the first if none has."""
    folders = [root / place for place in places]
    return next((one for one in folders if (one / CONFIG_NAME).is_file()), folders[0])


def autoencoder_maker(folder: Path) -> Callable[[], AutoencoderKL | VQModel]:
    """Return a function that makes the autoencoder that the `config.json` in a folder describes.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is of another class, or has an option that is not supported.
    """
    config_path = folder / CONFIG_NAME
    class_name = read_json(config_path).get("_class_name")
    if class_name == "AutoencoderKL":
        kl_config = AutoencoderKLConfig.from_file(config_path)
        return lambda: AutoencoderKL(kl_config, rngs=nnx.Rngs(0))
    if class_name == "VQModel":
        vq_config = VQModelConfig.from_file(config_path)
        return lambda: VQModel(vq_config, rngs=nnx.Rngs(0))
    found = "has no _class_name" if class_name is None else f"is of a {class_name}"
    raise ValueError(f"{config_path} {found}, expected AutoencoderKL or VQModel")
