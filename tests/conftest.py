"""Tiny things that many tests share, made once."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

import repaint_jax as rp
from repaint_jax.models import UNet2D, UNet2DConfig
from repaint_jax.models.pretrained import save_pretrained

SIDE = 8


def pytest_configure() -> None:
    # A folder that is missing here must not become a request over the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Nothing is promoted silently, in the package or in a test.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.local_devices()  # from here on no command can make more of them in this process


@pytest.fixture
def set_hub_constants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that changes settings of huggingface_hub, of which old versions hold copies."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import snapshot_download  # noqa: F401

    def set_constants(**values: Any) -> None:
        modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "huggingface_hub"]
        for name, value in values.items():
            for module in modules:
                if name in vars(module):
                    monkeypatch.setattr(module, name, value)

    return set_constants


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """No dtype and no rank is promoted silently; `pytestmark` asks for it where it holds."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX computes in double precision where it is given it."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def state() -> rp.RePaintSchedulerState:
    """Four steps with a jump: timesteps 750 500 250 0 250 500 250 0, six of them model calls."""
    return rp.set_timesteps(rp.create_state(), 4, jump_length=2, jump_n_sample=2)


# NumPy arrays, because to calculate with them compiles nothing.


@pytest.fixture(scope="session")
def image() -> NDArray[np.float32]:  # [8, 8, 1]
    return np.random.default_rng(1).uniform(-1, 1, (SIDE, SIDE, 1)).astype(np.float32)


@pytest.fixture(scope="session")
def mask() -> NDArray[np.float32]:  # [8, 8, 1], the left half known
    keep = np.zeros((SIDE, SIDE, 1), np.float32)
    keep[:, : SIDE // 2] = 1
    return keep


@pytest.fixture(scope="session")
def unet_config() -> UNet2DConfig:
    """One level of four channels."""
    return UNet2DConfig(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    )


@pytest.fixture(scope="session")
def random_unet():
    """A function that makes a network of random weights, without compiling its initialisation."""

    def make(config: UNet2DConfig, network: type = UNet2D):
        module = nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        weights = jax.tree.map(
            lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), nnx.state(module)
        )
        nnx.update(module, weights)
        return module

    return make


@pytest.fixture(scope="session")
def unet(unet_config: UNet2DConfig, random_unet) -> UNet2D:
    """To be read only."""
    return random_unet(unet_config)


@pytest.fixture(scope="session")
def model_folder(unet: UNet2D, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in diffusers' layout, for grey pictures of 8x8. To be read only."""
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, unet, rp.RePaintSchedulerConfig(), np.float32)
    return folder


@pytest.fixture(scope="session")
def pipe(model_folder: Path) -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained(model_folder)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))
