"""The tower's blocks: attention and norms shared by both modalities, one MLP for each (IVT section 3.1).

The parameters of all blocks are stacked along a leading depth axis and a `lax.scan` walks them, so that their layout
does not depend on how the loop is compiled: `unroll`, `remat` and the kernel of attention change speed and memory,
never names, and numbers by no more than rounding.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-6
MASKED = -10000.0  # added to the scores of padding keys, as released; exp(-10000) is exactly 0 in float32

Params = Mapping[str, Any]


def layer_norm(p: Params, x: jax.Array, epsilon: float = NORM_EPSILON) -> jax.Array:
    """Layer norm in float32 with the two-pass variance; returns float32."""
    return _layer_norm(p["scale"], p["bias"], x, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(scale: jax.Array, bias: jax.Array, x: jax.Array, epsilon: float) -> jax.Array:
    return _norm_forward(scale, bias, x, epsilon)[0]


# Written by hand, so that x alone is kept, in its own dtype: JAX would keep three arrays of its size in float32.
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
    """x @ kernel + bias in the dtype of x."""
    return x @ p["kernel"].astype(x.dtype) + p["bias"].astype(x.dtype)


def attention(p: Params, x: jax.Array, mask: jax.Array | None, num_heads: int, kernel: str = "xla") -> jax.Array:
    """Multi-head self-attention over (B, N, D); mask (B, N) is False at padding, which comes last, None = no padding.

    kernel: one of ATTENTION_KERNELS.
    """
    qkv = dense(p["qkv"], x).reshape(*x.shape[:2], 3, num_heads, -1)
    return dense(p["proj"], ATTENTION_KERNELS[kernel](qkv, mask).reshape(x.shape))


def products(qkv: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention as batched (N, d) products: on CPU three times as fast as `jax.nn.dot_product_attention`.

    qkv (B, N, 3, H, d), mask (B, N) -> (B, N, H, d).
    """
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = scores + jnp.where(mask, 0.0, MASKED)[:, None, None, :]
    weights = jax.nn.softmax(scores).astype(qkv.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)


def cudnn(qkv: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`products` by cuDNN's fused kernel where there is a GPU (bfloat16 alone); elsewhere `products` itself.

    Padding is told by lengths, for cuDNN takes no mask at an odd number of tokens in training.
    """
    if jax.default_backend() != "gpu":
        return products(qkv, mask)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    lengths = None if mask is None else mask.sum(-1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


ATTENTION_KERNELS = {"xla": products, "cudnn": cudnn}


# erf(x) = x p(x^2) / q(x^2) where |x| <= 4, and 1 beyond; coefficients from x^0 up, fitted to within 2.5e-8 of erf.
# JAX's erf becomes an operation that TensorFlow does not know yet, and its erfc makes the demo's step a tenth slower.
ERF_P = (1.1283791, 0.19354464, 0.05310164, 0.0038833097, 0.00028456259, 1.986755e-06)
ERF_Q = (1.0, 0.504857, 0.11534978, 0.015207187, 0.0011855579, 3.741971e-05)


def erf(x: jax.Array) -> jax.Array:
    """The error function of x float32, to within 4e-7."""
    x = jnp.clip(x, -4.0, 4.0)
    square, p, q = jnp.square(x), jnp.float32(ERF_P[-1]), jnp.float32(ERF_Q[-1])
    for of_p, of_q in zip(ERF_P[-2::-1], ERF_Q[-2::-1], strict=True):
        p, q = p * square + of_p, q * square + of_q
    return x * p / q


def gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exact (erf) GELU and its slope."""
    cumulative = 0.5 + 0.5 * erf(x * 0.5**0.5)
    return x * cumulative, cumulative + x * jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5


def quick_gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CLIP's approximation of it, and its slope."""
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def activate(x: jax.Array, activation: str = "gelu") -> jax.Array:
    """The activation of x, computed in float32, in the dtype of x. The slope alone is kept for the gradient."""
    return ACTIVATIONS[activation](x.astype(jnp.float32))[0].astype(x.dtype)


@activate.defjvp
def _activate_jvp(activation: str, x: tuple[jax.Array], tangent: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = ACTIVATIONS[activation](x[0].astype(jnp.float32))
    return value.astype(x[0].dtype), slope.astype(x[0].dtype) * tangent[0]


def mlp(p: Params, x: jax.Array, activation: str = "gelu") -> jax.Array:
    """fc2(activation(fc1(x)))."""
    return dense(p["fc2"], activate(dense(p["fc1"], x), activation))


def modality_mlp(p: Params, x: jax.Array, num_image: int, image_activation: str) -> jax.Array:
    """The first `num_image` tokens go through `mlp_vis`, the rest through `mlp_txt`, whose activation is the GELU."""
    parts = []
    if num_image > 0:
        parts.append(mlp(p["mlp_vis"], x[:, :num_image], image_activation))
    if num_image < x.shape[1]:
        parts.append(mlp(p["mlp_txt"], x[:, num_image:]))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def drop_path(x: jax.Array, rate: jax.Array, draw: jax.Array | None) -> jax.Array:
    """Stochastic depth: a row of (B, N, D) loses this residual branch where its draw (B,), in 0..1, is below `rate`."""
    if draw is None:
        return x
    return jnp.where((draw >= rate)[:, None, None], x / (1 - rate), 0).astype(x.dtype)


def block(
    p: Params,
    x: jax.Array,
    rate: jax.Array,
    draws: jax.Array | None,
    *,
    mask: jax.Array | None,
    num_image: int,
    num_heads: int,
    kernel: str,
    image_activation: str,
    epsilon: float,
) -> jax.Array:
    """One pre-norm block over (B, N, D), the image tokens first; `draws` (2, B) are those of its two branches."""
    of_attention, of_mlp = (None, None) if draws is None else draws
    normed = layer_norm(p["norm1"], x, epsilon).astype(x.dtype)
    x = x + drop_path(attention(p["attn"], normed, mask, num_heads, kernel), rate, of_attention)
    normed = layer_norm(p["norm2"], x, epsilon).astype(x.dtype)
    return x + drop_path(modality_mlp(p, normed, num_image, image_activation), rate, of_mlp)


@jax.custom_vjp
def unstack(x: jax.Array) -> tuple[jax.Array, ...]:
    """The rows of x; their gradients are stacked once, where JAX would sum arrays as large as x, zero but for a row."""
    return tuple(x)


unstack.defvjp(lambda x: (tuple(x), None), lambda _, gradients: (jnp.stack(gradients),))


class Blocks(nn.Module):
    """`depth` blocks and the final norm."""

    depth: int
    width: int
    num_heads: int
    mlp_ratio: float
    drop_path: float
    remat: bool
    unroll: bool
    init_std: float
    image_activation: str
    norm_epsilon: float
    attention: str

    def setup(self):
        hidden = int(self.width * self.mlp_ratio)
        sizes = self.init_std, self.depth, self.width
        layers = {
            "norm1": lambda key: _norm_params(self.depth, self.width),
            "attn": lambda key: _dense_pair(key, *sizes, 3 * self.width, self.width, ("qkv", "proj")),
            "norm2": lambda key: _norm_params(self.depth, self.width),
            "mlp_vis": lambda key: _dense_pair(key, *sizes, hidden, hidden, ("fc1", "fc2")),
            "mlp_txt": lambda key: _dense_pair(key, *sizes, hidden, hidden, ("fc1", "fc2")),
        }
        self.layers = {name: self.param(name, init) for name, init in layers.items()}
        self.final = self.param("norm", lambda key: jax.tree.map(lambda x: x[0], _norm_params(1, self.width)))

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, num_image: int, keys: jax.Array | None = None
    ) -> jax.Array:
        """(B, N, D) -> (B, N, D) float32 after the final norm.

        mask (B, N) is False at padding, which comes last, None = no padding; keys (B,) for stochastic depth, None = all
        are kept.
        """
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        draws = None
        if keys is not None and self.drop_path > 0:
            draws = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)), out_axes=-1)(keys)
        run: Any = functools.partial(
            block,
            mask=mask,
            num_image=num_image,
            num_heads=self.num_heads,
            kernel=self.attention,
            image_activation=self.image_activation,
            epsilon=self.norm_epsilon,
        )
        if self.remat:
            # Matrix products are kept, everything cheap is computed again: half the memory for no measurable time.
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)

        def step(carry, layer):
            return run(layer[0], carry, layer[1], layer[2]), None

        if self.unroll:
            leaves, tree = jax.tree.flatten((self.layers, rates, draws))
            for layer in zip(*map(unstack, leaves), strict=True):
                # Behind the barrier XLA does not sum up the gradients of all later blocks anew for every product.
                x = jax.lax.optimization_barrier(step(x, jax.tree.unflatten(tree, layer))[0])
        else:
            x, _ = jax.lax.scan(step, x, (self.layers, rates, draws))
        return layer_norm(self.final, x, self.norm_epsilon)


def _norm_params(depth: int, width: int) -> dict:
    return {"scale": jnp.ones((depth, width)), "bias": jnp.zeros((depth, width))}


def _dense_pair(
    key: jax.Array, deviation: float, depth: int, width: int, middle: int, inner: int, names: tuple[str, str]
) -> dict:
    """Two stacked linear layers width -> middle and inner -> width: normal, bias 0."""
    init = nn.initializers.normal(deviation)
    first, second = jax.random.split(key)
    return {
        names[0]: {"kernel": init(first, (depth, width, middle)), "bias": jnp.zeros((depth, middle))},
        names[1]: {"kernel": init(second, (depth, inner, width)), "bias": jnp.zeros((depth, width))},
    }
