"""The tower against numbers computed with VLMo's published code at a tiny size (tests/data/vlmo_tiny.npz).

The gradient, in float64, against central differences of a float64 version that reads VLMo's own tensors.
"""

from pathlib import Path

import jax
import numpy as np
from scipy.special import erf

from ivt_jax.conversion import model, params_from_vlmo
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT

VLMO = np.load(Path(__file__).parent / "data" / "vlmo_tiny.npz")
TENSORS = {name.removeprefix("weights/"): VLMO[name] for name in VLMO.files if name.startswith("weights/")}
SIZES = {"num_heads": 4, "image_size": (64, 64), "stride": 16, "max_text_len_of_initckpt": 20}
CONFIG, PARAMS = params_from_vlmo(TENSORS, **SIZES)
IMAGES, IDS, MASK = VLMO["images"], VLMO["ids"], VLMO["mask"]
TOKENS = {"image": 17, "text": 12}


def ours(method, *inputs):
    return np.asarray(IVT(CONFIG).apply({"params": PARAMS}, *inputs, method=method))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_close(actual, expected, tolerance=1e-5):
    """Relative to the largest value of the array, as rounding in a sum is."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_image_tokens():
    assert_close(ours("encode_image", IMAGES), VLMO["image_tokens"])


def test_text_tokens():
    assert_close(ours("encode_text", IDS, MASK)[MASK], VLMO["text_tokens"][MASK])


def test_joint_tokens():
    image, text = IVT(CONFIG).apply({"params": PARAMS}, IMAGES, IDS, MASK, method="encode_joint")
    expected = VLMO["joint_tokens_text_then_image"]
    assert_close(image, expected[:, 12:])
    assert_close(np.asarray(text)[MASK], expected[:, :12][MASK])


def test_features_and_logits():
    image, text = unit(ours("embed_image", IMAGES)), unit(ours("embed_text", IDS, MASK))
    assert_close(image, VLMO["image_features"])
    assert_close(text, VLMO["text_features"])
    assert_close(ours("scale") * image @ text.T, VLMO["logits"])


# ---- the gradient


def norm(w, name, x, epsilon=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def slow_tower(w, x, places, mask, parts, heads=4):
    """VLMo's blocks on (B, N, D) in float64; places (N, N): rows of its table; parts: (modality, slice) of tokens."""
    batch, tokens, width = x.shape
    for i in range(3):
        block = f"transformer.blocks.{i}."
        bias = np.concatenate([w[block + "attn.q_bias"], np.zeros(width), w[block + "attn.v_bias"]])
        qkv = norm(w, block + "norm1", x) @ w[block + "attn.qkv.weight"].T + bias
        q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        relative = w["relative_position_bias_table"][places][..., i * heads : (i + 1) * heads].transpose(2, 0, 1)
        scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(width / heads) + relative) * mask[:, None, None]
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, width)
        x = x + w[block + "gamma_1"] * dense(w, block + "attn.proj", mixed)
        made = []
        for name, part in parts:
            hidden = dense(w, f"{block}mlp_{name}.fc1", norm(w, f"{block}norm2_{name}", x[:, part]))
            made.append(dense(w, f"{block}mlp_{name}.fc2", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))))
        x = x + w[block + "gamma_2"] * np.concatenate(made, 1)
    return norm(w, "transformer.norm", x)


def slow_outputs(w):
    """Both features and the valid tokens of the joint pass, by VLMo's tensors."""
    patches = IMAGES.astype(np.float64).reshape(6, 4, 16, 4, 16, 3).transpose(0, 1, 3, 5, 2, 4).reshape(6, 16, -1)
    kernel = w["transformer.patch_embed.proj.weight"].reshape(48, -1)
    patches = patches @ kernel.T + w["transformer.patch_embed.proj.bias"]
    image = np.concatenate([np.repeat(w["transformer.cls_token"], 6, 0), patches], 1)
    image = image + w["token_type_embeddings.weight"][1]
    words = w["text_embeddings.word_embeddings.weight"][IDS] + w["text_embeddings.token_type_embeddings.weight"][0]
    text = norm(w, "text_embeddings.LayerNorm", words, 1e-12) + w["token_type_embeddings.weight"][0]
    alone = slice(None)
    everything = np.ones((6, 17), bool)
    of_image = slow_tower(w, image, VLMO["relative_position_index"], everything, [("imag", alone)])
    of_text = slow_tower(w, text, VLMO["text_relative_position_index"], MASK, [("text", alone)])
    places, both = VLMO["text_imag_relative_position_index"].astype(int), np.concatenate([text, image], 1)
    joint_mask = np.concatenate([MASK, everything], 1)
    joint = slow_tower(w, both, places, joint_mask, [("text", slice(12)), ("imag", slice(12, None))])
    scale = np.exp(w["logit_scale"])
    features = (unit(dense(w, f"itc_{name}_proj.fc", x[:, 0])) for name, x in (("image", of_image), ("text", of_text)))
    return *features, joint[:, 12:], joint[:, :12][MASK], scale


def our_outputs(params, config):
    def apply(method, *inputs):
        return IVT(config).apply({"params": params}, *inputs, method=method)

    features = apply("embed_image", IMAGES), apply("embed_text", IDS, MASK)
    image, text = apply("encode_joint", IMAGES, IDS, MASK)
    return *(x / jax.numpy.linalg.norm(x, axis=-1, keepdims=True) for x in features), image, text[MASK], apply("scale")


def total(outputs, weights):
    image, text, *joint, scale = outputs
    return (
        sum((x * w).sum() for x, w in zip((image, text, *joint), weights[:4], strict=True))
        + (scale * (image @ text.T) * weights[4]).sum()
    )


def test_gradients_along_20_directions(monkeypatch):
    """Directions are of VLMo's tensors; our parameters follow them by central differences of the conversion."""
    shapes = parameter_shapes(CONFIG)  # heads of reconstruction have no part in it, and take time to draw
    monkeypatch.setattr(
        model, "initial_params", lambda _, paths, seed: {path: np.zeros(shapes[path]) for path in paths}
    )
    rng = np.random.default_rng(0)
    w = {name: tensor.astype(np.float64) for name, tensor in TENSORS.items()}
    expected_outputs = slow_outputs(w)
    weights = [rng.standard_normal(x.shape) for x in expected_outputs[:4]] + [rng.standard_normal((6, 6))]
    with jax.enable_x64(True):
        config, params = params_from_vlmo(w, **SIZES)
        wide = IVTConfig(**{**vars(config), "dtype": "float64"})
        for ours, theirs in zip(our_outputs(params, wide), expected_outputs, strict=True):
            assert_close(ours, theirs, 1e-7)
        gradient = jax.jit(jax.grad(lambda params: total(our_outputs(params, wide), weights)))(params)
    errors = []
    for _ in range(20):
        along = {name: rng.standard_normal(tensor.shape) for name, tensor in w.items()}
        ends = [{name: w[name] + h * along[name] for name in w} for h in (1e-5, -1e-5)]
        expected = (total(slow_outputs(ends[0]), weights) - total(slow_outputs(ends[1]), weights)) / 2e-5
        moved = jax.tree.map(lambda a, b: (a - b) / 2e-5, *(params_from_vlmo(end, **SIZES)[1] for end in ends))
        actual = sum((np.asarray(g) * m).sum() for g, m in zip(*map(jax.tree.leaves, (gradient, moved)), strict=True))
        errors.append(abs(actual - expected) / abs(expected))
    print(f"largest relative error along {len(errors)} directions: {max(errors):.1e}")
    assert max(errors) < 1e-6
