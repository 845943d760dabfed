"""Batches over eight simulated devices; `test_devices.py` starts this file in a process that has them."""

import logging

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import repaint_jax as rp
from repaint_jax import training
from repaint_jax.sampling import noise_levels

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture
def pipe(model_folder) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


@pytest.fixture
def batch():
    """Images, masks and keys of 16."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)
    masks = rng.integers(0, 2, (16, 8, 8, 1)).astype(np.float32)
    return images, masks, jax.random.split(jax.random.key(0), 16)


@pytest.fixture(params=["budget", "resampling"])
def state(request) -> rp.RePaintSchedulerState:
    if request.param == "budget":
        return rp.set_timesteps_for_budget(rp.create_state(), 8)
    return rp.set_timesteps(rp.create_state(), 4, jump_length=2, jump_n_sample=2)


def collectives(compiled) -> list[str]:
    return [name for name in COLLECTIVES if name in compiled.as_text()]


def test_there_are_eight():
    assert len(jax.local_devices()) == 8


def test_a_sharded_batch_compiles_to_a_program_without_collectives(pipe, batch, state):
    arguments = rp.replicate(pipe.params), *rp.shard_batch(batch)
    chain = jax.jit(rp.inpaint, static_argnums=1)
    compiled = chain.lower(state, pipe.model_fn, *arguments).compile()
    assert collectives(compiled) == []
    result = rp.inpaint(state, pipe.model_fn, *arguments)
    assert len(result.sharding.device_set) == 8
    one = jax.local_devices()[0]
    expected = rp.inpaint(state, pipe.model_fn, *jax.device_put((pipe.params, *batch), one))
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_parameters_too_large_for_a_device_can_be_sharded(pipe, batch, state):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("batch", "model"))

    def spread(leaf):
        divides = leaf.ndim > 0 and leaf.shape[-1] % 4 == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model") if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree.map(spread, pipe.params)
    largest = max(jax.tree.leaves(params), key=lambda leaf: leaf.size)
    assert largest.addressable_shards[0].data.size * 4 == largest.size
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
    result = rp.inpaint(state, pipe.model_fn, params, *sharded)
    one = jax.local_devices()[0]
    expected = rp.inpaint(state, pipe.model_fn, *jax.device_put((pipe.params, *batch), one))
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(("count", "num_samples"), [(1, 1), (3, 1), (5, 3)])
def test_the_pipeline_uses_all_devices_and_gives_what_one_gives(
    pipe, batch, count, num_samples, monkeypatch
):
    images, masks, keys = (part[:count] for part in batch)
    options = {"num_model_calls": 8, "num_samples": num_samples, "output_type": "jax"}
    arrays = images, masks
    result = pipe(*arrays, key=keys, preview_calls=(3,), **options)
    assert result.images.shape == (count * num_samples, 8, 8, 1)
    assert result.previews.shape == (1, count * num_samples, 8, 8, 1)
    *_, watched = pipe.watch(*arrays, key=keys, **options)
    np.testing.assert_allclose(watched.images, result.images, atol=1e-5)
    one = jax.local_devices()[:1]
    monkeypatch.setattr("repaint_jax.pipeline.free_devices", lambda params: one)
    single = pipe(*arrays, key=keys, preview_calls=(3,), **options)
    np.testing.assert_allclose(result.images, single.images, atol=1e-5)
    np.testing.assert_allclose(result.previews, single.previews, atol=1e-5)


def test_the_pipeline_leaves_sharded_parameters_where_they_are(pipe, batch):
    mesh = Mesh(np.array(jax.devices()), ("model",))

    def spread(leaf):
        spec = PartitionSpec("model") if leaf.ndim and leaf.shape[0] % 8 == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded = rp.RePaintPipeline(
        pipe.model_fn, jax.tree.map(spread, pipe.params), pipe.state, pipe.image_shape, pipe.unet_config
    )
    images, masks, keys = batch
    options = {"num_model_calls": 8, "output_type": "jax", "key": keys}
    expected = pipe(images, masks, **options).images
    np.testing.assert_allclose(sharded(images, masks, **options).images, expected, atol=1e-4)
    *_, watched = sharded.watch(images, masks, **options)
    np.testing.assert_allclose(watched.images, expected, atol=1e-4)


def test_a_batch_that_cannot_be_shared_out_is_refused(batch):
    with pytest.raises(ValueError, match=r"leading axes of length \[15\], expected one length, a multiple"):
        rp.shard_batch(batch[0][:15])
    with pytest.raises(ValueError, match=r"leading axes of length \[8, 16\], expected one length"):
        rp.shard_batch((batch[0], batch[1][:8]))


def test_a_model_lies_on_one_device_and_a_single_result_is_made_there(pipe, batch):
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(pipe.params))
    images, masks, keys = (part[:1] for part in batch)
    result = pipe(images, masks, num_model_calls=8, key=keys, output_type="jax").images
    assert len(result.devices()) == 1


def test_watching_compiles_a_call_once(pipe, batch, caplog):
    images, masks, keys = batch
    jax.clear_caches()  # of equal functions in other tests
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        list(pipe.watch(images, masks, num_model_calls=8, key=keys, output_type="jax"))
    compiled = [record for record in caplog.records if "Finished XLA compilation" in record.message]
    assert sum("_run_calls" in record.message for record in compiled) == 1


def test_training_on_all_devices_is_training_on_one(pipe, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1), dtype=np.uint8)
    abar = noise_levels.alphas_cumprod(rp.RePaintSchedulerConfig().betas)
    config = training.TrainingConfig(num_steps=3, batch_size=16, warmup_steps=1, learning_rate=0.01)
    state = training.train(config, pipe.model_fn, pipe.params, images, abar, tmp_path / "all")
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 8

    step = training.make_train_step(config, pipe.model_fn, abar)
    alone = training.create_train_state(config, pipe.params)
    for _, batch in zip(range(3), training.batches(config, images), strict=False):
        alone, _ = step(alone, batch)
    for ours, expected in zip(*map(jax.tree.leaves, (state.params, alone.params)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_training_batch_that_cannot_be_divided_is_refused(pipe, tmp_path):
    images = np.zeros((16, 8, 8, 1), np.uint8)
    config = training.TrainingConfig(batch_size=12)
    with pytest.raises(ValueError, match="batch_size is 12, expected a multiple of the 8 devices"):
        training.train(config, pipe.model_fn, pipe.params, images, np.array([0.9, 0.5]), tmp_path)


# Inside shard_map, on explicit meshes, and while another mesh is set

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=KINDS)
def mesh(request) -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(KINDS[request.param],))


def on(mesh: Mesh, tree, *axes: str):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


SHARDED, WHOLE = PartitionSpec("data"), PartitionSpec()


def scaled(params, sample, timestep):
    return params * sample


@pytest.mark.parametrize("previews", [None, (0, 3)])
def test_inside_shard_map_the_chain_gives_what_it_gives_outside(mesh, batch, state, previews):
    def chain(images, masks, keys):
        made = rp.inpaint(state, scaled, np.float32(0.5), images, masks, keys, preview_calls=previews)
        return made if previews is None else made[0]

    expected = chain(*batch)
    sharded = jax.shard_map(chain, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED)
    np.testing.assert_allclose(sharded(*on(mesh, batch, "data")), expected, atol=1e-6)


@pytest.mark.parametrize(
    "sharded", [("params",), ("masks", "keys"), ("images", "keys"), ("images", "masks")]
)
def test_inside_shard_map_some_arguments_may_be_replicated(mesh, batch, state, sharded):
    images, masks, keys = batch
    scales = np.linspace(0.1, 0.8, 16, dtype=np.float32).reshape(16, 1, 1, 1)
    arrays = {"params": scales, "images": images, "masks": masks, "keys": keys}
    # A replicated argument is that of the first device's two images; a replicated key is a single one.
    whole = {"params": scales[:2], "images": images[:2], "masks": masks[:2], "keys": keys[0]}

    def chain(given):
        of = {**whole, **given}
        return rp.inpaint(state, scaled, of["params"], of["images"], of["masks"], of["keys"])

    parts = [{name: arrays[name][i : i + 2] for name in sharded} for i in range(0, 16, 2)]
    expected = np.concatenate([chain(part) for part in parts])
    run = jax.shard_map(chain, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED)
    made = run(on(mesh, {name: arrays[name] for name in sharded}, "data"))
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_a_network_and_a_chain_run_on_an_explicit_mesh(mesh, batch, state, random_unet):
    config = rp.models.UNet2DConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    model_fn, params = rp.nnx_model_fn(random_unet(config))
    expected = rp.inpaint(state, model_fn, params, *batch)
    arguments = on(mesh, params), *on(mesh, batch, "data")
    np.testing.assert_allclose(rp.inpaint(state, model_fn, *arguments), expected, atol=1e-4)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(rp.inpaint(state, model_fn, *arguments), expected, atol=1e-4)


def test_a_network_with_skip_blocks_runs_on_an_explicit_mesh(mesh, random_unet):
    config = rp.models.UNet2DConfig(
        sample_size=8,
        down_block_types=("AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        time_embedding_type="fourier",
    )
    model_fn, params = rp.nnx_model_fn(random_unet(config))
    call = jax.jit(model_fn)
    sample = np.random.default_rng(0).standard_normal((16, 8, 8, 3), np.float32)
    levels = np.geomspace(0.1, 10, 16).astype(np.float32)
    expected = call(params, sample, levels)
    arguments = on(mesh, params), *on(mesh, (sample, levels), "data")
    np.testing.assert_allclose(call(*arguments), expected, rtol=1e-4, atol=1e-4)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(call(*arguments), expected, rtol=1e-4, atol=1e-4)


def test_a_mesh_that_is_set_is_the_one_that_batches_are_divided_over(mesh, pipe, batch, state):
    expected = rp.inpaint(state, pipe.model_fn, pipe.params, *batch)
    with jax.set_mesh(mesh):
        arguments = rp.replicate(pipe.params), *rp.shard_batch(batch)
        assert arguments[1].sharding.spec == PartitionSpec(("data",))
        np.testing.assert_allclose(rp.inpaint(state, pipe.model_fn, *arguments), expected, atol=1e-5)


def test_a_mesh_that_is_set_does_not_disturb_the_pipeline(mesh, pipe, batch):
    images, masks, keys = (part[:5] for part in batch)
    options = {"num_model_calls": 8, "output_type": "np", "key": keys}
    expected = pipe(images, masks, **options).images
    prepared = pipe.set_timesteps(num_model_calls=8)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(pipe(images, masks, **options).images, expected, atol=1e-5)
        del options["num_model_calls"]
        made = pipe(images, masks, **options, state=prepared)
        np.testing.assert_allclose(made.images, expected, atol=1e-5)
        *_, watched = pipe.watch(images, masks, **options, state=prepared)
        np.testing.assert_allclose(watched.images, expected, atol=1e-5)


def test_the_pipeline_computes_on_the_default_device(pipe, batch):
    images, masks, keys = (part[:3] for part in batch)
    second = jax.local_devices()[1]
    with jax.default_device(second):
        made = pipe(images, masks, num_model_calls=8, key=keys, output_type="jax").images
    assert made.devices() == {second}
