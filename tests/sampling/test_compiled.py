"""What a compiled chain costs beside its model calls, in figures that do not depend on the machine."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig, nnx_model_fn

IMAGES = jnp.zeros((8, 16, 16, 3))
MASK = rp.masks.half(16, 16)[None]
CONFIG = UNet2DConfig(
    sample_size=16,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
)
CHAINS = {
    "64 calls": lambda state: rp.set_timesteps_for_budget(state, 64),
    "4096 calls": lambda state: rp.set_timesteps_for_budget(state, 4096),
    "100/10/10": lambda state: rp.set_timesteps(state, 100, 10, 10),
}


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return nnx_model_fn(UNet2D(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def call(model) -> jax.stages.Compiled:
    model_fn, params = model
    return jax.jit(model_fn).lower(params, IMAGES, jnp.int32(0)).compile()


def lowered(name: str, model_fn: Any, params: Any, images: jax.Array = IMAGES) -> jax.stages.Lowered:
    chain = jax.jit(rp.inpaint, static_argnums=1)
    state = CHAINS[name](rp.create_state())
    return chain.lower(state, model_fn, params, images, MASK, jax.random.key(0))


@pytest.fixture(scope="module")
def chains(model) -> dict[str, jax.stages.Compiled]:
    return {name: lowered(name, *model).compile() for name in CHAINS}


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_operations_of_an_iteration_are_those_of_its_model_call(chains, call, name) -> None:
    # The analysis counts a loop's body once, and a transcendental function as one operation.
    for kind, at_most in (("flops", 1.02), ("transcendentals", 1.1)):
        assert chains[name].cost_analysis()[kind] < at_most * call.cost_analysis()[kind], kind


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_memory_is_that_of_a_model_call_and_a_few_samples(chains, call, name) -> None:
    summed_kernels = 4 * (4 * 2 * 2 * 64 * 64)  # of the upsampling, made once before the loop
    allowed = temporary_bytes(call) + summed_kernels + 8 * IMAGES.nbytes
    assert temporary_bytes(chains[name]) < allowed


@pytest.mark.slow
def test_program_and_memory_do_not_grow_with_the_number_of_calls(chains) -> None:
    short, long = chains["64 calls"], chains["4096 calls"]
    rows = 8 * 4 * 4096  # the coefficients, which are sliced call by call
    assert temporary_bytes(long) < temporary_bytes(short) + 2 * rows
    instructions = [len(re.findall(r"^\s+\S+ = ", one.as_text(), re.M)) for one in (short, long)]
    assert instructions[0] == instructions[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_nothing_leaves_the_device_and_nothing_branches_inside_the_loop(chains, name) -> None:
    text = chains[name].as_text()
    for operation in ("infeed", "outfeed", "send(", "recv(", "callback", "conditional("):
        assert operation not in text, operation
    assert len(re.findall(r" while\(", text)) >= 1


@pytest.mark.parametrize("name", CHAINS)
def test_bfloat16_models_convolve_in_bfloat16(model, name) -> None:
    model_fn, params = model
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    text = lowered(name, model_fn, halved, IMAGES.astype(jnp.bfloat16)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("xbf16>" in line and "f32" not in line for line in convolutions)


@pytest.mark.parametrize("name", CHAINS)
def test_the_model_is_traced_once(model, name) -> None:
    model_fn, params = model
    traces = []

    def counted(params: Any, sample: jax.Array, timestep: jax.Array) -> jax.Array:
        traces.append(sample.shape)
        return model_fn(params, sample, timestep)

    lowered(name, counted, params)
    assert len(traces) == 1


def test_a_donated_start_is_overwritten_by_the_result() -> None:
    def model_fn(params, sample, timestep):
        return sample

    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    chain = jax.jit(rp.inpaint, static_argnames="model_fn", donate_argnames="initial_sample")
    arguments = state, model_fn, None, IMAGES, MASK, jax.random.key(0)
    compiled = chain.lower(*arguments, initial_sample=IMAGES).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == IMAGES.nbytes
