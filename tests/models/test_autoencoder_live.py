"""AutoencoderKL and VQModel beside diffusers': outputs, files in both directions, published sizes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from test_autoencoder import LDM_CONFIG, NETWORKS, SD_CONFIG

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from golden import record_autoencoders as reference  # noqa: E402
from golden import record_diffusers as diffusers_side  # noqa: E402
from golden import replay  # noqa: E402
from test_full_size_live import Counted, arrays_of, num_parameters  # noqa: E402

from repaint_jax.models import load_autoencoder, save_autoencoder  # noqa: E402
from repaint_jax.models.checkpoints import load_module  # noqa: E402

pytestmark = pytest.mark.torch

SD_LIKE = {
    "block_out_channels": (32, 64, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
LDM_LIKE = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "num_vq_embeddings": 256,
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl defaults": ("AutoencoderKL", {}),
    "kl like stable diffusion": ("AutoencoderKL", SD_LIKE),
    "kl like flux": (
        "AutoencoderKL",
        SD_LIKE | {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
    ),
    "kl with one quant conv": ("AutoencoderKL", {"use_quant_conv": False}),
    "kl without middle attention": ("AutoencoderKL", {"mid_block_add_attention": False}),
    "kl of grey pictures": (
        "AutoencoderKL",
        {"in_channels": 1, "out_channels": 1, "act_fn": "swish", "latent_channels": 1},
    ),
    "kl with more out channels": ("AutoencoderKL", {"out_channels": 4}),
    "kl with odd groups": (
        "AutoencoderKL",
        reference.ATTENTION_BLOCKS | {"block_out_channels": (15, 25), "norm_num_groups": 5},
    ),
    "kl with attention everywhere": (
        "AutoencoderKL",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("AttnDownEncoderBlock2D",) * 2,
            "up_block_types": ("AttnUpDecoderBlock2D",) * 2,
        },
    ),
    "vq defaults": ("VQModel", {}),
    "vq like ldm-celebahq": ("VQModel", LDM_LIKE),
    "vq with another embed dim": ("VQModel", LDM_LIKE | {"vq_embed_dim": 6}),
    "vq with attention blocks": (
        "VQModel",
        LDM_LIKE
        | {
            "down_block_types": (*LDM_LIKE["down_block_types"][:2], "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", *LDM_LIKE["up_block_types"][:2]),
        },
    ),
    "vq without middle attention": ("VQModel", {"mid_block_add_attention": False}),
    "vq with lookup": ("VQModel", {"lookup_from_codebook": True}),
}


def random_model(class_name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers_side.perturbed(getattr(diffusers, class_name)(**options), 0.02)


def random_latents(model: Any, *shape: int) -> np.ndarray:
    """Latents [..., channels]. Those of a `VQModel` lie among its entries, each near to one alone."""
    rng = np.random.default_rng(1)
    if not hasattr(model, "quantize"):
        return rng.standard_normal((*shape, model.config.latent_channels)).astype(np.float32)
    entries = model.quantize.embedding.weight.detach().numpy()
    latents = entries[rng.integers(len(entries), size=shape)]
    return latents + 1e-4 * rng.standard_normal(latents.shape).astype(np.float32)


encode = nnx.jit(lambda module, images: module.encode(images))
decode = nnx.jit(lambda module, latents: module.decode(latents))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_the_outputs_of_diffusers_from_its_folder(name: str, tmp_path: Path) -> None:
    class_name, options = OPTIONS[name]
    model = random_model(class_name, **options)
    model.save_pretrained(tmp_path)
    module = load_autoencoder(tmp_path)
    assert num_parameters(module) == num_parameters(model)
    images = reference.example_images((2, 32, 48, model.config.in_channels))
    expected = reference.reference_latents(model, images)
    assert replay.relative_difference(encode(module, images), expected) < 2e-5
    latents = random_latents(model, *expected.shape[:-1])
    expected = reference.reference_images(model, latents)
    assert replay.relative_difference(decode(module, latents), expected) < 2e-5


@pytest.mark.parametrize(
    "name", ["kl with odd groups", "kl with one quant conv", "vq with another embed dim"]
)
def test_diffusers_loads_what_was_saved(name: str, tmp_path: Path) -> None:
    class_name, options = OPTIONS[name]
    model = random_model(class_name, **options, scaling_factor=0.5)
    model.save_pretrained(tmp_path / "diffusers")
    save_autoencoder(load_autoencoder(tmp_path / "diffusers"), tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, rtol=0, atol=0)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("diffusers", "ours")]
    for name in ("_class_name", "_diffusers_version", "norm_type"):
        configs[0].pop(name, None)
    assert configs[0].items() <= configs[1].items()


def test_latents_are_scaled_as_in_the_pipelines_of_diffusers(tmp_path: Path) -> None:
    random_model("VQModel").save_pretrained(tmp_path)
    module = load_autoencoder(tmp_path)
    assert module.config.scaling_factor == 0.18215, "diffusers writes its default"
    latents = np.ones((1, 2, 2, 3), np.float32)
    np.testing.assert_allclose(module.unscale_latents(latents), latents / 0.18215, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SD_CONFIG, 83_653_863), (LDM_CONFIG, 55_322_782)],
    ids=["sd-vae-ft-mse", "ldm-celebahq-256"],
)
def test_autoencoder_of_a_published_size_gives_the_outputs_of_diffusers(
    config: dict[str, Any], parameters: int
) -> None:
    class_name = config["_class_name"]
    model = random_model(class_name, **{key: value for key, value in config.items() if key[0] != "_"})
    network, config_class = NETWORKS[class_name]
    counted = Counted(arrays_of(model))
    module = load_module(
        lambda: network(config_class.from_dict(config), rngs=nnx.Rngs(0)), counted, Path("weights"), None
    )
    assert counted.reads == dict.fromkeys(model.state_dict(), 1)
    assert num_parameters(module) == num_parameters(model) == parameters
    images = reference.example_images((1, 64, 64, 3))
    expected = reference.reference_latents(model, images)
    assert replay.relative_difference(encode(module, images), expected) < 2e-5
    latents = random_latents(model, *expected.shape[:-1])
    expected = reference.reference_images(model, latents)
    assert replay.relative_difference(decode(module, latents), expected) < 2e-5


def test_bfloat16_is_as_close_as_that_of_torch(tmp_path: Path) -> None:
    model = random_model("AutoencoderKL", **SD_LIKE)
    model.save_pretrained(tmp_path)
    latents = random_latents(model, 1, 8, 8)
    expected = reference.reference_images(model, latents)
    half = decode(load_autoencoder(tmp_path, dtype="bfloat16"), jax.numpy.asarray(latents))
    with torch.no_grad():
        torch_half = (
            model.to(torch.bfloat16).decode(diffusers_side.channels_first(latents).bfloat16()).sample
        )
    torch_error = replay.relative_difference(torch_half.float().permute(0, 2, 3, 1).numpy(), expected)
    assert replay.relative_difference(half, expected) < 1.5 * torch_error < 0.1
