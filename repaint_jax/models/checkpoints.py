"""Read and write models in diffusers' folder layout: `config.json`, and weights under diffusers' names.

A Flax parameter has another name than the torch tensor, and another order of axes. Convolution kernels are
HWIO in Flax and OIHW in torch, and the matrices of linear layers are transposed. Checkpoints from before
diffusers 0.12 have other names for the four layers of an attention block, and old ones have the frequencies
of a Fourier embedding under two names. They can be loaded too.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import save_file

from repaint_jax.files import (
    Hub,
    StrPath,
    checked_path,
    hub_files,
    inner_path,
    local_folder,
    read_json,
    write_json,
)
from repaint_jax.models.classifier import UNet2DClassifier
from repaint_jax.models.tensor_files import SafetensorsFiles, TorchFile
from repaint_jax.models.unet2d import Encoder2D, UNet2D
from repaint_jax.models.unet2d_config import UNet2DConfig
from repaint_jax.models.wrapped_weights import first_names
from repaint_jax.sampling.checks import kind_of

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

_STEM = "diffusion_pytorch_model"

Network = TypeVar("Network", bound=nnx.Module)
UNet = TypeVar("UNet", bound=Encoder2D)
Weights = Mapping[str, NDArray[Any]]

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_FREQUENCIES, _FREQUENCIES = "time_proj.W", "time_proj.weight"
_TORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # of kernels; other tensors have the same axes in both


def load_unet2d(
    path_or_repo: StrPath,
    subfolder: StrPath | None = None,
    *,
    dtype: Any = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
) -> UNet2D:
    """Load a `UNet2DModel` that diffusers or `save_unet2d` saved.

    Args:
        path_or_repo: a folder with `config.json` and the weights (safetensors in one file or in shards, or
            a `.bin` file, which needs torch), or the name of a repository on the Hugging Face hub.
        subfolder: the subfolder that has the model. In a pipeline it is "unet".
        dtype: dtype of the parameters and of the model's arithmetic; None means float32.
        revision: branch, tag or commit on the hub.
        variant: the word in the names of the weights' files, such as "fp16" in
            `diffusion_pytorch_model.fp16.safetensors`.
        token: access token for a private or gated repository; None means the stored one, False means none.
        cache_dir: folder for downloads; None means the one of huggingface_hub.

    Returns:
        The model.

    Raises:
        FileNotFoundError: the folder or a file does not exist.
        ValueError: a file is damaged, or its tensors do not fit the architecture.
    """
    inner = inner_path(subfolder)
    hub = Hub(revision, token, cache_dir)
    config_name = f"{inner}/{CONFIG_NAME}" if inner else CONFIG_NAME
    read_unet2d_config(local_folder(path_or_repo, [config_name], hub) / inner)  # before weights are fetched
    folder = download_model(path_or_repo, (inner,), (), hub, variant) / inner
    return _load_folder(UNet2D, read_unet2d_config(folder), folder, dtype, variant)


def save_unet2d(module: UNet2D, folder: StrPath, *, dtype: Any = np.float32) -> None:
    """Write `config.json` and safetensors weights that diffusers' `UNet2DModel` can load.

    Args:
        module: the model.
        folder: the folder to write. It is created if it is missing.
        dtype: NumPy dtype of the stored weights; float16 halves the size of the file.

    Raises:
        TypeError: module is no `UNet2D`.
        ValueError: a weight is not finite in dtype.
    """
    _save_folder(module, UNet2D, "UNet2DModel", folder, dtype)


def load_unet2d_classifier(folder: StrPath, *, dtype: Any = None) -> UNet2DClassifier:
    """Load a classifier that `save_unet2d_classifier` saved; `load_unet2d` describes the arguments."""
    read_unet2d_config(local_folder(folder, [CONFIG_NAME]), "UNet2DClassifier")
    folder = download_model(folder, ("",))
    config = read_unet2d_config(folder, "UNet2DClassifier")
    return _load_folder(UNet2DClassifier, config, folder, dtype)


def save_unet2d_classifier(module: UNet2DClassifier, folder: StrPath, *, dtype: Any = np.float32) -> None:
    """Write a classifier as `config.json` and safetensors; `save_unet2d` describes the arguments."""
    _save_folder(module, UNet2DClassifier, "UNet2DClassifier", folder, dtype)


def download_model(
    path_or_repo: StrPath,
    subfolders: tuple[str, ...],
    other_files: tuple[str, ...] = (),
    hub: Hub | None = None,
    variant: str | None = None,
) -> Path:
    """Return a model's folder, after downloading it if it is on the hub.

    Weights in torch's format are downloaded only if there are no safetensors.

    Args:
        path_or_repo: a folder, or the name of a repository on the Hugging Face hub.
        subfolders: subfolders with a model; "" is the folder itself.
        other_files: other files to download.
        hub: how to download them.
        variant: the variant of the weights.

    Raises:
        FileNotFoundError: the repository cannot be reached, or has weights of other variants alone.
    """
    hub = hub or Hub()

    def patterns(*names: str) -> list[str]:
        return [f"{subfolder}/{name}" if subfolder else name for subfolder in subfolders for name in names]

    whole, index, torch_file = _weights_names(variant)
    word = f".{variant}" if variant else ""
    shards = [f"{_STEM}{word}-?????-of-?????.safetensors", f"{_STEM}-?????-of-?????{word}.safetensors"]
    wanted = [*other_files, *patterns(CONFIG_NAME, whole, index, *shards)]
    folder = local_folder(path_or_repo, wanted, hub)
    if Path(path_or_repo).is_dir() or any((folder / name).is_file() for name in patterns(whole, index)):
        return folder
    folder = local_folder(path_or_repo, [*wanted, *patterns(torch_file)], hub)
    if not any((folder / name).is_file() for name in patterns(torch_file)):
        there = [name for name in hub_files(path_or_repo, hub) if name.rpartition("/")[0] in subfolders]
        hint = _other_variants(name.rpartition("/")[2] for name in there)
        if hint:
            raise FileNotFoundError(f"{os.fspath(path_or_repo)} has no {whole}{hint}")
    return folder


def open_weights(folder: Path, variant: str | None = None) -> tuple[Weights, Path]:
    """Open the weights in a folder, which are read one by one, and return them with their file."""
    names = _weights_names(variant)
    for name, kind in zip(names, (SafetensorsFiles, SafetensorsFiles, TorchFile), strict=True):
        if (folder / name).is_file():
            return kind(folder / name), folder / name
    hint = _other_variants(path.name for path in folder.glob("*"))
    raise FileNotFoundError(f"{folder / names[0]} does not exist{hint}")


def _weights_names(variant: str | None) -> tuple[str, str, str]:
    """Return the names that diffusers gives safetensors, the index of their shards, and torch's file."""
    word = f".{variant}" if variant else ""
    return (
        f"{_STEM}{word}.safetensors",
        f"{_STEM}.safetensors.index{word}.json",
        f"{_STEM}{word}.bin",
    )


def _other_variants(names: Iterable[str]) -> str:
    """Say which variants there are, for a message that the wanted one is missing."""
    word = r"(?:\.(\w+))?"
    pattern = rf"{_STEM}(?:{word}\.(?:safetensors|bin)|\.safetensors\.index{word}\.json)"
    matches = filter(None, (re.fullmatch(pattern, name) for name in names))
    variants = sorted({repr(match[1] or match[2]) for match in matches})
    return f"; there are weights of variant={' and variant='.join(variants)}" if variants else ""


def read_unet2d_config(folder: Path, class_name: str = "UNet2DModel") -> UNet2DConfig:
    """Read the `config.json` in a folder.

    Raises:
        ValueError: it is of a model of another class, or has an option that is not supported.
    """
    config_path = folder / CONFIG_NAME
    found = read_json(config_path).get("_class_name", class_name)
    if found != class_name:
        raise ValueError(f"{config_path} is of a {found}, only {class_name} is supported")
    return UNet2DConfig.from_file(config_path)


def _load_folder(
    cls: type[UNet], config: UNet2DConfig, folder: Path, dtype: Any, variant: str | None = None
) -> UNet:
    weights, source = open_weights(folder, variant)
    return load_module(lambda: cls(config, rngs=nnx.Rngs(0)), weights, source, dtype)


def _save_folder(
    module: Encoder2D, cls: type[Encoder2D], class_name: str, folder: StrPath, dtype: Any
) -> None:
    if not isinstance(module, cls):
        raise TypeError(f"module is {kind_of(module)}, expected a {cls.__name__}")
    save_module(module, {**module.config.to_dict(), "_class_name": class_name}, folder, dtype)


def save_module(module: nnx.Module, config: Mapping[str, Any], folder: StrPath, dtype: Any) -> None:
    """Write a module's parameters as safetensors under diffusers' names, and `config.json`."""
    folder, tensors = checked_path("folder", folder), {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = _torch_name(path)
        value = _cast(np.asarray(variable[...]), dtype, f"{folder}: {name}")
        tensors[name] = np.ascontiguousarray(value.transpose(_torch_axes(path, value.ndim)))
    write_json(folder / CONFIG_NAME, config)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    shutil.copymode(folder / CONFIG_NAME, folder / WEIGHTS_NAME)  # safetensors lets only the owner read it


def load_module(make: Callable[[], Network], weights: Weights, source: Path, dtype: Any) -> Network:
    """Make a module without initialising it, and load weights into it.

    Args:
        make: a function that makes the module.
        weights: tensors under diffusers' names. Each is read once, cast once and put on the device.
        source: the file that error messages name.
        dtype: dtype of the parameters; None means float32.

    Returns:
        The module with the weights.

    Raises:
        ValueError: a tensor is missing or left over, or has a wrong shape, a wrong dtype or values that are
            not finite. The message names the tensor.
    """
    dtype = jnp.float32 if dtype is None else dtype
    module = nnx.eval_shape(make)
    names = [name for name in weights if name != _OLD_FREQUENCIES or _FREQUENCIES not in weights]
    stored_names = {_present_name(name): name for name in names}
    for name in names:
        if stored_names[_present_name(name)] != name:
            raise ValueError(f"{source} has a tensor under two names: {name}, {_present_name(name)}")
    variables = {
        _torch_name(path): (path, v) for path, v in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    hint = "" if stored_names.keys() & variables.keys() else first_names(weights)
    for name, (path, variable) in variables.items():
        if name not in stored_names:
            raise ValueError(f"{source} lacks the tensor {name}{hint}")
        tensor = weights[stored_names.pop(name)]
        axes = _torch_axes(path, variable.ndim)
        expected = tuple(variable.shape[axis] for axis in axes)
        if path[-1] == "kernel" and tensor.shape == (*expected, 1, 1):
            tensor = tensor.reshape(expected)  # a linear layer that was saved as a 1x1 convolution
        if tensor.shape != expected:
            raise ValueError(f"{source}: {name} has shape {tensor.shape}, expected {expected}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{source}: {name} has dtype {tensor.dtype}, expected a floating dtype")
        cast = _cast(tensor, dtype, f"{source}: {name}")
        variables[name] = (path, variable.replace(jnp.asarray(cast.transpose(np.argsort(axes)))))
    if stored_names:
        raise ValueError(f"{source} has a tensor that the model lacks: {min(stored_names)}")
    nnx.update(module, nnx.from_flat_state(variables.values()))
    return module


def _cast(tensor: NDArray[Any], dtype: Any, name: str) -> NDArray[Any]:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype is {dtype!r}, expected a floating dtype")
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(f"dtype is {jnp.dtype(dtype)}, expected a floating dtype of at least 16 bits")
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} has values that are not finite in {jnp.dtype(dtype)}")
    return cast


def _torch_name(path: tuple[Any, ...]) -> str:
    *modules, leaf = map(str, path)
    return ".".join([*modules, _TORCH_LEAVES.get(leaf, leaf)])


def _present_name(name: str) -> str:
    if name == _OLD_FREQUENCIES:
        return _FREQUENCIES
    return ".".join(_OLD_ATTENTION_NAMES.get(part, part) for part in name.split("."))


def _torch_axes(path: tuple[Any, ...], ndim: int) -> tuple[int, ...]:
    same = tuple(range(ndim))
    return _TORCH_AXES.get(ndim, same) if path[-1] == "kernel" else same
