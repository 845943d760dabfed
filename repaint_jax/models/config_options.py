"""What the configs of networks share: options of diffusers' files, and the blocks of each level."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from repaint_jax.sampling.checks import check_mapping


def known_options(
    cls: Any, config: Mapping[str, Any], what: str, ignored: Collection[str]
) -> dict[str, Any]:
    """Return the options in a file of diffusers that are fields of a config.

    Args:
        cls: the config's dataclass.
        config: the content of the file.
        what: the network, for messages.
        ignored: names of options that do not matter.

    Raises:
        ValueError: an option is unknown, and is not off (null or false). The message names it.
    """
    check_mapping("config", config)
    fields = {field.name for field in dataclasses.fields(cls)}
    for name, value in config.items():
        harmless = name.startswith("_") or name in ignored or value is None or value is False
        if name not in fields and not harmless:
            raise ValueError(f"{what} config: unknown option {name}={value!r}")
    return {name: value for name, value in config.items() if name in fields}


def make_tuples(config: Any) -> None:
    """Replace the lists in a frozen config, which come from JSON or from its user, by tuples."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))


def check_block_types(
    name: str, kinds: tuple[str, ...], supported: tuple[str, ...], num_levels: int
) -> None:
    """Raise if there is not one supported block for each of the levels of block_out_channels."""
    if len(kinds) != num_levels:
        raise ValueError(
            f"{name} has {len(kinds)} entries, expected one for each of the {num_levels} block_out_channels"
        )
    for kind in kinds:
        if kind not in supported:
            raise ValueError(f"{name} has {kind!r}, expected one of {', '.join(supported)}")
