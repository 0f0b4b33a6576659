import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.encoding import pixels
from ivt_jax.models.config import IVTConfig


def test_normalise():
    images = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(pixels.normalise(images, IVTConfig()), [[-1, -0.6, 1]], atol=1e-7)
    clip = IVTConfig(pixel_mean=(0.5, 0.4, 0.2), pixel_deviation=(0.25, 0.5, 0.2))
    np.testing.assert_allclose(pixels.normalise(images, clip), [[-2, -0.4, 4]], atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_erase_fills_the_box_and_nothing_else(compiled):
    key, shape = jax.random.key(3), (4, 6, 3)
    image = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + 100
    erase = jax.jit(pixels.erase) if compiled else pixels.erase
    erased = np.asarray(erase(key, image, jnp.array([1, 2, 2, 3])))

    expected = np.array(image)
    expected[1:3, 2:5] = np.asarray(jax.random.normal(key, shape))[1:3, 2:5]
    np.testing.assert_array_equal(erased, expected)
    assert np.abs(erased[1:3, 2:5]).max() < 6  # noise of unit variance, where there was 100 and more
    np.testing.assert_array_equal(erase(key, image, jnp.zeros(4, jnp.int32)), image)  # no box
