"""Operations of the tower. Hand-written derivatives keep fewer and smaller arrays for the gradient than JAX's own."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

MASKED = -10000.0  # added to the scores of padding keys, as released; exp(-10000) is exactly 0 in float32

Params = Mapping[str, Any]


def norm_params(*shape: int) -> dict[str, jax.Array]:
    """Returns the initial parameters of a layer norm."""
    return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}


def layer_norm(p: Params, x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Returns the layer norm of x in float32, with the two-pass variance."""
    return _layer_norm(p["scale"], p["bias"], x, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(scale: jax.Array, bias: jax.Array, x: jax.Array, epsilon: float) -> jax.Array:
    return _norm_forward(scale, bias, x, epsilon)[0]


# Keeps x in its own dtype; JAX would keep three arrays of its size in float32.
def _norm_forward(scale: jax.Array, bias: jax.Array, x: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    return (wide - mean) * inverse * scale + bias, (scale, x, mean, inverse)


def _norm_backward(epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    scale, x, mean, inverse = kept
    normed, of_normed = (x.astype(jnp.float32) - mean) * inverse, gradient * scale
    along = (of_normed * normed).mean(-1, keepdims=True)
    of_x = inverse * (of_normed - of_normed.mean(-1, keepdims=True) - normed * along)
    rows = tuple(range(x.ndim - 1))
    return (gradient * normed).sum(rows), gradient.sum(rows), of_x.astype(x.dtype)


_layer_norm.defvjp(_norm_forward, _norm_backward)


def dense(p: Params, x: jax.Array) -> jax.Array:
    """Returns x @ kernel + bias in the dtype of x."""
    return x @ p["kernel"].astype(x.dtype) + p["bias"].astype(x.dtype)


def xla_attention(qkv: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns attention as batched products: qkv (B, N, 3, H, d), mask (B, N) -> (B, N, H, d).

    On CPU this is three times as fast as `jax.nn.dot_product_attention`.
    """
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = scores + jnp.where(mask, 0.0, MASKED)[:, None, None, :]
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)


def cudnn_attention(qkv: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns attention by cuDNN's fused kernel on a GPU (bfloat16 only), elsewhere `xla_attention`.

    Padding is given as lengths: in training cuDNN takes no mask at an odd number of tokens.
    """
    if jax.default_backend() != "gpu":
        return xla_attention(qkv, mask)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    lengths = None if mask is None else mask.sum(-1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


ATTENTION_KERNELS = {"xla": xla_attention, "cudnn": cudnn_attention}


# erf(x) = x p(x^2) / q(x^2) for |x| <= 4, and 1 beyond; coefficients from x^0 up, fitted to within 2.5e-8 of erf.
# TensorFlow does not know the operation of JAX's erf yet, and JAX's erfc makes the demo's step a tenth slower.
ERF_P = (1.1283791, 0.19354464, 0.05310164, 0.0038833097, 0.00028456259, 1.986755e-06)
ERF_Q = (1.0, 0.504857, 0.11534978, 0.015207187, 0.0011855579, 3.741971e-05)


def erf(x: jax.Array) -> jax.Array:
    """Returns the error function of x float32, to within 4e-7."""
    x = jnp.clip(x, -4.0, 4.0)
    square, p, q = jnp.square(x), jnp.float32(ERF_P[-1]), jnp.float32(ERF_Q[-1])
    for of_p, of_q in zip(ERF_P[-2::-1], ERF_Q[-2::-1], strict=True):
        p, q = p * square + of_p, q * square + of_q
    return x * p / q


def gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the exact (erf) GELU and its slope."""
    cumulative = 0.5 + 0.5 * erf(x * 0.5**0.5)
    return x * cumulative, cumulative + x * jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5


def quick_gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns CLIP's approximation of the GELU and its slope."""
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def activate(x: jax.Array, activation: str = "gelu") -> jax.Array:
    """Returns the activation of x in its dtype, computed in float32. Only the slope is kept for the gradient."""
    return ACTIVATIONS[activation](x.astype(jnp.float32))[0].astype(x.dtype)


@activate.defjvp
def _activate_jvp(activation: str, x: tuple[jax.Array], tangent: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = ACTIVATIONS[activation](x[0].astype(jnp.float32))
    return value.astype(x[0].dtype), slope.astype(x[0].dtype) * tangent[0]


@jax.custom_vjp
def unstack(x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the rows of x. Their gradients are stacked once; JAX would sum one array as large as x for each row."""
    return tuple(x)


unstack.defvjp(lambda x: (tuple(x), None), lambda _, gradients: (jnp.stack(gradients),))
