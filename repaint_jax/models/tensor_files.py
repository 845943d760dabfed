"""Read files of named tensors, one tensor at a time: safetensors (one file or shards), torch's pickles."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from repaint_jax.files import read_json


class SafetensorsFiles(Mapping[str, NDArray[Any]]):
    """The tensors of one safetensors file, or of the shards that an index file lists.

    The file is opened again for each tensor, because everything read from an open file stays in memory.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix == ".json":
            weight_map = read_json(path).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{path} has no weight_map, expected the index of a sharded model")
            self.files = {name: path.parent / Path(str(file)).name for name, file in weight_map.items()}
            for file in sorted(set(self.files.values())):
                if not file.is_file():
                    raise FileNotFoundError(f"{file} does not exist, but {path} lists it")
                for name in _names(file):
                    self.files.setdefault(name, file)
        else:
            self.files = dict.fromkeys(_names(path), path)

    def __getitem__(self, name: str) -> NDArray[Any]:
        path = self.files[name]
        try:
            with safe_open(path, framework="numpy") as file:
                return np.asarray(file.get_tensor(name))
        except (SafetensorError, AttributeError) as error:  # AttributeError: NumPy lacks the file's dtype
            raise ValueError(f"{path} has no readable tensor {name}: {error}") from None

    def __contains__(self, name: object) -> bool:  # the inherited method would read the tensor
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


class TorchFile(Mapping[str, NDArray[Any]]):
    """The tensors of a state dict that torch saved. Code in the file is never run.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: torch is not installed.
        ValueError: the file is damaged, or holds something other than named tensors.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
        try:
            import torch
        except ImportError:
            raise ImportError(
                f"{path} is a file of torch, and reading it needs torch; install it, or convert the file "
                "to safetensors where torch is installed"
            ) from None
        try:
            with path.open("rb") as file:
                mmap = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be memory-mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # of any type; torch's own message advises to run the file's code
            raise ValueError(
                f"{path} is damaged, or holds something else than weights ({type(error).__name__})"
            ) from None
        if not isinstance(tensors, dict):
            raise ValueError(f"{path} holds a {type(tensors).__name__}, expected a dict of named tensors")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise ValueError(
                    f"{path}: {name!r} is a {type(tensor).__name__}, expected named tensors alone"
                )
        self.path, self.tensors = path, tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self.tensors[name]
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 2:
            tensor = tensor.float()  # NumPy has no bfloat16
        try:
            return np.asarray(tensor.detach().numpy())
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{self.path} has no readable tensor {name}: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
