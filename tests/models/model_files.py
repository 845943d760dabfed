"""What the tests of model files share: ways to rearrange and to damage them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
TORCH_WEIGHTS = "diffusion_pytorch_model.bin"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def flatten(folder: Path) -> None:
    """Put all files of a pipeline into one folder, as google/ddpm-* have them."""
    for part in ("unet", "scheduler"):
        shutil.copytree(folder / part, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / part)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, **changes: Any) -> None:
    """Replace tensors; None takes one away."""
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def shard(unet_folder: Path) -> None:
    """Spread the weights over two files and an index."""
    tensors = load_file(unet_folder / WEIGHTS)
    files = {name: SHARDS[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in SHARDS:
        save_file({name: tensors[name] for name in tensors if files[name] == file}, unet_folder / file)
    (unet_folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (unet_folder / WEIGHTS).unlink()


def assert_same_parameters(one: nnx.Module, other: nnx.Module, **tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), nnx.state(one), nnx.state(other)
    )


def sentence_of(load: Callable[[], Any]) -> str:
    """What a load is refused with."""
    with pytest.raises((ValueError, TypeError, FileNotFoundError, ImportError)) as error:
        load()
    sentence = str(error.value)
    assert len(sentence.splitlines()) == 1
    return sentence
