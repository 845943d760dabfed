"""diffusers' UNet2DConditionModel as the network of a chain, run by torch through `jax.pure_callback`.

It shows what docs/guides/text.md says: the sampler, the guidance and the noise levels are ready for such a
network. What is missing is the network itself in JAX.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from golden import replay  # noqa: E402

import repaint_jax as rp  # noqa: E402
from repaint_jax.models.guidance import ClassifierFreeGuidance  # noqa: E402

pytestmark = pytest.mark.torch

SHAPE, WORDS = (2, 8, 8, 4), (2, 5, 16)
SCALE, NUM_STEPS = 3.0, 8
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    ).eval()


def predict(unet, sample: np.ndarray, timestep: int, encoder_hidden_states: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        channels_first = torch.from_numpy(np.array(sample)).permute(0, 3, 1, 2)
        words = torch.from_numpy(np.array(encoder_hidden_states))
        return unet(channels_first, int(timestep), words).sample.permute(0, 2, 3, 1).numpy()


def test_with_nothing_known_the_chain_ends_where_diffusers_text_to_image_loop_does(unet) -> None:
    rng = np.random.default_rng(0)
    start, prompt, empty = (rng.normal(size=shape).astype(np.float32) for shape in (SHAPE, WORDS, WORDS))

    def network(weights, sample, timestep, encoder_hidden_states):
        result = jax.ShapeDtypeStruct(sample.shape, sample.dtype)
        arguments = (sample, timestep, encoder_hidden_states)
        return jax.pure_callback(partial(predict, unet), result, *arguments, vmap_method="sequential")

    config = rp.RePaintSchedulerConfig(**BETAS, clip_sample=False)
    state = rp.set_timesteps(rp.create_state(config), NUM_STEPS, jump_length=1, jump_n_sample=1)
    model_fn = ClassifierFreeGuidance(network)
    nothing = jnp.zeros(SHAPE)  # no pixel is known

    def ours(scale: float) -> np.ndarray:
        params = (None, prompt, empty, scale)
        key = jax.random.key(0)  # of no effect: eta is 0
        return np.asarray(rp.inpaint(state, model_fn, params, nothing, nothing, key, initial_sample=start))

    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    scheduler.set_timesteps(NUM_STEPS)
    sample = start
    for timestep in scheduler.timesteps:
        with_prompt, without = (predict(unet, sample, timestep, words) for words in (prompt, empty))
        noise = torch.from_numpy(without + SCALE * (with_prompt - without))
        sample = scheduler.step(noise, timestep, torch.from_numpy(sample)).prev_sample.numpy()
    assert replay.relative_difference(ours(SCALE), sample) < 1e-4
    assert replay.relative_difference(ours(0.0), sample) > 1e-2, "the prompt must matter"
