"""Networks of the published sizes, with random weights: nothing of a checkpoint is lost, and torch agrees.

They need torch, diffusers and guided-diffusion, 7 GB of memory, and a third of the live tests' time.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from test_models import CELEBAHQ_CONFIG, CIFAR10_CONFIG, NCSNPP_CONFIG

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("guided_diffusion")

from golden import record_diffusers as diffusers_side  # noqa: E402
from golden import record_guided_diffusion as reference  # noqa: E402
from golden import replay  # noqa: E402
from guided_diffusion.script_util import create_classifier, create_model  # noqa: E402

from repaint_jax.models import UNet2D, UNet2DClassifier, UNet2DConfig, guided_diffusion  # noqa: E402
from repaint_jax.models.checkpoints import load_module, open_weights  # noqa: E402

pytestmark = pytest.mark.torch

UNET_SETTINGS = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": "32,16,8",
    "num_head_channels": 64,
    "learn_sigma": True,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
CLASSIFIER_SETTINGS = {
    "image_size": 256,
    "classifier_use_fp16": False,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}


class Counted(Mapping[str, np.ndarray]):
    """Weights that count how often each of them is read."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights, self.reads = weights, Counter[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.reads[name] += 1
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def arrays_of(module: Any) -> dict[str, np.ndarray]:
    """The state dict as NumPy arrays over the same memory, or of zeros without any on the meta device."""
    return {
        name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) if tensor.is_meta else tensor.numpy()
        for name, tensor in module.state_dict().items()
    }


def load_each_tensor_once(
    network: type[nnx.Module], config: UNet2DConfig, weights: Mapping[str, np.ndarray]
) -> nnx.Module:
    counted = Counted(weights)
    module = load_module(lambda: network(config, rngs=nnx.Rngs(0)), counted, Path("weights"), None)
    assert counted.reads == dict.fromkeys(weights, 1)
    return module


def load_guided_diffusion(network: type[nnx.Module], weights: dict[str, np.ndarray]) -> nnx.Module:
    """Load as from a published file alone, without settings, every tensor once (three times a qkv)."""
    config = guided_diffusion.unet_config(weights, Path("weights"), {})
    counted = Counted(weights)
    renamed = guided_diffusion.DiffusersNames(counted, Path("weights"), config, new_attention_order=False)
    module = load_each_tensor_once(network, config, renamed)
    assert counted.reads == {name: 3 if ".qkv" in name else 1 for name in weights}
    return module


def num_parameters(module: Any) -> int:
    if isinstance(module, torch.nn.Module):
        return sum(parameter.numel() for parameter in module.parameters())
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def random_sample(side: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [(CIFAR10_CONFIG, 35_746_307), (CELEBAHQ_CONFIG, 113_673_219), (NCSNPP_CONFIG, 65_574_549)],
    ids=["ddpm-cifar10-32", "ddpm-ema-celebahq-256", "ncsnpp-celebahq-256"],
)
def test_unet_of_a_published_model_gives_the_outputs_of_diffusers(
    options: dict[str, Any], parameters: int, tmp_path: Path
) -> None:
    options = {name: value for name, value in options.items() if not name.startswith("_")}
    unet = diffusers_side.random_unet(0, **options)
    unet.save_pretrained(tmp_path)
    weights, weights_path = open_weights(tmp_path)
    assert len(weights) == len(unet.state_dict())
    module = load_each_tensor_once(UNet2D, UNet2DConfig.from_file(tmp_path / "config.json"), weights)
    weights_path.unlink()
    assert num_parameters(module) == num_parameters(unet) == parameters
    sample = random_sample(options["sample_size"])
    expected = diffusers_side.reference_unet(unet, sample, 500)
    assert replay.relative_difference(replay.unet(module, sample, 500), expected) < 2e-5


def test_unet_of_the_published_size_gives_the_outputs_of_guided_diffusion() -> None:
    torch.manual_seed(0)
    # A layer of a thousand channels would make more than the usual 0.05 grow, and rounding with it.
    unet = diffusers_side.perturbed(create_model(**UNET_SETTINGS), 0.01)
    sample = random_sample(256)
    expected = reference.reference_unet(unet, sample, 500)
    module = load_guided_diffusion(UNet2D, arrays_of(unet))
    assert num_parameters(module) == num_parameters(unet) == 552_814_086
    del unet  # 2 GB
    assert replay.relative_difference(replay.unet(module, sample, 500), expected) < 2e-5


def test_classifier_of_the_published_size_gives_the_logits_of_guided_diffusion() -> None:
    torch.manual_seed(0)
    classifier = diffusers_side.perturbed(create_classifier(**CLASSIFIER_SETTINGS))
    module = load_guided_diffusion(UNet2DClassifier, arrays_of(classifier))
    assert num_parameters(module) == num_parameters(classifier) == 54_096_360
    sample = random_sample(256)
    with torch.no_grad():
        expected = classifier(diffusers_side.channels_first(sample), torch.tensor([500])).numpy()
    assert replay.relative_difference(replay.unet(module, sample, 500), expected) < 2e-5


def test_class_conditional_unet_of_the_published_size_has_a_place_for_every_tensor() -> None:
    with torch.device("meta"):
        unet = create_model(**UNET_SETTINGS, class_cond=True)
    module = load_guided_diffusion(UNet2D, arrays_of(unet))
    assert module.config.num_class_embeds == 1000
    assert num_parameters(module) == num_parameters(unet) == 553_838_086
