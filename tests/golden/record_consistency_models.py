"""Record what openai/consistency_models computes with EDM teachers, for test_edm_teachers.py to replay.

Run once, in an environment with torch and einops. The code (MIT) is on no package index:

    git clone https://github.com/openai/consistency_models
    git -C consistency_models checkout e32b69ee436d518377db86fb2127a3972d0d8716
    cd tests
    PYTHONPATH=../consistency_models python -m golden.record_consistency_models

It rewrites `consistency_models.npz` beside it, byte for byte where the versions are the same (and the
processor). The file says under `recorded_with` what recorded it. The code is only called, never copied.

Stand-ins replace what does not run on a CPU or is not called: torch's own attention replaces flash-attn's
kernel (the order of queries, keys and values is in the code that calls it); mpi4py, piq and torchvision are
never called.
"""

import sys
from typing import Any
from unittest import mock

import einops
import numpy as np
import torch
from golden import record_diffusers as diffusers_side


class FlashAttention(torch.nn.Module):
    """flash-attn's class of this name (0.2.8), in float32."""

    def __init__(self, attention_dropout: float, **factory_kwargs: Any):
        super().__init__()
        assert attention_dropout == 0

    def forward(self, qkv: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:  # [B, S, 3, H, D]
        assert not any(options.values())
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return attended.transpose(1, 2), None  # [B, S, H, D]


STAND_INS = {
    name: mock.MagicMock() for name in ("flash_attn", "mpi4py", "piq", "torchvision", "cm.dist_util")
}
STAND_INS["torchvision.transforms"] = STAND_INS["torchvision"].transforms
STAND_INS["flash_attn.flash_attention"] = mock.MagicMock(FlashAttention=FlashAttention)
sys.modules.update(STAND_INS)

from cm.karras_diffusion import KarrasDenoiser  # noqa: E402
from cm.script_util import create_model  # noqa: E402
from cm.unet import UNetModel  # noqa: E402

COMMIT = "e32b69ee436d518377db86fb2127a3972d0d8716"
RECORDED_WITH = f"consistency_models {COMMIT[:7]}, torch {torch.__version__}, einops {einops.__version__}"

LADDER = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "count": 1000}
LEVELS = (0, 450, 700, 999)  # of the ladder
CLASS_LABELS = (1, 3)  # of the two pictures of each level

# Flags in `scripts/launch.sh` that make the published teachers' networks.
PUBLISHED: dict[str, dict[str, Any]] = {
    "edm_imagenet64_ema.pt": {
        "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "class_cond": True,
        "use_scale_shift_norm": True,
    },
    "edm_bedroom256_ema.pt": {
        "image_size": 256, "num_channels": 256, "num_res_blocks": 2, "class_cond": False,
        "use_scale_shift_norm": False,
    },
}  # fmt: skip
SHARED = {"num_head_channels": 64, "attention_resolutions": "32,16,8", "resblock_updown": True}

# Small networks of the same two kinds, with heads of a width that flash-attn takes.
SMALL = {
    "conditional, scale and shift": {"num_classes": 5, "use_scale_shift_norm": True},
    "unconditional": {},
}


def make_small_unet(**options: Any) -> UNetModel:
    return UNetModel(
        image_size=8,
        in_channels=3,
        model_channels=32,
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_head_channels=16,
        resblock_updown=True,
        **options,
    ).eval()


def published_shapes(flags: dict[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = create_model(**flags, **SHARED)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def sigmas() -> np.ndarray:
    """Noise levels of EDM (arXiv 2206.00364, eq. 5), rising; in float64, rounded to float32."""
    ends = np.array([LADDER["sigma_min"], LADDER["sigma_max"]]) ** (1 / LADDER["rho"])
    return (np.linspace(*ends, LADDER["count"]) ** LADDER["rho"])[list(LEVELS)].astype(np.float32)


def noisy_pictures(seed: int) -> np.ndarray:
    """Return two pictures at each noise level, [levels, 2, 8, 8, 3], float32."""
    rng = np.random.default_rng(seed)
    pictures = rng.uniform(-1, 1, (2, 8, 8, 3))
    noise = rng.standard_normal((len(LEVELS), 2, 8, 8, 3))
    return (pictures + sigmas()[:, None, None, None, None] * noise).astype(np.float32)


def reference_denoiser(
    unet: UNetModel, x: np.ndarray, sigma: np.float32
) -> tuple[np.ndarray, np.ndarray]:  # [2, 8, 8, 3]
    """Return the network's output and the denoised pictures."""
    diffusion = KarrasDenoiser(sigma_data=0.5, distillation=False, loss_norm="l2")
    labels = {} if unet.num_classes is None else {"y": torch.tensor(CLASS_LABELS)}
    levels = torch.full((len(x),), float(sigma))
    with torch.no_grad():
        outputs = diffusion.denoise(unet, diffusers_side.channels_first(x), levels, **labels)
    output, denoised = (tensor.permute(0, 2, 3, 1).numpy() for tensor in outputs)
    return output, denoised


def record() -> None:
    x = noisy_pictures(8)
    cases, outputs = [], []
    for name, options in SMALL.items():
        unet = make_small_unet(**options)
        cases.append(
            {
                "name": name,
                "settings": {"image_size": 8, "num_head_channels": 16},
                "shapes": diffusers_side.fill(unet),
                "class_labels": CLASS_LABELS if "num_classes" in options else None,
                "levels": LEVELS,
            }
        )
        outputs.append([reference_denoiser(unet, *level) for level in zip(x, sigmas(), strict=True)])
    recorded = np.array(outputs)  # [networks, levels, 2, pictures, 8, 8, 3]
    for name, flags in PUBLISHED.items():
        cases.append({"name": name, "settings": flags | SHARED, "shapes": published_shapes(flags)})
    diffusers_side.save(
        "consistency_models.npz",
        cases,
        recorded_with=RECORDED_WITH,
        x=x,
        sigma=sigmas(),
        model_output=recorded[:, :, 0],
        denoised=recorded[:, :, 1],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    record()
