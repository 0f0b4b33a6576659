"""Linear layers and their hand-written derivatives, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.models.ops import column_sums, dense


@pytest.mark.parametrize("outputs", [3, 5, 9])  # fewer than the inputs, as many, more
@pytest.mark.parametrize("rows", [(7,), (2, 4)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_a_linear_layer_and_its_gradient(outputs, rows, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, gradient = (rng.standard_normal((*rows, size)).astype(np.float32) for size in (5, outputs))
    kernel, bias = rng.standard_normal((5, outputs)).astype(np.float32), rng.standard_normal(outputs).astype(np.float32)
    values, pull = jax.vjp(dense, {"kernel": kernel, "bias": bias}, jnp.asarray(x, dtype))
    of_params, of_x = pull(jnp.asarray(gradient, dtype))
    flat, flat_gradient = x.reshape(-1, 5).astype(float), gradient.reshape(-1, outputs).astype(float)
    expected = {
        "values": (values, x.astype(float) @ kernel + bias), "x": (of_x, gradient.astype(float) @ kernel.T),
        "kernel": (of_params["kernel"], flat.T @ flat_gradient), "bias": (of_params["bias"], flat_gradient.sum(0)),
    }  # fmt: skip
    for name, (actual, wanted) in expected.items():
        difference = np.abs(np.asarray(actual, float) - wanted).max()
        assert difference < tolerance * np.abs(wanted).max(), name
    assert values.dtype == of_x.dtype == dtype and of_params["kernel"].dtype == of_params["bias"].dtype == np.float32


def test_column_sums_by_hand():
    np.testing.assert_array_equal(column_sums(jnp.arange(12.0).reshape(2, 3, 2)), [30, 36])
