"""Schedules by short names, to set them side by side: `64`, `250/10/10`, `paper`, `diffusers`."""

import dataclasses
from typing import Any

from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state

_NAMED = {"paper": "250/10/10/1", "diffusers": "250/10/10/0"}


def with_setting(pipe: RePaintPipeline, name: str) -> tuple[RePaintPipeline, RePaintSchedulerState]:
    """Return a pipeline and the state with the schedule for a call of it.

    Args:
        pipe: a pipeline.
        name: a number of model calls; or STEPS/JUMP_LENGTH/JUMP_N_SAMPLE, RePaint's schedule with eta = 1,
            or with another eta as a fourth part; or "paper", which is 250/10/10; or "diffusers", its
            defaults, 250/10/10/0, with its undo step.

    Raises:
        ValueError: the name is none of these, or its numbers make no schedule.
    """
    if name == "diffusers":
        config = dataclasses.replace(pipe.state.config, undo="diffusers")
        pipe = dataclasses.replace(pipe, state=create_state(config))
    steps, *others = _NAMED.get(name, name).split("/")
    try:
        schedule: dict[str, Any]
        if not others:
            schedule = {"num_model_calls": int(steps)}
        else:
            jump_length, jump_n_sample, *eta = others
            schedule = {
                "num_inference_steps": int(steps),
                "jump_length": int(jump_length),
                "jump_n_sample": int(jump_n_sample),
                "eta": float(*eta) if eta else 1.0,
            }
    except (ValueError, TypeError):
        raise ValueError(
            f"setting is {name!r}, expected a number of model calls, STEPS/JUMP_LENGTH/JUMP_N_SAMPLE, "
            "the same with /ETA, 'paper' or 'diffusers'"
        ) from None
    try:
        return pipe, pipe.set_timesteps(**schedule)
    except ValueError as error:
        raise ValueError(f"setting {name!r}: the {error}") from None
