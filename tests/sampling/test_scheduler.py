"""The scheduler's functions one by one: what they return, and what they refuse.

Noise levels, lists of timesteps and distributions are in test_golden, test_properties, test_distribution.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(0)
SHAPE = (4, 4, 2)
TIMESTEPS = (750, 500, 250, 0)  # of the fixture `state`
SCHEDULE_ARGUMENTS = (
    "num_inference_steps",
    "jump_length",
    "jump_n_sample",
    "n_sample",
    "jump2_length",
    "jump2_n_sample",
    "jump3_length",
    "jump3_n_sample",
)


def normal(seed: int, shape=SHAPE) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def step_inputs() -> dict:
    """Arguments of a step at timestep 500 with the left half known."""
    mask = jnp.zeros((1, 4, 1)).at[:, :2].set(1)
    return {
        "model_output": normal(1),
        "timestep": 500,
        "sample": normal(2),
        "original_image": jnp.tanh(normal(3)),
        "mask": mask,
        "key": KEY,
    }


def state_of(**config) -> rp.RePaintSchedulerState:
    return rp.set_timesteps(rp.create_state(rp.RePaintSchedulerConfig(**config)), 4, 2, 2)


# create_state


def test_state_of_no_config_is_that_of_the_default_config():
    assert rp.create_state().config == rp.RePaintSchedulerConfig()


@pytest.mark.parametrize("config", ["linear", {"eta": 0.0}, 1000])
def test_create_state_refuses_what_is_not_a_config(config):
    message = f"config is {config!r}, expected a RePaintSchedulerConfig"
    with pytest.raises(TypeError, match=re.escape(message)):
        rp.create_state(config)


def test_state_is_frozen(state):
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.num_model_calls = 3


def test_chain_starts_from_unit_noise(state):
    assert state.init_noise_sigma == 1


def test_arrays_of_a_state_are_leaves_and_everything_else_is_static(state):
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    names = {str(path[0].name) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert names >= {"alphas_cumprod", "timesteps"}
    assert names.isdisjoint({"config", "num_inference_steps", "num_model_calls"})
    assert hash(structure) is not None
    assert jax.tree.structure(rp.create_state()) != structure
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert (rebuilt.config, rebuilt.num_inference_steps, rebuilt.num_model_calls) == (state.config, 4, 6)


# set_timesteps


@pytest.mark.parametrize("state", [rp.RePaintSchedulerConfig(), None])
def test_set_timesteps_refuses_what_is_not_a_state(state):
    with pytest.raises(TypeError, match=r"^state is .*, expected"):
        rp.set_timesteps(state, 4)


def test_set_timesteps_returns_a_new_state_and_replaces_an_earlier_schedule(state):
    fresh = rp.create_state()
    assert fresh.timesteps is None
    assert fresh.num_model_calls is None
    assert state.timesteps.tolist() == [750, 500, 250, 0, 250, 500, 250, 0]
    assert state.timesteps.dtype == jnp.int32
    again = rp.set_timesteps(state, 4, 1, 1)
    assert again.timesteps.tolist() == list(TIMESTEPS)
    assert (again.num_inference_steps, again.num_model_calls) == (4, 4)
    assert state.num_model_calls == 6


def test_set_timesteps_takes_numpy_integers_and_keeps_python_ints():
    state = rp.set_timesteps(rp.create_state(), np.int64(4), np.int32(2), np.uint8(2))
    assert type(state.num_inference_steps) is int
    assert type(state.num_model_calls) is int


def test_set_timesteps_is_jittable_with_static_integers(state):
    jitted = jax.jit(rp.set_timesteps, static_argnums=(1, 2, 3))(rp.create_state(), 4, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, jitted, state)


def test_set_timesteps_inside_a_jitted_function_has_static_counts():
    counts = []

    @jax.jit
    def timesteps(state):
        state = rp.set_timesteps(state, 4, 2, 2)
        counts.append(state.num_model_calls)
        return state.timesteps

    assert timesteps(rp.create_state()).shape == (8,)
    assert counts == [6]


@pytest.mark.parametrize("name", SCHEDULE_ARGUMENTS)
def test_set_timesteps_refuses_counts_that_are_not_positive_integers(name: str):
    arguments = {"num_inference_steps": 4, "jump_length": 2, "jump_n_sample": 2}
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"^{name} is {value}, expected an integer of at least 1"):
            rp.set_timesteps(rp.create_state(), **arguments | {name: value})
    for value in (2.0, True, "2", None):
        with pytest.raises(TypeError, match=f"^{name} is {value!r}, expected an integer"):
            rp.set_timesteps(rp.create_state(), **arguments | {name: value})


def test_set_timesteps_refuses_traced_integers():
    with pytest.raises(TypeError, match=r"num_inference_steps is .*, expected an integer"):
        jax.jit(rp.set_timesteps)(rp.create_state(), 4)


def test_set_timesteps_refuses_a_start_of_resampling_that_is_not_a_position():
    for value, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=f"start_resampling is {value}, expected an integer"):
            rp.set_timesteps(rp.create_state(), 4, 2, 2, start_resampling=value)


def test_set_timesteps_refuses_more_steps_than_the_model_was_trained_with():
    message = "num_inference_steps is 1001, expected at most num_train_timesteps=1000"
    with pytest.raises(ValueError, match=message):
        rp.set_timesteps(rp.create_state(), 1001)


@pytest.mark.parametrize("prefix", ["jump", "jump2", "jump3"])
@pytest.mark.parametrize("length", [4, 10])
def test_set_timesteps_refuses_jumps_that_do_not_fit(prefix: str, length: int):
    arguments = {"jump_length": 2, f"{prefix}_length": length, f"{prefix}_n_sample": 2}
    message = f"^{prefix}_length is {length}, expected less than num_inference_steps=4"
    with pytest.raises(ValueError, match=message):
        rp.set_timesteps(rp.create_state(), 4, **arguments)


def test_a_jump_length_that_nothing_uses_may_be_anything():
    assert rp.set_timesteps(rp.create_state(), 4, jump_n_sample=1).num_model_calls == 4


def test_chain_that_starts_where_the_model_expects_signal_is_warned_about():
    with pytest.warns(UserWarning, match="from pure noise at timestep 0 of 0 to 999, .*'trailing' spacing"):
        rp.set_timesteps(rp.create_state(), 1, jump_n_sample=1)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_betas_that_do_not_end_in_noise_are_warned_about(spacing: str):
    config = rp.RePaintSchedulerConfig(num_train_timesteps=100, timestep_spacing=spacing)
    message = "from pure noise at timestep 99 of 0 to 99, .*share 0.36 of signal; expected betas"
    with pytest.warns(UserWarning, match=message):
        rp.set_timesteps(rp.create_state(config), 100)
    with pytest.warns(UserWarning, match=message):
        rp.set_timesteps_for_budget(rp.create_state(config), 8)


def test_numbers_may_be_numpys_whatever_their_width():
    state = rp.create_state()
    small = rp.set_timesteps(state, np.uint8(250), np.uint8(10), np.uint8(10))
    np.testing.assert_array_equal(small.timesteps, rp.set_timesteps(state, 250).timesteps)
    assert type(rp.set_timesteps_for_budget(state, np.int16(8)).num_model_calls) is int


def test_betas_that_float64_cannot_tell_from_none_are_refused():
    config = rp.RePaintSchedulerConfig(beta_start=5e-17)
    with pytest.raises(ValueError, match="the smallest of the betas is 5e-17, expected noise in each"):
        rp.create_state(config)


# The legacy preset


def test_diffusers_preset_clamps_the_number_of_steps_and_ignores_jumps_that_do_not_fit():
    state = rp.create_state(rp.RePaintSchedulerConfig.diffusers(num_train_timesteps=6))
    clamped = rp.set_timesteps(state, 20, 10, 10)
    assert clamped.num_inference_steps == 6
    assert clamped.timesteps.tolist() == [5, 4, 3, 2, 1, 0]


def test_diffusers_preset_keeps_the_undo_step_at_the_last_betas():
    state = rp.create_state(rp.RePaintSchedulerConfig.diffusers(num_train_timesteps=10))
    state = rp.set_timesteps(state, 3, 1, 1)  # timesteps 6 3 0, three betas an undo step
    betas = state.config.betas
    for timestep, used in ((6, [6, 7, 8]), (0, [0, 1, 2])):
        zero, one = (rp.undo_step(state, jnp.full(SHAPE, x), timestep, KEY) for x in (0.0, 1.0))
        kept = np.prod(1 - betas[used])
        np.testing.assert_allclose(one - zero, np.sqrt(kept), rtol=1e-5)
    noisiest = rp.set_timesteps(state, 10, 1, 1)
    assert np.isfinite(rp.undo_step(noisiest, jnp.ones(SHAPE), 9, KEY)).all()


# step


def test_step_returns_a_pair_with_names(state):
    output = rp.step(state, **step_inputs())
    prev_sample, pred_original_sample = output
    assert prev_sample is output.prev_sample
    assert pred_original_sample is output.pred_original_sample


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_step_and_undo_step_keep_shape_and_dtype(state, dtype):
    inputs = step_inputs()
    for name in ("model_output", "sample", "original_image"):
        inputs[name] = inputs[name].astype(dtype)
    for result in (*rp.step(state, **inputs), rp.undo_step(state, inputs["sample"], 500, KEY)):
        assert (result.shape, result.dtype) == (SHAPE, dtype)


def test_step_and_undo_step_under_jit_take_a_traced_timestep(state):
    inputs = step_inputs()
    del inputs["timestep"]
    step = jax.jit(lambda state, t: rp.step(state, timestep=t, **inputs))
    undo_step = jax.jit(lambda state, t: rp.undo_step(state, inputs["sample"], t, KEY))
    for timestep in TIMESTEPS:
        eager = (
            *rp.step(state, timestep=timestep, **inputs),
            rp.undo_step(state, inputs["sample"], timestep, KEY),
        )
        traced = *step(state, jnp.int32(timestep)), undo_step(state, jnp.int32(timestep))
        for one, other in zip(eager, traced, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("timestep", [np.int64(500), np.array(500), jnp.int32(500)])
def test_step_takes_any_integer_scalar_as_timestep(state, timestep):
    inputs = step_inputs()
    expected = rp.step(state, **inputs)
    inputs["timestep"] = timestep
    np.testing.assert_array_equal(rp.step(state, **inputs).prev_sample, expected.prev_sample)


def test_step_takes_old_style_keys_and_key_vectors(state):
    inputs = step_inputs()
    old = rp.step(state, **inputs | {"key": jax.random.PRNGKey(0)})
    np.testing.assert_array_equal(old.prev_sample, rp.step(state, **inputs).prev_sample)
    keys = jax.random.split(KEY, SHAPE[0])
    by_entry = rp.step(state, **inputs | {"key": keys}).prev_sample
    old_keys = rp.step(state, **inputs | {"key": jax.random.key_data(keys)}).prev_sample
    np.testing.assert_array_equal(by_entry, old_keys)
    swapped = rp.undo_step(state, inputs["sample"][::-1], 500, keys[::-1])[::-1]
    np.testing.assert_array_equal(swapped, rp.undo_step(state, inputs["sample"], 500, keys))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_of_missing_pixels_is_eta_times_that_of_ddpm(eta: float):
    def deviation(eta):
        state, inputs = state_of(eta=eta), step_inputs() | {"mask": jnp.zeros((1, 1, 1))}
        one, other = (
            rp.step(state, **inputs | {"key": jax.random.key(seed)}).prev_sample for seed in (0, 1)
        )
        return np.asarray(one - other)

    np.testing.assert_allclose(deviation(eta), eta * deviation(1.0), atol=1e-5)
    assert (np.abs(deviation(1.0)) > 1e-5).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_last_step_is_without_noise_and_returns_known_pixels_exactly(eta: float):
    state, inputs = state_of(eta=eta), step_inputs() | {"timestep": 0}
    one, other = (rp.step(state, **inputs | {"key": jax.random.key(seed)}).prev_sample for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:, :2], inputs["original_image"][:, :2])


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_prediction_types_agree_on_one_model(timestep: int, clip_sample: bool):
    image, noise = 1.5 * jnp.tanh(normal(1)), normal(2)  # some of it is clipped
    alpha = rp.create_state().alphas_cumprod[timestep]
    signal, sigma = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    outputs = {"epsilon": noise, "sample": image, "v_prediction": signal * noise - sigma * image}
    steps = []
    for prediction_type, model_output in outputs.items():
        state = state_of(prediction_type=prediction_type, clip_sample=clip_sample)
        inputs = {
            "model_output": model_output,
            "timestep": timestep,
            "sample": signal * image + sigma * noise,
        }
        steps.append(rp.step(state, **step_inputs() | inputs))
    # Rounding of the sample is divided by the signal, or by the noise, whichever was not predicted.
    tolerance = 1e-6 / float(jnp.minimum(signal, sigma))
    for other in steps[1:]:
        np.testing.assert_allclose(other.prev_sample, steps[0].prev_sample, atol=tolerance)
        np.testing.assert_allclose(
            other.pred_original_sample, steps[0].pred_original_sample, atol=tolerance
        )


def test_clip_sample_range_bounds_the_predicted_image():
    inputs = step_inputs()
    for clip_sample_range in (0.5, 2.0):
        predicted = rp.step(state_of(clip_sample_range=clip_sample_range), **inputs).pred_original_sample
        assert np.abs(predicted).max() == clip_sample_range
    assert np.abs(rp.step(state_of(clip_sample=False), **inputs).pred_original_sample).max() > 2


@pytest.mark.parametrize(("fraction", "fixed"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_range_runs_from_the_small_to_the_large_fixed_variance(fraction: float, fixed: str):
    inputs = step_inputs()
    expected = rp.step(state_of(eta=1.0, variance_type=fixed), **inputs)
    inputs["model_output"] = jnp.concatenate([inputs["model_output"], jnp.full(SHAPE, fraction)], axis=-1)
    learned = rp.step(state_of(eta=1.0, variance_type="learned_range"), **inputs)
    np.testing.assert_allclose(learned.prev_sample, expected.prev_sample, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_learned_range_needs_twice_the_channels(channels: int):
    message = (
        f"model_output has shape (4, 4, {channels}), expected (4, 4, 4) (variance_type is 'learned_range')"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        rp.step(
            state_of(variance_type="learned_range"),
            **step_inputs() | {"model_output": jnp.zeros((4, 4, channels))},
        )


INT_SAMPLE = jnp.zeros(SHAPE, jnp.int32)
WRONG_STEP_INPUTS = [
    ({"timestep": 501}, ValueError, "timestep is 501, expected one of the schedule's: 0, 250, 500, 750"),
    ({"timestep": -1}, ValueError, "timestep is -1, expected one of the schedule's"),
    ({"timestep": 1000}, ValueError, "timestep is 1000, expected one of the schedule's"),
    ({"timestep": 500.0}, TypeError, "timestep is 500.0, expected an integer"),
    (
        {"model_output": jnp.zeros((4, 4, 1))},
        ValueError,
        "model_output has shape (4, 4, 1), expected (4, 4, 2)",
    ),
    (
        {"model_output": jnp.zeros((1, 4, 4, 2))},
        ValueError,
        "model_output has shape (1, 4, 4, 2), expected (4, 4, 2)",
    ),
    ({"sample": INT_SAMPLE}, TypeError, "sample has dtype int32, expected a floating dtype"),
    (
        {"sample": jnp.zeros((1, 4, 4, 2))},
        ValueError,
        "sample has shape (1, 4, 4, 2), expected original_image's (4, 4, 2)",
    ),
    (
        {"original_image": INT_SAMPLE},
        TypeError,
        "original_image has dtype int32, expected a floating dtype",
    ),
    (
        {"original_image": INT_SAMPLE.astype(jnp.uint8)},
        TypeError,
        "original_image has dtype uint8, expected a floating dtype",
    ),
    ({"mask": jnp.ones(SHAPE, bool)}, TypeError, "mask has dtype bool, expected a floating dtype"),
    ({"mask": jnp.ones(SHAPE, jnp.int32)}, TypeError, "mask has dtype int32, expected a floating dtype"),
    (
        {"mask": jnp.ones((4, 4))},
        ValueError,
        "mask has shape (4, 4), expected the rank of original_image's (4, 4, 2) with each axis equal or 1",
    ),
    ({"mask": jnp.ones((4, 2, 1))}, ValueError, "mask has shape (4, 2, 1), expected"),
    ({"mask": jnp.ones((1, 4, 4, 1))}, ValueError, "mask has shape (1, 4, 4, 1), expected the rank"),
    (
        {"key": jax.random.split(KEY, 3)},
        ValueError,
        "key is a vector of 3 keys, expected one for each entry of the leading axis",
    ),
    (
        {"key": jax.random.split(KEY, (2, 2))},
        ValueError,
        "key has shape (2, 2), expected a single key or a vector of keys",
    ),
]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_STEP_INPUTS)
def test_step_refuses(state, wrong: dict, error, message: str, jitted: bool):
    inputs = step_inputs() | wrong
    timestep = inputs.pop("timestep")
    step = lambda state, inputs: rp.step(state, timestep=timestep, **inputs)  # noqa: E731
    with pytest.raises(error, match=re.escape(message)):
        (jax.jit(step) if jitted else step)(state, inputs)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_step_and_undo_step_refuse_several_timesteps_at_once(state, jitted: bool):
    inputs = step_inputs()
    del inputs["timestep"]  # two timesteps would broadcast against the two channels
    for function in (
        lambda timestep: rp.step(state, timestep=timestep, **inputs),
        lambda timestep: rp.undo_step(state, inputs["sample"], timestep, KEY),
    ):
        with pytest.raises(ValueError, match=r"timestep has shape \(2,\), expected"):
            (jax.jit(function) if jitted else function)(jnp.array([500, 250]))


@pytest.mark.parametrize("key", [None, 0, "seed"])
def test_step_refuses_what_is_no_key(state, key):
    with pytest.raises((TypeError, ValueError), match=f"^key is {key!r}, expected"):
        rp.step(state, **step_inputs() | {"key": key})


def test_steps_before_set_timesteps_are_refused():
    message = "state has no schedule, expected one from set_timesteps"
    with pytest.raises(ValueError, match=message):
        rp.step(rp.create_state(), **step_inputs())
    with pytest.raises(ValueError, match=message):
        rp.undo_step(rp.create_state(), normal(0), 500, KEY)


def test_undo_step_refuses_other_timesteps_and_samples(state):
    with pytest.raises(
        ValueError, match="timestep is 501, expected one of the schedule's: 0, 250, 500, 750"
    ):
        rp.undo_step(state, normal(0), 501, KEY)
    with pytest.raises(TypeError, match="sample has dtype int32, expected a floating dtype"):
        rp.undo_step(state, INT_SAMPLE, 500, KEY)
    with pytest.raises(ValueError, match="key is a vector of 3 keys, expected one for each entry"):
        rp.undo_step(state, normal(0), 500, jax.random.split(KEY, 3))


# scale_model_input and add_noise


def test_scale_model_input_returns_the_sample_itself(state):
    sample = normal(0)
    assert rp.scale_model_input(state, sample) is sample
    assert rp.scale_model_input(state, sample, 500) is sample


def test_add_noise_diffuses_to_one_timestep_or_to_one_for_each_entry():
    state, image, noise = rp.create_state(), normal(1), normal(2)
    abar = np.asarray(state.alphas_cumprod, np.float64)
    timesteps = np.array([0, 10, 500, 999])
    expected = [
        np.sqrt(abar[t]) * image[i] + np.sqrt(1 - abar[t]) * noise[i] for i, t in enumerate(timesteps)
    ]
    noisy = rp.add_noise(state, image, noise, jnp.asarray(timesteps, jnp.int32))
    # From float32's abar, 1 - abar would be wrong by 1e-3 of itself at timestep 0.
    np.testing.assert_allclose(noisy, np.stack(expected), atol=2e-5)
    for i, t in enumerate(timesteps.tolist()):
        np.testing.assert_array_equal(rp.add_noise(state, image, noise, t)[i], noisy[i])
        np.testing.assert_allclose(
            jax.jit(rp.add_noise)(state, image, noise, jnp.int32(t))[i], noisy[i], atol=1e-6
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_add_noise_keeps_the_dtype(dtype):
    image, noise = normal(1).astype(dtype), normal(2).astype(dtype)
    assert rp.add_noise(rp.create_state(), image, noise, 500).dtype == dtype


def test_add_noise_takes_one_timestep_in_an_array():
    state, image, noise = rp.create_state(), normal(1), normal(2)
    noisy = rp.add_noise(state, image, noise, jnp.array([500]))
    np.testing.assert_array_equal(noisy, rp.add_noise(state, image, noise, 500))


@pytest.mark.filterwarnings("error")
def test_numpy_arrays_in_double_precision_are_taken_without_a_warning():
    state = rp.set_timesteps(rp.create_state(), 10, 2, 2)
    image, noise = np.zeros((4, 4, 1)), np.ones((4, 4, 1))
    key = jax.random.key(0)
    results = (
        rp.step(state, noise, 500, noise, image, np.ones((4, 4, 1)), key).prev_sample,
        rp.undo_step(state, noise, 500, key),
        rp.add_noise(state, image, noise, 500),
    )
    assert [result.dtype for result in results] == [jnp.float32] * 3


def test_add_noise_refuses_integers_and_noise_of_another_shape():
    state = rp.create_state()
    with pytest.raises(TypeError, match="original_samples has dtype int32, expected a floating dtype"):
        rp.add_noise(state, INT_SAMPLE, normal(0), 5)
    with pytest.raises(TypeError, match="noise has dtype int32, expected a floating dtype"):
        rp.add_noise(state, normal(0), INT_SAMPLE, 5)
    message = re.escape("noise has shape (4, 4), expected original_samples' (4, 4, 2)")
    with pytest.raises(ValueError, match=message):
        rp.add_noise(state, normal(0), normal(0, (4, 4)), 5)


@pytest.mark.parametrize(
    ("timesteps", "error", "message"),
    [
        (1000, ValueError, "timesteps is 1000, expected"),
        (-1, ValueError, "timesteps is -1, expected"),
        (5.0, TypeError, "timesteps .*expected"),
        (jnp.zeros((3,), jnp.int32), ValueError, "timesteps has shape .*, expected"),
        (jnp.zeros((4, 4, 2, 1), jnp.int32), ValueError, "timesteps has shape .*, expected"),
    ],
    ids=["too large", "negative", "floating", "another batch", "too many axes"],
)
def test_add_noise_refuses_timesteps_that_are_none(timesteps, error, message: str):
    with pytest.raises(error, match=message):
        rp.add_noise(rp.create_state(), normal(0), normal(1), timesteps)
