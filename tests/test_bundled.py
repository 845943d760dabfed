"""The models that are part of the package: they load, they inpaint, and they are small."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp
from repaint_jax import masks
from repaint_jax.models.pretrained import bundled_folder, model_folder, pictures_of_model
from repaint_jax.pictures.images import image_to_array, open_image


@pytest.fixture(scope="module")
def bundled() -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained("bundled")


@pytest.mark.parametrize(
    ("name", "image_shape", "megabytes"),
    [
        ("fashion_mnist", (28, 28, 1), 4),
        pytest.param("emoji", (32, 32, 3), 12, marks=pytest.mark.slow),
    ],
)
def test_bundled_model_fills_its_pictures(name, image_shape, megabytes) -> None:
    pipe = rp.RePaintPipeline.from_pretrained(f"bundled/{name}")
    assert pipe.image_shape == image_shape
    paths = pictures_of_model(f"bundled/{name}")
    assert len(paths) == 6
    images = np.stack([image_to_array(open_image(path), image_shape) for path in paths])
    mask, known = masks.half(*image_shape[:2]), image_shape[1] // 2
    made = pipe(images, mask, num_model_calls=8, key=jax.random.key(0), output_type="jax")
    results = np.asarray(made.images)
    np.testing.assert_array_equal(results[:, :, :known], images[:, :, :known])
    # Eight calls are enough to come nearer than another picture would be.
    errors = np.sqrt(np.mean((results - images)[:, :, known:] ** 2, axis=(1, 2, 3)))
    others = np.sqrt(np.mean((np.roll(images, 1, axis=0) - images)[:, :, known:] ** 2, axis=(1, 2, 3)))
    assert errors.mean() < others.mean()
    sizes = [path.stat().st_size for path in bundled_folder(name).rglob("*.safetensors")]
    assert 0 < sum(sizes) <= megabytes * 1e6


def test_names_of_bundled_models(tmp_path, monkeypatch) -> None:
    assert model_folder("bundled") == model_folder(Path("bundled/fashion_mnist")) == bundled_folder()
    assert model_folder("bundled/emoji") == bundled_folder("emoji")
    assert model_folder("google/ddpm-cat-256") == Path("google/ddpm-cat-256")
    with pytest.raises(
        ValueError, match="bundled/emojis is no bundled model, expected one of bundled/emoji, b"
    ):
        rp.RePaintPipeline.from_pretrained("bundled/emojis")
    monkeypatch.chdir(tmp_path)
    Path("bundled/mine").mkdir(parents=True)
    assert model_folder("bundled/mine") == Path("bundled/mine")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bounds"), [("bfloat16", (0.06, 0.01, 0.01)), ("float16", (0.008,) * 3)])
def test_half_precision_stays_near_float32(bundled, dtype: str, bounds: tuple[float, ...]) -> None:
    """Measured: 5.5, 0.9 and 0.5 % of the output's root mean square; with float16 0.6, 0.1 and 0.1 %."""
    pipe, half = bundled, rp.RePaintPipeline.from_pretrained("bundled", dtype=dtype)
    paths = pictures_of_model("bundled")
    pictures = np.stack([image_to_array(open_image(path), pipe.image_shape) for path in paths])
    noise = np.random.default_rng(0).standard_normal(pictures.shape, np.float32)
    for timestep, bound in zip((10, 100, 900), bounds, strict=True):
        sample = rp.add_noise(pipe.state, pictures, noise, jnp.int32(timestep))
        full, rounded = (
            np.asarray(jax.jit(p.model_fn)(p.params, sample, jnp.int32(timestep))) for p in (pipe, half)
        )
        assert np.sqrt(np.mean((rounded - full) ** 2) / np.mean(full**2)) < bound
