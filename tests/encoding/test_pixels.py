import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.encoding import pixels


def test_normalise():
    np.testing.assert_allclose(pixels.normalise(np.array([0, 51, 255], np.uint8)), [-1, -0.6, 1], atol=1e-7)


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
