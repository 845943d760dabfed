"""Let `flax.serialization` save states, and `jax.export` take states and chains as arguments."""

import json
from typing import Any

import jax
from flax import serialization

from repaint_jax.sampling.budget_schedule import BudgetSchedule, PreviousNoise
from repaint_jax.sampling.budget_transition import CallCoefficients
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.inpaint import ChainCarry
from repaint_jax.sampling.repaint_schedule import NoMemory, ResamplingSchedule
from repaint_jax.sampling.repaint_transition import LevelCoefficients
from repaint_jax.sampling.scheduler import RePaintSchedulerState

_NAMED_TUPLES = (
    BudgetSchedule,
    CallCoefficients,
    ChainCarry,
    LevelCoefficients,
    NoMemory,
    PreviousNoise,
    ResamplingSchedule,
)


def _to_state_dict(state: RePaintSchedulerState) -> dict[str, Any]:
    return {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}


def _from_state_dict(target: RePaintSchedulerState, arrays: dict[str, Any]) -> RePaintSchedulerState:
    leaves, tree = jax.tree.flatten(target)
    shapes = [getattr(arrays.get(str(number)), "shape", None) for number in range(len(leaves))]
    if len(arrays) != len(leaves) or shapes != [leaf.shape for leaf in leaves]:
        raise ValueError(
            "the saved state has other arrays than target, "
            "expected a target with the same config and schedule"
        )
    return jax.tree.unflatten(tree, [arrays[str(number)] for number in range(len(leaves))])


def _settings_to_bytes(settings: tuple[Any, ...]) -> bytes:
    config, *counts = settings
    return json.dumps([config.to_dict(), *counts]).encode()


def _settings_from_bytes(data: bytes) -> tuple[Any, ...]:
    config, *counts = json.loads(data)
    return (RePaintSchedulerConfig.from_dict(config), *counts)


def register() -> None:
    """Register the package's types, once."""
    serialization.register_serialization_state(RePaintSchedulerState, _to_state_dict, _from_state_dict)
    jax.export.register_pytree_node_serialization(
        RePaintSchedulerState,
        serialized_name="repaint_jax.RePaintSchedulerState",
        serialize_auxdata=_settings_to_bytes,
        deserialize_auxdata=_settings_from_bytes,
    )
    for kind in _NAMED_TUPLES:
        jax.export.register_namedtuple_serialization(kind, serialized_name=f"repaint_jax.{kind.__name__}")
