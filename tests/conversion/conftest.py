"""One tiny random tower, and its parameters as each foreign naming has them, element by element."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivt_jax.models.ivt import IVT, IVTConfig

D, DEPTH, HEADS, PATCH, HIDDEN, WORDS, LENGTH = 12, 2, 3, 4, 20, 30, 14
MODEL = IVTConfig(
    image_size=(12, 12), patch_size=PATCH, stride=PATCH, width=D, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / D,
    vocab_size=WORDS, max_text_length=LENGTH,
)  # fmt: skip


@pytest.fixture(scope="session")
def model():
    """Its grid is the square one, 3x3, of the ViTs below: no position has to be resized."""
    return MODEL


@pytest.fixture(scope="session")
def params():
    """Path -> random float32, no two values alike."""
    shapes = jax.eval_shape(lambda: IVT(MODEL).init(jax.random.key(0))["params"])
    rng = np.random.default_rng(1)
    return {k: rng.normal(size=v.shape).astype(np.float32) for k, v in flatten_dict(shapes, sep="/").items()}


def turned(matrix):
    """(in, out) -> (out, in)."""
    return np.array([[matrix[i, o] for i in range(matrix.shape[0])] for o in range(matrix.shape[1])])


def as_convolution(kernel):
    weight = np.empty((D, 3, PATCH, PATCH), np.float32)
    for row in range(PATCH):
        for column in range(PATCH):
            for channel in range(3):
                weight[:, channel, row, column] = kernel[(row * PATCH + column) * 3 + channel]
    return weight


def part(qkv, number):
    return qkv[..., number * D : (number + 1) * D]


@pytest.fixture(scope="session")
def timm(params):
    image, blocks = "image_embedding/", "blocks/"
    tensors = {
        "cls_token": params[image + "cls"], "pos_embed": params[image + "pos_embed"],
        "patch_embed.proj.weight": as_convolution(params[image + "kernel"]),
        "patch_embed.proj.bias": params[image + "bias"], "norm.weight": params[blocks + "norm/scale"],
        "norm.bias": params[blocks + "norm/bias"],
        "head.weight": np.ones((5, D), np.float32), "head.bias": np.ones(5, np.float32),
    }  # fmt: skip
    for i in range(DEPTH):
        for norm in ("norm1", "norm2"):
            tensors[f"blocks.{i}.{norm}.weight"] = params[f"blocks/{norm}/scale"][i]
            tensors[f"blocks.{i}.{norm}.bias"] = params[f"blocks/{norm}/bias"][i]
        layers = (
            ("attn.qkv", "attn/qkv"),
            ("attn.proj", "attn/proj"),
            ("mlp.fc1", "mlp_vis/fc1"),
            ("mlp.fc2", "mlp_vis/fc2"),
        )
        for theirs, ours in layers:
            tensors[f"blocks.{i}.{theirs}.weight"] = turned(params[f"blocks/{ours}/kernel"][i])
            tensors[f"blocks.{i}.{theirs}.bias"] = params[f"blocks/{ours}/bias"][i]
    return tensors


@pytest.fixture(scope="session")
def transformers(params):
    image = "image_embedding/"
    patches = "vit.embeddings.patch_embeddings.projection"
    tensors = {
        "vit.embeddings.cls_token": params[image + "cls"],
        "vit.embeddings.position_embeddings": params[image + "pos_embed"],
        f"{patches}.weight": as_convolution(params[image + "kernel"]), f"{patches}.bias": params[image + "bias"],
        "vit.layernorm.weight": params["blocks/norm/scale"], "vit.layernorm.bias": params["blocks/norm/bias"],
        "classifier.weight": np.ones((5, D), np.float32), "classifier.bias": np.ones(5, np.float32),
    }  # fmt: skip
    for i in range(DEPTH):
        block = f"vit.encoder.layer.{i}."
        for theirs, ours in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
            tensors[f"{block}{theirs}.weight"] = params[f"blocks/{ours}/scale"][i]
            tensors[f"{block}{theirs}.bias"] = params[f"blocks/{ours}/bias"][i]
        for number, name in enumerate(("query", "key", "value")):
            attention = f"{block}attention.attention.{name}"
            tensors[f"{attention}.weight"] = turned(part(params["blocks/attn/qkv/kernel"][i], number))
            tensors[f"{attention}.bias"] = part(params["blocks/attn/qkv/bias"][i], number)
        layers = ("attention.output", "attn/proj"), ("intermediate", "mlp_vis/fc1"), ("output", "mlp_vis/fc2")
        for theirs, ours in layers:
            tensors[f"{block}{theirs}.dense.weight"] = turned(params[f"blocks/{ours}/kernel"][i])
            tensors[f"{block}{theirs}.dense.bias"] = params[f"blocks/{ours}/bias"][i]
    return tensors


@pytest.fixture(scope="session")
def google(params):
    image, encoder = "image_embedding/", "Transformer/"
    tensors = {
        "cls": params[image + "cls"], "embedding/bias": params[image + "bias"],
        "embedding/kernel": as_convolution(params[image + "kernel"]).transpose(2, 3, 1, 0),
        encoder + "posembed_input/pos_embedding": params[image + "pos_embed"],
        encoder + "encoder_norm/scale": params["blocks/norm/scale"],
        encoder + "encoder_norm/bias": params["blocks/norm/bias"],
        "head/kernel": np.ones((D, 5), np.float32), "head/bias": np.ones(5, np.float32),
        "pre_logits/kernel": np.ones((D, D), np.float32), "pre_logits/bias": np.ones(D, np.float32),
    }  # fmt: skip
    for i in range(DEPTH):
        block = f"{encoder}encoderblock_{i}/"
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            for kind in ("scale", "bias"):
                tensors[f"{block}{theirs}/{kind}"] = params[f"blocks/{ours}/{kind}"][i]
        attention = block + "MultiHeadDotProductAttention_1/"
        size = D // HEADS
        for number, name in enumerate(("query", "key", "value")):
            kernel = part(params["blocks/attn/qkv/kernel"][i], number)
            bias = part(params["blocks/attn/qkv/bias"][i], number)
            heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
            tensors[f"{attention}{name}/kernel"] = np.stack([kernel[:, head] for head in heads], axis=1)
            tensors[f"{attention}{name}/bias"] = np.stack([bias[head] for head in heads])
        out = params["blocks/attn/proj/kernel"][i]
        tensors[attention + "out/kernel"] = np.stack([out[head] for head in heads])
        tensors[attention + "out/bias"] = params["blocks/attn/proj/bias"][i]
        for number, ours in enumerate(("fc1", "fc2")):
            for kind in ("kernel", "bias"):
                tensors[f"{block}MlpBlock_3/Dense_{number}/{kind}"] = params[f"blocks/mlp_vis/{ours}/{kind}"][i]
    return tensors


@pytest.fixture(scope="session")
def bert(params):
    """With the prefix and the old names of norms, and with all that is left out."""

    def ones(*shape):
        return np.ones(shape, np.float32)

    text = "bert.embeddings."
    tensors = {
        text + "word_embeddings.weight": params["text_embedding/word"],
        text + "position_embeddings.weight": params["text_embedding/position"],
        text + "token_type_embeddings.weight": params["text_embedding/token_type"],
        text + "LayerNorm.gamma": params["text_embedding/scale"],
        text + "LayerNorm.beta": params["text_embedding/bias"],
        text + "position_ids": np.arange(LENGTH)[None], "bert.pooler.dense.weight": ones(D, D),
        "bert.pooler.dense.bias": ones(D), "cls.predictions.bias": ones(WORDS),
        "cls.predictions.transform.dense.weight": ones(D, D), "cls.seq_relationship.weight": ones(2, D),
    }  # fmt: skip
    for i in range(DEPTH):
        block = f"bert.encoder.layer.{i}."
        for theirs, ours in (("intermediate", "fc1"), ("output", "fc2")):
            tensors[f"{block}{theirs}.dense.weight"] = turned(params[f"blocks/mlp_txt/{ours}/kernel"][i])
            tensors[f"{block}{theirs}.dense.bias"] = params[f"blocks/mlp_txt/{ours}/bias"][i]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= {f"{block}attention.{name}.weight": ones(D, D), f"{block}attention.{name}.bias": ones(D)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{block}{name}.gamma": ones(D), f"{block}{name}.beta": ones(D)}
    return tensors


@pytest.fixture(scope="session")
def openai():
    """CLIP as a whole, texts and all. Patches, [CLS] and positions are small, as CLIP's are: epsilon tells there."""
    rng = np.random.default_rng(4)

    def random(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    tensors = {
        "visual.class_embedding": random(D, scale=0.02), "visual.positional_embedding": random(10, D, scale=0.02),
        "visual.conv1.weight": random(D, 3, PATCH, PATCH, scale=0.01), "visual.proj": random(D, 5),
        "logit_scale": random(), "positional_embedding": random(7, 8), "text_projection": random(8, 5),
        "token_embedding.weight": random(33, 8), "ln_final.weight": random(8), "ln_final.bias": random(8),
        "transformer.resblocks.0.attn.in_proj_weight": random(24, 8), "transformer.resblocks.5.ln_1.bias": random(8),
        "input_resolution": np.array(12), "context_length": np.array(7), "vocab_size": np.array(33),
    }  # fmt: skip
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{n}" for i in range(DEPTH) for n in (1, 2))):
        tensors |= {f"visual.{norm}.weight": 1 + random(D, scale=0.3), f"visual.{norm}.bias": random(D, scale=0.3)}
    for i in range(DEPTH):
        block = f"visual.transformer.resblocks.{i}."
        tensors |= {block + "attn.in_proj_weight": random(3 * D, D), block + "attn.in_proj_bias": random(3 * D)}
        for name, shape in (("attn.out_proj", (D, D)), ("mlp.c_fc", (HIDDEN, D)), ("mlp.c_proj", (D, HIDDEN))):
            tensors |= {f"{block}{name}.weight": random(*shape), f"{block}{name}.bias": random(shape[0])}
    return tensors


@pytest.fixture(scope="session")
def transformers_clip(openai):
    image = "vision_model."
    tensors = {
        image + "embeddings.class_embedding": openai["visual.class_embedding"],
        image + "embeddings.position_embedding.weight": openai["visual.positional_embedding"],
        image + "embeddings.patch_embedding.weight": openai["visual.conv1.weight"],
        image + "embeddings.position_ids": np.arange(10)[None], "logit_scale": openai["logit_scale"],
        "visual_projection.weight": openai["visual.proj"].T, "text_projection.weight": openai["text_projection"].T,
        "text_model.final_layer_norm.bias": openai["ln_final.bias"],
        "text_model.encoder.layers.5.self_attn.q_proj.weight": np.ones((8, 8), np.float32),
    }  # fmt: skip
    for kind in ("weight", "bias"):
        tensors[f"{image}pre_layrnorm.{kind}"] = openai[f"visual.ln_pre.{kind}"]
        tensors[f"{image}post_layernorm.{kind}"] = openai[f"visual.ln_post.{kind}"]
        for i in range(DEPTH):
            theirs, ours = f"visual.transformer.resblocks.{i}.", f"{image}encoder.layers.{i}."
            for number, part in enumerate("qkv"):
                whole = openai[f"{theirs}attn.in_proj_{kind}"]
                tensors[f"{ours}self_attn.{part}_proj.{kind}"] = whole[number * D : (number + 1) * D]
            for name, other in (
                ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                tensors[f"{ours}{other}.{kind}"] = openai[f"{theirs}{name}.{kind}"]
    return tensors
