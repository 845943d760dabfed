"""Pipelines that diffusers writes, of latent models and of each family, in every command: `-m torch`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import repaint_jax as rp  # noqa: E402
from repaint_jax.cli.main import main  # noqa: E402

pytestmark = pytest.mark.torch

SIDE = 32
TOLERANCE = 2e-5
UNET = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def ldm(folder: Path) -> None:
    """CompVis/ldm-celebahq-256: vqvae, UNet2DModel and the settings of DDIM."""
    torch.manual_seed(0)
    vqvae = diffusers.VQModel(**AUTOENCODER, latent_channels=3, num_vq_embeddings=32, scaling_factor=1.0)
    unet = diffusers.UNet2DModel(sample_size=SIDE // 4, in_channels=3, out_channels=3, **UNET)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False
    )
    diffusers.LDMPipeline(vqvae, unet, scheduler).save_pretrained(folder)


def ncsnpp(folder: Path) -> None:
    """google/ncsnpp-celebahq-256: Skip blocks, Fourier embedding and ScoreSdeVeScheduler."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        mid_block_scale_factor=1.41421356237,
        norm_eps=1e-6,
        norm_num_groups=8,
        attention_head_dim=None,
        time_embedding_type="fourier",
        freq_shift=0,
    )
    scheduler = diffusers.ScoreSdeVeScheduler()
    diffusers.ScoreSdeVePipeline(unet, scheduler).save_pretrained(folder)


def edm(folder: Path) -> None:
    pixel_model(folder, diffusers.EDMEulerScheduler(sigma_data=0.4))


def flow(folder: Path) -> None:
    pixel_model(folder, diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0))


def pixel_model(folder: Path, scheduler: Any) -> None:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=SIDE, in_channels=3, out_channels=3, **UNET)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)


@pytest.fixture(scope="module", params=[ldm, ncsnpp, edm, flow], ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layouts") / "model"
    request.param(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    (path / "in").mkdir()
    (path / "masks").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path / "in" / "a.png")
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[8:20, 8:24] = 0
    Image.fromarray(mask).save(path / "masks" / "a.png")
    return path


def assert_filled(filled: Image.Image, pictures: Path) -> None:
    original = np.asarray(Image.open(pictures / "in" / "a.png"))
    known = np.asarray(Image.open(pictures / "masks" / "a.png")) == 255
    np.testing.assert_array_equal(np.asarray(filled)[known], original[known])
    assert (np.asarray(filled)[~known] != original[~known]).any()


def test_pipeline_fills_the_hole(folder: Path, pictures: Path) -> None:
    pipe = rp.RePaintPipeline.from_pretrained(folder)
    assert pipe.image_shape == (SIDE, SIDE, 3)
    image, mask = (Image.open(pictures / name / "a.png") for name in ("in", "masks"))
    output = pipe(image, mask, num_model_calls=8, key=jax.random.key(0))
    assert_filled(output.images[0], pictures)


def test_inpaint_fills_the_hole(folder: Path, pictures: Path, tmp_path: Path) -> None:
    words = [str(pictures / name / "a.png") for name in ("in", "masks")]
    options = ["-o", str(tmp_path / "out.png"), "--model", str(folder), "--model-calls", "8"]
    assert main(["inpaint", *words, *options]) == 0
    assert_filled(Image.open(tmp_path / "out.png"), pictures)


def test_folder_fills_the_holes(folder: Path, pictures: Path, tmp_path: Path) -> None:
    words = [str(pictures / "in"), str(pictures / "masks"), str(tmp_path / "out")]
    assert main(["folder", *words, "--model", str(folder), "--model-calls", "8"]) == 0
    assert_filled(Image.open(tmp_path / "out" / "a.png"), pictures)


def test_app_s_chain_fills_the_hole(folder: Path, pictures: Path) -> None:
    """The app watches a chain."""
    pipe = rp.RePaintPipeline.from_pretrained(folder)
    image, mask = (Image.open(pictures / name / "a.png") for name in ("in", "masks"))
    seen = list(pipe.watch(image, mask, num_model_calls=8, key=jax.random.key(0)))
    assert len(seen) == 8
    for watched in seen:
        assert_filled(watched.images[0], pictures)


def test_the_network_s_clean_image_is_that_of_diffusers_scheduler(folder: Path) -> None:
    """One call at four noise levels, with diffusers' own formulas around torch's network."""
    pipe = rp.RePaintPipeline.from_pretrained(folder)
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    clean_image = {
        "DDIMScheduler": lambda sample, sigma, t: (
            theirs.unet(sample, t).sample
        ),  # the model_fn's own output
        "ScoreSdeVeScheduler": score_ve,
        "EDMEulerScheduler": preconditioned,
        "FlowMatchEulerDiscreteScheduler": rectified,
    }[type(theirs.scheduler).__name__]
    x = np.random.default_rng(1).standard_normal((1, *pipe.latent_shape)).astype(np.float32)
    sample = torch.tensor(x.transpose(0, 3, 1, 2))
    alphas_cumprod = np.cumprod(1 - pipe.state.config.betas)
    for share in (0.02, 0.3, 0.6, 0.95):
        timestep = int(share * pipe.state.config.num_train_timesteps)
        sigma = float(np.sqrt(1 / alphas_cumprod[timestep] - 1))
        with torch.no_grad():
            arguments = (sample, sigma, timestep)
            expected = clean_image(*arguments, *([] if pipe.family is None else [theirs]))
        expected = expected.numpy().transpose(0, 2, 3, 1)
        ours = pipe.model_fn(pipe.params, x, timestep)
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE * max(1, np.abs(expected).max()))


def score_ve(sample: Any, sigma: float, timestep: int, theirs: Any) -> Any:
    """ScoreSdeVePipeline's data are in [0, 1], and its sample is x0 + sigma z."""
    scaled = (sample * (1 + sigma**2) ** 0.5 + 1) / 2
    score = theirs.unet(scaled, torch.full((1,), sigma / 2)).sample
    return 2 * (scaled + (sigma / 2) ** 2 * score) - 1


def preconditioned(sample: Any, sigma: float, timestep: int, theirs: Any) -> Any:
    noisy = sample * (1 + sigma**2) ** 0.5
    given = theirs.scheduler.precondition_inputs(noisy, sigma)
    output = theirs.unet(given, theirs.scheduler.precondition_noise(sigma)).sample
    return theirs.scheduler.precondition_outputs(noisy, output, sigma)


def rectified(sample: Any, sigma: float, timestep: int, theirs: Any) -> Any:
    """Its sigma is the time, and its step goes along the velocity: to time 0 in one step."""
    time = sigma / (1 + sigma)
    noisy = sample * ((1 - time) ** 2 + time**2) ** 0.5
    told = torch.tensor(time * theirs.scheduler.config.num_train_timesteps)  # UNet2DModel truncates a float
    velocity = theirs.unet(noisy, told).sample
    return noisy + (0 - time) * velocity


def test_ncsnpp_s_noise_levels_are_those_of_diffusers_scheduler() -> None:
    scheduler = diffusers.ScoreSdeVeScheduler()
    scheduler.set_sigmas(scheduler.config.num_train_timesteps)
    config = rp.models.families.ScoreVE().config()
    alphas_cumprod = np.cumprod(1 - config.betas)
    sigmas = np.sqrt(1 / alphas_cumprod - 1) / 2
    np.testing.assert_allclose(sigmas, scheduler.discrete_sigmas.numpy(), rtol=1e-4)
