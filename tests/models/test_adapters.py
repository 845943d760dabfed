"""Flax modules as functions: equality, what they compile, and a timestep for each image of a batch."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import repaint_jax as rp
from repaint_jax.sampling.inpaint import _run_chain

KEY = jax.random.key(0)


class Linen(linen.Module):
    """Indexes its timesteps as [B]."""

    width: int = 4

    @linen.compact
    def __call__(self, sample, timesteps):
        waves = jnp.sin(timesteps.astype(jnp.float32)[:, None] * jnp.arange(1.0, self.width + 1)[None])
        return linen.Conv(1, (3, 3))(sample) + linen.Dense(1)(waves)[:, None, None]


class Nnx(nnx.Module):
    """Indexes its timesteps as [B]."""

    def __init__(self, seed: int):
        self.conv = nnx.Conv(1, 1, (3, 3), rngs=nnx.Rngs(seed))

    def __call__(self, sample, timesteps):
        return self.conv(sample) + timesteps.astype(jnp.float32)[:, None, None, None] / 1000


def test_functions_of_equal_modules_are_equal():
    assert rp.linen_model_fn(Linen()) == rp.linen_model_fn(Linen())
    assert hash(rp.linen_model_fn(Linen())) == hash(rp.linen_model_fn(Linen()))
    assert rp.linen_model_fn(Linen()) != rp.linen_model_fn(Linen(width=5))
    assert rp.linen_model_fn(Linen()) != rp.linen_model_fn(Linen(), timestep_per_image=True)
    (first, _), (second, _) = (rp.nnx_model_fn(Nnx(seed)) for seed in (0, 1))
    assert first == second and hash(first) == hash(second)
    assert first != rp.linen_model_fn(Linen())


def test_a_chain_with_an_equal_function_compiles_nothing(image, mask):
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    images, masks = np.stack([image, -image]), mask[None]

    def run(seed):
        model_fn, params = rp.nnx_model_fn(Nnx(seed), timestep_per_image=True)
        return rp.inpaint(state, model_fn, params, images, masks, KEY)

    run(0)
    before = _run_chain._cache_size()
    run(1)
    assert _run_chain._cache_size() == before


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_timesteps_for_each_image_or_a_hint(kind, image, mask):
    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    images, masks = np.stack([image, -image]), mask[None]

    def adapted(**options):
        if kind == "nnx":
            return rp.nnx_model_fn(Nnx(0), **options)
        params = Linen().init(KEY, images, jnp.zeros(2, jnp.int32))
        return rp.linen_model_fn(Linen(), **options), params

    result = rp.inpaint(state, *adapted(timestep_per_image=True), images, masks, KEY)
    assert np.isfinite(result).all()
    with pytest.raises(IndexError) as error:
        rp.inpaint(state, *adapted(), images, masks, KEY)
    assert "timestep_per_image=True to linen_model_fn or nnx_model_fn" in "".join(error.value.__notes__)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_functions_are_pickled(kind):
    if kind == "nnx":  # before, graph definitions hold initialisers, which are local functions
        pytest.importorskip("flax", minversion="0.12.3")
    model_fn = rp.linen_model_fn(Linen()) if kind == "linen" else rp.nnx_model_fn(Nnx(0))[0]
    assert pickle.loads(pickle.dumps(model_fn)) == model_fn


class Rematerialised(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(1, 1, (3, 3), rngs=nnx.Rngs(0))

    @nnx.remat
    def __call__(self, sample, timestep):
        return self.conv(sample)


class Compiled(Rematerialised):
    @nnx.jit
    def __call__(self, sample, timestep):
        return self.conv(sample)


class Counting(Rematerialised):
    def __init__(self):
        super().__init__()
        self.calls = nnx.BatchStat(jnp.int32(0))

    def __call__(self, sample, timestep):
        self.calls[...] += 1
        return self.conv(sample)


@pytest.mark.parametrize("module", [Rematerialised, Compiled, Counting])
def test_modules_that_trace_or_change_parts_of_themselves_run_in_a_chain(module, image, mask):
    class Plain(Rematerialised):
        def __call__(self, sample, timestep):
            return self.conv(sample)

    state = rp.set_timesteps_for_budget(rp.create_state(), 8)
    expected = rp.inpaint(state, *rp.nnx_model_fn(Plain()), image, mask, KEY)
    made = rp.inpaint(state, *rp.nnx_model_fn(module()), image, mask, KEY)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_a_clone_with_its_own_arrays_outlives_a_step_that_donates_them(image, mask):
    if "arrays" not in inspect.signature(nnx.clone).parameters:
        pytest.skip("this version of Flax copies no arrays")
    state, module = rp.set_timesteps_for_budget(rp.create_state(), 8), Nnx(0)
    model_fn, params = rp.nnx_model_fn(nnx.clone(module, arrays=True), timestep_per_image=True)
    arguments = state, model_fn, params, image[None], mask[None], KEY
    expected = rp.inpaint(*arguments)
    weights = nnx.state(module)
    jax.jit(lambda weights: jax.tree.map(jnp.zeros_like, weights), donate_argnums=0)(weights)
    np.testing.assert_array_equal(rp.inpaint(*arguments), expected)
