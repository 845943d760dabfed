"""States and chains as objects: equality, hashing, pickling, flax.serialization and jax.export."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import repaint_jax as rp

STATES = {
    "no schedule": lambda **config: rp.create_state(rp.RePaintSchedulerConfig(**config)),
    "resampling": lambda **config: rp.set_timesteps(STATES["no schedule"](**config), 4, 2, 2),
    "budget": lambda **config: rp.set_timesteps_for_budget(STATES["no schedule"](**config), 8),
}
WITH_SCHEDULE = ["resampling", "budget"]


def scaled(params, sample, timestep):
    return params * sample


@pytest.mark.parametrize("kind", STATES)
def test_states_are_equal_when_their_settings_and_arrays_are(kind):
    state, again = STATES[kind](), STATES[kind]()
    assert state == again and hash(state) == hash(again)
    assert state != STATES[kind](beta_end=0.03)
    assert state != dataclasses.replace(state, alphas_cumprod=state.alphas_cumprod + 1)
    others = [STATES[other]() for other in STATES if other != kind]
    assert state not in others
    assert state != "state"


@pytest.mark.parametrize("kind", STATES)
def test_a_state_survives_pickling_and_flax_serialization(kind):
    state = STATES[kind](trained_betas=tuple(np.linspace(1e-4, 0.02, 1000)))
    assert pickle.loads(pickle.dumps(state)) == state
    blank = jax.tree.map(jnp.zeros_like, state)
    assert serialization.from_bytes(blank, serialization.to_bytes(state)) == state


def test_a_saved_state_of_another_schedule_is_refused():
    saved = serialization.to_bytes(STATES["budget"]())
    for kind in ("no schedule", "resampling"):
        with pytest.raises(ValueError, match="the saved state has other arrays than target, expected"):
            serialization.from_bytes(STATES[kind](), saved)


@pytest.mark.parametrize("kind", WITH_SCHEDULE)
def test_a_chain_survives_flax_serialization(kind, image, mask):
    state, key = STATES[kind](), jax.random.key(0)
    arguments = state, scaled, np.float32(0.5), image, mask, key
    carry = rp.continue_chain(*arguments, rp.start_chain(state, image, key), 3)
    blank = jax.tree.map(jnp.zeros_like, carry)
    restored = serialization.from_bytes(blank, serialization.to_bytes(carry))
    result = rp.continue_chain(*arguments, restored, state.num_model_calls - 3)
    np.testing.assert_array_equal(result.sample, rp.inpaint(*arguments))


@pytest.mark.parametrize("kind", WITH_SCHEDULE)
def test_programs_that_take_states_and_chains_are_exported(kind, image, mask):
    pytest.importorskip("flatbuffers")
    state, key = STATES[kind](), jax.random.key(0)
    arguments = state, np.float32(0.5), image, mask, key

    @jax.jit
    def whole(state, params, image, mask, key):
        return rp.inpaint(state, scaled, params, image, mask, key)

    @jax.jit
    def stretch(state, params, image, mask, key, carry):
        return rp.continue_chain(state, scaled, params, image, mask, key, carry, 3)

    exported = jax.export.deserialize(jax.export.export(whole)(*arguments).serialize())
    np.testing.assert_allclose(exported.call(*arguments), whole(*arguments), atol=1e-6)
    carry = rp.start_chain(state, image, key)
    exported = jax.export.deserialize(jax.export.export(stretch)(*arguments, carry).serialize())
    made, expected = exported.call(*arguments, carry), stretch(*arguments, carry)
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    np.testing.assert_allclose(made.sample, expected.sample, atol=1e-6)


def test_pipelines_are_compared_by_identity_and_pickled(pipe, image, mask):
    pytest.importorskip("flax", minversion="0.12.3")  # before, graph definitions cannot be pickled
    again = pickle.loads(pickle.dumps(pipe))
    assert pipe == pipe and pipe != again
    assert len({pipe, again}) == 2
    options = {"num_model_calls": 8, "key": jax.random.key(0), "output_type": "np"}
    picture = np.zeros((8, 8), np.uint8)
    np.testing.assert_array_equal(
        again(picture, mask, **options).images, pipe(picture, mask, **options).images
    )
