"""Folders that training scripts leave: averaged weights, checkpoints, variants, clones without Git LFS."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_files import (
    INDEX,
    SCHEDULER,
    SHARDS,
    WEIGHTS,
    assert_same_parameters,
    edit_json,
    edit_weights,
    flatten,
    sentence_of,
    shard,
)

import repaint_jax as rp
from repaint_jax.models import UNet2DConfig, load_unet2d, save_unet2d
from repaint_jax.models.pretrained import load_pretrained

EMA_OPTIONS = {  # as EMAModel.save_pretrained of diffusers 0.42 adds them
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 37000,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}
FP16 = WEIGHTS.replace(".", ".fp16.")
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 454741108\n"
)


@pytest.fixture
def run(folder: Path) -> Path:
    """A pipeline's folder as train_unconditional.py leaves it; the networks differ in conv_in.bias."""
    for i, name in enumerate(["unet_ema", "checkpoint-500/unet", "checkpoint-500/unet_ema"]):
        shutil.copytree(folder / "unet", folder / name)
        edit_weights(folder / name / WEIGHTS, conv_in__bias=np.full(4, i + 1, np.float32))
    for name in ("unet_ema", "checkpoint-500/unet_ema"):
        edit_json(folder / name / "config.json", **EMA_OPTIONS)
    edit_json(folder / SCHEDULER, num_train_timesteps=500)
    return folder


# Configs


def test_options_of_averaged_weights_change_nothing(run: Path, unet):
    assert UNet2DConfig.from_file(run / "unet_ema" / "config.json") == unet.config
    assert load_unet2d(run, "unet_ema").conv_in.bias[0] == 1


@pytest.mark.parametrize("name", EMA_OPTIONS)
def test_each_option_of_averaged_weights_is_known(unet_config, name: str):
    assert UNet2DConfig.from_dict(unet_config.to_dict() | {name: EMA_OPTIONS[name]}) == unet_config


@pytest.mark.parametrize("value", [None, False])
def test_unknown_option_that_is_off_changes_nothing(unet_config, value):
    file = unet_config.to_dict() | {"cross_attention_dim": value, "only_cross": value}
    assert UNet2DConfig.from_dict(file) == unet_config
    message = "unet config: unknown option only_cross=0"
    assert sentence_of(lambda: UNet2DConfig.from_dict(file | {"only_cross": 0})) == message


# Subfolders


@pytest.mark.parametrize(
    ("subfolder", "bias"),
    [
        ("unet_ema", 1),
        ("unet_ema/", 1),
        ("checkpoint-500", 2),
        ("checkpoint-500/unet", 2),
        (Path("checkpoint-500/unet_ema"), 3),
    ],
    ids=str,
)
def test_network_of_a_subfolder_has_the_scheduler_above_it(run: Path, subfolder, bias: float):
    module, config, _ = load_pretrained(run, subfolder=subfolder)
    assert (module.conv_in.bias[0], config.num_train_timesteps) == (bias, 500)
    pipe = rp.RePaintPipeline.from_pretrained(run, subfolder=subfolder)
    assert pipe.state.config.num_train_timesteps == 500


@pytest.mark.parametrize("flat", [False, True])
def test_pipeline_in_a_subfolder_has_its_own_scheduler(run: Path, flat: bool):
    inner = run / "checkpoint-500"
    shutil.copytree(run / "scheduler", inner / "scheduler")
    edit_json(inner / SCHEDULER, num_train_timesteps=70)
    if flat:
        flatten(inner)
    module, config, _ = load_pretrained(run, subfolder="checkpoint-500")
    assert (module.conv_in.bias[0], config.num_train_timesteps) == (2, 70)
    assert load_pretrained(run)[1].num_train_timesteps == 500


@pytest.mark.parametrize("subfolder", ["../model", "/unet", "unet/../unet"])
def test_subfolder_outside_the_model_is_refused(run: Path, subfolder: str):
    message = f"subfolder is {subfolder!r}, expected a folder inside path_or_repo"
    assert sentence_of(lambda: load_pretrained(run, subfolder=subfolder)) == message


def test_subfolder_that_is_not_there_is_refused(run: Path):
    message = f"subfolder is 'checkpoint-900', expected a folder in {run}"
    assert sentence_of(lambda: load_pretrained(run, subfolder="checkpoint-900")) == message


def test_subfolder_without_a_scheduler_anywhere_is_refused(run: Path):
    shutil.rmtree(run / "scheduler")
    sentence = sentence_of(lambda: load_pretrained(run, subfolder="checkpoint-500"))
    inner = run / "checkpoint-500"
    assert sentence.startswith(f"{inner} has neither scheduler/scheduler_config.json nor scheduler_config")
    assert sentence.endswith(f"and no folder above it up to {run} has it")


@pytest.mark.parametrize("inner", ["unet_ema", "checkpoint-500", "checkpoint-500/unet_ema"])
def test_folder_without_a_scheduler_says_how_to_load_it(run: Path, inner: str):
    sentence = sentence_of(lambda: load_pretrained(run / inner))
    assert sentence.endswith(f"; {run} has it: give that as path_or_repo, and subfolder={inner!r}")
    assert load_pretrained(run, subfolder=inner)[1].num_train_timesteps == 500


@pytest.mark.parametrize(("name", "value"), [("subfolder", "unet"), ("variant", "fp16")])
@pytest.mark.parametrize("file", ["model.pt", "model.pth", "last.ckpt"])
def test_options_of_folders_are_refused_for_a_checkpoint_file(tmp_path: Path, name, value, file):
    sentence = sentence_of(lambda: load_pretrained(tmp_path / file, **{name: value}))
    assert sentence == f"{name} is {value!r}, expected None for the checkpoint {tmp_path / file}"


# Variants


def add_variant(unet_folder: Path, name: str) -> None:
    shutil.copy(unet_folder / WEIGHTS, unet_folder / name)
    edit_weights(unet_folder / name, conv_in__bias=np.full(4, 5, np.float16))


@pytest.mark.parametrize(
    ("variant", "name"),
    [("fp16", FP16), ("non_ema", "diffusion_pytorch_model.non_ema.safetensors")],
)
def test_variant_that_is_asked_for_is_read(folder: Path, variant: str, name: str):
    add_variant(folder / "unet", name)
    for module in (
        load_pretrained(folder, variant=variant)[0],
        load_unet2d(folder, "unet", variant=variant),
    ):
        assert module.conv_in.bias[0] == 5
    assert load_pretrained(folder)[0].conv_in.bias[0] != 5
    pipe = rp.RePaintPipeline.from_pretrained(folder, variant=variant)
    assert pipe.params["conv_in"]["bias"][0] == 5


@pytest.mark.parametrize("shard_name", ["{0}.fp16-{1}.safetensors", "{0}-{1}.fp16.safetensors"])
def test_shards_of_a_variant_are_read(folder: Path, unet, shard_name: str):
    inner = folder / "unet"
    shard(inner)
    new_names = {}
    for file in SHARDS:
        stem, number = re.fullmatch(r"(\w+)-(\d+-of-\d+)\.safetensors", file).groups()
        new_names[file] = shard_name.format(stem, number)
        (inner / file).rename(inner / new_names[file])
    weight_map = json.loads((inner / INDEX).read_text())["weight_map"]
    edit_json(inner / INDEX, weight_map={name: new_names[file] for name, file in weight_map.items()})
    (inner / INDEX).rename(inner / INDEX.replace(".json", ".fp16.json"))
    assert_same_parameters(load_pretrained(folder, variant="fp16")[0], unet, rtol=0)
    assert sentence_of(lambda: load_pretrained(folder)).endswith("; there are weights of variant='fp16'")


def test_missing_variant_is_refused_with_those_there_are(folder: Path):
    unet_folder = folder / "unet"
    sentence = sentence_of(lambda: load_pretrained(folder, variant="fp16"))
    assert sentence == f"{unet_folder / FP16} does not exist; there are weights of variant=None"
    (unet_folder / WEIGHTS).rename(unet_folder / FP16)
    (unet_folder / "diffusion_pytorch_model.bf16.bin").touch()
    sentence = sentence_of(lambda: load_pretrained(folder))
    variants = "variant='bf16' and variant='fp16'"
    assert sentence == f"{unet_folder / WEIGHTS} does not exist; there are weights of {variants}"


# Git LFS


@pytest.mark.parametrize(
    "name", [f"unet/{WEIGHTS}", "unet/config.json", SCHEDULER, "unet/diffusion_pytorch_model.bin", "a.pt"]
)
def test_pointer_of_git_lfs_is_named(folder: Path, name: str):
    if name.endswith(".bin"):
        (folder / "unet" / WEIGHTS).unlink()
    path = folder / name
    path.write_bytes(LFS_POINTER)
    sentence = sentence_of(lambda: load_pretrained(path if name == "a.pt" else folder))
    assert sentence.endswith(
        f"{path} is a pointer of Git LFS, expected the file itself; `git lfs pull` downloads it"
    )


def test_pointers_among_shards_are_named(folder: Path):
    shard(folder / "unet")
    path = folder / "unet" / SHARDS[1]
    path.write_bytes(LFS_POINTER)
    assert sentence_of(lambda: load_pretrained(folder)).startswith(f"{path} is a pointer of Git LFS, ")


# Paths


class Elsewhere:
    """A path that is no `pathlib.Path`."""

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Elsewhere])
def test_paths_of_any_kind_are_taken(folder: Path, unet, tmp_path: Path, kind):
    assert UNet2DConfig.from_file(kind(folder / "unet" / "config.json")) == unet.config
    assert load_unet2d(kind(folder), kind(Path("unet"))).config == unet.config
    save_unet2d(unet, kind(tmp_path / "saved"))
    assert load_unet2d(kind(tmp_path / "saved")).config == unet.config
    assert rp.RePaintPipeline.from_pretrained(kind(folder), subfolder=kind(Path("unet"))).image_shape == (
        *unet.config.height_and_width,
        1,
    )
