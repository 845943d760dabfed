"""Loading the 113.7 million parameters of a published model needs little more than their own size."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import CELEBAHQ_CONFIG

from repaint_jax.models import UNet2D, UNet2DConfig, save_unet2d

LOAD_AND_REPORT = """
import sys
import jax.numpy as jnp, repaint_jax as rp
from repaint_jax.models import load_unet2d

def status(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return 1024 * int(line.split()[1])

jnp.zeros(1).block_until_ready()
before = status("VmRSS")
unet = load_unet2d(sys.argv[1], dtype=sys.argv[2])
pipe = rp.RePaintPipeline.from_unet2d(unet, rp.RePaintSchedulerConfig())
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def celebahq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("celebahq")
    config = UNet2DConfig.from_dict(CELEBAHQ_CONFIG)
    module = nnx.eval_shape(lambda: UNet2D(config, rngs=nnx.Rngs(0)))
    nnx.update(module, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), nnx.state(module)))
    save_unet2d(module, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_peaks_below_one_and_a_half_times_the_model(celebahq_folder: Path, dtype: str) -> None:
    words = [sys.executable, "-c", LOAD_AND_REPORT, str(celebahq_folder), dtype]
    peak = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    size = 113_673_219 * np.dtype(jnp.dtype(dtype)).itemsize
    assert math.floor(0.9 * size) < peak < 1.5 * size
