"""What the names and shapes of a guided-diffusion checkpoint tell of its network."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from repaint_jax.models.guided_diffusion.names import Weights, is_classifier
from repaint_jax.models.wrapped_weights import first_names


class Layout(NamedTuple):
    """An architecture, without what the weights do not tell.

    Attributes:
        model_channels: number of sinusoids of the timestep, and the unit of the levels' widths.
        widths: channels of each level.
        layers: resnets of a level of the down path.
        attended: whether each level has attention.
        resnet_resampling: whether resnets halve and double the picture, instead of convolutions.
        scale_shift: whether the time embedding scales and shifts the norms.
        in_channels: channels of the picture.
        out_channels: channels of the output; for a classifier, the number of classes.
        time_embed_dim: length of the time embedding.
        num_classes: number of classes of a class-conditional model.
        of_consistency_models: whether the code is that of openai/consistency_models. It alone has attention
            with convolutions of two dimensions.
        image_size: height and width of the pictures. Only a classifier tells.
    """

    model_channels: int
    widths: tuple[int, ...]
    layers: int
    attended: tuple[bool, ...]
    resnet_resampling: bool
    scale_shift: bool
    in_channels: int
    out_channels: int
    time_embed_dim: int
    num_classes: int | None
    of_consistency_models: bool
    image_size: int | None

    @property
    def learns_variance(self) -> bool:
        """Return whether the output has a variance for each channel."""
        return self.out_channels == 2 * self.in_channels

    @property
    def attended_widths(self) -> list[int]:
        """Return the channels that attention works on; the middle always has attention."""
        widths = zip(self.widths, self.attended, strict=True)
        return sorted({self.widths[-1], *(width for width, attention in widths if attention)})


def layout_of(weights: Weights, source: Path) -> Layout:
    """Derive the architecture from the weights.

    Args:
        weights: tensors under guided-diffusion's names.
        source: the file that error messages name.

    Raises:
        ValueError: the weights are not those of a guided-diffusion network for pictures.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != rank:
            raise ValueError(
                f"{source} lacks the tensor {name} of {rank} axes, expected a guided-diffusion checkpoint"
            )
        return weights[name].shape

    classifier = is_classifier(weights)
    layers = _layers_per_block(weights, source)
    levels = len(_indices(weights, r"input_blocks\.(\d+)\..*")) // (layers + 1)
    first = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(shape(f"input_blocks.{block}.0.in_layers.2.weight", 4)[0] for block in first)
    time_embed_dim, model_channels = shape("time_embed.0.weight", 2)
    output = ("out.2.c_proj.weight", 3) if classifier else ("out.2.weight", 4)
    in_channels, out_channels = shape("input_blocks.0.0.weight", 4)[1], shape(*output)[0]
    if not classifier and out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"{source} takes {in_channels} channels and predicts {out_channels}, expected as many or twice "
            "as many: a model that enlarges pictures cannot be used"
        )
    return Layout(
        model_channels=model_channels,
        widths=widths,
        layers=layers,
        attended=tuple(f"input_blocks.{block}.1.qkv.weight" in weights for block in first),
        resnet_resampling=f"input_blocks.{layers + 1}.0.in_layers.2.weight" in weights,
        scale_shift=shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
        in_channels=in_channels,
        out_channels=out_channels,
        time_embed_dim=time_embed_dim,
        num_classes=shape("label_emb.weight", 2)[0] if "label_emb.weight" in weights else None,
        of_consistency_models=_has_planar_attention(weights),
        image_size=_classifier_size(weights, levels) if classifier else None,
    )


def _indices(names: Weights, pattern: str) -> list[int]:
    matches = (re.fullmatch(pattern, name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def _layers_per_block(weights: Weights, source: Path) -> int:
    # A resnet that halves the picture has the same tensors as any other. The up path shows where a level
    # ends. So does the attention, which follows the other resnets of its level.
    ups = _indices(weights, r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.2|conv)\.weight")
    attended = _indices(weights, r"input_blocks\.(\d+)\.1\.qkv\.weight")
    if ups:
        return ups[0]
    if attended:
        return next(i for i in range(1, 10**6) if attended[0] + i not in attended)
    raise ValueError(
        f"{source} has neither a way up nor attention, expected a guided-diffusion checkpoint"
        f"{first_names(weights)}"
    )


def _has_planar_attention(weights: Weights) -> bool:
    name = "middle_block.1.qkv.weight"
    return name in weights and weights[name].ndim == 4


def _classifier_size(weights: Weights, levels: int) -> int:
    pixels = weights["out.2.positional_embedding"].shape[1] - 1
    return math.isqrt(pixels) * 2 ** (levels - 1)
