"""Read files of named tensors, one tensor at a time: safetensors (one file or shards), torch's pickles."""

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from repaint_jax.files import StrPath, check_not_lfs_pointer, optional_package, read_json
from repaint_jax.models.wrapped_weights import named_tensors, unwrapped_names


class SafetensorsFiles(Mapping[str, NDArray[Any]]):
    """The tensors of one safetensors file, or of the shards that an index file lists.

    The file is opened again for each tensor, because everything read from an open file stays in memory.
    """

    def __init__(self, path: StrPath):
        self.path = path = Path(path)
        if path.suffix == ".json":
            weight_map = read_json(path).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{path} has no weight_map, expected the index of a sharded model")
            files = {name: path.parent / Path(str(file)).name for name, file in weight_map.items()}
            for file in sorted(set(files.values())):
                if not file.is_file():
                    raise FileNotFoundError(f"{file} does not exist, but {path} lists it")
                for name in _names(file):
                    files.setdefault(name, file)
        else:
            files = dict.fromkeys(_names(path), path)
        self.files = {name: (files[old], old) for name, old in unwrapped_names(files, path).items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        path, stored_name = self.files[name]
        try:
            with safe_open(path, framework="numpy") as file:
                return np.asarray(file.get_tensor(stored_name))
        except AttributeError:  # NumPy lacks the dtype
            reason = "it is in 8-bit floats; convert the file to float16"
            raise ValueError(f"{path} has no readable tensor {name}: {reason}") from None
        except SafetensorError as error:
            raise ValueError(f"{path} has no readable tensor {name}: {error}") from None

    def __contains__(self, name: object) -> bool:  # the inherited method would read the tensor
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _names(path: Path) -> list[str]:
    check_not_lfs_pointer(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


class TorchFile(Mapping[str, NDArray[Any]]):
    """The tensors of a state dict that torch saved. Code in the file is never run.

    The state dict may lie in other dicts, and its names may have a prefix; see `wrapped_weights`.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: torch is not installed.
        ValueError: the file is damaged, or holds something other than named tensors.
    """

    def __init__(self, path: StrPath):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
        check_not_lfs_pointer(path)
        advice = (
            f"{path} is a file of torch, and reading it needs torch; install it, or convert the file "
            "to safetensors where torch is installed"
        )
        with optional_package("torch", advice):
            import torch
        try:
            with path.open("rb") as file:
                mmap = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be memory-mapped
            # Training scripts save their flags. torch before 2.5 cannot be told that they are harmless.
            allowing = getattr(torch.serialization, "safe_globals", lambda classes: nullcontext())
            with allowing([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as error:  # of any type; torch's own message advises to run the file's code
            foreign = re.search(r"GLOBAL (\S+)", str(error))
            found = f": {foreign[1]}" if foreign else ""
            raise ValueError(
                f"{path} is damaged, or holds something else than weights ({type(error).__name__}{found})"
            ) from None
        tensors = named_tensors(content, torch.Tensor, path)
        self.path = path
        self.tensors = {name: tensors[old] for name, old in unwrapped_names(tensors, path).items()}

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
