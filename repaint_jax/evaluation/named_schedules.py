"""Short names of schedules, for comparisons: `64`, `250/10/10`, `paper`, `diffusers`."""

import dataclasses
from typing import Any

from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling.scheduler import RePaintSchedulerState, create_state

_NAMED = {"paper": "250/10/10/1", "diffusers": "250/10/10/0"}


def with_setting(pipe: RePaintPipeline, name: str) -> tuple[RePaintPipeline, RePaintSchedulerState]:
    """Return the pipeline and the state with a schedule that a setting stands for.

    Args:
        pipe: a pipeline.
        name: the name of the setting: a number of model calls; STEPS/JUMP_LENGTH/JUMP_N_SAMPLE for
            RePaint's schedule with eta = 1, or with another eta as a fourth part; "paper" for 250/10/10; or
            "diffusers" for the defaults of diffusers, 250/10/10/0 with its undo step.

    Returns:
        The pipeline to call, and the state to call it with.

    Raises:
        ValueError: if the name is none of these, or its numbers make no valid schedule.
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
