"""Find a network's tensors in the wrappers that training scripts put around them.

A wrapper is a dict such as {"model": ..., "ema": ..., "optimizer": ...}, or a prefix of all names, such as
the "module." of torch's DistributedDataParallel. Averaged weights (EMA) are preferred, with a warning.
Nothing else is chosen: several state dicts without averaged weights are refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from repaint_jax.files import warn

_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(
    r"opt|.*(optim|sched|scaler|rng)", re.IGNORECASE
)  # the keys of a training's state
_MAX_DEPTH = 3


def named_tensors(content: Any, tensor_type: type, source: Path) -> dict[str, Any]:
    """Return the state dict in the content of a checkpoint: the content itself, or a dict inside it.

    Args:
        content: what the file holds.
        tensor_type: the class of tensors.
        source: the file that messages name.

    Raises:
        ValueError: the content is no dict, has no state dict, or has several and none is the EMA's.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}, expected a dict of named tensors")
    found = dict(_state_dicts(content, tensor_type))
    if not found or any(map(_is_weight, content.values())):
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, tensor_type):
                raise ValueError(
                    f"{source}: {name!r} is a {type(value).__name__}, expected named tensors alone; the "
                    f"file has {_quoted(content)}"
                )
        return content
    averaged = [key for key in found if _EMA.search(key)]
    if len(found) > 1 and len(averaged) != 1:
        raise ValueError(
            f"{source} has weights under {_quoted(found)}, expected one of them in a file of its own"
        )
    chosen = averaged[0] if averaged else next(iter(found))
    if len(found) > 1:
        warn(f"{source} has weights under {_quoted(found)}: {chosen!r} was taken")
    elif not averaged and any(
        _EMA.search(str(key)) and isinstance(value, dict | list) for key, value in content.items()
    ):
        warn(f"{source} has averaged weights without names, which cannot be read: {chosen!r} was taken")
    return found[chosen]


def unwrapped_names(names: Iterable[str], source: Path) -> dict[str, str]:
    """Map names without the prefix of a wrapper to the names in a file.

    A prefix that all names have is removed. If two prefixes have the same names after them, and one of them
    is the EMA's, the names are those of the EMA.
    """
    current = {name: name for name in names}
    while True:
        groups: dict[str, dict[str, str]] = {}
        for name, stored in current.items():
            first, dot, rest = name.partition(".")
            if dot:
                groups.setdefault(first, {})[rest] = stored
        averaged = [first for first in groups if _EMA.search(first)]
        inner = next(iter(groups.values()), {})
        if len(inner) == len(current) and any("." in name for name in inner):
            current = inner
        elif len(averaged) == 1 and len(groups) == 2 and len({frozenset(g) for g in groups.values()}) == 1:
            warn(f"{source} has weights under {_quoted(groups)}: {averaged[0]!r} was taken")
            current = groups[averaged[0]]
        else:
            return current


def first_names(names: Iterable[str]) -> str:
    """Say what the names of tensors begin with, for an error message."""
    firsts = sorted({name.partition(".")[0] for name in names})
    return f"; its names begin with {_quoted(firsts)}" if firsts else ""


def _state_dicts(
    content: Mapping[Any, Any], tensor_type: type, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the dicts of named tensors in a dict, with their keys joined by dots."""
    if path and content and all(isinstance(value, tensor_type) for value in content.values()):
        yield ".".join(path), dict(content)
    elif len(path) < _MAX_DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, dict) and not _NOT_WEIGHTS.match(key):
                yield from _state_dicts(value, tensor_type, (*path, key))


def _is_weight(value: Any) -> bool:
    """Return whether a value is a tensor of floating numbers, and not a single number."""
    return getattr(value, "ndim", 0) > 0 and "float" in str(value.dtype)


def _quoted(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join([*map(repr, shown[:8]), *["..."] * (len(shown) > 8)])
