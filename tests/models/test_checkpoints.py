"""Model files: every layout, dtype and place they are loaded from, and every kind of damage.

Each refusal is one sentence that names the file. What needs torch is in test_torch_files_live.
"""

import dataclasses
import json
import re
import struct
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_files import (
    INDEX,
    SCHEDULER,
    SHARDS,
    TORCH_WEIGHTS,
    WEIGHTS,
    assert_same_parameters,
    edit_json,
    edit_weights,
    flatten,
    sentence_of,
    shard,
)
from safetensors.numpy import load_file, save_file

import repaint_jax as rp
from repaint_jax.models import (
    UNet2D,
    UNet2DClassifier,
    UNet2DConfig,
    load_autoencoder,
    load_unet2d,
    save_unet2d,
)
from repaint_jax.models.checkpoints import save_unet2d_classifier
from repaint_jax.models.pretrained import convert, load_classifier, load_pretrained

OLD_KEYS = (  # all that google/ddpm-cifar10-32 has; it was saved by diffusers 0.0.4
    *("act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "down_block_types"),
    *("downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block"),
    *("mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size"),
    *("time_embedding_type", "up_block_types"),
)


@pytest.fixture
def attention_unet(unet_config: UNet2DConfig, random_unet) -> UNet2D:
    return random_unet(dataclasses.replace(unet_config, add_attention=True, attention_head_dim=None))


# Folders of diffusers


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_pipelines_in_parts_or_in_one_folder_load_with_or_without_index(folder, unet, flat, indexed):
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=500)
    if flat:
        flatten(folder)
    if not indexed:
        (folder / "model_index.json").unlink()
    module, config, _ = load_pretrained(folder)
    assert config.num_train_timesteps == 500
    assert module.config == unet.config
    assert_same_parameters(module, unet, rtol=0)


def test_index_of_any_pipeline_of_a_unet_and_a_scheduler_is_taken(folder):
    edit_json(
        folder / "model_index.json", _class_name="DDPMPipeline", feature_extractor=[None, None], eta=1.0
    )
    assert rp.RePaintPipeline.from_pretrained(folder).image_shape == (8, 8, 1)


def test_saved_model_loads_as_it_was(unet, folder):
    assert_same_parameters(load_unet2d(folder / "unet"), unet, rtol=0)
    loaded = load_unet2d(str(folder), "unet")
    assert loaded.config == unet.config
    assert_same_parameters(loaded, unet, rtol=0)


@pytest.mark.parametrize("sample_size", [None, (8, 16)])
def test_config_comes_back_from_its_file(unet_config, random_unet, sample_size, tmp_path: Path):
    config = dataclasses.replace(unet_config, sample_size=sample_size)
    assert UNet2DConfig.from_dict(config.to_dict()) == config
    save_unet2d(random_unet(config), tmp_path / "unet")
    assert load_unet2d(tmp_path, "unet").config == config
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"


def test_config_with_private_keys_is_read(folder):
    edit_json(folder / "unet" / "config.json", _name_or_path="x", _diffusers_version="9.9", _ema=1)
    assert load_unet2d(folder, "unet").config.block_out_channels == (4,)


def test_config_of_an_old_diffusers_lacks_keys_and_has_old_names(attention_unet, tmp_path: Path):
    save_unet2d(attention_unet, tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    old = {name: new[name] for name in OLD_KEYS} | {
        "down_block_types": ["UNetResDownBlock2D"],
        "up_block_types": ["UNetResUpBlock2D"],
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = load_unet2d(tmp_path)
    assert loaded.config == attention_unet.config
    assert_same_parameters(loaded, attention_unet, rtol=0)


def test_attention_under_its_old_names_is_the_same(attention_unet, tmp_path: Path):
    save_unet2d(attention_unet, tmp_path)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(map(re.escape, old_names)))
    tensors = load_file(tmp_path / WEIGHTS)
    old = {pattern.sub(lambda new: old_names[new[0]], name): tensor for name, tensor in tensors.items()}
    assert len(set(old) - set(tensors)) == 8
    save_file(old, tmp_path / WEIGHTS)
    assert_same_parameters(load_unet2d(tmp_path), attention_unet, rtol=0)


def test_tensor_under_its_old_and_its_new_name_is_refused(attention_unet, tmp_path: Path):
    save_unet2d(attention_unet, tmp_path)
    edit_weights(tmp_path / WEIGHTS, mid_block__attentions__0__query__bias=np.zeros(4, np.float32))
    names = "mid_block.attentions.0.query.bias, mid_block.attentions.0.to_q.bias"
    for name in names.split(", "):
        assert f"{WEIGHTS} has a tensor under two names: " in (
            s := sentence_of(lambda: load_unet2d(tmp_path))
        )
        assert name in s


# Shards


def test_sharded_model_is_the_whole_one(folder, unet):
    shard(folder / "unet")
    assert_same_parameters(load_unet2d(folder, "unet"), unet, rtol=0)


def test_tensor_that_only_its_shard_lists_counts(folder, unet):
    shard(folder / "unet")
    index = folder / "unet" / INDEX
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={name: file for name, file in weight_map.items() if name != "conv_in.bias"})
    assert_same_parameters(load_unet2d(folder, "unet"), unet, rtol=0)
    edit_weights(folder / "unet" / SHARDS[0], extra=np.zeros(1, np.float32))
    assert f"{INDEX} has a tensor that the model lacks: extra" in sentence_of(
        lambda: load_unet2d(folder, "unet")
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SHARDS[1]).unlink(), f"{SHARDS[1]} does not exist, but "),
        (
            lambda f: edit_weights(f / SHARDS[0], conv_in__bias=None),
            f"{SHARDS[0]} has no readable tensor conv_in.bias",
        ),
        (lambda f: (f / SHARDS[0]).write_bytes(b"\0" * 99), f"{SHARDS[0]} is not a whole safetensors file"),
        (lambda f: (f / INDEX).write_text("{}"), f"{INDEX} has no weight_map, expected the index"),
        (lambda f: (f / INDEX).write_text("{"), f"{INDEX} is not a JSON file"),
        (lambda f: edit_json(f / INDEX, weight_map=[]), f"{INDEX} has no weight_map, expected the index"),
        (lambda f: edit_json(f / INDEX, weight_map={}), f"{INDEX} lacks the tensor "),
        (lambda f: edit_json(f / INDEX, weight_map={"a": 5}), "5 does not exist, but "),
        (lambda f: edit_json(f / INDEX, weight_map={"a": "../../b"}), "unet/b does not exist, but "),
    ],
    ids=[
        *("missing shard", "absent tensor", "damaged shard", "no map", "no JSON", "map of another kind"),
        *("empty map", "no file name", "another folder"),
    ],
)
def test_damaged_shards_are_refused(folder, damage, message):
    shard(folder / "unet")
    damage(folder / "unet")
    assert message in sentence_of(lambda: load_unet2d(folder, "unet"))


# Dtypes


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("bfloat16", None),
        ("float16", None),
        ("float32", None),
        ("float64", None),
        ("float16", jnp.float32),
        ("float32", "bfloat16"),
        ("bfloat16", np.dtype(np.float16)),
        ("float64", jnp.bfloat16),
    ],
    ids=str,
)
def test_file_of_any_dtype_loads_in_the_dtype_asked_for(folder, stored, asked):
    path = folder / "unet" / WEIGHTS
    tensors = {name: tensor.astype(jnp.dtype(stored)) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    loaded = load_unet2d(folder, "unet", dtype=asked)
    dtype = jnp.dtype(asked or jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(loaded))} == {dtype}
    expected = tensors["conv_in.weight"].astype(dtype).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded.conv_in.kernel[...], expected)


def test_weights_are_cast_once(folder):
    above_a_tie = 1 + 2**-11 + 2**-30  # by way of float32 it would be the tie, and rounded down to 1
    bias = np.full(4, above_a_tie)
    edit_weights(folder / "unet" / WEIGHTS, conv_in__bias=bias)
    loaded = load_unet2d(folder, "unet", dtype=jnp.float16)
    np.testing.assert_array_equal(loaded.conv_in.bias[...], np.float16(1 + 2**-10))


def test_arithmetic_is_in_the_parameters_dtype_and_the_result_in_the_sample_s(folder):
    loaded = load_unet2d(folder, "unet", dtype=jnp.bfloat16)
    output = nnx.eval_shape(lambda module: module(jnp.zeros((8, 8, 1)), 5), loaded)
    assert output.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [int, np.complex64, "int32"])
def test_dtype_that_is_not_floating_is_refused(folder, unet, tmp_path: Path, dtype):
    message = f"dtype is {dtype!r}, expected a floating dtype"
    assert sentence_of(lambda: load_pretrained(folder, dtype=dtype)) == message
    assert sentence_of(lambda: save_unet2d(unet, tmp_path / "saved", dtype=dtype)) == message
    assert not (tmp_path / "saved").exists()


def test_dtype_of_eight_bits_is_refused(folder):
    with pytest.raises(TypeError, match="dtype is float8_e4m3fn, expected a floating dtype of at least 16"):
        load_unet2d(folder / "unet", dtype=jnp.float8_e4m3fn)


@pytest.mark.parametrize(
    ("stored", "asked"), [(np.float32(1e5), jnp.float16), (np.float64(1e39), None)], ids=str
)
def test_value_too_large_for_the_dtype_is_refused(folder, stored, asked):
    edit_weights(folder / "unet" / WEIGHTS, conv_in__bias=np.full(4, stored))
    with warnings.catch_warnings(action="error"):
        sentence = sentence_of(lambda: load_pretrained(folder, dtype=asked))
    dtype = jnp.dtype(asked or jnp.float32)
    assert sentence.endswith(f"{WEIGHTS}: conv_in.bias has values that are not finite in {dtype}")


# Damage


def raw_safetensors(dtype: str, size: int) -> bytes:
    """One tensor of a dtype that NumPy may lack."""
    header = json.dumps(
        {"conv_in.bias": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


CONFIG = "unet/config.json"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        # The weights
        (WEIGHTS, b"", "is not a whole safetensors file"),
        (WEIGHTS, b"\xff" * 99, "is not a whole safetensors file"),
        (WEIGHTS, b"<html>Not found</html>", "is not a whole safetensors file"),
        (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:5]), "is not a whole safetensors file"),
        (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:100]), "is not a whole safetensors file"),
        (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:-1]), "is not a whole safetensors file"),
        (
            WEIGHTS,
            raw_safetensors("F8_E4M3", 4),
            "has no readable tensor conv_in.bias: it is in 8-bit floats; convert the file to float16",
        ),
        (WEIGHTS, Path.unlink, "does not exist"),
        (WEIGHTS, lambda p: (p.unlink(), p.mkdir()), "does not exist"),
        (WEIGHTS, {"conv_in__bias": None}, "lacks the tensor conv_in.bias"),
        (WEIGHTS, {"extra": np.zeros(1)}, "has a tensor that the model lacks: extra"),
        (
            WEIGHTS,
            {"conv_in__weight": np.zeros((4, 2, 3, 3), np.float32)},
            ": conv_in.weight has shape (4, 2, 3, 3), expected (4, 1, 3, 3)",
        ),
        (
            WEIGHTS,
            {"conv_in__weight": np.zeros((4, 9, 1))},
            ": conv_in.weight has shape (4, 9, 1), expected",
        ),
        (WEIGHTS, {"conv_in__bias": np.zeros(())}, ": conv_in.bias has shape (), expected (4,)"),
        (WEIGHTS, {"conv_in__bias": np.zeros(0)}, ": conv_in.bias has shape (0,), expected (4,)"),
        (WEIGHTS, {"conv_in__bias": np.full(4, np.nan)}, ": conv_in.bias has values that are not finite"),
        (WEIGHTS, {"conv_in__bias": np.full(4, np.inf)}, ": conv_in.bias has values that are not finite"),
        (
            WEIGHTS,
            {"conv_in__bias": np.zeros(4, int)},
            ": conv_in.bias has dtype int64, expected a floating",
        ),
        (
            WEIGHTS,
            {"conv_in__bias": np.zeros(4, bool)},
            ": conv_in.bias has dtype bool, expected a floating",
        ),
        # The architecture
        (CONFIG, b"{", "is not a JSON file"),
        (CONFIG, b"", "is not a JSON file"),
        (CONFIG, b"\xff\xfe\0", "is not a JSON file"),
        (CONFIG, b"[" * 10**5, "is not a JSON file"),
        (CONFIG, b"[]", "holds list, expected a JSON object"),
        (CONFIG, {"_class_name": "UNet2DConditionModel"}, "is of a UNet2DConditionModel, only UNet2DModel"),
        (CONFIG, {"cross_attention_dim": 768}, ": unet config: unknown option cross_attention_dim=768"),
        (CONFIG, {"down_block_types": ["CrossAttnDownBlock2D"]}, ": down_block_types has 'CrossAttnDown"),
        (
            CONFIG,
            {"up_block_types": ["KUpBlock2D"]},
            ": up_block_types has 'KUpBlock2D', expected one",
        ),
        (CONFIG, {"layers_per_block": "2"}, ": layers_per_block is '2', expected an integer"),
        (CONFIG, {"sample_size": None}, "the model's config has no sample_size"),
        # The scheduler
        (SCHEDULER, b"[]", "holds list, expected a JSON object"),
        (SCHEDULER, {"beta_start": 2.0}, ": beta_start is 2.0, expected a variance in (0, 1)"),
        (SCHEDULER, {"thresholding": True}, ": thresholding is True, expected false"),
        (
            SCHEDULER,
            b'{"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.1, "beta_max": 20}',
            ": the scheduler's config is of a ScoreSdeVpScheduler, expected a scheduler with betas",
        ),
        (SCHEDULER, Path.unlink, "has neither scheduler/scheduler_config.json nor scheduler_config.json"),
        # The index
        ("model_index.json", b"{", "is not a JSON file"),
        (
            "model_index.json",
            {"_class_name": "KandinskyPipeline", "movq": ["diffusers", "VQModel"]},
            "is of a KandinskyPipeline with movq; only pipelines of an unconditional unet",
        ),
    ],
)
def test_damaged_model_is_refused_in_one_sentence_that_names_the_file(folder, name, damage, message):
    path = folder / ("unet" if name == WEIGHTS else "") / name
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif isinstance(damage, dict):
        (edit_weights if name == WEIGHTS else edit_json)(path, **damage)
    else:
        damage(path)
    sentence = sentence_of(lambda: rp.RePaintPipeline.from_pretrained(folder))
    assert message in sentence
    if "neither" not in message and "no sample_size" not in message:
        assert sentence.startswith(f"{path}{message if message[0] == ':' else ' ' + message}")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_missing_file_of_a_model_is_named(folder, name):
    (folder / "unet" / name).unlink()
    assert sentence_of(lambda: load_unet2d(folder, "unet")) == f"{folder / 'unet' / name} does not exist"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("empty", "empty has neither scheduler/scheduler_config.json nor scheduler_config.json"),
        ("unet", "unet has neither scheduler/scheduler_config.json nor scheduler_config.json"),
        ("nowhere", "nowhere is n"),  # neither a folder, nor reached on the hub
        ("nowhere/at/all", "nowhere/at/all does not exist, expected a folder here, or a repository of the"),
        ("no name of a repository", "no name of a repository does not exist, expected a folder here, or"),
        ("nowhere.pt", "nowhere.pt is not a file"),
        ("folder.pt", "folder.pt is not a file"),
        ("model_index.json", "model_index.json is a file, expected a model's folder or a .pt checkpoint"),
        (f"unet/{WEIGHTS}", f"{WEIGHTS} is a file, expected a model's folder or a .pt checkpoint"),
    ],
)
def test_path_that_is_no_model_is_refused(folder, monkeypatch, path, message):
    (folder / "empty").mkdir()
    (folder / "folder.pt").mkdir()
    monkeypatch.chdir(folder)
    for given in (path, Path(path)):
        assert message in sentence_of(lambda given=given: rp.RePaintPipeline.from_pretrained(given))


@pytest.mark.parametrize(
    "path", ["/no/such", "./x", "../x", "a/b/c", "~/model", "-x", "C:\\model", "o/n@v1"]
)
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for load in (rp.RePaintPipeline.from_pretrained, load_unet2d, load_autoencoder, load_classifier):
        sentence = sentence_of(lambda load=load: load(path))
        assert sentence == (
            f"{path} does not exist, expected a folder here, or a repository of the Hugging Face hub "
            "such as owner/name"
        )


@pytest.mark.parametrize("value", [None, 3, b"folder", "", ["folder"]])
def test_what_is_no_path_is_refused_by_its_parameter(unet, value):
    loads = {
        "path_or_repo": (
            *(rp.RePaintPipeline.from_pretrained, load_unet2d, load_autoencoder),
            rp.RePaintSchedulerConfig.from_pretrained,
        ),
        "folder": (
            *(lambda folder: save_unet2d(unet, folder), rp.RePaintSchedulerConfig().save_pretrained),
            *(rp.RePaintPipeline.from_unet2d(unet, rp.RePaintSchedulerConfig()).save_pretrained,),
            lambda folder: convert("model.pt", folder),
        ),
        "path": (load_classifier, UNet2DConfig.from_file),
        "checkpoint": (lambda path: convert(path, "new"),),
    }
    if value not in (None, ""):
        loads["subfolder"] = (lambda inner: load_unet2d("owner/name", inner),)
    for name, functions in loads.items():
        for function in functions:
            sentence = sentence_of(lambda function=function: function(value))
            assert sentence.startswith(f"{name} is {value!r}, expected a ")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    sentence = sentence_of(lambda: UNet2DConfig.from_file(tmp_path))
    assert sentence == f"{tmp_path} is a folder, expected a JSON file"


def test_torch_s_own_files_ask_for_torch_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    checkpoint = folder / "celeba256_250000.pt"
    checkpoint.write_bytes(b"weights")
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / TORCH_WEIGHTS)
    for load, path in (
        (lambda: load_pretrained(checkpoint), checkpoint),
        (lambda: load_classifier(checkpoint), checkpoint),
        (lambda: convert(checkpoint, folder / "converted"), checkpoint),
        (lambda: load_pretrained(folder), folder / "unet" / TORCH_WEIGHTS),
    ):
        sentence = sentence_of(load)
        assert sentence.startswith(f"{path} is a file of torch, and reading it needs torch; install it")
    assert not (folder / "converted").exists()


# Saving


def test_saved_pipeline_keeps_its_model_and_schedule_in_either_precision(folder, unet, tmp_path: Path):
    edit_json(folder / SCHEDULER, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    pipe = rp.RePaintPipeline.from_pretrained(folder)
    for name, options in (("whole", {}), ("half", {"dtype": np.float16})):
        pipe.save_pretrained(tmp_path / name, **options)
        again = rp.RePaintPipeline.from_pretrained(tmp_path / name)
        assert (again.unet_config, again.image_shape) == (pipe.unet_config, pipe.image_shape)
        assert again.state.config == pipe.state.config
        tolerance = {"rtol": 1e-3, "atol": 1e-7} if options else {"rtol": 0}
        jax.tree.map(
            lambda a, b, t=tolerance: np.testing.assert_allclose(a, b, **t), again.params, pipe.params
        )
    stored = load_file(tmp_path / "half" / "unet" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}


def test_weights_too_large_to_be_saved_are_refused_and_nothing_is_written(unet, tmp_path: Path):
    module = nnx.clone(unet)
    module.conv_in.bias[...] = jnp.full(4, 1e5)
    with warnings.catch_warnings(action="error"):
        sentence = sentence_of(lambda: save_unet2d(module, tmp_path / "new", dtype=np.float16))
    assert sentence == f"{tmp_path / 'new'}: conv_in.bias has values that are not finite in float16"
    assert not (tmp_path / "new").exists()


def test_classifier_comes_back_from_its_folder_and_is_no_model(
    unet_config, random_unet, folder, tmp_path: Path
):
    config = dataclasses.replace(unet_config, out_channels=3, attention_head_dim=2)
    classifier = random_unet(config, UNet2DClassifier)
    save_unet2d_classifier(classifier, tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    assert loaded.config == config
    assert_same_parameters(loaded, classifier, rtol=0)
    sentence = sentence_of(lambda: load_unet2d(tmp_path / "classifier"))
    assert sentence.endswith("config.json is of a UNet2DClassifier, only UNet2DModel is supported")
    sentence = sentence_of(lambda: load_classifier(folder / "unet"))
    assert sentence.endswith("config.json is of a UNet2DModel, only UNet2DClassifier is supported")
