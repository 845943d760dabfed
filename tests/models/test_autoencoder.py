"""AutoencoderKL and VQModel: what diffusers computed, axes and dtypes, the quantiser, tiles, refusals.

Their files are in test_autoencoder_files, live comparisons with diffusers in test_autoencoder_live.
"""

import dataclasses
import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import replay, weights
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from repaint_jax.models import AutoencoderKL, AutoencoderKLConfig, UNet2D, VQModel, VQModelConfig
from repaint_jax.models.blocks import GroupNorm
from repaint_jax.models.checkpoints import load_module
from repaint_jax.models.tiling import in_windows

GOLDEN, ARRAYS = replay.load("autoencoders.npz")
NETWORKS = {"AutoencoderKL": (AutoencoderKL, AutoencoderKLConfig), "VQModel": (VQModel, VQModelConfig)}
SD_CONFIG = {  # stabilityai/sd-vae-ft-mse
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
FLUX_CONFIG = SD_CONFIG | {  # black-forest-labs/FLUX.1-schnell, subfolder vae
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
LDM_CONFIG = {  # CompVis/ldm-celebahq-256, subfolder vqvae
    "_class_name": "VQModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
KL = AutoencoderKLConfig(
    block_out_channels=(4, 4),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=2,
)
VQ = VQModelConfig(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=16, vq_embed_dim=2)


def images_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def kl(random_unet) -> AutoencoderKL:
    return random_unet(KL, AutoencoderKL)


@pytest.fixture(scope="module")
def vq(random_unet) -> VQModel:
    return random_unet(VQ, VQModel)


# What diffusers computes

encode_and_decode = nnx.jit(lambda module, images, latents: (module.encode(images), module.decode(latents)))


@pytest.mark.parametrize("i", range(len(GOLDEN)), ids=[case["name"] for case in GOLDEN])
def test_latents_and_images_are_those_of_diffusers(i: int) -> None:
    case = GOLDEN[i]
    network, config_class = NETWORKS[case["config"]["_class_name"]]
    config = config_class.from_dict(case["config"])
    tensors = weights.drawn(case["shapes"])
    module = load_module(lambda: network(config, rngs=nnx.Rngs(0)), tensors, Path("weights"), None)
    latents, decoded = ARRAYS[f"latents_{i}"], ARRAYS[f"decoded_{i}"]
    outputs = encode_and_decode(module, ARRAYS["images"], latents)
    assert replay.relative_difference(outputs[0], latents) < 2e-5
    assert replay.relative_difference(outputs[1], decoded) < 2e-5


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SD_CONFIG, 83_653_863), (FLUX_CONFIG, 83_819_683), (LDM_CONFIG, 55_322_782)],
    ids=["sd-vae-ft-mse", "FLUX.1", "ldm-celebahq-256"],
)
def test_published_architectures_have_their_number_of_parameters(config: dict, parameters: int) -> None:
    network, config_class = NETWORKS[config["_class_name"]]
    module = nnx.eval_shape(lambda: network(config_class.from_dict(config), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
    latent = nnx.eval_shape(lambda module: module.encode(jnp.zeros((256, 256, 3))), module)
    side = 256 // module.factor
    assert latent.shape == (side, side, config["latent_channels"]) == (side, side, module.latent_channels)


# Axes and dtypes


@pytest.mark.parametrize(
    ("leading", "dtype", "tile"),
    [((), jnp.float32, None), ((), jnp.float32, 4), ((3,), jnp.bfloat16, None), ((2, 3), jnp.float16, 4)],
)
def test_leading_axes_and_the_dtype_are_kept(kl, vq, leading: tuple, dtype, tile: int | None) -> None:
    for module, shape, latent_shape in ((kl, (8, 12, 3), (4, 6, 4)), (vq, (8, 12, 3), (8, 12, 2))):
        images = jax.ShapeDtypeStruct((*leading, *shape), dtype)
        latents = nnx.eval_shape(lambda module, x: module.encode(x, tile), module, images)
        assert (latents.shape, latents.dtype) == ((*leading, *latent_shape), dtype)
        decoded = nnx.eval_shape(lambda module, x: module.decode(x, tile), module, latents)
        assert (decoded.shape, decoded.dtype) == (images.shape, dtype)


def test_vmap_over_single_images_gives_the_batch(vq) -> None:
    images, latents = images_of(2, 4, 4, 3), images_of(2, 4, 4, 2)
    graphdef, params = nnx.split(vq)

    def both(params, images, latents):
        module = nnx.merge(graphdef, params)
        return module.encode(images), module.decode(latents)

    batch = jax.jit(both)(params, images, latents)
    mapped = jax.jit(jax.vmap(both, in_axes=(None, 0, 0)))(params, images, latents)
    for output in range(2):
        np.testing.assert_allclose(mapped[output], batch[output], atol=1e-5)
        assert np.abs(batch[output][0] - batch[output][1]).max() > 0.1


@pytest.mark.parametrize("tile", [None, 4])
def test_results_have_the_sharding_of_their_batch_on_a_mesh_with_explicit_axes(kl, vq, tile) -> None:
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Explicit,))

    def reconstruct(params, images, graphdef):
        module = nnx.merge(graphdef, params)
        return module.decode(module.encode(images, tile), tile)

    with jax.set_mesh(mesh):
        images = jax.device_put(images_of(2, 8, 12, 3), NamedSharding(mesh, PartitionSpec("batch")))
        for module in (kl, vq):
            params = jax.device_put(nnx.state(module), NamedSharding(mesh, PartitionSpec()))
            traced = jax.eval_shape(partial(reconstruct, graphdef=nnx.graphdef(module)), params, images)
            assert traced.sharding.spec[0] == "batch"


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(vq) -> None:
    images = images_of(1, 4, 4, 3)
    graphdef, params = nnx.split(vq)
    encode = jax.jit(lambda params: nnx.merge(graphdef, params).encode(images))
    half = encode(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    assert half.dtype == jnp.float32
    assert 1e-4 < replay.relative_difference(half, encode(params)) < 0.05


# The quantiser


def test_latents_become_their_nearest_entries(vq) -> None:
    latents = np.random.default_rng(1).normal(0, 0.3, (2, 5, 7, 2)).astype(np.float32)
    entries = np.asarray(vq.quantize.embedding.embedding[...], np.float64)
    distances = np.linalg.norm(latents[..., None, :] - entries, axis=-1)
    nearest = entries[distances.argmin(-1)]
    assert len(np.unique(distances.argmin(-1))) > 8
    np.testing.assert_allclose(vq.quantize(latents), nearest, atol=1e-6)


def test_gradient_passes_the_quantiser_unchanged(vq) -> None:
    latents = jnp.asarray(images_of(1, 2, 2, 2))
    slope = jnp.asarray(np.random.default_rng(2).normal(size=latents.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda latents: (slope * vq.quantize(latents)).sum()))(latents)
    np.testing.assert_array_equal(gradient, slope)


# The scale of latents


@pytest.mark.parametrize(
    ("options", "shift", "scale"),
    [
        ({}, 0, 0.18215),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.1159, 0.3611),
        (
            {
                "scaling_factor": 0.5,
                "latents_mean": (1.0, 2.0, 3.0, 4.0),
                "latents_std": (2.0, 4.0, 5.0, 8.0),
            },
            np.array([1.0, 2.0, 3.0, 4.0]),
            0.5 / np.array([2.0, 4.0, 5.0, 8.0]),
        ),
    ],
    ids=["default", "shift", "mean and std"],
)
def test_scaled_latents_of_an_autoencoder_kl(options: dict, shift, scale) -> None:
    config = dataclasses.replace(KL, **options)
    module = nnx.eval_shape(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)))
    latents = images_of(2, 3, 5, 4)
    scaled = module.scale_latents(latents)
    np.testing.assert_allclose(scaled, (latents.astype(np.float64) - shift) * scale, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.unscale_latents(scaled), latents, rtol=1e-5, atol=1e-6)


def test_files_without_a_scaling_factor_mean_1_for_a_vq_model_and_stable_diffusion_s_for_kl() -> None:
    assert VQModelConfig.from_dict(LDM_CONFIG).scaling_factor == 1
    assert VQModelConfig.from_dict(LDM_CONFIG | {"scaling_factor": 0.18215}).scaling_factor == 0.18215
    assert AutoencoderKLConfig.from_dict(SD_CONFIG).scaling_factor == 0.18215


# Tiles


@pytest.mark.parametrize(
    ("window", "height", "width"), [(2, 7, 3), (2, 2, 5), (3, 4, 4), (4, 7, 12), (5, 23, 4), (8, 16, 16)]
)
def test_windows_of_a_pixelwise_function_give_the_whole(window: int, height: int, width: int) -> None:
    x = images_of(2, height * 2, width * 2, 3)
    whole = np.repeat(np.repeat(x[:, ::2, ::2, :2], 3, 1), 3, 2)

    def function(x):  # cells of 2x2 become cells of 3x3
        assert max(x.shape[1:3]) <= 2 * window
        return jnp.repeat(jnp.repeat(x[:, ::2, ::2, :2], 3, 1), 3, 2)

    np.testing.assert_allclose(in_windows(function, jnp.asarray(x), window, 2, 3), whole, atol=1e-6)


@pytest.mark.slow
def test_tiles_of_convolutions_alone_are_the_whole_away_from_seams(random_unet, monkeypatch) -> None:
    monkeypatch.setattr(GroupNorm, "__call__", lambda self, x: x)  # norms see a whole window
    module = random_unet(dataclasses.replace(KL, mid_block_add_attention=False), AutoencoderKL)
    latents = images_of(1, 48, 2, 4)
    whole, tiled = jax.jit(lambda: (module.decode(latents), module.decode(latents, 64)))()
    # Windows of 64 pixels begin at 0 and at 32. Their weights change between 40 and 56. Elsewhere only one
    # window counts, and the picture is as far from its edge as the convolutions look.
    for rows in (slice(0, 36), slice(60, None)):
        np.testing.assert_allclose(tiled[:, rows], whole[:, rows], atol=5e-6)
    assert 1e-4 < np.abs(tiled - whole).max() < 0.05 * np.abs(whole).max()


def test_a_picture_no_larger_than_a_tile_is_not_cut() -> None:
    x = jnp.zeros((2, 8, 6, 3))
    assert in_windows(lambda given: given if given is x else None, x, 4, 2, 1) is x


@pytest.mark.slow
def test_memory_of_tiles_does_not_grow_with_the_picture() -> None:
    convolutions = [nnx.Conv(width, 33 - width, (3, 3), rngs=nnx.Rngs(0)) for width in (1, 32)]

    def temporary_bytes(side: int, window: int) -> int:
        x = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
        two = jax.jit(lambda x: in_windows(lambda x: convolutions[1](convolutions[0](x)), x, window, 1, 1))
        return two.lower(x).compile().memory_analysis().temp_size_in_bytes

    tiled, whole = temporary_bytes(512, 32), temporary_bytes(512, 512)
    assert tiled < 1.1 * temporary_bytes(128, 32)
    assert tiled < 0.1 * whole


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(jnp.zeros((8, 8, 4))), "images has shape (8, 8, 4), expected [..., H, W, 3]"),
        (
            lambda m: m.encode(jnp.zeros((7, 8, 3))),
            "images has shape (7, 8, 3), expected [..., H, W, 3] with H and W multiples of 2",
        ),
        (lambda m: m.encode(jnp.zeros((0, 8, 3))), "images has shape (0, 8, 3), expected"),
        (lambda m: m.encode(jnp.zeros((0, 8, 8, 3))), "images has shape (0, 8, 8, 3), expected"),
        (lambda m: m.encode(jnp.zeros((8, 3))), "images has shape (8, 3), expected [..., H, W, 3]"),
        (lambda m: m.decode(jnp.zeros((8, 8, 3))), "latents has shape (8, 8, 3), expected [..., H, W, 4]"),
        (lambda m: m.encode(np.zeros((8, 8, 3), np.uint8)), "images has dtype uint8, expected a floating"),
        (lambda m: m.encode([0.0]), "images is a list, expected a floating array"),
        (lambda m: m.encode(jnp.zeros((8, 8, 3)), 2), "tile is 2, expected an integer of at least 4"),
        (
            lambda m: m.encode(jnp.zeros((8, 8, 3)), 5),
            "tile is 5, expected a multiple of 2, a latent's side",
        ),
        (lambda m: m.decode(jnp.zeros((8, 8, 4)), 8.0), "tile is 8.0, expected an integer"),
    ],
)
def test_arrays_and_tiles_that_do_not_fit_are_refused_in_one_sentence(kl, call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
        call(kl)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (KL, {"norm_type": "spatial"}, "norm_type is 'spatial', expected 'group'"),
        (
            KL,
            {"down_block_types": ["DownEncoderBlock2D", "DownBlock2D"]},
            "down_block_types has 'DownBlock2D', expected one of DownEncoderBlock2D, AttnDownEncoder",
        ),
        (
            KL,
            {"up_block_types": ["UpDecoderBlock2D"]},
            "up_block_types has 1 entries, expected one for each of the 2 block_out_channels",
        ),
        (
            KL,
            {"block_out_channels": []},
            "block_out_channels is empty, expected the channels of each level",
        ),
        (KL, {"block_out_channels": [4, 5]}, "block_out_channels has 5, expected a multiple of norm_num"),
        (KL, {"block_out_channels": 64}, "block_out_channels is 64, expected a list"),
        (KL, {"block_out_channels": ["4", 4]}, "block_out_channels is '4', expected an integer"),
        (KL, {"act_fn": "gelu"}, "act_fn is 'gelu', expected one of silu, swish"),
        (KL, {"latent_channels": 0}, "latent_channels is 0, expected an integer of at least 1"),
        (KL, {"layers_per_block": "2"}, "layers_per_block is '2', expected an integer"),
        (KL, {"use_quant_conv": None}, "use_quant_conv is None, expected true or false"),
        (KL, {"mid_block_add_attention": 1}, "mid_block_add_attention is 1, expected true or false"),
        (KL, {"scaling_factor": 0}, "scaling_factor is 0, expected a positive number"),
        (KL, {"scaling_factor": None}, "scaling_factor is None, expected a number"),
        (KL, {"shift_factor": "0"}, "shift_factor is '0', expected a number"),
        (KL, {"latents_mean": [0.0] * 4}, "latents_mean or latents_std is given, expected both or none"),
        (KL, {"latents_mean": [0.0]}, "latents_mean is (0.0,), expected 4 numbers"),
        (
            KL,
            {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 1.0, 0.0]},
            "latents_std is (1.0, 1.0, 1.0, 0.0), expected positive numbers",
        ),
        (
            KL,
            {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1},
            "latents_mean and shift_factor are given, expected one of them",
        ),
        (KL, {"temporal_compression_ratio": 4}, "autoencoder config: unknown option temporal_compression"),
        (KL, {"num_vq_embeddings": 256}, "autoencoder config: unknown option num_vq_embeddings=256"),
        (VQ, {"num_vq_embeddings": 0}, "num_vq_embeddings is 0, expected an integer of at least 1"),
        (VQ, {"vq_embed_dim": 0}, "vq_embed_dim is 0, expected an integer of at least 1"),
        (VQ, {"norm_type": "spatial"}, "norm_type is 'spatial', expected 'group'"),
        (VQ, {"use_quant_conv": True}, "autoencoder config: unknown option use_quant_conv=True"),
    ],
)
def test_architecture_that_is_not_supported_is_refused_by_name(config, changes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        type(config).from_dict(config.to_dict() | changes)


@pytest.mark.parametrize("config", [KL, VQ], ids=lambda config: type(config).__name__)
def test_lists_in_python_are_tuples(config) -> None:
    lists = {name: list(value) for name, value in vars(config).items() if isinstance(value, tuple)}
    assert lists.keys() >= {"block_out_channels", "down_block_types", "up_block_types"}
    made = dataclasses.replace(config, **lists)
    assert made == config and hash(made) == hash(config)


@pytest.mark.parametrize(
    ("network", "config", "expected"),
    [
        (AutoencoderKL, None, "config is None, expected a AutoencoderKLConfig"),
        (VQModel, {"act_fn": "silu"}, "config is {'act_fn': 'silu'}, expected a VQModelConfig"),
        (VQModel, KL, "config is a AutoencoderKLConfig, expected a VQModelConfig"),
        (UNet2D, KL, "config is a AutoencoderKLConfig, expected a UNet2DConfig"),
    ],
)
def test_networks_of_other_configs_are_refused(network, config, expected: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
        network(config, rngs=nnx.Rngs(0))


def test_options_that_are_off_are_ignored() -> None:
    extra = {"norm_type": "group", "some_new_option": None, "another": False, "_name_or_path": "x"}
    assert VQModelConfig.from_dict(VQ.to_dict() | extra) == VQ
