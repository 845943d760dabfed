"""Several devices, and how much fits one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp


@pytest.mark.slow
def test_on_eight_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "on_eight_devices.py"],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "environment", "devices"),
    [
        (0, {}, 6),
        (32, {}, 4),
        (7, {}, 1),
        (0, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        (0, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_commands_have_a_device_for_every_core_unless_told_otherwise(batch_size, environment, devices):
    program = f"""
import os
os.sched_getaffinity = lambda process: range(6)
import jax
from repaint_jax.sampling.devices import use_every_core
use_every_core({batch_size})
print(jax.local_device_count())
use_every_core()  # too late, without a word
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{devices}\n", "")


@pytest.fixture(scope="module")
def heavy() -> tuple[rp.RePaintSchedulerState, object]:
    """A chain whose model needs 64 times the image's memory."""

    def model_fn(params, sample, timestep):
        wide = jnp.repeat(sample, 64, axis=-1)
        return jnp.sort(wide * (1 + params), axis=-1)[..., : sample.shape[-1]]

    return rp.set_timesteps_for_budget(rp.create_state(), 8), model_fn


def needed(state, model_fn, batch_size: int) -> int:
    """What XLA says of the whole program, compiled for that batch size."""
    images = jax.ShapeDtypeStruct((batch_size, 16, 16, 1), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    params = jax.ShapeDtypeStruct((), jnp.float32)
    chain = jax.jit(rp.inpaint, static_argnums=1).lower(state, model_fn, params, images, images, keys)
    memory = chain.compile().memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return sum(sizes) - memory.alias_size_in_bytes


@pytest.mark.slow
def test_the_largest_batch_fits_and_a_larger_one_does_not(heavy):
    limit = 20_000_000
    size = rp.largest_batch_size(*heavy, np.float32(0), (16, 16, 1), bytes_limit=limit)
    assert size > 10
    assert needed(*heavy, size) <= limit < needed(*heavy, round(1.1 * size))


@pytest.mark.slow
def test_it_does_not_depend_on_the_number_of_calls_but_for_their_coefficients(heavy):
    state, model_fn = heavy
    longer = rp.set_timesteps_for_budget(state, 500)
    short, long = (
        rp.largest_batch_size(one, model_fn, np.float32(0), (16, 16, 1), bytes_limit=10_000_000)
        for one in (state, longer)
    )
    assert short - 2 <= long <= short


def test_nothing_fits_into_nothing(heavy):
    assert rp.largest_batch_size(*heavy, np.float32(0), (16, 16, 1), bytes_limit=1000) == 0
    with pytest.raises(TypeError, match=r"bytes_limit is 1\.5, expected an integer"):
        rp.largest_batch_size(*heavy, np.float32(0), (16, 16, 1), bytes_limit=1.5)


def test_without_a_limit_it_is_this_machines_memory(heavy):
    gigabyte = 2**30
    assert rp.largest_batch_size(*heavy, np.float32(0), (16, 16, 1)) > rp.largest_batch_size(
        *heavy, np.float32(0), (16, 16, 1), bytes_limit=gigabyte // 4
    )


@pytest.mark.parametrize("batch", [jnp.zeros((3, 2)), jnp.float32(1), (jnp.zeros(2), jnp.zeros(4))])
def test_a_batch_that_cannot_be_shared_out_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch has leading axes of length .*, expected one length"):
        rp.shard_batch(batch, jax.devices() * 2)


def test_no_devices_are_refused():
    for function in (rp.shard_batch, rp.replicate):
        with pytest.raises(ValueError, match="devices is empty, expected at least one"):
            function(jnp.zeros(2), [])
