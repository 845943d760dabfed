"""The model that is part of the package: it loads, it inpaints, and it is small."""

import jax
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
