"""EDM teachers, live: their `.pt` files and the folders made of them, in diffusers' own network.

diffusers' EDMEulerScheduler has the preconditioning. It says ln(sigma)/4 where openai/consistency_models
tells the network 1000 times as much.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from golden import record_diffusers as diffusers_side  # noqa: E402
from golden import replay  # noqa: E402
from golden import weights as golden_weights  # noqa: E402

import repaint_jax as rp  # noqa: E402
from repaint_jax.models import guided_diffusion, save_unet2d  # noqa: E402

pytestmark = pytest.mark.torch

CASES = [case for case in replay.load("consistency_models.npz")[0] if "levels" in case]
LEVELS = (0, 450, 700, 999)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_file_of_a_teacher_gives_the_clean_pictures_of_diffusers(
    case: dict[str, Any], half: bool, tmp_path: Path
) -> None:
    """With `--use_fp16`, consistency_models has the convolutions' weights in float16, not the others."""
    tensors = {
        name: torch.from_numpy(tensor).half() if half and tensor.ndim == 4 else torch.from_numpy(tensor)
        for name, tensor in golden_weights.drawn(case["shapes"]).items()
    }
    torch.save(tensors, tmp_path / "edm_tiny_ema.pt")
    settings = case["settings"] | {"training_mode": "edm"}
    module, edm = guided_diffusion.load_unet(tmp_path / "edm_tiny_ema.pt", settings)
    save_unet2d(module, tmp_path / "unet")

    labels = None if case["class_labels"] is None else np.array(case["class_labels"])
    network, params = rp.nnx_model_fn(module)
    arrays = () if labels is None else (jnp.asarray(labels),)
    model_fn = edm.model_fn(lambda params, x, timestep: network(params, x, timestep, *arrays))
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    ladder = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 1000) ** 7
    rng = np.random.default_rng(9)
    for level in LEVELS:
        sigma = torch.tensor(ladder[level], dtype=torch.float32)
        x = (rng.uniform(-1, 1, (2, 8, 8, 3)) + ladder[level] * rng.standard_normal((2, 8, 8, 3))).astype(
            np.float32
        )
        scaled = scheduler.precondition_inputs(torch.from_numpy(x), sigma).numpy()
        timestep = 1000 * scheduler.precondition_noise(sigma).numpy()
        output = torch.from_numpy(diffusers_side.reference_unet(theirs, scaled, timestep, labels))
        expected = scheduler.precondition_outputs(torch.from_numpy(x), output, sigma).numpy()
        sample = jnp.asarray(x / np.sqrt(1 + ladder[level] ** 2), jnp.float32)
        clean = np.asarray(model_fn(params, sample, jnp.int32(level)))
        np.testing.assert_allclose(clean, expected, rtol=0, atol=2e-5)
