"""The tower against literal NumPy versions of its parts; what its compilation switches may not change."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.models import blocks, ops
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.embeddings import dropout, extract_patches
from ivt_jax.models.heads import PatchHead, WordHead
from ivt_jax.models.ivt import IVT

TINY = {
    "image_size": (24, 12), "patch_size": 6, "stride": 6, "width": 32, "depth": 2, "num_heads": 4, "vocab_size": 50,
    "max_text_length": 16, "dropout": 0.0, "drop_path": 0.0,
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 24, 12, 3)).astype(np.float32)
LENGTHS = np.array([7, 10, 3, 10])
MASK = np.arange(10) < LENGTHS[:, None]
IDS = np.where(MASK, RNG.integers(5, 50, MASK.shape), 0).astype(np.int32)


erf = np.vectorize(math.erf, otypes=[float])


def slow_norm(p, x, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def slow_dense(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + p["bias"]


def slow_attention(p, x, mask, heads):
    """Query by query, head by head, over the keys that are not padding."""
    batch, tokens, width = x.shape
    size = width // heads
    q, k, v = np.split(slow_dense(p["qkv"], x), 3, axis=-1)
    mixed = np.zeros((batch, tokens, width))
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(tokens):
                scores = np.array([q[b, i, part] @ k[b, j, part] / math.sqrt(size) for j in range(tokens)])
                weights = np.exp(scores - scores.max()) * mask[b]
                mixed[b, i, part] = weights / weights.sum() @ v[b, :, part]
    return slow_dense(p["proj"], mixed)


def slow_gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def slow_quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def slow_mlp(p, x, activation=slow_gelu):
    return slow_dense(p["fc2"], activation(slow_dense(p["fc1"], x)))


def slow_blocks(p, x, mask, num_image, heads, image_activation=slow_gelu, epsilon=1e-6):
    for i in range(p["layers"]["norm1"]["scale"].shape[0]):
        layer = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), p["layers"])
        x = x + slow_attention(layer["attn"], slow_norm(layer["norm1"], x, epsilon), mask, heads)
        normed = slow_norm(layer["norm2"], x, epsilon)
        image, text = (
            slow_mlp(layer["mlp_vis"], normed[:, :num_image], image_activation),
            slow_mlp(layer["mlp_txt"], normed[:, num_image:]),
        )
        x = x + np.concatenate([image, text], axis=1)
    return slow_norm(p["norm"], x, epsilon)


def jitter(params, scale=0.1):
    """Initial values of 0 and 1 hide mistakes: every parameter gets noise of its own."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([x + scale * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])


def first_block(params):
    cut = {k: v if k == "norm" else jax.tree.map(lambda x: x[:1], v) for k, v in params["blocks"].items()}
    return {**params, "blocks": cut}


def encoder(model, method, **options):
    return jax.jit(lambda params, *args, **kw: model.apply({"params": params}, *args, **kw, **options, method=method))


@pytest.fixture(scope="module")
def tower():
    model = IVT(IVTConfig(**TINY))
    return model, jitter(jax.jit(model.init)(jax.random.key(0))["params"])


# ---- parts


@pytest.mark.parametrize("stride, millions", [(16, 166.45), (12, 166.63)])
def test_base_has_the_published_size(stride, millions):
    params = jax.eval_shape(IVT(IVTConfig(stride=stride)).init, jax.random.key(0))["params"]
    del params["word_head"], params["patch_head"], params["image_embedding"]["mask_token"]
    assert sum(x.size for x in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("size, patch, stride", [((24, 12), 6, 6), ((25, 15), 6, 4), ((27, 14), 6, 6), ((10, 9), 4, 3)])
def test_patches_are_those_of_a_literal_loop(size, patch, stride):
    images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    expected = [
        [
            image[top : top + patch, left : left + patch].ravel()
            for top in range(0, size[0] - patch + 1, stride)
            for left in range(0, size[1] - patch + 1, stride)
        ]
        for image in images
    ]
    np.testing.assert_array_equal(extract_patches(images, patch, stride), expected)


@pytest.mark.parametrize("mean", [0.0, 3000.0])  # a one-pass variance loses everything at the second
def test_layer_norm_is_the_float64_one(mean):
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((5, 64))).astype(np.float32)
    p = {"scale": rng.standard_normal(64).astype(np.float32), "bias": rng.standard_normal(64).astype(np.float32)}
    np.testing.assert_allclose(ops.layer_norm(p, x), slow_norm(p, x), atol=2e-3 if mean else 2e-6)
    assert ops.layer_norm(p, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_the_gradients_of_layer_norm_are_those_of_differences():
    rng = np.random.default_rng(0)
    x, scale, bias, weights = rng.standard_normal((3, 6)), *rng.standard_normal((2, 6)), rng.standard_normal((3, 6))

    def total(scale, bias, x):
        return (slow_norm({"scale": scale, "bias": bias}, x) * weights).sum()

    arguments = [scale, bias, x]
    norm = lambda s, b, x: (ops.layer_norm({"scale": s, "bias": b}, x) * weights).sum()  # noqa: E731
    gradients = jax.grad(norm, argnums=(0, 1, 2))(*map(jnp.float32, arguments))
    for number, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [np.array(a) for a in arguments]
                moved[number][index] += step
                ends.append(total(*moved))
            assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-5)
    assert jax.grad(lambda x: norm(scale, bias, x))(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name, slow", [("gelu", slow_gelu), ("quick_gelu", slow_quick_gelu)])
def test_the_slope_of_an_activation_is_that_of_differences(name, slow):
    x = np.linspace(-8, 8, 81)
    np.testing.assert_allclose(ops.activate(jnp.float32(x), name), slow(x), atol=2e-6)
    slope = jax.vmap(jax.grad(lambda x: ops.activate(x, name)))(jnp.float32(x))
    np.testing.assert_allclose(slope, (slow(x + 1e-5) - slow(x - 1e-5)) / 2e-5, atol=2e-6)
    assert ops.activate(jnp.asarray(x, jnp.bfloat16), name).dtype == jnp.bfloat16


def test_attention_is_the_literal_one_with_padding(tower):
    p = jax.tree.map(lambda x: x[0], tower[1]["blocks"]["attn"])
    x = np.random.default_rng(2).standard_normal((4, 10, 32)).astype(np.float32)
    actual = blocks.attention(p, x, jnp.asarray(MASK), 4)
    np.testing.assert_allclose(actual, slow_attention(p, x, MASK, 4), atol=2e-5)


def slow_gradient(qkv, mask, gradient):
    """The gradient of attention over (N, 3, H, d), mask (N,), gradient (N, H * d): the softmax's whole Jacobian."""
    tokens, _, heads, size = qkv.shape
    result, gradient = np.zeros(qkv.shape), gradient.reshape(tokens, heads, size)
    for h in range(heads):
        q, k, v = qkv[:, 0, h], qkv[:, 1, h], qkv[:, 2, h]
        for i in range(tokens):
            weights = np.exp(q[i] @ k.T / math.sqrt(size)) * mask
            weights /= weights.sum()
            jacobian = np.diag(weights) - np.outer(weights, weights)
            of_scores = jacobian @ (v @ gradient[i, h]) / math.sqrt(size)
            result[i, 0, h] = of_scores @ k
            result[:, 1, h] += np.outer(of_scores, q[i])
            result[:, 2, h] += np.outer(weights, gradient[i, h])
    return result


@pytest.mark.parametrize("mask", [MASK, None])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 0.06)])
def test_the_gradient_of_attention_is_that_of_the_whole_jacobian(mask, dtype, tolerance):
    rng = np.random.default_rng(5)
    qkv, gradient = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((4, 10, 3, 2, 8), (4, 10, 16)))
    _, backward = jax.vjp(lambda qkv: ops.xla_attention(qkv, None if mask is None else jnp.asarray(mask)), qkv)
    (actual,) = backward(gradient)
    assert actual.dtype == dtype
    wide = (np.asarray(x, np.float64) for x in (qkv, np.ones((4, 10)) if mask is None else mask, gradient))
    expected = [slow_gradient(*row) for row in zip(*wide, strict=True)]
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=tolerance)


@pytest.mark.parametrize("mask", [MASK, None])
@pytest.mark.parametrize("tokens", [10, 9])  # in training cuDNN takes only an even number
def test_what_cudnn_is_given_makes_the_literal_attention(monkeypatch, mask, tokens):
    """JAX's own form of the same call stands in for cuDNN, which is not here."""
    asked, call = [], jax.nn.dot_product_attention

    def stand_in(q, *args, implementation, **kwargs):
        asked.append((implementation, q.shape[1]))
        return call(q, *args, **kwargs, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    qkv = np.random.default_rng(2).standard_normal((4, tokens, 3, 4, 8)).astype(np.float32)
    part = None if mask is None else jnp.asarray(mask[:, :tokens])
    gradient = np.random.default_rng(3).standard_normal((4, tokens, 32)).astype(np.float32)
    actual, backward = jax.vjp(lambda qkv: ops.cudnn_call(qkv, part), qkv)
    assert asked == [("cudnn", 10)]
    expected, slow_backward = jax.vjp(lambda qkv: ops.xla_attention(qkv, part), qkv)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    np.testing.assert_allclose(*(f(gradient)[0] for f in (backward, slow_backward)), atol=2e-6)


@pytest.fixture
def cudnn_known(monkeypatch):
    """JAX writes cuDNN's call without cuDNN: it asks only for the version."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    ops.cudnn_is_known.cache_clear()
    yield
    ops.cudnn_is_known.cache_clear()


def half_gradient(**changes):
    """Loss and gradient of a joint sequence, 19 tokens, in bfloat16; and its parameters' shapes."""
    model = IVT(IVTConfig(**{**TINY, "dtype": "bfloat16", "attention": "cudnn", **changes}))

    def loss(p):
        return sum((x**2).mean() for x in model.apply({"params": p}, IMAGES, IDS, MASK, method="encode_joint"))

    return jax.value_and_grad(loss), jax.eval_shape(model.init, jax.random.key(0))["params"]


@pytest.mark.parametrize("changes", [{}, {"remat": True}, {"unroll": True}])
@pytest.mark.parametrize("platform", ["cuda", "cpu", "tpu"])
def test_only_a_program_for_a_gpu_holds_the_kernel_of_cudnn(cudnn_known, platform, changes):
    gradient, shapes = half_gradient(**changes)
    program = jax.jit(gradient).trace(shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("__cudnn$fmhaSoftmax(" in program) == (platform == "cuda")
    assert ("__cudnn$fmhaSoftmaxBackward(" in program) == (platform == "cuda")


def test_the_kernel_of_cudnn_may_be_sharded_by_rows(cudnn_known):
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def gradient(qkv, mask):
        return jax.grad(lambda qkv: jax.lax.psum(ops.cudnn_attention(qkv, mask).astype(jnp.float32).sum(), "data"))(qkv)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    arguments = jax.ShapeDtypeStruct((4, 9, 3, 2, 8), jnp.bfloat16), jax.ShapeDtypeStruct((4, 9), bool)
    program = jax.jit(sharded).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward(" in program


def test_without_a_gpu_cudnn_is_the_same_as_xla(cudnn_known):
    gradient, shapes = half_gradient()
    other, _ = half_gradient(attention="xla")
    params = jitter(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(gradient)(params), jax.jit(other)(params))


def test_erf_is_that_of_float64_between_and_beyond_its_fit():
    x = np.append(np.linspace(-6, 6, 20001), [-1e30, 1e30]).astype(np.float32)
    np.testing.assert_allclose(ops.erf(x), erf(x), atol=4e-7)
    small = np.logspace(-30, -1, 300).astype(np.float32)
    np.testing.assert_allclose(ops.erf(small), erf(small), rtol=4e-7)


def test_gelu_is_exact():
    p = {"fc1": {"kernel": np.eye(1, dtype=np.float32), "bias": np.zeros(1)},
         "fc2": {"kernel": np.eye(1, dtype=np.float32), "bias": np.zeros(1)}}  # fmt: skip
    x = np.linspace(-4, 4, 81, dtype=np.float32)[:, None]
    np.testing.assert_allclose(blocks.mlp(p, x), x * 0.5 * (1 + erf(x / math.sqrt(2))), atol=1e-6)  # tanh is 4e-4 off


# ---- the tower


def embed_image(p, images, patch_mask=None):
    e = {name: np.asarray(x, np.float64) for name, x in p["image_embedding"].items() if name != "norm"}
    tokens = np.asarray(extract_patches(images, 6, 6)) @ e["kernel"] + e["bias"]
    if patch_mask is not None:
        tokens = np.where(patch_mask[..., None], e["mask_token"], tokens)
    return np.concatenate([np.tile(e["cls"], (len(images), 1, 1)), tokens], 1) + e["pos_embed"] + e["type_embed"]


def embed_text(p, ids):
    e = {name: np.asarray(x, np.float64) for name, x in p["text_embedding"].items()}
    return slow_norm(e, e["word"][ids] + e["position"][: ids.shape[1]] + e["token_type"][0], 1e-12)


def split_blocks(p):
    return {"layers": {k: v for k, v in p["blocks"].items() if k != "norm"}, "norm": p["blocks"]["norm"]}


def test_encode_image_is_the_literal_tower(tower):
    model, params = tower
    expected = slow_blocks(split_blocks(params), embed_image(params, IMAGES), np.ones((4, 9)), 9, 4)
    np.testing.assert_allclose(encoder(model, "encode_image")(params, IMAGES), expected, atol=3e-5)


def test_encode_text_is_the_literal_tower(tower):
    model, params = tower
    expected = slow_blocks(split_blocks(params), embed_text(params, IDS), MASK, 0, 4)
    np.testing.assert_allclose(encoder(model, "encode_text")(params, IDS, MASK), expected, atol=3e-5)


def test_encode_joint_is_the_literal_tower_over_both(tower):
    model, params = tower
    patch_mask = np.random.default_rng(3).random((4, 8)) < 0.5
    x = np.concatenate([embed_image(params, IMAGES, patch_mask), embed_text(params, IDS)], axis=1)
    mask = np.concatenate([np.ones((4, 9)), MASK], axis=1)
    expected = slow_blocks(split_blocks(params), x, mask, 9, 4)
    actual = encoder(model, "encode_joint")(params, IMAGES, IDS, MASK, patch_mask=patch_mask)
    np.testing.assert_allclose(np.concatenate(actual, axis=1), expected, atol=3e-5)


def test_what_clip_has_otherwise_is_the_literal_one():
    """A norm over the image tokens, mask tokens included; quick GELU for images alone; one epsilon for all norms."""
    model = IVT(IVTConfig(**TINY, image_norm=True, image_activation="quick_gelu", norm_epsilon=0.1))
    params = jitter(jax.jit(model.init)(jax.random.key(0))["params"])
    patch_mask = np.random.default_rng(3).random((4, 8)) < 0.5
    image = slow_norm(params["image_embedding"]["norm"], embed_image(params, IMAGES, patch_mask), 0.1)
    mask = np.concatenate([np.ones((4, 9)), MASK], axis=1)
    x = np.concatenate([image, embed_text(params, IDS)], axis=1)
    expected = slow_blocks(split_blocks(params), x, mask, 9, 4, slow_quick_gelu, 0.1)
    actual = encoder(model, "encode_joint")(params, IMAGES, IDS, MASK, patch_mask=patch_mask)
    np.testing.assert_allclose(np.concatenate(actual, axis=1), expected, atol=3e-5)


def test_the_options_of_clip_leave_the_other_initial_parameters_alone():
    plain = jax.jit(IVT(IVTConfig(**TINY)).init)(jax.random.key(0))["params"]
    clip = jax.jit(IVT(IVTConfig(**TINY, image_norm=True)).init)(jax.random.key(0))["params"]
    norm = clip["image_embedding"].pop("norm")
    jax.tree.map(np.testing.assert_array_equal, clip, plain)
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all() and norm["scale"].shape == (32,)


@pytest.mark.parametrize("modality, image_changes", [("mlp_vis", True), ("mlp_txt", False)])
def test_each_modality_has_its_mlp(tower, modality, image_changes):
    params = first_block(tower[1])  # in a second block attention would carry the change over
    zeros = jax.tree.map(jnp.zeros_like, params["blocks"][modality])
    without = {**params, "blocks": {**params["blocks"], modality: zeros}}
    encode = encoder(IVT(IVTConfig(**{**TINY, "depth": 1})), "encode_joint")
    before, after = encode(params, IMAGES, IDS, MASK), encode(without, IMAGES, IDS, MASK)
    image, text = (np.abs(x - y).max(-1) for x, y in zip(before, after, strict=True))
    changed, same = (image, text) if image_changes else (text, image)
    assert (changed > 1e-3).all()
    assert (same == 0).all()


def test_padding_does_not_change_the_tokens(tower):
    model, params = tower
    encode = encoder(model, "encode_text")
    tokens = encode(params, IDS, MASK)
    for row, length in enumerate(LENGTHS):
        alone = encode(params, IDS[row : row + 1, :length], MASK[row : row + 1, :length])
        np.testing.assert_allclose(tokens[row, :length], alone[0], atol=1e-5)
    other = np.where(MASK, IDS, 9)  # whatever stands in the padding
    np.testing.assert_array_equal(np.asarray(encode(params, other, MASK))[MASK], np.asarray(tokens)[MASK])


def test_keep_gathers_tokens_with_their_positions(tower):
    model, params = tower
    kept = np.array([[0, 5, 2, 7]])
    x = embed_image(params, IMAGES)[:, kept[0]]
    expected = slow_blocks(split_blocks(params), x, np.ones((4, 4)), 4, 4)
    np.testing.assert_allclose(encoder(model, "encode_image")(params, IMAGES, keep=(kept, None)), expected, atol=3e-5)


def test_inputs_of_another_size_are_refused(tower):
    model, params = tower
    with pytest.raises(ValueError, match=r"\(12, 24\).*\(24, 12\)"):
        model.apply({"params": params}, IMAGES.swapaxes(1, 2), method="encode_image")
    ids = np.ones((1, 17), np.int32)
    with pytest.raises(ValueError, match=r"17 tokens.*16"):
        model.apply({"params": params}, ids, ids > 0, method="encode_text")


# ---- heads


def test_word_head_is_tied_to_the_word_embedding(tower):
    model, params = tower
    tokens = np.random.default_rng(4).standard_normal((2, 3, 32)).astype(np.float32)
    p = params["word_head"]
    hidden = slow_dense(p, tokens)
    hidden = slow_norm(p["norm"], hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))
    expected = hidden @ np.asarray(params["text_embedding"]["word"]).T + p["output"]["bias"]
    np.testing.assert_allclose(encoder(model, "word_logits")(params, tokens), expected, atol=3e-5)


def test_patch_head_is_linear(tower):
    model, params = tower
    tokens = np.random.default_rng(5).standard_normal((2, 3, 32)).astype(np.float32)
    expected = slow_dense(params["patch_head"], tokens)
    np.testing.assert_allclose(encoder(model, "patch_pixels")(params, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("head", [WordHead(), PatchHead(6)])
def test_heads_return_float32(head):
    arguments = (jnp.zeros((2, 32)), jnp.zeros((50, 32))) if isinstance(head, WordHead) else (jnp.zeros((2, 32)),)
    output, _ = jax.eval_shape(
        functools.partial(head.init_with_output, dtype=jnp.bfloat16), jax.random.key(0), *arguments
    )
    assert output.dtype == jnp.float32


# ---- initialisation


def test_initial_values_follow_the_reference():
    model = IVT(IVTConfig(**{**TINY, "width": 768, "depth": 2, "num_heads": 12, "mlp_ratio": 0.25}))
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    image, text, layers = (params[part] for part in ("image_embedding", "text_embedding", "blocks"))
    for array, deviation in [
        (image["kernel"], np.sqrt(2 / (6 * 6 * 768))),
        (text["word"], 0.02),
        (layers["attn"]["qkv"]["kernel"], 0.02),
        (layers["mlp_txt"]["fc2"]["kernel"], 0.02),
    ]:
        assert np.std(array) == pytest.approx(deviation, rel=0.02)
    assert not np.array_equal(*layers["attn"]["qkv"]["kernel"])  # each block its own
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("bias", "scale"):
            assert (leaf == (path[-1].key == "scale")).all()


# ---- what compilation may not change


def joint_gradient(model, params):
    def loss(p):
        return sum((x**2).mean() for x in model.apply({"params": p}, IMAGES, IDS, MASK, method="encode_joint"))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def plain_gradient(tower):
    return joint_gradient(*tower)


@pytest.mark.parametrize("changes", [{"unroll": True}, {"remat": True}, {"unroll": True, "remat": True}])
def test_unroll_and_remat_keep_parameters_values_and_gradients(tower, plain_gradient, changes):
    other = IVT(IVTConfig(**{**TINY, **changes}))
    shapes = jax.eval_shape(other.init, jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tower[1])
    value, gradients = joint_gradient(other, tower[1])
    np.testing.assert_allclose(value, plain_gradient[0], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-4), gradients, plain_gradient[1])


@pytest.mark.parametrize("method, arguments", [("encode_image", (IMAGES,)), ("encode_text", (IDS, MASK))])
def test_bfloat16_is_close_to_float32_and_returns_it(tower, method, arguments):
    model, params = tower
    half = IVT(IVTConfig(**{**TINY, "dtype": "bfloat16"}))
    expected = np.asarray(encoder(model, method)(params, *arguments))
    actual = encoder(half, method)(params, *arguments)
    assert actual.dtype == jnp.float32
    error = np.abs(actual - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()


# ---- stochastic depth and dropout


def test_drop_path_drops_whole_rows_and_keeps_the_expectation():
    x = np.ones((4000, 2, 3), np.float32)
    out = np.asarray(blocks.drop_path(x, jnp.float32(0.25), jax.random.uniform(jax.random.key(0), (4000,))))
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert abs(out.mean() - 1) < 5 * np.sqrt(0.25 / 0.75 / 4000)


def test_stochastic_depth_grows_from_zero(tower):
    # At a rate next to 1 every branch of the second block is lost, and none of the first: its rate is 0.
    _, params = tower
    model = IVT(IVTConfig(**{**TINY, "drop_path": 1 - 2**-20}))
    random = functools.partial(encoder(model, "encode_image"), keys=jax.random.split(jax.random.key(0), 4))
    first = encoder(IVT(IVTConfig(**{**TINY, "depth": 1})), "encode_image")
    np.testing.assert_allclose(random(params, IMAGES), first(first_block(params), IMAGES), atol=1e-5)


def test_evaluation_has_no_randomness(tower):
    _, params = tower
    random = IVT(IVTConfig(**{**TINY, "dropout": 0.5, "drop_path": 0.5}))
    plain = encoder(tower[0], "encode_text")(params, IDS, MASK)
    np.testing.assert_array_equal(encoder(random, "encode_text")(params, IDS, MASK), plain)
    train = encoder(random, "encode_text")(params, IDS, MASK, keys=jax.random.split(jax.random.key(0), 4))
    assert (np.abs(train - plain).max((1, 2)) > 1e-2).all()


def test_dropout_drops_each_number_by_itself_and_keeps_the_expectation():
    x = np.ones((4, 50, 40), np.float32)
    out = np.asarray(dropout(x, 0.2, jax.random.split(jax.random.key(0), 4)))
    np.testing.assert_allclose(np.unique(out), [0, 1.25], rtol=1e-6)
    assert np.abs(out.mean((1, 2)) - 1).max() < 5 * np.sqrt(0.2 / 0.8 / 2000)
    assert len({row.tobytes() for row in out}) == 4  # a draw of its own for each row


def test_a_row_has_its_randomness_from_its_key_alone(tower):
    """In another place of another batch it is the same; and with another key it is not."""
    encode = encoder(IVT(IVTConfig(**{**TINY, "dropout": 0.3, "drop_path": 0.5})), "encode_joint")
    keys = jax.random.split(jax.random.key(0), 4)
    whole = np.concatenate(encode(tower[1], IMAGES, IDS, MASK, keys=keys), axis=1)
    part = np.array([3, 1])
    again = encode(tower[1], IMAGES[part], IDS[part], MASK[part], keys=keys[part])
    np.testing.assert_allclose(np.concatenate(again, axis=1), whole[part], atol=1e-5)
    other = np.concatenate(encode(tower[1], IMAGES, IDS, MASK, keys=keys[::-1]), axis=1)
    assert (np.abs(other - whole).max((1, 2)) > 1e-2).all()
