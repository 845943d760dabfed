"""Torch's own files, written by torch: `pip install torch`, then `-m torch`."""

import argparse
import contextlib
import io
import os
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402
from test_guided_diffusion import ONE_LEVEL, TINY_SETTINGS, guided_diffusion_weights  # noqa: E402

from repaint_jax.cli.main import main  # noqa: E402
from repaint_jax.models import guided_diffusion, load_unet2d, save_unet2d  # noqa: E402
from repaint_jax.models.pretrained import convert, load_classifier, load_pretrained  # noqa: E402
from repaint_jax.models.tensor_files import TorchFile  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # in damaged files
]

SAFE, TORCH = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])


def as_torch(tensors: dict[str, np.ndarray], dtype: Any = torch.float32) -> dict[str, Any]:
    return {name: torch.tensor(np.asarray(tensor)).to(dtype) for name, tensor in tensors.items()}


def save(content: Any, path: Path, zipped: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def parameters(module: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module))]


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_bin_file_is_the_safetensors_file(unet, tmp_path: Path, zipped: bool, dtype) -> None:
    save_unet2d(unet, tmp_path)
    expected = as_torch(load_file(tmp_path / SAFE), dtype)
    (tmp_path / SAFE).unlink()
    save(OrderedDict(expected), tmp_path / TORCH, zipped)
    for name, tensor in TorchFile(tmp_path / TORCH).items():
        np.testing.assert_array_equal(tensor, expected[name].double().numpy())
    loaded = load_unet2d(tmp_path)
    bias = expected["conv_in.bias"].float().numpy()
    np.testing.assert_array_equal(np.asarray(loaded.conv_in.bias[...]), bias)
    for one, other in zip(parameters(loaded), parameters(unet), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-6)


def test_safetensors_are_preferred(unet, tmp_path: Path) -> None:
    save_unet2d(unet, tmp_path)
    (tmp_path / TORCH).write_bytes(b"never read")
    assert load_unet2d(tmp_path).config == unet.config


@pytest.mark.parametrize(
    "tensor",
    [
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        torch.arange(6.0).reshape(3, 2).t(),
        torch.arange(12.0)[::2].reshape(2, 3),
        torch.ones(1).expand(2, 3),
    ],
    ids=["parameter", "transposed", "strided", "expanded"],
)
def test_views_and_parameters_are_read_as_what_they_show(tensor, tmp_path: Path) -> None:
    save({"a": tensor}, tmp_path / "a.pt")
    np.testing.assert_array_equal(TorchFile(tmp_path / "a.pt")["a"], tensor.detach().numpy())


@FORMATS
def test_official_checkpoint_loads_and_converts(tmp_path: Path, zipped: bool) -> None:
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in guided_diffusion_weights(**ONE_LEVEL).items()
    }
    save(as_torch(weights), tmp_path / "tiny.pt", zipped)
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(TINY_SETTINGS))
    module, config = guided_diffusion.load_unet(tmp_path / "tiny.pt", TINY_SETTINGS)
    words = ["convert", tmp_path / "tiny.pt", "-o", tmp_path / "tiny", "--config", tmp_path / "tiny.yml"]
    assert main(list(map(str, words))) == 0
    again, again_config, _ = load_pretrained(tmp_path / "tiny")
    assert (again.config, again_config) == (module.config, config)
    for one, other in zip(parameters(again), parameters(module), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(module.conv_in.bias[...], weights["input_blocks.0.0.bias"])


def test_folder_of_averaged_weights_that_diffusers_saved_loads(unet, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    training_utils = pytest.importorskip("diffusers.training_utils")
    save_unet2d(unet, tmp_path / "unet")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    averaged = training_utils.EMAModel(
        theirs.parameters(), model_cls=diffusers.UNet2DModel, model_config=theirs.config
    )
    averaged.save_pretrained(tmp_path / "unet_ema")
    assert "inv_gamma" in (tmp_path / "unet_ema" / "config.json").read_text()
    loaded = load_unet2d(tmp_path, "unet_ema")
    assert loaded.config == unet.config
    for one, other in zip(parameters(loaded), parameters(unet), strict=True):
        np.testing.assert_array_equal(one, other)


# Wrappers


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda own, other: own, None),
        (lambda own, other: {"state_dict": own, "epoch": 3, "optimizer_states": [{"state": {}}]}, None),
        (
            lambda own, other: {
                "model": other,
                "ema": own,
                "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []},
                "args": argparse.Namespace(lr=0.1),
                "rng": torch.zeros(9, dtype=torch.uint8),
            },
            "has weights under 'model', 'ema': 'ema' was taken",
        ),
    ],
    ids=["alone", "Lightning's", "with averaged weights"],
)
def test_wrapped_checkpoint_loads_as_its_weights(wrap, message, prefix: str, tmp_path: Path) -> None:
    weights = as_torch(
        {
            name: np.full(tensor.shape, 0.5, np.float32)
            for name, tensor in guided_diffusion_weights(**ONE_LEVEL).items()
        }
    )
    own = {prefix + name: tensor for name, tensor in weights.items()}
    other = {name: tensor + 1 for name, tensor in own.items()}
    path = tmp_path / "last.ckpt"
    save(wrap(own, other), path)
    expecting = contextlib.nullcontext() if message is None else pytest.warns(UserWarning, match=message)
    with expecting:
        module, _ = guided_diffusion.load_unet(path, TINY_SETTINGS)
    assert all((leaf == 0.5).all() for leaf in parameters(module))


def test_checkpoint_of_any_usual_suffix_is_read(tmp_path: Path) -> None:
    for name in ("tiny.pt", "tiny.pth", "epoch=3.ckpt"):
        save({"state_dict": as_torch(guided_diffusion_weights((192, 384, 576, 768)))}, tmp_path / name)
        with pytest.warns(UserWarning, match=f"{re.escape(name)} does not tell all settings of the model"):
            module, *_ = load_pretrained(tmp_path / name, dtype="float16")
        assert module.config.sample_size == 64


def test_what_a_file_holds_beside_weights_is_named(tmp_path: Path) -> None:
    save({"model": TENSORS, "config": random.Random(0)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds something else than weights \(\w+: random\.Random\)"):
        TorchFile(tmp_path / "a.pt")


# Refusals


class MakesAFolder:
    """Makes a folder when it is unpickled the careless way."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write",
    [
        lambda content, path: save(content, path),
        lambda content, path: save(content, path, zipped=False),
        lambda content, path: save({"a": torch.zeros(2), "b": content}, path),
        lambda content, path: path.write_bytes(pickle.dumps(content)),
    ],
    ids=["zip", "before torch 1.6", "beside tensors", "plain pickle"],
)
def test_code_in_a_file_is_not_run(write, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    write(MakesAFolder(trace), path)
    for load in (TorchFile, load_pretrained, load_classifier, lambda path: convert(path, tmp_path / "new")):
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged, or holds something else")):
            load(path)
    assert list(tmp_path.iterdir()) == [path]
    with contextlib.suppress(pickle.UnpicklingError, TypeError, ValueError, RuntimeError):
        torch.load(path, weights_only=False)
    assert trace.exists(), "the file would have made a folder"


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def an_archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return buffer.getvalue()


TENSORS = {"a": torch.arange(50.0), "b": torch.ones(3, 3)}
DAMAGED = " is damaged, or holds something else than weights"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", DAMAGED),
        (b"\0" * 100, DAMAGED),
        (np.random.default_rng(0).bytes(1000), DAMAGED),
        (b"hello", DAMAGED),
        (b"<html>Not found</html>", DAMAGED),
        (pickle.dumps([1, 2]), DAMAGED),
        (pickle.dumps({"a": 1}), DAMAGED),
        (an_archive(), DAMAGED),
        (an_archive("text.txt"), DAMAGED),
        (saved(TENSORS)[:10], DAMAGED),
        (saved(TENSORS)[:1000], DAMAGED),
        (saved(TENSORS)[:-1], DAMAGED),
        (saved(TENSORS, zipped=False)[:100], DAMAGED),
        (saved(TENSORS, zipped=False)[:-1], DAMAGED),
        (saved(torch.nn.Linear(2, 2)), DAMAGED),
        (saved({"a": np.zeros(2)}), DAMAGED),
        (saved([torch.zeros(2)]), " holds a list, expected a dict of named tensors"),
        (saved(torch.zeros(2)), " holds a Tensor, expected a dict of named tensors"),
        (saved(None), " holds a NoneType, expected a dict of named tensors"),
        (saved("text"), " holds a str, expected a dict of named tensors"),
        (saved({"a": 5}), ": 'a' is a int, expected named tensors alone"),
        (saved({"state_dict": TENSORS}), " lacks the tensor "),
        (
            saved({"a": TENSORS, "b": TENSORS}),
            " has weights under 'a', 'b', expected one of them in a file",
        ),
        (saved(TENSORS | {"c": TENSORS}), ": 'c' is a dict, expected named tensors alone; the file has "),
        (saved({1: torch.zeros(2)}), ": 1 is a Tensor, expected named tensors alone"),
        (saved({"a": torch.zeros(2).to(torch.float8_e4m3fn)}), " has no readable tensor a: "),
        (saved({"a": torch.zeros(2).to_sparse()}), " has no readable tensor a: "),
        (saved({"a": torch.empty(2, device="meta")}), " has no readable tensor a: "),
        (saved({}), " lacks the tensor "),
        (saved(TENSORS), " lacks the tensor "),
    ],
    ids=lambda value: value.strip(" :") if isinstance(value, str) else "",
)
def test_file_of_something_else_is_refused_in_one_sentence(content, message, unet, tmp_path: Path) -> None:
    path = tmp_path / TORCH
    save_unet2d(unet, tmp_path)
    (tmp_path / SAFE).unlink()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")) as error:
        dict(TorchFile(path)) if "readable" in message else load_unet2d(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@FORMATS
def test_no_change_of_a_few_bytes_gives_anything_but_tensors_or_a_value_error(
    tmp_path: Path, zipped: bool
) -> None:
    rng, whole = random.Random(0), saved(TENSORS, zipped)
    path = tmp_path / "a.pt"
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(rng.choice([600, len(whole)]))] = rng.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert all(isinstance(tensor, np.ndarray) for tensor in TorchFile(path).values())
