"""Models in diffusers' folder layout: `config.json` and safetensors weights under diffusers' names.

A Flax parameter is a torch tensor under another name and with its axes in another order: convolution
kernels are HWIO here and OIHW there, the matrices of linear layers are transposed. Checkpoints from before
diffusers 0.12 have other names for the four layers of an attention; they load too.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from repaint_jax.files import find_file, write_json
from repaint_jax.models.unet2d import UNet2D, UNet2DConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FLAX_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def load_unet2d(
    path_or_repo: str | Path, subfolder: str | None = None, *, dtype: Any = jnp.float32
) -> UNet2D:
    """Load a `UNet2DModel` that diffusers, or `save_unet2d`, saved as safetensors.

    Args:
        path_or_repo: the folder with `config.json`, or a repository of the Hugging Face hub.
        subfolder: folder in it; pipelines keep their model under "unet".
        dtype: of the parameters, and so of the model's arithmetic.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file that is damaged, or whose tensors are not the architecture's.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype is {dtype!r}, expected a floating dtype")
    config_path = find_file(path_or_repo, CONFIG_NAME, subfolder)
    weights_path = find_file(path_or_repo, WEIGHTS_NAME, subfolder)
    config = UNet2DConfig.from_file(config_path)
    module = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    _load_parameters(module, weights_path, dtype)
    return module


def save_unet2d(module: UNet2D, folder: str | Path, *, dtype: Any = np.float32) -> None:
    """Write `config.json` and safetensors weights that diffusers' `UNet2DModel` loads.

    Args:
        module: the model.
        folder: created where it is missing.
        dtype: of the stored weights, a NumPy dtype; float16 halves the file.
    """
    folder = Path(folder)
    tensors = {
        _torch_name(path): np.ascontiguousarray(_permuted(variable[...], _TORCH_AXES).astype(dtype))
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    write_json(folder / CONFIG_NAME, module.config.to_dict())
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def _load_parameters(module: nnx.Module, weights_path: Path, dtype: Any) -> None:
    state = nnx.state(module, nnx.Param)
    try:
        with safe_open(weights_path, framework="numpy") as file:
            stored_names = {_present_name(name): name for name in file.keys()}  # noqa: SIM118
            loaded = []
            for path, variable in nnx.to_flat_state(state):
                name = _torch_name(path)
                if name not in stored_names:
                    raise ValueError(f"{weights_path} lacks the tensor {name}")
                tensor = file.get_tensor(stored_names.pop(name))
                expected = tuple(variable.shape[axis] for axis in _TORCH_AXES[variable.ndim])
                if tensor.shape != expected:
                    raise ValueError(
                        f"{weights_path}: {name} has shape {tensor.shape}, expected {expected}"
                    )
                tensor = _permuted(tensor, _FLAX_AXES)
                if not np.isfinite(tensor).all():
                    raise ValueError(f"{weights_path}: {name} has values that are not finite")
                loaded.append((path, variable.replace(jnp.asarray(tensor, dtype))))
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is not a whole safetensors file: {error}") from None
    if stored_names:
        raise ValueError(f"{weights_path} has a tensor that the model lacks: {min(stored_names)}")
    nnx.update(module, nnx.from_flat_state(loaded))


def _torch_name(path: tuple[Any, ...]) -> str:
    *modules, leaf = map(str, path)
    return ".".join([*modules, _TORCH_LEAVES[leaf]])


def _present_name(name: str) -> str:
    return ".".join(_OLD_ATTENTION_NAMES.get(part, part) for part in name.split("."))


def _permuted(array: Any, axes: dict[int, tuple[int, ...]]) -> NDArray[Any]:
    array = np.asarray(array)
    return array.transpose(axes[array.ndim])
