"""Operations of the tower. Hand-written derivatives keep fewer and smaller arrays for the gradient than JAX's own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -10000.0  # added to the scores of padding keys, as released; exp(-10000) is exactly 0 in float32

DENSE = "dense"  # name of what `dense` returns, for `jax.checkpoint`
Params = Mapping[str, Any]


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype for what is not computed in `dtype`: float32; for float64, which tests use, float64."""
    return jnp.promote_types(dtype, jnp.float32)


def norm_params(_: jax.Array, *shape: int) -> dict[str, jax.Array]:
    """Returns the initial parameters of a layer norm; the key is not used."""
    return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}


def linear_params(key: jax.Array, deviation: float, stack: tuple[int, ...], **sizes: tuple[int, int]) -> dict[str, Any]:
    """Returns the initial parameters of linear layers by name, (inputs, outputs) each: kernels normal, biases 0.

    stack: leading axes of every array, such as (depth,).
    """
    keys = zip(jax.random.split(key), sizes.items(), strict=True)
    return {
        name: {"kernel": deviation * jax.random.normal(key, (*stack, *size)), "bias": jnp.zeros((*stack, size[1]))}
        for key, (name, size) in keys
    }


def layer_norm(p: Params, x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Returns the layer norm of x in float32 (`wide`), with the two-pass variance."""
    return _layer_norm(p["scale"], p["bias"], x, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(scale: jax.Array, bias: jax.Array, x: jax.Array, epsilon: float) -> jax.Array:
    return _norm_forward(scale, bias, x, epsilon)[0]


# Keeps x in its own dtype; JAX would keep three arrays of its size in float32.
def _norm_forward(scale: jax.Array, bias: jax.Array, x: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    values = x.astype(wide(x.dtype))
    mean = values.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(values - mean).mean(-1, keepdims=True) + epsilon)
    return (values - mean) * inverse * scale + bias, (scale, x, mean, inverse)


def _norm_backward(epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    scale, x, mean, inverse = kept
    normed, of_normed = (x.astype(wide(x.dtype)) - mean) * inverse, gradient * scale
    along = (of_normed * normed).mean(-1, keepdims=True)
    of_x = inverse * (of_normed - of_normed.mean(-1, keepdims=True) - normed * along)
    return column_sums(gradient * normed), column_sums(gradient), of_x.astype(x.dtype)


_layer_norm.defvjp(_norm_forward, _norm_backward)


def dense(p: Params, x: jax.Array) -> jax.Array:
    """Returns x @ kernel + bias in the dtype of x."""
    return checkpoint_name(_dense(p["kernel"].astype(x.dtype), p["bias"].astype(x.dtype), x), DENSE)


# By hand for the CPU: with JAX's own derivative a whole step takes a third more time (docs/benchmarks/speed.md).
@jax.custom_vjp
def _dense(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return x @ kernel + bias


def _dense_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    kernel, x = kept
    rows = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
    of_kernel = jax.lax.platform_dependent(*rows, cpu=_narrow_first, default=lambda x, y: x.T @ y)
    return of_kernel, column_sums(gradient), gradient @ kernel.T


def _narrow_first(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x.T @ y, computed as its transpose if x is wider: XLA's product with a wide first factor is slow."""
    if x.shape[1] <= y.shape[1]:
        return x.T @ y
    return jax.lax.optimization_barrier(y.T @ x).T


_dense.defvjp(lambda kernel, bias, x: (_dense(kernel, bias, x), (kernel, x)), _dense_backward)


def column_sums(x: jax.Array) -> jax.Array:
    """Returns the sums (D,) of x (..., D) over all rows."""
    x = x.reshape(-1, x.shape[-1])
    return jax.lax.platform_dependent(x, cpu=lambda x: jnp.ones(len(x), x.dtype) @ x, default=lambda x: x.sum(0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def xla_attention(
    qkv: jax.Array, mask: jax.Array | None, bias: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Returns attention as batched products: qkv (B, N, 3, H, d), mask (B, N) -> (B, N, H * d).

    bias (B or 1, H, N, N) float32 is added to the scores. causal: a token attends only to itself and to earlier ones.
    On CPU this is three times as fast as `jax.nn.dot_product_attention`.
    """
    return _attention_forward(qkv, mask, bias, causal)[0]


# Of arrays (B, H, N, N) only the softmax in the dtype of qkv is kept; JAX would keep it in float32 too. Batch and heads
# are one axis because XLA then fuses the mask with the product on a GPU, instead of writing it out for each score.
def _attention_forward(
    qkv: jax.Array, mask: jax.Array | None, bias: jax.Array | None, causal: bool
) -> tuple[jax.Array, Any]:
    batch, tokens, _, heads, size = qkv.shape
    q, k, v = qkv.transpose(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, size)
    q = q * size**-0.5
    scores = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=wide(qkv.dtype))
    if bias is not None:
        scores = (scores.reshape(batch, heads, tokens, tokens) + bias).reshape(scores.shape)
    if mask is not None:
        scores = scores + jnp.repeat(jnp.where(mask, 0.0, MASKED), heads, axis=0)[:, None, :]
    if causal:
        scores = scores + jnp.where(jnp.tri(tokens, dtype=bool), 0.0, MASKED)
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    mixed = jnp.einsum("bqk,bkd->bqd", weights, v).reshape(batch, heads, tokens, size)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
    empty = None if bias is None else bias[:, :, :0, :0]  # the backward pass needs no more than its shape
    return mixed, (q, k, v, weights, mixed, empty)


def _attention_backward(causal: bool, kept: Any, gradient: jax.Array) -> tuple[jax.Array, None, jax.Array | None]:
    del causal  # the weights beyond the diagonal are 0
    q, k, v, weights, mixed, empty = kept
    (batch, tokens, _), size = gradient.shape, q.shape[-1]

    def by_head(x: jax.Array) -> jax.Array:
        """(B, N, H * d) -> (B * H, N, d)"""
        return x.reshape(batch, tokens, -1, size).transpose(0, 2, 1, 3).reshape(q.shape)

    mixed, gradient = by_head(mixed), by_head(gradient)
    # The sum over keys of weights * their gradients, as a product of two far smaller arrays (arXiv:2205.14135, B.4).
    dtype = wide(q.dtype)
    along = (gradient.astype(dtype) * mixed.astype(dtype)).sum(-1, keepdims=True)
    of_weights = jnp.einsum("bqd,bkd->bqk", gradient, v)
    of_scores = weights.astype(dtype) * (of_weights.astype(dtype) - along)
    of_bias = None
    if empty is not None:
        of_bias = of_scores.reshape(batch, -1, tokens, tokens)
        of_bias = of_bias.sum(0, keepdims=True) if len(empty) == 1 else of_bias
    of_scores = of_scores.astype(q.dtype)
    of_q = jnp.einsum("bqk,bkd->bqd", of_scores, k) * size**-0.5
    of_k = jnp.einsum("bqk,bqd->bkd", of_scores, q)
    of_v = jnp.einsum("bqk,bqd->bkd", weights, gradient)
    of_qkv = jnp.stack([of_q, of_k, of_v]).reshape(3, batch, -1, tokens, size)
    return of_qkv.transpose(1, 3, 0, 2, 4), None, of_bias


xla_attention.defvjp(_attention_forward, _attention_backward)


def cudnn_attention(
    qkv: jax.Array, mask: jax.Array | None, bias: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Returns attention by cuDNN's fused kernel where the program is for an NVIDIA GPU, elsewhere `xla_attention`.

    bfloat16 only: raises NotImplementedError for float32 where cuDNN is installed. JAX cannot put the kernel into one
    program for several platforms; exports use `xla_attention`.
    """
    if not cudnn_is_known():
        return xla_attention(qkv, mask, bias, causal)
    cudnn = functools.partial(cudnn_call, causal=causal)
    return jax.lax.platform_dependent(qkv, mask, bias, cuda=cudnn, default=lambda *x: xla_attention(*x, causal))


@functools.cache
def cudnn_is_known() -> bool:
    """Returns whether JAX finds cuDNN; without it, JAX refuses even to trace the call."""
    try:
        jax.eval_shape(cudnn_call, jax.ShapeDtypeStruct((1, 2, 3, 1, 64), jnp.bfloat16), None)
    except RuntimeError:
        return False
    return True


def cudnn_call(
    qkv: jax.Array, mask: jax.Array | None, bias: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Returns cuDNN's attention, as `xla_attention` does.

    In training JAX refuses an odd number of tokens, so one of padding is added, and cut off. Padding is given as
    lengths, for a mask would be written out for each score.
    """
    batch, tokens, _, heads, size = qkv.shape
    if tokens % 2:
        mask = jnp.ones((batch, tokens), bool) if mask is None else mask
        qkv = jnp.pad(qkv, [(0, 0), (0, 1), (0, 0), (0, 0), (0, 0)])
        bias = None if bias is None else jnp.pad(bias, [(0, 0), (0, 0), (0, 1), (0, 1)])
    lengths = None if mask is None else mask.sum(-1, dtype=jnp.int32)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    bias = None if bias is None else bias.astype(qkv.dtype)  # cuDNN takes no other
    mixed = jax.nn.dot_product_attention(
        q, k, v, bias, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return mixed[:, :tokens].reshape(batch, tokens, heads * size)


Kernel = Callable[..., jax.Array]  # (qkv, mask, bias, causal) as of `xla_attention`
ATTENTION_KERNELS: dict[str, Kernel] = {"xla": xla_attention, "cudnn": cudnn_attention}


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


def gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the GELU's approximation by tanh (Hendrycks and Gimpel 2016), which SigLIP has, and its slope."""
    factor, cubic = (8 / jnp.pi) ** 0.5, 0.044715
    gate = jax.nn.sigmoid(factor * (x + cubic * x**3))  # (1 + tanh(half of this)) / 2, exact where tanh is near -1
    return x * gate, gate + x * gate * (1 - gate) * factor * (1 + 3 * cubic * x**2)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "gelu_tanh": gelu_tanh}


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def activate(x: jax.Array, activation: str = "gelu") -> jax.Array:
    """Returns the activation of x in its dtype, computed in float32. Only the slope is kept for the gradient."""
    return ACTIVATIONS[activation](x.astype(wide(x.dtype)))[0].astype(x.dtype)


@activate.defjvp
def _activate_jvp(activation: str, x: tuple[jax.Array], tangent: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = ACTIVATIONS[activation](x[0].astype(wide(x[0].dtype)))
    value, slope = value.astype(x[0].dtype), slope.astype(x[0].dtype)
    if x[0].dtype != wide(x[0].dtype):
        # Without the barrier XLA writes what both share to a GPU's memory, in float32. On a CPU it costs time.
        value, slope = jax.lax.optimization_barrier((value, slope))
    return value, slope * tangent[0]


@jax.custom_vjp
def unstack(x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the rows of x. Their gradients are stacked once; JAX would sum one array as large as x for each row."""
    return tuple(x)


unstack.defvjp(lambda x: (tuple(x), None), lambda _, gradients: (jnp.stack(gradients),))
