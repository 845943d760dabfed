"""State dicts inside the wrappers that training scripts put around them; arrays stand for torch's tensors.

Files of torch with such wrappers are in test_torch_files_live.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import WEIGHTS, assert_same_parameters, sentence_of
from safetensors.numpy import load_file, save_file

from repaint_jax.models import load_unet2d
from repaint_jax.models.wrapped_weights import named_tensors, unwrapped_names

SOURCE = Path("model.pt")
ONE = np.float32(1)  # a tensor without axes, such as a count of steps
STATE = {"conv_in.weight": np.zeros((2, 1, 3, 3), np.float32), "conv_in.bias": np.zeros(2, np.float32)}
EMA = {name: tensor + 1 for name, tensor in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": STATE["conv_in.bias"]}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def told(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return call(), [str(warning.message) for warning in caught]


def found(content: Any) -> tuple[Any, list[str]]:
    return told(lambda: named_tensors(content, np.ndarray | np.generic, SOURCE))


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE},
        {"state_dict": STATE, "epoch": 3, "optimizer_states": [OPTIMIZER], "lr_schedulers": []},
        {"model": STATE, "optimizer": OPTIMIZER, "step": 5, "loss": 0.1},
        {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "global_step": ONE},
        {"network": STATE, "opt": {"named": STATE}, "rng_state": np.zeros(9, np.uint8)},
        {"state": {"model": STATE}, "config": {"lr": 0.1}},
        {"model": STATE, "ema_decay": 0.999, "args": object()},
    ],
    ids=lambda content: ", ".join(content),
)
def test_only_state_dict_of_a_checkpoint_is_taken_in_silence(content):
    taken, messages = found(content)
    assert taken == STATE or all(taken[name] is STATE[name] for name in STATE)
    assert messages == []


@pytest.mark.parametrize(
    ("content", "names", "chosen"),
    [
        ({"model": STATE, "ema": EMA, "opt": OPTIMIZER}, "'model', 'ema'", "ema"),
        ({"model_ema": EMA, "model": STATE}, "'model_ema', 'model'", "model_ema"),
        ({"params": STATE, "params_ema": EMA}, "'params', 'params_ema'", "params_ema"),
        (
            {"net": STATE, "vae": STATE, "ema": {"module": EMA, "decay": 0.9}},
            "'net', 'vae', 'ema.module'",
            "ema.module",
        ),
        ({"EMA": EMA, "raw": STATE}, "'EMA', 'raw'", "EMA"),
    ],
)
def test_averaged_weights_are_preferred_and_said(content, names, chosen):
    taken, messages = found(content)
    assert all(taken[name] is EMA[name] for name in EMA)
    assert messages == [f"model.pt has weights under {names}: {chosen!r} was taken"]


def test_averaged_weights_without_names_are_missed_aloud():
    content = {"model": STATE, "ema": {"decay": 0.9999, "shadow_params": list(EMA.values())}}
    taken, messages = found(content)
    assert all(taken[name] is STATE[name] for name in STATE)
    message = "model.pt has averaged weights without names, which cannot be read: 'model' was taken"
    assert messages == [message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"generator": STATE, "discriminator": STATE},
            " has weights under 'generator', 'discriminator', expe",
        ),
        (
            {"ema": EMA, "model_ema": EMA},
            " has weights under 'ema', 'model_ema', expected one of them in a file",
        ),
        (
            STATE | {"extra": STATE},
            ": 'extra' is a dict, expected named tensors alone; the file has 'conv_in.",
        ),
        ({"a": 5, "b": {}}, ": 'a' is a int, expected named tensors alone; the file has 'a', 'b'"),
        (
            {"optimizer": OPTIMIZER},
            ": 'optimizer' is a dict, expected named tensors alone; the file has 'opti",
        ),
        (
            dict.fromkeys("abcdefghijk", 0),
            ": 'a' is a int, .*the file has 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', ...",
        ),
        ([STATE], " holds a list, expected a dict of named tensors"),
    ],
)
def test_ambiguous_checkpoint_is_refused_with_the_keys_there_are(content, message):
    sentence = sentence_of(lambda: found(content))
    assert re.match(f"model.pt{message}", sentence)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.unet.", "state.net.module."]
)
def test_prefix_of_all_names_is_removed(prefix: str):
    names, messages = told(lambda: unwrapped_names([prefix + name for name in STATE], SOURCE))
    assert names == {name: prefix + name for name in STATE}
    assert messages == []


def test_names_without_a_wrapper_stay_as_they_are():
    for names in (["a"], ["a.weight"], ["a.weight", "b.weight"], ["module.a", "b.c"], []):
        assert unwrapped_names(names, SOURCE) == {name: name for name in names}


def test_averaged_half_of_the_names_is_taken_and_said():
    inner = ["conv_in.weight", "out.bias"]
    names = [f"{prefix}.{name}" for name in inner for prefix in ("online_model", "ema_model")]
    taken, messages = told(lambda: unwrapped_names([*names, "initted", "step"], SOURCE))
    assert taken == {name: f"ema_model.{name}" for name in inner}
    message = "model.pt has weights under 'online_model', 'ema_model': 'ema_model' was taken"
    assert messages == [message]


def test_halves_of_other_names_are_left_alone():
    names = ["model.a.weight", "model_ema.aweight", "model.b.weight", "model_ema.decay"]
    assert unwrapped_names(names, SOURCE) == {name: name for name in names}


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "unet."])
def test_safetensors_of_a_wrapped_network_load_as_the_network(folder, unet, prefix):
    path = folder / "unet" / WEIGHTS
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    assert_same_parameters(load_unet2d(folder, "unet"), unet, rtol=0)


def test_safetensors_with_other_networks_are_refused_with_what_their_names_begin_with(folder):
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    wrapped = {f"{prefix}.{name}": tensor for name, tensor in tensors.items() for prefix in ("unet", "vae")}
    save_file(wrapped, path)
    sentence = sentence_of(lambda: load_unet2d(folder, "unet"))
    assert re.search(r"lacks the tensor [\w.]+; its names begin with 'unet', 'vae'$", sentence)
