"""Record what diffusers' AutoencoderKL and VQModel compute, for tests/models/test_autoencoder.py to replay.

Run once, in the environment of `record_diffusers`:

    cd tests
    python -m golden.record_autoencoders

It rewrites autoencoders.npz beside it. tests/models/test_autoencoder_live.py runs the same functions on
other settings.
"""

import json
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from golden.record_diffusers import channels_first, fill, save

Config = dict[str, Any]

IMAGE_SHAPE = (1, 8, 12, 3)  # [B, H, W, C]
TWO_LEVELS: Config = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
ATTENTION_BLOCKS: Config = {
    "block_out_channels": (9, 15),  # odd groups
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 3,
}
CASES: dict[str, tuple[type, Config]] = {
    "kl": (AutoencoderKL, TWO_LEVELS),
    "kl without quant convs and attention": (
        AutoencoderKL,
        {
            "block_out_channels": (8,),
            "norm_num_groups": 2,
            "layers_per_block": 2,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": False,
        },
    ),
    "vq with attention blocks": (
        VQModel,
        ATTENTION_BLOCKS | {"num_vq_embeddings": 32, "vq_embed_dim": 5, "latent_channels": 4},
    ),
}


def reference_latents(model: AutoencoderKL | VQModel, images: np.ndarray) -> np.ndarray:
    """Encode channels-last images: the mean, or what comes before the quantiser."""
    with torch.no_grad():
        output = model.encode(channels_first(images))
    latents = output.latent_dist.mean if isinstance(model, AutoencoderKL) else output.latents
    return latents.permute(0, 2, 3, 1).numpy()


def reference_images(model: AutoencoderKL | VQModel, latents: np.ndarray) -> np.ndarray:
    """Decode channels-last latents."""
    with torch.no_grad():
        images = model.decode(channels_first(latents)).sample
    return images.permute(0, 2, 3, 1).numpy()


def check_nearest_entries_are_clear(model: AutoencoderKL | VQModel, latents: np.ndarray) -> None:
    """Raise if rounding could decide which entry of the codebook is nearest."""
    if isinstance(model, VQModel):
        entries = model.quantize.embedding.weight.detach().double()
        distances = torch.cdist(torch.from_numpy(latents).double().reshape(-1, latents.shape[-1]), entries)
        first, second = distances.topk(2, largest=False).values.T
        assert ((second - first) > 1e-4).all()


def example_images(shape: tuple[int, ...] = IMAGE_SHAPE) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)


def record() -> None:
    images = example_images()
    cases, arrays = [], {}
    for i, (name, (network, options)) in enumerate(CASES.items()):
        model = network(**options)
        shapes = fill(model)
        latents = reference_latents(model, images)
        check_nearest_entries_are_clear(model, latents)
        cases.append({"name": name, "config": json.loads(model.to_json_string()), "shapes": shapes})
        arrays[f"latents_{i}"] = latents
        arrays[f"decoded_{i}"] = reference_images(model, latents)
    save("autoencoders.npz", cases, images=images, **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()
