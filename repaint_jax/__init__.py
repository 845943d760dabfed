"""RePaint inpainting for JAX and Flax, as pure functions."""

from repaint_jax import masks, metrics, models
from repaint_jax.config import RePaintSchedulerConfig
from repaint_jax.devices import largest_batch_size, replicate, shard_batch
from repaint_jax.inpaint import continue_chain, inpaint, start_chain
from repaint_jax.models import linen_model_fn, nnx_model_fn
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.scheduler import (
    RePaintSchedulerOutput,
    RePaintSchedulerState,
    add_noise,
    budget_step,
    create_state,
    scale_model_input,
    set_timesteps,
    set_timesteps_for_budget,
    step,
    undo_step,
)

__all__ = [
    "RePaintPipeline",
    "RePaintSchedulerConfig",
    "RePaintSchedulerOutput",
    "RePaintSchedulerState",
    "add_noise",
    "budget_step",
    "continue_chain",
    "create_state",
    "inpaint",
    "largest_batch_size",
    "linen_model_fn",
    "masks",
    "metrics",
    "models",
    "nnx_model_fn",
    "replicate",
    "scale_model_input",
    "set_timesteps",
    "set_timesteps_for_budget",
    "shard_batch",
    "start_chain",
    "step",
    "undo_step",
]
__version__ = "0.1.0"
