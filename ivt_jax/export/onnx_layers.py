"""The layers of a tower as nodes of an ONNX graph: blocks, attention, pooling. Each follows ivt_jax/models/ by name.

A function adds nodes to a graph (onnx_graph.Graph) and returns the name of the last one's output. Sizes and options are
those of the graph's config; in a model with two towers, that is the tower's own.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivt_jax.models import relative
from ivt_jax.models.ops import MASKED

Params = Mapping[str, Any]


def encode(
    g: Any, blocks: Params, x: str, mlp_name: str, key_bias: str | None = None, length: str | None = None
) -> str:
    """Applies the blocks, without the final norm, to tokens (B, N, D). length: that of a text."""
    layers = {name: blocks[name] for name in ("norm1", "attn", "norm2", mlp_name)}
    tables, places = relative_positions(g, blocks.get("relative"), length)
    for i in range(g.config.depth):
        bias = key_bias
        if places is not None:
            bias = g("Gather", tables[i], places, axis=1)  # (heads, N, N)
            bias = bias if key_bias is None else g("Add", bias, key_bias)
        x = block(g, jax.tree.map(lambda leaf, i=i: leaf[i], layers), x, mlp_name, bias)
    return x


def causal_bias(g: Any, length: str) -> str:
    """Returns the bias (length, length) of a causal text: a token attends only to itself and to earlier ones."""
    longest = g.config.max_text_length
    whole = np.where(np.tri(longest, dtype=bool), 0, MASKED).astype(np.float32)
    return g("Slice", whole, [0, 0], g("Concat", length, length, axis=0))


def pooled_text(g: Any, x: str, mask: str, length: str, pooling: str) -> str:
    """Returns the token (B, D) of `pooling` ("first", "end" or "last") among texts (B, L, D)."""
    if pooling != "end":
        return g("Gather", x, np.int64(0 if pooling == "first" else -1), axis=1)
    places = g("Range", np.int64(0), g("Squeeze", length), np.int64(1))
    return g("GatherND", x, g("ReduceMax", g("Where", mask, places, np.int64(0)), [1], keepdims=1), batch_dims=1)


def attention_pooling(g: Any, p: Params, x: str) -> str:
    """Pools tokens (B, N, D), after the final norm, to (B, D)."""
    heads, width = g.config.num_heads, g.config.width
    size = width // heads
    kernel, bias = p["attn"]["qkv"]["kernel"], p["attn"]["qkv"]["bias"]
    query = ((p["probe"][0] @ kernel[:, :width] + bias[:width]) * size**-0.5).reshape(1, heads, 1, size)
    both = linear(g, {"kernel": kernel[:, width:], "bias": bias[width:]}, x)
    parts = (g("Reshape", part, [0, 0, heads, size]) for part in g("Split", both, outputs=2, axis=-1, num_outputs=2))
    k, v = (g("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    weights = g("Softmax", g("MatMul", query, g("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    pooled = linear(g, p["attn"]["proj"], g("Reshape", g("MatMul", weights, v), [0, width]))
    return g("Add", pooled, mlp(g, p["mlp"], layer_norm(g, p["norm"], pooled), g.config.image_activation))


def relative_positions(g: Any, tables: Params | None, length: str | None) -> tuple[Any, str | None]:
    """Returns the relative position biases (depth, heads, T) of images or texts, and the index (N, N) of each pair's.

    None and None for a model without them. length: that of the text; None = an image.
    """
    if tables is None:
        return None, None
    names, bias = ("image", "image_cls"), relative.image_bias
    if length is not None:
        names, bias = ("text", "text_cls"), functools.partial(relative.text_bias, length=g.config.max_text_length)
    joined = np.concatenate([tables[name].reshape(*tables[name].shape[:2], -1) for name in names], axis=-1)
    counts = np.arange(joined.shape[-1], dtype=np.float32)  # on these, `bias` gives the indices
    cut = tables[names[0]][0, 0].size
    numbered = {names[0]: counts[:cut].reshape(tables[names[0]][:1, :1].shape), names[1]: counts[None, None, cut:]}
    places = np.asarray(bias(jax.tree.map(jnp.asarray, numbered))[0, 0]).astype(np.int64)
    if length is None:
        return joined, g.constant(places)
    return joined, g("Slice", places, [0, 0], g("Concat", length, length, axis=0))


def block(g: Any, p: Params, x: str, mlp_name: str, bias: str | None) -> str:
    """Applies a block with the MLP of one modality to (B, N, D). bias: added to the scores (B, heads, N, N)."""
    x = g("Add", x, attention(g, p["attn"], layer_norm(g, p["norm1"], x), bias))
    activation = "gelu" if mlp_name == "mlp_txt" else g.config.image_activation
    return g("Add", x, mlp(g, p[mlp_name], layer_norm(g, p["norm2"], x), activation))


def attention(g: Any, p: Params, x: str, bias: str | None) -> str:
    """Applies multi-head self-attention to (B, N, D)."""
    size = g.config.width // g.config.num_heads
    parts = g("Split", linear(g, p["qkv"], x), outputs=3, axis=-1, num_outputs=3)
    q, k, v = (g("Reshape", part, [0, 0, g.config.num_heads, size]) for part in parts)  # 0: as in the input
    q = g("Mul", g("Transpose", q, perm=[0, 2, 1, 3]), np.float32(size**-0.5))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 2, 3, 1]))
    if bias is not None:
        scores = g("Add", scores, bias)
    mixed = g("MatMul", g("Softmax", scores, axis=-1), g("Transpose", v, perm=[0, 2, 1, 3]))
    return linear(g, p["proj"], g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, g.config.width]))


def mlp(g: Any, p: Params, x: str, activation: str) -> str:
    """Returns fc2(activation(fc1(x)))."""
    hidden = linear(g, p["fc1"], x)
    if activation == "quick_gelu":
        hidden = g("Mul", hidden, g("Sigmoid", g("Mul", hidden, np.float32(1.702))))
    else:
        hidden = g("Gelu", hidden, approximate="tanh" if activation == "gelu_tanh" else "none")  # none: exact, by erf
    return linear(g, p["fc2"], hidden)


def linear(g: Any, p: Params, x: str) -> str:
    """Returns x @ kernel + bias."""
    return g("Add", g("MatMul", x, p["kernel"]), p["bias"])


def layer_norm(g: Any, p: Params, x: str, epsilon: float | None = None) -> str:
    """Normalises the last axis; epsilon is the config's by default."""
    epsilon = g.config.norm_epsilon if epsilon is None else epsilon
    return g("LayerNormalization", x, p["scale"], p["bias"], axis=-1, epsilon=epsilon)
