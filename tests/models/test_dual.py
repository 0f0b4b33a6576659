"""Two towers: what causal attention, pooling and selections change; features are tested in tests/conversion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.models import ops
from ivt_jax.models.config import IVTConfig, TextConfig
from ivt_jax.models.dual import Dual
from ivt_jax.models.selection import pooled_places
from tests.models.test_ivt import jitter, slow_dense, slow_norm

TEXT = TextConfig(width=12, depth=2, num_heads=3, mlp_ratio=2.0, activation="quick_gelu", causal=True, pooling="end")
SIZES = {
    "image_size": (24, 12), "patch_size": 6, "stride": 6, "width": 16, "depth": 2, "num_heads": 2, "vocab_size": 50,
    "max_text_length": 16, "dropout": 0.0, "drop_path": 0.0, "towers": 2, "projection": 16,
    "image_activation": "gelu_tanh",
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 24, 12, 3)).astype(np.float32)
LENGTHS = np.array([7, 10, 3])
MASK = np.arange(10) < LENGTHS[:, None]
IDS = np.where(MASK, RNG.integers(5, 50, MASK.shape), 0).astype(np.int32)


def slow_gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def slow_quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def slow_attention(p, queries, x, heads, allowed):
    """(M, D) attends to (N, D) where allowed (M, N)."""
    width = x.shape[-1]
    kernel, bias = np.asarray(p["qkv"]["kernel"], np.float64), np.asarray(p["qkv"]["bias"], np.float64)
    q = queries @ kernel[:, :width] + bias[:width]
    k, v = np.split(x @ kernel[:, width:] + bias[width:], 2, axis=1)
    mixed = []
    for a, b, c in zip(*(np.split(m, heads, axis=1) for m in (q, k, v)), strict=True):
        weights = np.exp(a @ b.T / np.sqrt(a.shape[1])) * allowed
        mixed.append(weights / weights.sum(1, keepdims=True) @ c)
    return slow_dense(p["proj"], np.concatenate(mixed, axis=1))


def slow_blocks(p, x, heads, activation, allowed):
    for i in range(len(p["norm1"]["scale"])):
        layer = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), {k: p[k] for k in p if k != "norm"})
        normed = slow_norm(layer["norm1"], x)
        x = x + slow_attention(layer["attn"], normed, normed, heads, allowed)
        hidden = activation(slow_dense(layer["mlp"]["fc1"], slow_norm(layer["norm2"], x)))
        x = x + slow_dense(layer["mlp"]["fc2"], hidden)
    return slow_norm(p["norm"], x)


def slow_text(params, ids, places):
    """The tokens of one text: those at `places`, each attending to the ones before it; the last is the embedding."""
    e = {name: np.asarray(x, np.float64) for name, x in params["text_embedding"].items()}
    x = (e["word"][ids] + e["position"][: len(ids)])[places]
    tokens = slow_blocks(params["text_blocks"], x, 3, slow_quick_gelu, np.tri(len(places)))
    return tokens[-1] @ np.asarray(params["text_projection"]["kernel"], np.float64)


def slow_image(params, image, places):
    """The embedding by SigLIP's head of one image, seen through the patches at `places`."""
    e = {name: np.asarray(x, np.float64) for name, x in params["image_embedding"].items()}
    squares = [image[y : y + 6, x : x + 6].ravel() for y in range(0, 24, 6) for x in range(0, 12, 6)]
    x = (np.stack(squares) @ e["kernel"] + e["bias"] + e["pos_embed"][0])[places]
    x = slow_blocks(params["image_blocks"], x, 2, slow_gelu_tanh, 1.0)
    p = params["image_head"]
    pooled = slow_attention(p["attn"], np.asarray(p["probe"][0], np.float64), x, 2, 1.0)
    hidden = slow_gelu_tanh(slow_dense(p["mlp"]["fc1"], slow_norm(p["norm"], pooled)))
    return (pooled + slow_dense(p["mlp"]["fc2"], hidden))[0]


def model_of(text=TEXT, **changes):
    return Dual(IVTConfig(**{**SIZES, "pooling": "attention", "text": text, **changes}))


@functools.cache
def params():
    return jitter(jax.jit(model_of().init)(jax.random.key(0))["params"])


def embed(model, method, *args, **kwargs):
    return jax.jit(lambda p: model.apply({"params": p}, *args, **kwargs, method=method))(params())


def test_texts_are_embedded_at_their_last_token():
    expected = [slow_text(params(), ids, np.arange(length)) for ids, length in zip(IDS, LENGTHS, strict=True)]
    found = embed(model_of(), "embed_text", IDS, MASK)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    other = np.where(MASK, IDS, 9)  # whatever stands in the padding
    np.testing.assert_array_equal(embed(model_of(), "embed_text", other, MASK), found)


def test_the_pooled_token_of_a_selection_is_the_same_one():
    places = [[0, 2, 6, 7, 8], [0, 4, 5, 8, 9], [0, 1, 2, 3, 4]]
    valid = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    keep = np.array(places, np.int32), valid
    expected = [slow_text(params(), ids, np.array(row)[v]) for ids, row, v in zip(IDS, places, valid, strict=True)]
    np.testing.assert_allclose(embed(model_of(), "embed_text", IDS, MASK, keep=keep), expected, atol=2e-5)


def test_images_are_pooled_by_the_head():
    whole = [slow_image(params(), image, np.arange(8)) for image in IMAGES]
    np.testing.assert_allclose(embed(model_of(), "embed_image", IMAGES), whole, atol=2e-5)
    part = [slow_image(params(), image, [5, 1]) for image in IMAGES]
    keep = np.array([[5, 1, 3]], np.int32), np.array([[True, True, False]])
    np.testing.assert_allclose(embed(model_of(), "embed_image", IMAGES, keep=keep), part, atol=2e-5)


@pytest.mark.parametrize(("pooling", "places"), [("first", [0, 0, 0]), ("end", [6, 9, 2]), ("last", [9, 9, 9])])
def test_the_places_that_are_pooled(pooling, places):
    np.testing.assert_array_equal(pooled_places(MASK, pooling), places)


@pytest.mark.parametrize("mask", [MASK, None])
def test_the_gradient_of_causal_attention_is_that_of_the_literal_one(mask):
    qkv, gradient = (jnp.float32(RNG.standard_normal(shape)) for shape in ((3, 10, 3, 2, 4), (3, 10, 8)))

    def literal(qkv):
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
        allowed = jnp.tri(10, dtype=bool) & (True if mask is None else mask[:, None, None, :])
        weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(3, 10, 8)

    expected, slow_backward = jax.vjp(literal, qkv)
    actual, backward = jax.vjp(lambda qkv: ops.xla_attention(qkv, mask, None, True), qkv)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    np.testing.assert_allclose(backward(gradient)[0], slow_backward(gradient)[0], atol=5e-6)


@pytest.mark.parametrize("tokens", [10, 9])  # in training cuDNN takes only an even number
def test_what_cudnn_is_given_makes_causal_attention(monkeypatch, tokens):
    """JAX's own form of the same call stands in for cuDNN, which is not here."""
    call = jax.nn.dot_product_attention
    stand_in = lambda *args, implementation, **kwargs: call(*args, **kwargs, implementation="xla")  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    qkv, mask = np.float32(RNG.standard_normal((3, tokens, 3, 2, 4))), jnp.asarray(MASK[:, :tokens])
    expected = ops.xla_attention(qkv, mask, None, True)
    np.testing.assert_allclose(ops.cudnn_call(qkv, mask, None, True), expected, atol=2e-6)


def test_the_slope_of_siglips_gelu_is_that_of_differences():
    x = np.linspace(-8, 8, 81)
    np.testing.assert_allclose(ops.activate(jnp.float32(x), "gelu_tanh"), slow_gelu_tanh(x), atol=2e-6)
    slope = jax.vmap(jax.grad(lambda x: ops.activate(x, "gelu_tanh")))(jnp.float32(x))
    expected = (slow_gelu_tanh(x + 1e-5) - slow_gelu_tanh(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, expected, atol=2e-6)


@pytest.mark.parametrize("changes", [{"unroll": True}, {"remat": True}])
def test_unroll_and_remat_keep_values_and_gradients(changes):
    def gradient(model):
        def loss(p):
            image = model.apply({"params": p}, IMAGES, method="embed_image")
            return (image * model.apply({"params": p}, IDS, MASK, method="embed_text")).sum()

        return jax.jit(jax.value_and_grad(loss))(params())

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4),
        gradient(model_of(**changes)), gradient(model_of()),
    )  # fmt: skip


def test_bfloat16_is_close_and_returns_float32():
    for method, arguments in (("embed_image", (IMAGES,)), ("embed_text", (IDS, MASK))):
        expected, actual = (embed(model_of(dtype=d), method, *arguments) for d in ("float32", "bfloat16"))
        assert actual.dtype == jnp.float32
        assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()


def test_a_row_has_its_randomness_from_its_key_alone():
    model, keys = model_of(dropout=0.3, drop_path=0.5), jax.random.split(jax.random.key(0), 3)
    for method, arguments in (("embed_image", (IMAGES,)), ("embed_text", (IDS, MASK))):
        whole = embed(model, method, *arguments, keys=keys)
        part = embed(model, method, *(x[[2, 0]] for x in arguments), keys=keys[np.array([2, 0])])
        np.testing.assert_allclose(part, whole[np.array([2, 0])], atol=1e-5)
        assert (np.abs(whole - embed(model, method, *arguments)).max(1) > 1e-2).any()


def test_the_scale_is_at_most_100():
    model = model_of()
    initial = model.init(jax.random.key(0))["params"]["similarity"]
    assert float(jnp.exp(initial["log_scale"])) == pytest.approx(1 / 0.07) and initial["bias"] == -10
    for log_scale, expected in ((np.log(20.0), 20), (9.0, 100)):
        given = {**params(), "similarity": {"log_scale": jnp.float32(log_scale)}}
        assert float(model.apply({"params": given}, method="scale")) == pytest.approx(expected, rel=1e-6)
