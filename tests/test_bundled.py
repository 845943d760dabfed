"""The model that is part of the package: it loads, it inpaints, and it is small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import repaint_jax as rp
from repaint_jax import masks
from repaint_jax.images import image_to_array, open_image
from repaint_jax.pretrained import bundled_folder


@pytest.fixture(scope="module")
def bundled() -> rp.RePaintPipeline:
    return rp.RePaintPipeline.from_pretrained("bundled")


def test_bundled_model_is_for_grey_pictures_of_28_pixels(bundled):
    assert bundled.image_shape == (28, 28, 1)


def test_bundled_model_fills_a_bundled_picture(bundled):
    path = min((bundled_folder() / "images").glob("*.png"))
    image = image_to_array(open_image(path), bundled.image_shape)
    mask = np.asarray(masks.half(28, 28))
    result = bundled(image, mask, 3, jump_n_sample=1, key=jax.random.key(0), output_type="jax").images[0]
    np.testing.assert_array_equal(result[:, :14], image[:, :14])
    assert np.isfinite(result).all()
    assert np.std(result[:, 14:]) > 0


def test_bundled_weights_take_no_more_than_4_mb():
    sizes = [path.stat().st_size for path in bundled_folder().rglob("*.safetensors")]
    assert 0 < sum(sizes) <= 4_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bounds"), [("bfloat16", (0.06, 0.01, 0.01)), ("float16", (0.008,) * 3)])
def test_half_precision_stays_near_float32(bundled, dtype: str, bounds: tuple[float, ...]) -> None:
    """Measured: 5.5, 0.9 and 0.5 % of the output's root mean square; with float16 0.6, 0.1 and 0.1 %."""
    pipe, half = bundled, rp.RePaintPipeline.from_pretrained("bundled", dtype=dtype)
    paths = sorted((bundled_folder() / "images").glob("*.png"))
    pictures = np.stack([image_to_array(open_image(path), pipe.image_shape) for path in paths])
    noise = np.random.default_rng(0).standard_normal(pictures.shape, np.float32)
    for timestep, bound in zip((10, 100, 900), bounds, strict=True):
        sample = rp.add_noise(pipe.state, pictures, noise, jnp.int32(timestep))
        full, rounded = (
            np.asarray(jax.jit(p.model_fn)(p.params, sample, jnp.int32(timestep))) for p in (pipe, half)
        )
        assert np.sqrt(np.mean((rounded - full) ** 2) / np.mean(full**2)) < bound
