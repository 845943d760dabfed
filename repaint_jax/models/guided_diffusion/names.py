"""The tensors of a guided-diffusion checkpoint under the names of diffusers."""

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repaint_jax.models.unet2d_config import UNet2DConfig

Weights = Mapping[str, NDArray[Any]]

_OUTER_LAYERS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
}
_BLOCK_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "qkv": "qkv",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}


def is_classifier(names: Container[str]) -> bool:
    """Return whether a checkpoint belongs to a classifier, judging by the names of its tensors."""
    return "out.2.positional_embedding" in names


class DiffusersNames(Mapping[str, NDArray[Any]]):
    """A guided-diffusion checkpoint as a mapping, with the names and shapes of a diffusers checkpoint.

    If the model was trained with rescaled timesteps, the mapping has the embeddings of these timesteps as
    one more tensor, the table of a "learned" time embedding.
    """

    def __init__(self, weights: Weights, source: Path, config: UNet2DConfig, new_attention_order: bool):
        self.weights, self.source, self.new_attention_order = weights, source, new_attention_order
        self.config = config
        classifier = is_classifier(weights)
        self.stored: dict[str, tuple[str, int | None]] = {}  # name in the file; which of q, k, v
        for name in weights:
            renamed = _diffusers_name(name, config.layers_per_block, classifier)
            if ".qkv." in renamed:
                for part, letter in enumerate("qkv"):
                    self.stored[renamed.replace(".qkv.", f".to_{letter}.")] = (name, part)
            else:
                self.stored[renamed] = (name, None)
        self.computed: dict[str, NDArray[Any]] = {}
        if config.time_embedding_type == "learned":
            self.computed["time_proj.weight"] = _rescaled_embeddings(config)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self.computed:
            return self.computed[name]
        stored, part = self.stored[name]
        tensor = self.weights[stored]
        if ".to_" in name and set(tensor.shape[2:]) == {1}:  # a 1x1 convolution is a linear layer
            tensor = tensor.reshape(tensor.shape[:2])
        if part is None:
            return tensor
        head_channels = _head_channels(name, self.config)
        if tensor.ndim == 0 or len(tensor) % (3 * (head_channels or 1)):
            raise ValueError(
                f"{self.source}: {stored} has shape {tensor.shape}, expected queries, keys and values "
                f"for heads of {head_channels or 'all'} channels"
            )
        if self.new_attention_order or stored.startswith("out.2."):
            return tensor.reshape(3, -1, *tensor.shape[1:])[part]
        by_head = tensor.reshape(-1, 3, head_channels or len(tensor) // 3, *tensor.shape[1:])
        return by_head[:, part].reshape(-1, *tensor.shape[1:])

    def __iter__(self) -> Iterator[str]:
        return iter((*self.stored, *self.computed))

    def __len__(self) -> int:
        return len(self.stored) + len(self.computed)


def _head_channels(name: str, config: UNet2DConfig) -> int | None:
    """Return the channels of a head in the block that a tensor belongs to; None means all."""
    block = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if block is None:
        return config.mid_head_dim
    return config.head_dims[int(block[2]) + len(config.block_out_channels) * (block[1] == "up")]


def _rescaled_embeddings(config: UNet2DConfig) -> NDArray[np.float64]:  # [steps, sinusoids]
    """Embed all timesteps after scaling them to [0, 1000), as the flag `rescale_timesteps` asks for."""
    steps = config.num_train_timesteps or 1
    half = (config.time_proj_dim or config.block_out_channels[0]) // 2
    frequencies = np.exp(-np.log(10000) * np.arange(half) / half)
    angles = np.arange(steps)[:, None] * (1000 / steps) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _diffusers_name(name: str, layers: int, classifier: bool) -> str:
    """Return a tensor's name in diffusers' layout, or the name itself if it has none there."""
    stem, _, leaf = name.rpartition(".")
    if stem in _OUTER_LAYERS:
        return f"{_OUTER_LAYERS[stem]}.{leaf}"
    if not classifier and stem == "out.2":
        return f"conv_out.{leaf}"
    if classifier and stem.startswith("out.2"):
        inner = {"out.2": "", "out.2.qkv_proj": "qkv.", "out.2.c_proj": "to_out.0."}
        return f"pool.{inner[stem]}{leaf}" if stem in inner else name
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", stem)
    side = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", stem)
    if middle:
        module = ("resnets.0", "attentions.0", "resnets.1")[int(middle[1])]
        block, layer = "mid_block", middle[2]
    elif side and side[1] == "input":
        level, i = divmod(int(side[2]) - 1, layers + 1)
        kind = "resnets" if side[3] == "0" else "attentions"
        module = "downsamplers.0" if i == layers else f"{kind}.{i}"
        block, layer = f"down_blocks.{level}", side[4]
    elif side:
        level, i = divmod(int(side[2]), layers + 1)
        attention = side[4] in ("norm", "qkv", "proj_out")
        module = f"resnets.{i}" if side[3] == "0" else f"attentions.{i}" if attention else "upsamplers.0"
        block, layer = f"up_blocks.{level}", side[4]
    else:
        return name
    return f"{block}.{module}.{_BLOCK_LAYERS[layer]}.{leaf}" if layer in _BLOCK_LAYERS else name
