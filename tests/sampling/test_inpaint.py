"""`inpaint`, the whole chain: what it keeps, what it compiles, what it composes with, what it refuses.

Its distribution is in test_distribution, its agreement with diffusers in test_golden.
"""

import contextlib
import gc
import re
import weakref
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.test_util import check_grads

import repaint_jax as rp

KEY = jax.random.key(0)
NUM_MODEL_CALLS = 6  # of the fixture `state`
pytestmark = pytest.mark.usefixtures("strict_promotion")

# A model that mixes neighbouring rows, so that images influence their own pixels but not one another.
PARAMS = {"gain": np.float32(0.7), "mix": np.float32(0.4)}


def model_fn(params, sample, timestep):
    gain, mix = (params[name].astype(sample.dtype) for name in ("gain", "mix"))
    neighbours = jnp.roll(sample, 1, axis=-3) if sample.ndim > 2 else jnp.roll(sample, 1, axis=-1)
    return jnp.tanh(gain * sample - mix * neighbours + (timestep / 1000).astype(sample.dtype))


def learned_range_model_fn(params, sample, timestep):
    fraction = jnp.tanh(params["mix"].astype(sample.dtype) * sample)
    return jnp.concatenate([model_fn(params, sample, timestep), fraction], axis=-1)


def counting(model):
    """The model, and a list that grows by one whenever Python runs it."""
    runs = []

    def counted(params, sample, timestep):
        runs.append(sample)
        return model(params, sample, timestep)

    return counted, runs


def state_of(*schedule, **config) -> rp.RePaintSchedulerState:
    return rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig(**config)), *(schedule or (4, 2, 2)))


STRETCHED = {
    "resampling": rp.set_timesteps(rp.create_state(), 5, jump_length=2, jump_n_sample=3),
    "budget": rp.set_timesteps_for_budget(rp.create_state(), 12),
}


def uniform(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return uniform((4, 4, 2, 1))


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2, (4, 4, 2, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    return jax.random.split(jax.random.key(4), 4)


@pytest.fixture(scope="module")
def one_by_one(state, images, masks, keys) -> np.ndarray:
    """Each image inpainted alone."""
    return np.stack(
        [rp.inpaint(state, model_fn, PARAMS, *each) for each in zip(images, masks, keys, strict=True)]
    )


# Known pixels


@pytest.mark.parametrize(
    ("dtype", "eta"), [(jnp.float32, 0.0), (jnp.float32, 1.0), (jnp.bfloat16, 0.5), (jnp.float16, 0.5)]
)
def test_known_pixels_come_back_bit_for_bit(image, mask, dtype, eta: float):
    image = image.astype(dtype)
    result = np.asarray(rp.inpaint(state_of(eta=eta), model_fn, PARAMS, image, mask, KEY))
    known = mask == 1
    assert result.dtype == dtype
    assert result[known].tobytes() == image[known].tobytes()
    assert np.isfinite(result.astype(np.float32)).all()
    assert (result != image)[~known].all()


def test_an_image_known_everywhere_comes_back_and_its_holes_do_not_matter(state, image, mask):
    everywhere = np.ones_like(mask)
    np.testing.assert_array_equal(rp.inpaint(state, model_fn, PARAMS, image, everywhere, KEY), image)
    other = np.where(mask == 1, image, -image)
    results = [rp.inpaint(state, model_fn, PARAMS, each, mask, KEY) for each in (image, other)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("budget", [False, True])
def test_known_pixels_come_back_bit_for_bit_whatever_they_and_the_model_are(budget):
    def broken(params, sample, timestep):
        return sample * jnp.nan

    state = rp.set_timesteps_for_budget(rp.create_state(), 8) if budget else state_of()
    image = np.array([0, -0.0, 1, -1, 1e-40, -1e-42, 7, 1e30, np.inf], np.float32)
    mask = np.ones_like(image)
    mask[0] = 0
    result = np.asarray(rp.inpaint(state, broken, None, image, mask, KEY))
    np.testing.assert_array_equal(result[1:].view(np.uint32), image[1:].view(np.uint32))
    assert np.isnan(result[0])


def test_before_model_order_renders_known_pixels_by_the_model_in_the_last_step(image, mask):
    result = rp.inpaint(state_of(known_region="before_model"), model_fn, PARAMS, image, mask, KEY)
    assert (np.asarray(result) != np.asarray(image)).mean() > 0.9


@pytest.mark.parametrize("jump_schedule", ["diffusers", "paper"])
def test_before_model_order_shows_every_call_but_the_first_the_known_pixels(jump_schedule):
    """Also after diffusers' walk has come to the clean image in the middle of the chain."""
    seen = []

    def minus_one(params, sample, timestep):
        jax.debug.callback(lambda *call: seen.append(call), timestep, sample.mean(), ordered=True)
        return jnp.full_like(sample, -1)

    config = {"known_region": "before_model", "prediction_type": "sample", "jump_schedule": jump_schedule}
    state = rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig(**config)), 6, 2, 2)
    image = jnp.full((64, 64, 1), 0.5)
    jax.block_until_ready(rp.inpaint(state, minus_one, None, image, jnp.ones_like(image), KEY))
    jax.effects_barrier()
    timesteps, means = np.array(seen[1:]).T
    abar = np.asarray(state.alphas_cumprod)[timesteps.astype(int)]
    assert (timesteps == 0).sum() == (2 if jump_schedule == "diffusers" else 1)
    deviation = np.abs(means - 0.5 * np.sqrt(abar)) / (np.sqrt(1 - abar) / 64)
    assert (deviation < 4).all()


def test_soft_mask_blends_the_image_with_what_the_model_sees(image):
    def all_grey(params, sample, timestep):
        return jnp.full_like(sample, 0.5)

    weights = np.linspace(0, 1, 8, dtype=np.float32)[None, :, None]
    result = rp.inpaint(state_of(prediction_type="sample"), all_grey, None, image, weights, KEY)
    np.testing.assert_allclose(result, weights * image + (1 - weights) * 0.5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16,), (4, 4), (2, 2, 2, 2, 2)])
def test_any_rank_is_inpainted(state, shape: tuple[int, ...]):
    image, mask = uniform(shape), np.ones((1,) * (len(shape) - 1) + shape[-1:], np.float32)
    mask[..., 0] = 0
    result = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(result[..., 1:], image[..., 1:])
    assert np.isfinite(result).all()


def test_numpy_and_jax_arrays_give_the_same(state, image, mask):
    result = rp.inpaint(state, model_fn, PARAMS, jnp.asarray(image), jnp.asarray(mask), KEY)
    assert isinstance(result, jax.Array)
    np.testing.assert_array_equal(result, rp.inpaint(state, model_fn, PARAMS, image, mask, KEY))


def test_one_mask_serves_a_batch_and_all_channels(state, images, masks, keys):
    mask = masks[:1]
    broadcast = rp.inpaint(state, model_fn, PARAMS, images, mask, keys)
    full = rp.inpaint(state, model_fn, PARAMS, images, np.broadcast_to(mask, images.shape), keys)
    np.testing.assert_allclose(broadcast, full, atol=1e-6)


# Batches


def test_batch_with_a_vector_of_keys_equals_single_images_and_vmap(state, images, masks, keys, one_by_one):
    batch = rp.inpaint(state, model_fn, PARAMS, images, masks, keys)
    np.testing.assert_allclose(batch, one_by_one, atol=1e-5)
    vmapped = jax.vmap(rp.inpaint, in_axes=(None, None, None, 0, 0, 0))
    np.testing.assert_allclose(vmapped(state, model_fn, PARAMS, images, masks, keys), one_by_one, atol=1e-5)


def test_image_does_not_depend_on_the_order_of_its_batch(state, images, masks, keys, one_by_one):
    order = np.array([2, 0, 3, 1])
    result = rp.inpaint(state, model_fn, PARAMS, images[order], masks[order], keys[order])
    np.testing.assert_allclose(result, one_by_one[order], atol=1e-5)


def test_image_depends_on_its_own_key_alone(state, images, masks, keys):
    other_keys = keys.at[1].set(jax.random.key(9))
    one, other = (rp.inpaint(state, model_fn, PARAMS, images, masks, k) for k in (keys, other_keys))
    changed = np.abs(one - other).max(axis=(1, 2, 3))
    assert changed[1] > 0.01
    assert np.delete(changed, 1).max() == 0


def test_a_single_key_gives_every_image_its_own_noise(state, images, masks):
    same_images, same_masks = images[:1].repeat(4, axis=0), masks[:1].repeat(4, axis=0)
    one, other, *_ = rp.inpaint(state, model_fn, PARAMS, same_images, same_masks, KEY)
    assert np.abs(one - other).max() > 0.01


def test_unet_gives_a_batch_what_it_gives_single_images(state, pipe, image, mask, keys):
    batch = np.stack([image, -image])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        together = rp.inpaint(state, pipe.model_fn, pipe.params, batch, mask[None], keys[:2])
        for i in range(2):
            alone = rp.inpaint(state, pipe.model_fn, pipe.params, batch[i], mask, keys[i])
            np.testing.assert_allclose(together[i], alone, atol=1e-5)


def test_equal_keys_give_equal_results_and_old_style_keys_are_taken(state, image, mask):
    keys = jax.random.key(5), jax.random.key(5), jax.random.PRNGKey(5), jax.random.key(6)
    first, again, old, other = (rp.inpaint(state, model_fn, PARAMS, image, mask, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, old)
    assert np.abs(first - other).max() > 0.01


def test_rbg_keys_draw_for_each_image(state, images, masks):
    for key in (
        jax.random.key(0, impl="rbg"),
        jax.random.split(jax.random.key(0, impl="rbg"), len(images)),
    ):
        filled = rp.inpaint(state, model_fn, PARAMS, jnp.zeros_like(images), masks[:1], key)
        assert np.all(filled[np.broadcast_to(masks[:1], images.shape) == 1] == 0)
        assert len(np.unique(filled, axis=0)) == len(images)


def test_old_style_key_vectors_are_taken(state, images, masks, keys, one_by_one):
    result = rp.inpaint(state, model_fn, PARAMS, images, masks, jax.random.key_data(keys))
    np.testing.assert_allclose(result, one_by_one, atol=1e-5)


# Compilation


def primitives(jaxpr) -> list:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    equations = []
    for equation in jaxpr.eqns:
        equations.append(equation)
        for value in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(value, "jaxpr", value)  # a ClosedJaxpr holds a Jaxpr
            if hasattr(inner, "eqns"):
                equations += primitives(inner)
    return equations


def chain_primitives(state, image, mask, key, **options) -> list:
    chain = partial(rp.inpaint, state, model_fn, PARAMS, **options)
    return primitives(jax.make_jaxpr(chain)(image, mask, key).jaxpr)


@pytest.mark.parametrize("schedule", [(4, 2, 2), (10, 3, 4)])
def test_chain_is_one_scan_with_an_iteration_for_each_model_call(schedule, image, mask):
    state = state_of(*schedule)
    equations = chain_primitives(state, image, mask, KEY)
    counts = Counter(equation.primitive.name for equation in equations)
    assert counts["scan"] == 1
    assert counts["cond"] == counts["while"] == 0
    (scan,) = (equation for equation in equations if equation.primitive.name == "scan")
    assert scan.params["length"] == state.num_model_calls
    inside = Counter(equation.primitive.name for equation in primitives(scan.params["jaxpr"].jaxpr))
    assert inside["tanh"] == counts["tanh"] == 1, "the model is in the scan, once"


@pytest.mark.parametrize("options", [{}, {"preview_calls": (0,)}])
def test_chain_without_progress_calls_nothing_on_the_host(options, state, image, mask):
    names = {equation.primitive.name for equation in chain_primitives(state, image, mask, KEY, **options)}
    assert not any("callback" in name for name in names)


def test_previews_that_are_off_leave_no_trace_in_the_compiled_chain(state, image, mask):
    plain, empty = (
        str(jax.make_jaxpr(partial(rp.inpaint, state, model_fn, PARAMS, **options))(image, mask, KEY))
        for options in ({}, {"preview_calls": None})
    )
    assert plain == empty


def test_model_is_traced_once_and_new_values_never_compile_again(state, image, mask):
    model, runs = counting(model_fn)
    for seed in range(3):
        params = {name: value / (1 + seed) for name, value in PARAMS.items()}
        rp.inpaint(state, model, params, image / (1 + seed), 1 - mask, jax.random.key(seed))
    assert len(runs) == 1
    rp.inpaint(state_of(), model, PARAMS, image, mask, KEY)
    assert len(runs) == 1, "an equal state is the same state"


def test_schedules_of_one_length_share_what_is_compiled(image, mask):
    states = [state_of(6, jump_length, 2) for jump_length in (2, 4)]
    assert states[0].num_model_calls == states[1].num_model_calls
    assert states[0].timesteps.tolist() != states[1].timesteps.tolist()
    model, runs = counting(model_fn)
    one, other = (rp.inpaint(state, model, PARAMS, image, mask, KEY) for state in states)
    assert len(runs) == 1
    assert np.abs(one - other).max() > 0.01


def test_user_jit_with_a_static_model_compiles_once_and_changes_nothing(state, image, mask):
    model, runs = counting(model_fn)
    jitted = jax.jit(rp.inpaint, static_argnums=1, static_argnames=("preview_calls", "progress"))
    for seed in range(2):
        key = jax.random.key(seed)
        result = jitted(state, model, PARAMS, image, mask, key)
        expected = rp.inpaint(state, model_fn, PARAMS, image, mask, key)
        np.testing.assert_allclose(result, expected, atol=1e-6)
    assert len(runs) == 1


def test_model_sees_the_image_dtype_and_an_int32_timestep(state, image, mask):
    seen = []

    def model(params, sample, timestep):
        seen.append((sample.shape, sample.dtype, timestep.shape, timestep.dtype))
        return model_fn(params, sample, timestep)

    rp.inpaint(state, model, PARAMS, image.astype(jnp.bfloat16), mask, KEY)
    assert set(seen) == {((8, 8, 1), jnp.dtype(jnp.bfloat16), (), jnp.dtype(jnp.int32))}


def test_model_of_another_precision_serves_a_float32_image(state, image, mask):
    def bfloat16_model(params, sample, timestep):
        return model_fn(params, sample.astype(jnp.bfloat16), timestep)

    result = rp.inpaint(state, bfloat16_model, PARAMS, image, mask, KEY)
    assert result.dtype == jnp.float32
    # bfloat16 keeps 8 bits of a prediction below 1; six calls add up.
    np.testing.assert_allclose(result, rp.inpaint(state, model_fn, PARAMS, image, mask, KEY), atol=0.1)


# Gradients


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (model_fn, {}),
        (learned_range_model_fn, {"eta": 1.0, "variance_type": "learned_range"}),
    ],
    ids=["default", "learned range"],
)
def test_gradient_by_params_and_mask_equals_finite_differences(float64, model, config: dict):
    # Clipping has kinks, which finite differences may straddle.
    state = state_of(3, 1, 2, clip_sample=False, **config)
    image = uniform((2, 2, 1)).astype(np.float64)
    weights = np.random.default_rng(1).standard_normal(image.shape)
    params = {name: np.float64(value) for name, value in PARAMS.items()}

    @jax.jit
    def loss(params, mask):
        return jnp.sum(weights * rp.inpaint(state, model, params, image, mask, KEY))

    mask = np.array([[[0.05], [0.35]], [[0.65], [0.95]]])
    check_grads(loss, (params, mask), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (model_fn, {}),
        (learned_range_model_fn, {"eta": 1.0, "variance_type": "learned_range"}),
    ],
    ids=["default", "learned range"],
)
def test_gradients_at_a_binary_mask_are_finite(model, config: dict, image, mask):
    def loss(params, image, mask):
        return jnp.sum(jnp.square(rp.inpaint(state_of(**config), model, params, image, mask, KEY)))

    grads = jax.grad(loss, argnums=(0, 1, 2))(PARAMS, image, mask)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert grads[0]["gain"] != 0


# Previews, progress, the initial sample


def test_previews_are_what_a_chain_by_hand_predicts(image):
    state = state_of(4, 1, 1)
    nothing = np.zeros((1, 1, 1), np.float32)  # nothing known, eta 0, no jumps: no noise but the first
    start = np.random.default_rng(4).standard_normal(image.shape, np.float32)
    result, previews = rp.inpaint(
        state, model_fn, PARAMS, image, nothing, KEY, initial_sample=start, preview_calls=(0, 2, 3)
    )

    @jax.jit
    def step(sample, timestep):
        return rp.step(state, model_fn(PARAMS, sample, timestep), timestep, sample, image, nothing, KEY)

    sample, predicted = start, []
    for timestep in state.timesteps:
        sample, x0 = step(sample, timestep)
        predicted.append(x0)
    np.testing.assert_allclose(result, sample, atol=1e-5)
    np.testing.assert_allclose(previews, np.stack(predicted)[[0, 2, 3]], atol=1e-5)


def test_previews_come_in_the_order_asked_for_and_leave_the_image_as_it_is(state, image, mask):
    plain = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY)
    result, previews = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY, preview_calls=[5, 0])
    np.testing.assert_allclose(result, plain, atol=1e-6)
    assert (previews.shape, previews.dtype) == ((2, *image.shape), image.dtype)
    _, reversed_previews = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY, preview_calls=[0, 5])
    np.testing.assert_allclose(previews, reversed_previews[::-1], atol=1e-6)
    # The last prediction is the result where pixels were missing.
    np.testing.assert_allclose(previews[0][:, 4:], result[:, 4:], atol=1e-5)


def test_no_previews_asked_for_are_an_empty_array(state, image, mask):
    result, previews = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY, preview_calls=())
    assert previews.shape == (0, *image.shape)
    np.testing.assert_allclose(result, rp.inpaint(state, model_fn, PARAMS, image, mask, KEY), atol=1e-6)


def test_progress_is_told_each_model_call_once(state, image, mask):
    calls = []
    result = rp.inpaint(
        state, model_fn, PARAMS, image, mask, KEY, progress=lambda done: calls.append(int(done))
    )
    jax.effects_barrier()
    assert sorted(calls) == list(range(1, NUM_MODEL_CALLS + 1))
    np.testing.assert_allclose(result, rp.inpaint(state, model_fn, PARAMS, image, mask, KEY), atol=1e-6)


def test_a_new_progress_function_for_each_call_compiles_nothing_and_is_let_go_of(state, image, mask):
    counted, runs = counting(model_fn)

    class Bar:
        def __init__(self):
            self.calls = []

        def __call__(self, done):
            self.calls.append(done)

    gone = []
    for _ in range(3):
        bar = Bar()
        rp.inpaint(state, counted, PARAMS, image, mask, KEY, progress=bar)
        assert sorted(bar.calls) == list(range(1, NUM_MODEL_CALLS + 1))  # told before the call returned
        gone.append(weakref.ref(bar))
    del bar
    gc.collect()
    assert len(runs) == 1
    assert [ref() for ref in gone] == [None] * 3


def test_progress_of_a_jitted_chain_is_told_in_each_of_its_runs(state, image, mask):
    calls = []
    chain = jax.jit(
        lambda image: rp.inpaint(state, model_fn, PARAMS, image, mask, KEY, progress=calls.append)
    )
    for _ in range(2):
        chain(image)
        jax.effects_barrier()
    assert sorted(calls) == sorted(2 * list(range(1, NUM_MODEL_CALLS + 1)))


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_error_in_progress_reaches_the_caller_as_it_is(state, image, mask, error):
    calls = []

    def stop(done):
        calls.append(done)
        raise error

    arguments = state, model_fn, PARAMS, image, mask, KEY
    with pytest.raises(type(error)) as raised:
        rp.inpaint(*arguments, progress=stop)
    assert raised.value is error
    assert calls == [1]
    counted = []
    rp.inpaint(*arguments, progress=counted.append)
    assert sorted(counted) == list(range(1, NUM_MODEL_CALLS + 1))


def test_an_error_in_progress_of_a_jitted_chain_is_not_lost(state, image, mask):
    def stop(done):
        raise KeyError("mine")

    chain = jax.jit(lambda image: rp.inpaint(state, model_fn, PARAMS, image, mask, KEY, progress=stop))
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="mine"):
            jax.block_until_ready(chain(image))
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the same error, where it was not met before
            jax.effects_barrier()


def test_chain_starts_from_the_initial_sample(image, mask):
    def identity(params, sample, timestep):
        return sample

    start = np.random.default_rng(4).standard_normal(image.shape, np.float32)
    state = state_of(4, 1, 1, prediction_type="sample", clip_sample=False)
    result = rp.inpaint(state, identity, None, image, 0 * mask, KEY, initial_sample=start)
    # Each step takes noise away, and so scales a sample that is predicted to be the image.
    ratio = np.asarray(result) / start
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0, 0, 0]), rtol=1e-4)


# What is under the hole


@pytest.mark.parametrize("kind", STRETCHED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_values_under_the_hole_do_not_matter(kind, value, image, mask):
    state = STRETCHED[kind]
    gap = np.where(mask == 1, image, np.float32(value))
    expected = rp.inpaint(state, model_fn, PARAMS, image, mask, KEY)
    np.testing.assert_array_equal(rp.inpaint(state, model_fn, PARAMS, gap, mask, KEY), expected)
    gradient = jax.grad(lambda image: rp.inpaint(state, model_fn, PARAMS, image, mask, KEY).sum())(gap)
    assert np.isfinite(gradient).all()
    assert not gradient[mask[..., 0] == 0].any()


def test_values_under_the_hole_do_not_matter_in_steps_by_hand(state, image, mask):
    gap = np.where(mask == 1, image, np.float32(np.nan))
    expected = rp.step(state, image, 500, image, image, mask, KEY)
    jax.tree.map(np.testing.assert_array_equal, rp.step(state, image, 500, image, gap, mask, KEY), expected)
    budget = STRETCHED["budget"]
    expected = rp.budget_step(budget, image, 3, image, image, image, mask, KEY)
    made = rp.budget_step(budget, image, 3, image, image, gap, mask, KEY)
    jax.tree.map(np.testing.assert_array_equal, made, expected)


# JAX's own checks


@pytest.mark.parametrize("kind", STRETCHED)
@pytest.mark.parametrize(
    "check",
    [
        lambda: jax.debug_nans(True),
        lambda: jax.check_tracer_leaks(True),
        lambda: jax.transfer_guard("disallow"),
    ],
    ids=["debug_nans", "check_tracer_leaks", "transfer_guard"],
)
def test_a_chain_passes_the_checks_of_jax(kind, check, image, mask):
    state = STRETCHED[kind]
    arguments = jax.device_put((PARAMS, image, mask, KEY))
    with check():
        made = rp.inpaint(state, lambda *arguments: model_fn(*arguments), *arguments)
    np.testing.assert_allclose(made, rp.inpaint(state, model_fn, *arguments), atol=1e-6)


# Refusals


def chain(state, image, mask, key=KEY, model=model_fn, **options):
    return rp.inpaint(state, model, PARAMS, image, mask, key, **options)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble"])
def test_arrays_of_another_byte_order_or_precision_are_refused_in_a_sentence(state, image, mask, dtype):
    for arguments in ((image.astype(dtype), mask), (image, mask.astype(dtype))):
        with pytest.raises(TypeError, match=r"(original_image|mask) has dtype .*, expected") as error:
            chain(state, *arguments)
        assert len(str(error.value)) < 200


def test_state_without_a_schedule_is_refused(image, mask):
    with pytest.raises(ValueError, match="state has no schedule, expected one from set_timesteps"):
        chain(rp.create_state(), image, mask)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
@pytest.mark.parametrize("name", ["original_image", "mask"])
def test_images_and_masks_that_are_not_floating_are_refused(state, image, mask, name: str, dtype):
    arrays = {"original_image": image, "mask": mask}
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(TypeError, match=f"{name} has dtype {jnp.dtype(dtype)}, expected a floating dtype"):
        chain(state, *arrays.values())


@pytest.mark.parametrize("shape", [(8, 8), (8, 4, 1), (8, 8, 3), (1, 8, 8, 1), (), (0, 8, 1)])
def test_masks_that_do_not_fit_are_refused(state, image, shape):
    message = (
        f"mask has shape {shape}, expected the rank of original_image's (8, 8, 1) with each axis equal or 1"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(state, image, np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8, 1), (8, 8, 3)])
def test_initial_sample_of_another_shape_is_refused(state, image, mask, shape):
    message = f"initial_sample has shape {shape}, expected original_image's (8, 8, 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(state, image, mask, initial_sample=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("preview_calls", "error", "message"),
    [
        ((6,), ValueError, "preview_calls has 6, expected calls below num_model_calls=6"),
        ((-1,), ValueError, "preview_calls is -1, expected an integer of at least 0"),
        ((1.0,), TypeError, "preview_calls is 1.0, expected an integer"),
        ((True,), TypeError, "preview_calls is True, expected an integer"),
        ((2, 2), ValueError, "preview_calls is (2, 2), expected each call once"),
        (3, TypeError, "preview_calls is 3, expected a sequence of integers"),
    ],
)
def test_preview_calls_that_are_none_are_refused(state, image, mask, preview_calls, error, message: str):
    with pytest.raises(error, match=re.escape(message)):
        chain(state, image, mask, preview_calls=preview_calls)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 2), (1, 8, 8, 1), ()])
def test_model_output_of_another_shape_is_refused(state, image, mask, shape):
    message = f"model_output has shape {shape}, expected (8, 8, 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(state, image, mask, model=lambda params, sample, timestep: jnp.zeros(shape))


@pytest.mark.parametrize("output", [None, (jnp.zeros((8, 8, 1)),)], ids=["nothing", "a tuple"])
def test_model_output_that_is_no_array_is_refused(state, image, mask, output):
    with pytest.raises(TypeError, match=r"^model_output is .*, expected an array"):
        chain(state, image, mask, model=lambda params, sample, timestep: output)


def test_learned_range_model_of_one_set_of_channels_is_refused(image, mask):
    message = "model_output has shape (8, 8, 1), expected (8, 8, 2) (variance_type is 'learned_range')"
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(state_of(variance_type="learned_range"), image, mask)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), "key is a vector of 3 keys, expected one for each entry of the leading axis"),
        ((1, 8), "key has shape (1, 8), expected a single key or a vector of keys"),
    ],
)
def test_keys_that_do_not_fit_are_refused(state, image, mask, shape, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(state, image, mask, jax.random.split(KEY, shape))


def test_refusals_are_the_same_under_jit_and_vmap(state, image, mask):
    message = "original_image has dtype int32, expected a floating dtype"
    jitted = jax.jit(rp.inpaint, static_argnums=1)
    with pytest.raises(TypeError, match=message):
        jitted(state, model_fn, PARAMS, image.astype(jnp.int32), mask, KEY)
    vmapped = jax.vmap(rp.inpaint, in_axes=(None, None, None, 0, 0, 0))
    with pytest.raises(TypeError, match=message):
        vmapped(state, model_fn, PARAMS, image[None].astype(jnp.int32), mask[None], KEY[None])


def test_values_on_the_device_raise_nothing(state, image, mask):
    with_nan = np.where(np.arange(image.size).reshape(image.shape) == 0, np.nan, image).astype(np.float32)
    assert np.isnan(chain(state, with_nan, mask)[0, 0]).all()
    assert np.isfinite(chain(state, image, 3 * mask)).all()  # a mask outside [0, 1]


# In stretches


@pytest.mark.parametrize("kind", STRETCHED)
@pytest.mark.parametrize("stretches", [(6, 1, 2), (1, 1, 7)])
def test_a_chain_in_stretches_is_the_unbroken_one_bit_for_bit(kind, stretches, image, mask):
    state = STRETCHED[kind]
    arguments = state, model_fn, PARAMS, image, mask, KEY
    carry = rp.start_chain(state, image, KEY)
    for num_calls in (*stretches, state.num_model_calls - sum(stretches)):
        carry = rp.continue_chain(*arguments, carry, num_calls)
    assert int(carry.calls_done) == state.num_model_calls
    np.testing.assert_array_equal(carry.sample, rp.inpaint(*arguments))


@pytest.mark.parametrize("kind", STRETCHED)
def test_a_chain_is_saved_with_orbax_and_resumed(kind, image, mask, tmp_path):
    state = STRETCHED[kind]
    arguments = state, model_fn, PARAMS, image, mask, KEY
    carry = rp.continue_chain(*arguments, rp.start_chain(state, image, KEY), 7)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "chain", carry)
        checkpointer.wait_until_finished()
        resumed = checkpointer.restore(tmp_path / "chain", rp.start_chain(state, image, KEY))
    resumed = rp.continue_chain(*arguments, resumed, state.num_model_calls - 7)
    np.testing.assert_array_equal(resumed.sample, rp.inpaint(*arguments))


def test_a_chain_in_stretches_starts_where_it_is_told_to_and_counts_on(image, mask):
    state = STRETCHED["budget"]
    arguments = state, model_fn, PARAMS, image, mask, KEY
    start, counted = uniform(image.shape), []
    carry = rp.start_chain(state, image, KEY, initial_sample=start)
    for num_calls in (5, 7):
        carry = rp.continue_chain(*arguments, carry, num_calls, progress=counted.append)
    jax.effects_barrier()
    assert sorted(counted) == list(range(1, 13))
    np.testing.assert_array_equal(carry.sample, rp.inpaint(*arguments, initial_sample=start))


@pytest.mark.parametrize("kind", STRETCHED)
def test_previews_of_stretches_are_those_of_the_unbroken_chain(kind, image, mask):
    state = STRETCHED[kind]
    arguments = state, model_fn, PARAMS, image, mask, KEY
    carry, previews = rp.start_chain(state, image, KEY), []
    for _ in range(3):
        carry, preview = rp.continue_chain(*arguments, carry, 2, preview_calls=(1,))
        previews.append(preview[0])
    _, expected = rp.inpaint(*arguments, preview_calls=(1, 3, 5))
    np.testing.assert_array_equal(previews, expected)
    with pytest.raises(ValueError, match="preview_calls has 2, expected calls below num_calls=2"):
        rp.continue_chain(*arguments, carry, 2, preview_calls=(2,))


def test_stretches_of_one_length_compile_once(image, mask):
    state = STRETCHED["budget"]
    counted, runs = counting(model_fn)
    arguments = state, counted, PARAMS, image, mask, KEY
    carry = rp.start_chain(state, image, KEY)
    for _ in range(4):
        carry = rp.continue_chain(*arguments, carry, 3)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("num_calls", "error", "message"),
    [
        (0, ValueError, "num_calls is 0, expected an integer of at least 1"),
        (2.0, TypeError, r"num_calls is 2\.0, expected an integer"),
        (10, ValueError, "num_calls is 10, expected at most the 9 that are left of 12"),
    ],
)
def test_stretches_that_a_chain_does_not_have(num_calls, error, message, image, mask):
    state = STRETCHED["budget"]
    arguments = state, model_fn, PARAMS, image, mask, KEY
    carry = rp.continue_chain(*arguments, rp.start_chain(state, image, KEY), 3)
    with pytest.raises(error, match=message):
        rp.continue_chain(*arguments, carry, num_calls)


def test_a_chain_of_other_images_is_refused(image, mask):
    state = STRETCHED["budget"]
    carry = rp.start_chain(state, image[:4], KEY)
    with pytest.raises(ValueError, match=r"carry.sample has shape \(4, 8, 1\), expected original_image's"):
        rp.continue_chain(state, model_fn, PARAMS, image, mask, KEY, carry, 3)
    other = rp.start_chain(STRETCHED["resampling"], image, KEY)
    with pytest.raises(ValueError, match="carry belongs to a chain of set_timesteps, and state to one of"):
        rp.continue_chain(state, model_fn, PARAMS, image, mask, KEY, other, 3)
    carry = rp.start_chain(state, image, KEY)
    with pytest.raises(ValueError, match="carry belongs to a chain of set_timesteps_for_budget, and"):
        rp.continue_chain(STRETCHED["resampling"], model_fn, PARAMS, image, mask, KEY, carry, 3)
    carry = carry._replace(memory=carry.memory._replace(previous_noise=carry.memory.previous_noise[:4]))
    with pytest.raises(ValueError, match=r"carry.previous_noise has shape \(4, 8, 1\), expected orig"):
        rp.continue_chain(state, model_fn, PARAMS, image, mask, KEY, carry, 3)
    with pytest.raises(TypeError, match="carry is None, expected a ChainCarry"):
        rp.continue_chain(state, model_fn, PARAMS, image, mask, KEY, None, 3)
