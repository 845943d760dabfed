"""Compare the chain with its bare model calls and with diffusers' loop."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bundled import PIPE, chain
from timing import Row, Rows, alternately, ready

import repaint_jax as rp

FEATURES = 64  # features of the small network


def over_calls() -> Rows:
    """Compare `inpaint` with the same number of bare calls of the bundled network in a scan."""
    timesteps = jnp.linspace(999, 0, 64).astype(jnp.int32)

    @jax.jit
    def bare(params: Any, images: jax.Array) -> jax.Array:
        def call(images: jax.Array, timestep: jax.Array) -> tuple[jax.Array, None]:
            return PIPE.model_fn(params, images, timestep), None

        return jax.lax.scan(call, images, timesteps)[0]

    inpaint = chain(64)
    for batch in (1, 8):
        arguments = PIPE.params, jnp.zeros((batch, *PIPE.image_shape))
        times = alternately(partial(ready, inpaint, *arguments), partial(ready, bare, *arguments))
        yield Row(f"`inpaint`, 64 calls, batch {batch}", "its bare model calls", *times, "at most 1.02")


def over_diffusers() -> Rows:
    """Compare `inpaint` with diffusers' loop: the paper's schedule, a small network, the same weights."""
    import torch
    from diffusers import RePaintScheduler

    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(FEATURES, FEATURES)).astype(np.float32) / 8 for _ in range(2)]
    torch_weights = [torch.from_numpy(w) for w in weights]

    def model_fn(params: list[np.ndarray], x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.nn.silu(x @ params[0]) @ params[1]

    def torch_model(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ torch_weights[0]) @ torch_weights[1]

    state = rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig(eta=1.0)), 250, 10, 10)
    scheduler = RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(250, 10, 10)

    @jax.jit
    def ours(image: np.ndarray, mask: np.ndarray) -> jax.Array:
        return rp.inpaint(state, model_fn, weights, image, mask, jax.random.key(0))

    @torch.no_grad()
    def theirs(image: torch.Tensor, mask: torch.Tensor) -> None:
        x = torch.randn(image.shape)
        t_last = scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < t_last:
                x = scheduler.step(torch_model(x), t, x, image, mask).prev_sample
            else:
                x = scheduler.undo_step(x, t_last)
            t_last = t

    for rows, goal in ((1, "at most 1/60"), (64, "")):
        image = np.zeros((rows, FEATURES), np.float32)
        mask = np.ones_like(image)
        mask[:, FEATURES // 2 :] = 0
        times = alternately(
            partial(ready, ours, image, mask),
            partial(theirs, torch.from_numpy(image), torch.from_numpy(mask)),
        )
        yield Row(
            f"`inpaint`, 2,410 calls of an MLP, [{rows}, {FEATURES}]", "diffusers' loop", *times, goal
        )
