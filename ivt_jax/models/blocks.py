"""The pre-norm blocks of a tower. In IVT's, both modalities share attention and norms, and each has its own MLP
(section 3.1); a tower of one modality has one MLP.

The parameters of all blocks are stacked along a leading depth axis, and `lax.scan` runs over them. Their names and
shapes therefore do not depend on `unroll`, `remat` or `attention`, which change speed and memory, and values only by
rounding.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ops import (
    ATTENTION_KERNELS,
    DENSE,
    Params,
    activate,
    dense,
    layer_norm,
    linear_params,
    norm_params,
    unstack,
)
from ivt_jax.models.relative import Bias, image_bias, joint_bias, of_rows, select_bias, table_shapes, text_bias
from ivt_jax.models.selection import Selection


def attention(
    p: Params,
    x: jax.Array,
    mask: jax.Array | None,
    num_heads: int,
    kernel: str = "xla",
    bias: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Returns multi-head self-attention over (B, N, D). `kernel` is one of ATTENTION_KERNELS.

    mask (B, N) is False at padding, which comes last; None = no padding. bias (B or 1, heads, N, N) is added to the
    scores. causal: a token attends only to itself and to earlier ones.
    """
    qkv = dense(p["qkv"], x).reshape(*x.shape[:2], 3, num_heads, -1)
    return dense(p["proj"], ATTENTION_KERNELS[kernel](qkv, mask, bias, causal))


def mlp(p: Params, x: jax.Array, activation: str = "gelu") -> jax.Array:
    """Returns fc2(activation(fc1(x)))."""
    return dense(p["fc2"], activate(dense(p["fc1"], x), activation))


def modality_mlp(p: Params, x: jax.Array, num_image: int, image_activation: str) -> jax.Array:
    """Applies `mlp_vis` to the first `num_image` tokens, and `mlp_txt` with the GELU to the rest.

    In a tower of one modality, applies `mlp` to all tokens.
    """
    if "mlp" in p:
        return mlp(p["mlp"], x, image_activation)
    parts = []
    if num_image > 0:
        parts.append(mlp(p["mlp_vis"], x[:, :num_image], image_activation))
    if num_image < x.shape[1]:
        parts.append(mlp(p["mlp_txt"], x[:, num_image:]))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def attention_params(key: jax.Array, c: IVTConfig, stack: tuple[int, ...] = ()) -> dict[str, Any]:
    """Returns the initial parameters of `attention`. stack: leading axes of every array, such as (depth,)."""
    return linear_params(key, c.init_std, stack, qkv=(c.width, 3 * c.width), proj=(c.width, c.width))


def mlp_params(key: jax.Array, c: IVTConfig, stack: tuple[int, ...] = ()) -> dict[str, Any]:
    """Returns the initial parameters of `mlp`; stack as of `attention_params`."""
    return linear_params(key, c.init_std, stack, fc1=(c.width, c.hidden), fc2=(c.hidden, c.width))


def cast(p: Params, dtype: jnp.dtype) -> Params:
    """Returns the parameters in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype), p)


def drop_path(x: jax.Array, rate: jax.Array, draw: jax.Array | None) -> jax.Array:
    """Stochastic depth: zeroes the rows of (B, N, D) whose draw (B,), in 0..1, is below `rate`; scales the others."""
    if draw is None:
        return x
    # A product keeps one factor a row for the gradient; JAX would keep the choice of `where` for each element.
    factor = jnp.where(draw >= rate, 1 / (1 - rate), 0)[:, None, None]
    return (x * factor).astype(x.dtype)


def block(
    p: Params,
    x: jax.Array,
    drop: tuple[jax.Array, jax.Array | None],
    scores: jax.Array | None,
    *,
    mask: jax.Array | None,
    tokens: jax.Array | None,
    num_image: int,
    model_config: IVTConfig,
    causal: bool = False,
) -> jax.Array:
    """Applies one pre-norm block to (B, N, D), image tokens first.

    drop: the rate () and draws (2, B) of drop_path. scores, tokens: the layer's relative position bias, as in `Bias`.
    """
    c, (rate, draws) = model_config, drop
    attention_draw, mlp_draw = (None, None) if draws is None else draws
    y = layer_norm(p["norm1"], x, c.norm_epsilon).astype(x.dtype)
    bias = None if scores is None else of_rows(scores, tokens)
    y = attention(p["attn"], y, mask, c.num_heads, c.attention, bias, causal)
    x = x + drop_path(y, rate, attention_draw)
    y = layer_norm(p["norm2"], x, c.norm_epsilon).astype(x.dtype)
    y = modality_mlp(p, y, num_image, c.image_activation)
    return x + drop_path(y, rate, mlp_draw)


class Blocks(nn.Module):
    """All blocks of a tower and the final norm. mlps: names of the MLPs in a block. causal: as in `attention`."""

    config: IVTConfig
    mlps: tuple[str, ...] = ("mlp_vis", "mlp_txt")
    causal: bool = False

    def setup(self):
        c = self.config
        norms, stack = (norm_params, c.depth, c.width), (c.depth,)
        layers: dict[str, Any] = {"norm1": norms, "attn": (attention_params, c, stack), "norm2": norms}
        layers |= dict.fromkeys(self.mlps, (mlp_params, c, stack))
        self.layers = {name: self.param(name, *init) for name, init in layers.items()}
        self.final = self.param("norm", norm_params, c.width)
        if c.relative_positions:  # zeros, as in VLMo: no effect at first
            zeros = {name: functools.partial(jnp.zeros, shape) for name, shape in table_shapes(c).items()}
            self.relative = self.param("relative", lambda _: {name: make() for name, make in zeros.items()})

    def bias(self, *, image: bool = False, length: int | None = None, keep: Selection | None = None) -> Bias | None:
        """Returns the relative position bias of a pass over an image, a text of `length` tokens, or both; or None."""
        if not self.config.relative_positions:
            return None
        if length is None:
            if not image:
                raise ValueError("a pass has an image, a text, or both")
            return select_bias(image_bias(self.relative), keep)
        return select_bias((joint_bias if image else text_bias)(self.relative, length), keep)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        num_image: int,
        keys: jax.Array | None = None,
        bias: Bias | None = None,
    ) -> jax.Array:
        """Applies the blocks and the final norm: (B, N, D), image tokens first -> (B, N, D) float32.

        mask (B, N) is False at padding, which comes last; None = no padding. keys (B,) draw the dropped branches of
        stochastic depth; None = none is dropped. bias: the relative position bias of these tokens.
        """
        c = self.config
        rates, draws = jnp.linspace(0.0, c.drop_path, c.depth), None
        if keys is not None and c.drop_path > 0:
            draws = jax.vmap(lambda key: jax.random.uniform(key, (c.depth, 2)), out_axes=-1)(keys)
        scores, tokens = bias or (None, None)
        run: Any = functools.partial(
            block, mask=mask, tokens=tokens, num_image=num_image, model_config=c, causal=self.causal
        )
        if c.remat:
            # Matrix products are kept, cheap operations are recomputed: half the memory for no measurable time.
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(DENSE))
        # Cast here, not in each block: the loop then keeps no copies of the weights for the gradient.
        weights = {name: p if name.startswith("norm") else cast(p, x.dtype) for name, p in self.layers.items()}
        layers = (weights, (rates, draws), scores)
        if c.unroll:
            leaves, tree = jax.tree.flatten(layers)
            for layer in zip(*map(unstack, leaves), strict=True):
                p, *others = jax.tree.unflatten(tree, layer)
                # Without the barrier XLA sums the gradients of all later blocks again for every product.
                x = jax.lax.optimization_barrier(run(p, x, *others))
        else:
            x, _ = jax.lax.scan(lambda x, layer: (run(layer[0], x, *layer[1:]), None), x, layers)
        return layer_norm(self.final, x, c.norm_epsilon)
