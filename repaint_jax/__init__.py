"""RePaint inpainting for JAX and Flax, as pure functions."""

from repaint_jax import masks, models
from repaint_jax.evaluation import metrics
from repaint_jax.models import (
    check_model,
    denoiser_model_fn,
    edm_model_fn,
    flow_model_fn,
    linen_model_fn,
    nnx_model_fn,
    score_model_fn,
)
from repaint_jax.pictures.outpainting import outpaint
from repaint_jax.pipeline import RePaintPipeline
from repaint_jax.sampling import serialization
from repaint_jax.sampling.budget_schedule import budget_step, set_timesteps_for_budget
from repaint_jax.sampling.config import RePaintSchedulerConfig
from repaint_jax.sampling.devices import largest_batch_size, replicate, shard_batch
from repaint_jax.sampling.inpaint import continue_chain, inpaint, start_chain
from repaint_jax.sampling.repaint_schedule import (
    RePaintSchedulerOutput,
    set_timesteps,
    step,
    undo_step,
)
from repaint_jax.sampling.scheduler import (
    RePaintSchedulerState,
    add_noise,
    create_state,
    scale_model_input,
)

__all__ = [
    "RePaintPipeline",
    "RePaintSchedulerConfig",
    "RePaintSchedulerOutput",
    "RePaintSchedulerState",
    "add_noise",
    "budget_step",
    "check_model",
    "continue_chain",
    "create_state",
    "denoiser_model_fn",
    "edm_model_fn",
    "flow_model_fn",
    "inpaint",
    "largest_batch_size",
    "linen_model_fn",
    "masks",
    "metrics",
    "models",
    "nnx_model_fn",
    "outpaint",
    "replicate",
    "scale_model_input",
    "score_model_fn",
    "set_timesteps",
    "set_timesteps_for_budget",
    "shard_batch",
    "start_chain",
    "step",
    "undo_step",
]
__version__ = "0.2.0"

serialization.register()
