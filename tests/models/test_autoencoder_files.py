"""Folders of autoencoders: what is loaded, what is refused and with which sentence.

What they share with other models' folders (shards, dtypes, damage) is in test_checkpoints, downloads are in
test_hub.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from model_files import WEIGHTS, assert_same_parameters, edit_json, edit_weights, sentence_of
from safetensors.numpy import load_file, save_file
from test_autoencoder import VQ

from repaint_jax.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    VQModel,
    load_autoencoder,
    load_unet2d,
    save_autoencoder,
    save_unet2d,
)

KL = AutoencoderKLConfig(
    block_out_channels=(4,),
    up_block_types=("AttnUpDecoderBlock2D",),
    norm_num_groups=2,
    latents_mean=(0.0, 1.0, 2.0, 3.0),
    latents_std=(1.0, 1.0, 2.0, 2.0),
    sample_size=(8, 16),
    use_quant_conv=False,
    force_upcast=False,
)


@pytest.fixture(scope="module")
def kl(random_unet) -> AutoencoderKL:
    return random_unet(KL, AutoencoderKL)


@pytest.fixture(scope="module")
def vq(random_unet) -> VQModel:
    return random_unet(VQ, VQModel)


@pytest.fixture
def kl_folder(kl, tmp_path: Path) -> Path:
    save_autoencoder(kl, tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def vq_folder(vq, tmp_path: Path) -> Path:
    save_autoencoder(vq, tmp_path / "vqvae")
    return tmp_path / "vqvae"


def test_saved_autoencoder_loads_as_it_was(kl, vq, kl_folder, vq_folder) -> None:
    for module, folder in ((kl, kl_folder), (vq, vq_folder)):
        loaded = load_autoencoder(folder.parent, folder.name)
        assert type(loaded) is type(module)
        assert loaded.config == module.config
        assert_same_parameters(loaded, module, rtol=0)
        assert json.loads((folder / "config.json").read_text())["_class_name"] == type(module).__name__


def test_dtypes_of_files_and_of_parameters_are_those_asked_for(vq, tmp_path: Path) -> None:
    save_autoencoder(vq, tmp_path, dtype=np.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {np.dtype(np.float16)}
    loaded = load_autoencoder(tmp_path, dtype=jnp.bfloat16)
    assert loaded.quantize.embedding.embedding.dtype == jnp.bfloat16
    assert_same_parameters(load_autoencoder(tmp_path), vq, rtol=1e-3, atol=1e-6)


def test_attention_under_old_names_and_as_1x1_convolutions_is_the_same(kl, kl_folder) -> None:
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(map(re.escape, old_names)))
    old, num_projections = {}, 0
    for name, tensor in load_file(kl_folder / WEIGHTS).items():
        renamed = pattern.sub(lambda new: old_names[new[0]], name)
        is_projection = renamed != name and name.endswith("weight")
        old[renamed] = tensor[:, :, None, None] if is_projection else tensor
        num_projections += is_projection
    assert num_projections == 16
    save_file(old, kl_folder / WEIGHTS)
    assert_same_parameters(load_autoencoder(kl_folder), kl, rtol=0)


def test_folder_of_an_old_diffusers_lacks_options(vq, vq_folder) -> None:
    path = vq_folder / "config.json"
    content = json.loads(path.read_text())
    for name in ("scaling_factor", "mid_block_add_attention", "lookup_from_codebook", "force_upcast"):
        del content[name]
    path.write_text(json.dumps(content))
    assert load_autoencoder(vq_folder).config == vq.config


def without_class_name(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    del content["_class_name"]
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: edit_weights(f / WEIGHTS, quantize__embedding__weight=None),
            f"{WEIGHTS} lacks the tensor quantize.embedding.weight",
        ),
        (
            lambda f: edit_weights(f / WEIGHTS, quantize__embedding__weight=np.zeros((8, 2), np.float32)),
            f"{WEIGHTS}: quantize.embedding.weight has shape (8, 2), expected (16, 2)",
        ),
        (
            lambda f: edit_weights(f / WEIGHTS, quant_conv__weight=np.zeros((2, 3), np.float32)),
            f"{WEIGHTS}: quant_conv.weight has shape (2, 3), expected (2, 3, 1, 1)",
        ),
        (without_class_name, "config.json has no _class_name, expected AutoencoderKL or VQModel"),
        (
            lambda f: edit_json(f / "config.json", _class_name="AutoencoderTiny"),
            "config.json is of a AutoencoderTiny, expected AutoencoderKL or VQModel",
        ),
        (
            lambda f: edit_json(f / "config.json", _class_name="AutoencoderKL"),
            "config.json: autoencoder config: unknown option num_vq_embeddings=16",
        ),
        (
            lambda f: edit_json(f / "config.json", norm_type="spatial"),
            "config.json: norm_type is 'spatial', expected 'group'",
        ),
        (
            lambda f: edit_json(f / "config.json", block_out_channels=[4, 4]),
            "config.json: down_block_types has 1 entries, expected one for each of the 2",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not a JSON file"),
        (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} does not exist"),
    ],
)
def test_damaged_folder_is_refused_in_one_sentence(
    vq_folder, damage: Callable[[Path], object], message: str
) -> None:
    damage(vq_folder)
    sentence = sentence_of(lambda: load_autoencoder(vq_folder))
    assert sentence.startswith(f"{vq_folder / message}")


def test_the_autoencoder_in_a_pipeline_s_folder_is_found(vq_folder) -> None:
    for folder, subfolder in ((vq_folder.parent, None), (vq_folder.parent, "vqvae"), (vq_folder, None)):
        assert isinstance(load_autoencoder(folder, subfolder), VQModel)
    sentence = sentence_of(lambda: load_autoencoder(vq_folder.parent, "vae"))
    assert sentence.startswith(f"{vq_folder.parent / 'vae' / 'config.json'}")


def test_what_is_no_autoencoder_is_not_saved(unet, kl, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for module, described in (
        (unet, "a UNet2D"),
        (None, "a NoneType"),
        ("kl", "'kl'"),
        (VQModel, "the class"),
    ):
        sentence = sentence_of(lambda module=module: save_autoencoder(module, folder))
        assert sentence.startswith(f"module is {described}")
        assert sentence.endswith(", expected an AutoencoderKL or a VQModel")
    sentence = sentence_of(lambda: save_unet2d(kl, folder))
    assert sentence == "module is a AutoencoderKL, expected a UNet2D"
    assert not folder.exists()


def test_models_of_other_kinds_are_named(folder, vq_folder) -> None:
    sentence = sentence_of(lambda: load_autoencoder(folder, "unet"))
    assert sentence.endswith("config.json is of a UNet2DModel, expected AutoencoderKL or VQModel")
    sentence = sentence_of(lambda: load_unet2d(vq_folder))
    assert sentence.endswith("config.json is of a VQModel, only UNet2DModel is supported")
