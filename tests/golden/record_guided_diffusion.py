"""Record what openai/guided-diffusion's networks compute, for test_golden.py to replay.

Run once, in an environment with torch and the package `guided_diffusion` (requirements.txt says whose):

    pip install -r tests/golden/requirements.txt
    cd tests
    python -m golden.record_guided_diffusion [unets] [flags] [classifiers]

It rewrites the named files beside it, or all, byte for byte where the versions are the same. Each says
under `recorded_with` what recorded it. guided-diffusion is only called, never copied.
tests/test_guided_diffusion_live.py runs the same functions on weights drawn anew, read from `.pt` files.
"""

import sys
import warnings
from importlib.metadata import version
from itertools import compress, product
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torch, about decorators that it has moved
    from guided_diffusion.respace import _WrappedModel
    from guided_diffusion.unet import EncoderUNetModel, UNetModel

from golden import record_diffusers as diffusers_side

RECORDED_WITH = f"disco-diffusion {version('disco-diffusion')}, torch {torch.__version__}"
NUM_CLASSES = 5
TIMESTEPS = (0, 17, 500, 999)
CLASS_LABELS = (1, 3, 1, 3)

Config = dict[str, Any]

# As the `.yml` file of a dataset names them.
SWITCHES = ("resblock_updown", "use_scale_shift_norm", "use_new_attention_order", "class_cond")
UNET_SETTINGS: dict[str, Config] = {
    "-".join(compress(SWITCHES, values)) or "plain": dict(zip(SWITCHES, values, strict=True))
    for values in product((True, False), repeat=len(SWITCHES))
}
CLASSIFIER_SETTINGS: dict[str, Config] = {
    "official": {"resblock_updown": True, "use_scale_shift_norm": True},
    "plain": {"resblock_updown": False, "use_scale_shift_norm": False},
}
# What the weights do not tell, and 256 px models have otherwise.
UNTOLD_SETTINGS: Config = {"image_size": 8, "num_head_channels": 16}

# Heads and widths that diffusers' config has no fields for: arguments of the network, and of the diffusion.
FLAGS: dict[str, tuple[Config, Config]] = {
    "one head": ({"num_heads": 1}, {}),
    "four heads": ({"num_heads": 4}, {}),
    "four heads, new order": ({"num_heads": 4, "use_new_attention_order": True}, {}),
    "more heads on the way up": ({"num_heads": 2, "num_heads_upsample": 4}, {}),
    "fewer heads on the way up": ({"num_heads": 4, "num_heads_upsample": 1, "channel_mult": (2, 1)}, {}),
    "heads on the coarser level alone": ({"num_heads": 2, "attention_resolutions": (2,)}, {}),
    "narrow first level": (
        {"num_head_channels": 16, "model_channels": 64, "channel_mult": (0.5, 1), "resblock_updown": True},
        {},
    ),
    "narrow first level, three heads": (
        {"num_heads": 3, "model_channels": 96, "channel_mult": (1 / 3, 1), "attention_resolutions": (2,)},
        {},
    ),
    "rescaled timesteps": (
        {"num_heads": 4, "use_scale_shift_norm": True},
        {"diffusion_steps": 4000, "rescale_timesteps": True},
    ),
    "narrow first level, rescaled timesteps": (
        {"num_heads": 1, "model_channels": 64, "channel_mult": (0.5, 1)},
        {"diffusion_steps": 50, "rescale_timesteps": True},
    ),
}


def make_unet(
    *,
    resblock_updown: bool,
    use_scale_shift_norm: bool,
    use_new_attention_order: bool,
    class_cond: bool,
    num_res_blocks: int = 1,
) -> UNetModel:
    """Make a UNet of the narrowest widths that its norms of 32 groups allow."""
    return UNetModel(
        in_channels=3,
        out_channels=6,
        model_channels=32,
        num_res_blocks=num_res_blocks,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_classes=NUM_CLASSES if class_cond else None,
        resblock_updown=resblock_updown,
        use_scale_shift_norm=use_scale_shift_norm,
        use_new_attention_order=use_new_attention_order,
        **UNTOLD_SETTINGS,
    ).eval()


def make_flagged_unet(arguments: Config) -> UNetModel:
    """Make a UNet of two levels with attention on both, unless the arguments say otherwise."""
    defaults = {
        "image_size": 8,
        "in_channels": 3,
        "out_channels": 6,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": (1, 2),
        "channel_mult": (1, 2),
    }
    return UNetModel(**{**defaults, **arguments}).eval()


def flagged_settings(name: str) -> Config:
    """Return the flags of a case that the weights do not tell."""
    arguments, diffusion = FLAGS[name]
    told = ("model_channels", "channel_mult", "attention_resolutions", "resblock_updown")
    settings = {name: value for name, value in arguments.items() if name not in told}
    return {"image_size": 8, **settings, **diffusion}


def flagged_timesteps(name: str) -> tuple[int, ...]:
    """Return timesteps of the diffusion, the first two and the last two far apart."""
    steps = FLAGS[name][1].get("diffusion_steps", 1000)
    return (0, steps // 60, steps // 2, steps - 1)


def reference_flagged_unet(
    name: str, unet: UNetModel, sample: np.ndarray, timesteps: np.ndarray
) -> np.ndarray:
    """Run the model on a channels-last batch, by way of what the diffusion does to timesteps."""
    diffusion = FLAGS[name][1]
    steps, rescale = diffusion.get("diffusion_steps", 1000), diffusion.get("rescale_timesteps", False)
    wrapped = _WrappedModel(unet, list(range(steps)), rescale, steps)
    with torch.no_grad():
        output = wrapped(diffusers_side.channels_first(sample), torch.as_tensor(timesteps))
    return output.permute(0, 2, 3, 1).numpy()


def make_classifier(
    *, resblock_updown: bool, use_scale_shift_norm: bool, num_res_blocks: int = 1
) -> EncoderUNetModel:
    """Make a classifier with heads of the published ones' width, one on a level and two on the next."""
    return EncoderUNetModel(
        image_size=8,
        in_channels=3,
        out_channels=NUM_CLASSES,
        model_channels=64,
        num_res_blocks=num_res_blocks,
        attention_resolutions=(1, 2),
        channel_mult=(1, 2),
        num_head_channels=64,
        resblock_updown=resblock_updown,
        use_scale_shift_norm=use_scale_shift_norm,
        pool="attention",
    ).eval()


def random_unet(seed: int, **settings: Any) -> UNetModel:
    """A UNet in which no weight is left at a zero or a one that could hide a mistake."""
    torch.manual_seed(seed)
    return diffusers_side.perturbed(make_unet(**settings))


def random_classifier(seed: int, **settings: Any) -> EncoderUNetModel:
    torch.manual_seed(seed)
    return diffusers_side.perturbed(make_classifier(**settings))


def reference_unet(
    unet: UNetModel,
    sample: np.ndarray,
    timestep: int | np.ndarray,
    class_labels: np.ndarray | None = None,
) -> np.ndarray:
    """Run the model on a channels-last batch."""
    labels = () if class_labels is None else (torch.from_numpy(class_labels),)
    with torch.no_grad():
        output = unet(
            diffusers_side.channels_first(sample), torch.as_tensor(timestep).expand(len(sample)), *labels
        )
    return output.permute(0, 2, 3, 1).numpy()


def reference_classifier(
    classifier: EncoderUNetModel, sample: np.ndarray, timestep: int | np.ndarray, class_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and the gradient of log p(label | sample) with respect to the channels-last batch."""
    pixels = diffusers_side.channels_first(sample).requires_grad_()
    logits = classifier(pixels, torch.as_tensor(timestep).expand(len(sample)))
    log_probabilities = torch.log_softmax(logits, -1)
    chosen = log_probabilities.gather(1, torch.from_numpy(class_labels)[:, None])
    (gradient,) = torch.autograd.grad(chosen.sum(), pixels)
    return logits.detach().numpy(), gradient.permute(0, 2, 3, 1).numpy()


def random_sample(seed: int) -> np.ndarray:
    """Two pictures, each twice: for the first two timesteps and for the last two."""
    sample = np.random.default_rng(seed).standard_normal((2, 8, 8, 3)).astype(np.float32)
    return np.concatenate([sample, sample])


def record_unets() -> None:
    sample = random_sample(5)
    cases, outputs = [], []
    for name, settings in UNET_SETTINGS.items():
        unet = make_unet(**settings)
        labels = CLASS_LABELS if settings["class_cond"] else None
        cases.append(
            {
                "name": name,
                "settings": settings | UNTOLD_SETTINGS,
                "shapes": diffusers_side.fill(unet),
                "timesteps": TIMESTEPS,
                "class_labels": labels,
            }
        )
        outputs.append(reference_unet(unet, sample, np.array(TIMESTEPS), labels and np.array(labels)))
    diffusers_side.save(
        "guided_diffusion_unets.npz",
        cases,
        recorded_with=RECORDED_WITH,
        sample=sample,
        model_output=np.stack(outputs),
    )


def record_flags() -> None:
    sample = random_sample(7)
    cases, outputs = [], []
    for name, (arguments, _) in FLAGS.items():
        unet = make_flagged_unet(arguments)
        timesteps = flagged_timesteps(name)
        cases.append(
            {
                "name": name,
                "settings": flagged_settings(name),
                "shapes": diffusers_side.fill(unet),
                "timesteps": timesteps,
                "class_labels": None,
            }
        )
        outputs.append(reference_flagged_unet(name, unet, sample, np.array(timesteps)))
    diffusers_side.save(
        "guided_diffusion_flags.npz",
        cases,
        recorded_with=RECORDED_WITH,
        sample=sample,
        model_output=np.stack(outputs),
    )


def record_classifiers() -> None:
    sample = random_sample(6)
    cases, outputs = [], []
    for name, settings in CLASSIFIER_SETTINGS.items():
        classifier = make_classifier(**settings)
        shapes = diffusers_side.fill(classifier)
        cases.append({"name": name, "shapes": shapes, "timesteps": TIMESTEPS, "class_labels": CLASS_LABELS})
        outputs.append(
            reference_classifier(classifier, sample, np.array(TIMESTEPS), np.array(CLASS_LABELS))
        )
    logits, gradients = zip(*outputs, strict=True)
    diffusers_side.save(
        "guided_diffusion_classifiers.npz",
        cases,
        recorded_with=RECORDED_WITH,
        sample=sample,
        logits=np.stack(logits),
        gradient=np.stack(gradients),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for recorder in sys.argv[1:] or ("unets", "flags", "classifiers"):
        {"unets": record_unets, "flags": record_flags, "classifiers": record_classifiers}[recorder]()
