"""Relative positions and the projection against literal NumPy versions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.models import ops, relative
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT
from tests.models.test_ivt import IDS, IMAGES, MASK, TINY, encoder, erf, jitter, slow_norm

GRID, DEPTH, HEADS, LONGEST = (4, 2), 2, 4, 16
CONFIG = IVTConfig(**TINY, relative_positions=True, projection=8)
TABLES = {
    name: np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    for name, shape in relative.table_shapes(CONFIG).items()
}


@pytest.fixture(scope="module")
def tower():
    model = IVT(CONFIG)
    params = jitter(jax.jit(model.init)(jax.random.key(0))["params"])
    return model, {**params, "blocks": {**params["blocks"], "relative": jax.tree.map(jnp.asarray, TABLES)}}


def between(query, key, length):
    """The numbers (depth, heads) for two tokens of a joint sequence, image first; each (kind, place)."""
    patches = GRID[0] * GRID[1]
    kinds = ["image" if token <= patches else "text" for token in (query, key)]
    if kinds[0] != kinds[1]:
        return TABLES["cross"][..., 0 if kinds[0] == "text" else 1]
    kind, first = kinds[0], 0 if kinds[0] == "image" else 1 + patches
    q, k = query - first, key - first
    if 0 in (q, k):
        return TABLES[f"{kind}_cls"][..., 2 if q == k else 0 if q == 0 else 1]
    if kind == "text":
        return TABLES["text"][..., q - k + LONGEST - 2]
    (y, x), (other_y, other_x) = divmod(q - 1, GRID[1]), divmod(k - 1, GRID[1])
    return TABLES["image"][..., y - other_y + GRID[0] - 1, x - other_x + GRID[1] - 1]


def literal(tokens, length):
    """(depth, heads, N, N) of the tokens of a joint sequence."""
    return np.stack([np.stack([between(q, k, length) for k in tokens], -1) for q in tokens], -2)


def test_each_pair_of_tokens_has_the_number_of_its_offset():
    joint = literal(range(9 + 10), 10)
    np.testing.assert_array_equal(relative.joint_bias(TABLES, 10), joint)
    np.testing.assert_array_equal(relative.image_bias(TABLES), joint[:, :, :9, :9])
    np.testing.assert_array_equal(relative.text_bias(TABLES, 10), joint[:, :, 9:, 9:])


@pytest.mark.parametrize("length", [1, 2, 16])
def test_a_text_of_any_length_is_the_beginning_of_the_longest(length):
    longest = relative.text_bias(TABLES, LONGEST)
    np.testing.assert_array_equal(relative.text_bias(TABLES, length), longest[:, :, :length, :length])


def test_an_offset_gets_the_sum_of_the_gradients_of_its_pairs():
    gradient = np.arange(9.0).reshape(3, 3)  # rows are queries
    (actual,) = jax.vjp(relative.by_offset, jnp.zeros(5))[1](jnp.asarray(gradient, jnp.float32))
    np.testing.assert_array_equal(actual, [2, 1 + 5, 0 + 4 + 8, 3 + 7, 6])  # offsets -2 to 2


def slow_attention(qkv, mask, bias):
    q, k, v = np.moveaxis(qkv, 2, 0).swapaxes(2, 3)  # (B, H, N, d) each
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + bias) * mask[:, None, None]
    return (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(*qkv.shape[:2], -1)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_adds_the_bias_and_gives_it_its_gradient(rows, masked):
    """By central differences of a float64 version, along 10 directions of all inputs at once."""
    rng = np.random.default_rng(3)
    qkv, bias, weights = (rng.standard_normal(s) for s in ((4, 10, 3, 2, 8), (rows, 2, 10, 10), (4, 10, 16)))
    mask = MASK if masked else np.ones((4, 10), bool)
    given = None if not masked else jnp.asarray(mask)
    narrow = jnp.asarray(qkv, jnp.float32), jnp.asarray(bias, jnp.float32)
    mixed, backward = jax.vjp(lambda qkv, bias: ops.xla_attention(qkv, given, bias), *narrow)
    np.testing.assert_allclose(mixed, slow_attention(qkv, mask, bias), atol=2e-6)
    of_qkv, of_bias = (np.asarray(x, np.float64) for x in backward(jnp.asarray(weights, jnp.float32)))
    assert of_bias.shape == bias.shape
    for _ in range(10):
        along = rng.standard_normal(qkv.shape), rng.standard_normal(bias.shape)
        ends = ((slow_attention(qkv + h * along[0], mask, bias + h * along[1]) * weights).sum() for h in (1e-5, -1e-5))
        expected = (next(ends) - next(ends)) / 2e-5
        actual = (of_qkv * along[0]).sum() + (of_bias * along[1]).sum()
        assert actual == pytest.approx(expected, abs=2e-5 * np.sqrt((of_qkv**2).sum() + (of_bias**2).sum()))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("tokens", [10, 9])
def test_what_cudnn_is_given_has_the_bias(monkeypatch, rows, tokens):
    """JAX's own form of the same call stands in for cuDNN, which is not here."""
    call = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: call(*a, **k))
    rng = np.random.default_rng(2)
    qkv, bias = (
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, tokens, 3, 2, 8), (rows, 2, tokens, tokens))
    )
    mask, gradient = jnp.asarray(MASK[:, :tokens]), jnp.asarray(rng.standard_normal((4, tokens, 16)), jnp.float32)
    results = []
    for kernel in (ops.cudnn_call, ops.xla_attention):
        mixed, backward = jax.vjp(lambda qkv, bias, kernel=kernel: kernel(qkv, mask, bias), qkv, bias)
        results.append((mixed, *backward(gradient)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_program_for_a_gpu_gives_the_bias_to_cudnn(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    ops.cudnn_is_known.cache_clear()
    model = IVT(IVTConfig(**{**TINY, "dtype": "bfloat16", "attention": "cudnn", "relative_positions": True}))

    def loss(p):
        return sum((x**2).mean() for x in model.apply({"params": p}, IMAGES, IDS, MASK, method="encode_joint"))

    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    program = jax.jit(jax.grad(loss)).trace(shapes).lower(lowering_platforms=("cuda",)).as_text()
    ops.cudnn_is_known.cache_clear()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in program and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in program


def by_hand(params, tokens, bias, mask, num_image):
    """The blocks in float64 with the bias (depth, heads, N, N), or of each row (B, depth, heads, N, N)."""
    x, blocks = tokens, params["blocks"]
    bias = np.broadcast_to(bias, (len(x), *np.shape(bias)[-4:]))

    def dense(p, i, x):
        return x @ np.asarray(p["kernel"][i], np.float64) + np.asarray(p["bias"][i], np.float64)

    def mlp(name, i, x):
        hidden = dense(blocks[name]["fc1"], i, x)
        return dense(blocks[name]["fc2"], i, hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))

    for i in range(DEPTH):
        norm1, norm2 = ({k: v[i] for k, v in blocks[name].items()} for name in ("norm1", "norm2"))
        qkv = dense(blocks["attn"]["qkv"], i, slow_norm(norm1, x)).reshape(*x.shape[:2], 3, HEADS, -1)
        x = x + dense(blocks["attn"]["proj"], i, slow_attention(qkv, mask, bias[:, i]))
        y = slow_norm(norm2, x)
        x = x + np.concatenate([mlp("mlp_vis", i, y[:, :num_image]), mlp("mlp_txt", i, y[:, num_image:])], 1)
    return slow_norm(blocks["norm"], x)


@pytest.fixture(scope="module")
def tokens(tower):
    """The tokens of images and of texts that enter the blocks."""
    model, params = tower

    def embed(model):
        return model.image_embedding(IMAGES, None, jnp.float32), model.text_embedding(IDS, jnp.float32)

    return [np.asarray(x, np.float64) for x in model.apply({"params": params}, method=embed)]


JOINT = literal(range(19), 10)


def test_every_pass_is_the_literal_one(tower, tokens):
    model, params = tower
    image, text = tokens
    everything = np.ones((4, 9), bool)
    expected = by_hand(params, image, JOINT[:, :, :9, :9], everything, 9)
    np.testing.assert_allclose(encoder(model, "encode_image")(params, IMAGES), expected, atol=3e-5)
    expected = by_hand(params, text, JOINT[:, :, 9:, 9:], MASK, 0)
    np.testing.assert_allclose(encoder(model, "encode_text")(params, IDS, MASK), expected, atol=3e-5)
    both = np.concatenate(tokens, 1), JOINT, np.concatenate([everything, MASK], 1)
    actual = encoder(model, "encode_joint")(params, IMAGES, IDS, MASK)
    np.testing.assert_allclose(np.concatenate(actual, 1), by_hand(params, *both, 9), atol=3e-5)


def test_dropped_tokens_take_their_rows_and_columns_with_them(tower, tokens):
    """All rows keep the same tokens, in another order; or each keeps its own."""
    model, params = tower
    shared = np.array([[0, 5, 2, 8, 3]])
    own = np.array([[0, 5, 2], [0, 1, 8], [0, 7, 4], [0, 3, 6]])
    for keep in (shared, own):
        rows = np.broadcast_to(keep, (4, keep.shape[1]))
        image = np.stack([tokens[0][b, row] for b, row in enumerate(rows)])
        bias = np.stack([literal(row, 10) for row in rows])
        expected = by_hand(params, image, bias, np.ones(rows.shape, bool), rows.shape[1])
        actual = encoder(model, "encode_image")(params, IMAGES, keep=(jnp.asarray(keep), None))
        np.testing.assert_allclose(actual, expected, atol=3e-5)
        text = np.stack([tokens[1][b, row] for b, row in enumerate(rows)])
        bias = np.stack([literal(9 + row, 10) for row in rows])
        mask = np.stack([MASK[b, row] for b, row in enumerate(rows)])
        actual = encoder(model, "encode_text")(params, IDS, MASK, keep=(jnp.asarray(keep), jnp.ones(keep.shape, bool)))
        np.testing.assert_allclose(actual, by_hand(params, text, bias, mask, 0), atol=3e-5)


def test_dropped_tokens_give_the_tables_their_gradient(tower):
    """Each row's own tokens: the same, whether gathered together or row by row."""
    model, params = tower
    keep = jnp.asarray(np.array([[0, 5, 2], [0, 1, 8], [0, 7, 4], [0, 3, 6]]))

    def loss(params, images, keep):
        return (model.apply({"params": params}, images, keep=(keep, None), method="embed_image") ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    whole = gradient(params, IMAGES, keep)["blocks"]["relative"]
    alone = [gradient(params, IMAGES[i : i + 1], keep[i : i + 1])["blocks"]["relative"] for i in range(4)]
    for name in ("image", "image_cls"):
        expected = sum(np.asarray(part[name]) for part in alone)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(whole[name], expected, atol=2e-5 * np.abs(expected).max())
    assert not np.any(whole["text"]) and not np.any(whole["cross"])


def test_a_pass_without_image_and_text_has_no_bias(tower):
    model, params = tower
    with pytest.raises(ValueError, match="an image, a text, or both"):
        model.apply({"params": params}, method=lambda model: model.blocks.bias())


@pytest.mark.parametrize("changes", [{"remat": True}, {"unroll": True}, {"dtype": "bfloat16"}])
def test_switches_change_rounding_alone(tower, changes):
    model, params = tower
    other = IVT(IVTConfig(**{**TINY, "relative_positions": True, "projection": 8, **changes}))

    def loss(params, model):
        image, text = model.apply({"params": params}, IMAGES, IDS, MASK, method="encode_joint")
        return (image[:, 0] * text[:, 0]).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ours, theirs = gradient(params, model)["blocks"]["relative"], gradient(params, other)["blocks"]["relative"]
    for name, table in ours.items():
        tolerance = 0.05 if "dtype" in changes else 1e-5
        np.testing.assert_allclose(theirs[name], table, atol=tolerance * np.abs(table).max())


def test_at_first_no_offset_counts_and_absolute_positions_are_zero(tower):
    model, _ = tower
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    assert not any(np.any(x) for x in jax.tree.leaves(params["blocks"]["relative"]))
    assert not np.any(params["image_embedding"]["pos_embed"]) and not np.any(params["text_embedding"]["position"])
    without = {**params, "blocks": {k: v for k, v in params["blocks"].items() if k != "relative"}}
    plain = encoder(IVT(IVTConfig(**TINY)), "encode_image")(without, IMAGES)
    np.testing.assert_allclose(encoder(model, "encode_image")(params, IMAGES), plain, atol=1e-6)


def test_embeddings_are_the_projected_class_tokens(tower):
    model, params = tower
    for side, inputs in (("image", (IMAGES,)), ("text", (IDS, MASK))):
        kernel = np.asarray(params[f"{side}_projection"]["kernel"], np.float64)
        tokens = np.asarray(encoder(model, f"encode_{side}")(params, *inputs), np.float64)
        embeddings = encoder(model, f"embed_{side}")(params, *inputs)
        assert embeddings.shape == (4, 8) == (4, model.config.embedding_width) and embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, tokens[:, 0] @ kernel, atol=1e-5)


@pytest.mark.parametrize("log_scale, scale", [(math.log(1 / 0.07), 1 / 0.07), (0.0, 1.0), (9.0, 100.0)])
def test_the_scale_is_learned_up_to_100(tower, log_scale, scale):
    model, params = tower
    given = {**params, "similarity": {"log_scale": jnp.float32(log_scale)}}
    assert float(model.apply({"params": given}, method="scale")) == pytest.approx(scale, rel=1e-6)


def test_the_first_scale_is_clips_and_without_a_projection_there_is_none():
    params = jax.jit(IVT(CONFIG).init)(jax.random.key(0))["params"]
    assert float(params["similarity"]["log_scale"]) == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    shapes = jax.eval_shape(IVT(IVTConfig(**TINY)).init, jax.random.key(0))["params"]
    assert not shapes.keys() & {"similarity", "image_projection", "text_projection"}
    assert "relative" not in shapes["blocks"]
