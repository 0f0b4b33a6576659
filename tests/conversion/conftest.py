"""One tiny random tower, and its parameters as each foreign naming has them, element by element."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT

TINY = [
    "--config=configs/synth.py", "--config.model.width=12", "--config.model.num_heads=3",
    "--config.model.image_size=(24,12)", "--config.model.patch_size=4", "--config.model.stride=3",
    "--config.text.length.sentence=14", "--config.text.length.phrase=14", "--config.text.length.word=14",
]  # fmt: skip

D, DEPTH, HEADS, PATCH, HIDDEN, WORDS, LENGTH = 12, 2, 3, 4, 20, 30, 14
MODEL = IVTConfig(
    image_size=(12, 12), patch_size=PATCH, stride=PATCH, width=D, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / D,
    vocab_size=WORDS, max_text_length=LENGTH,
)  # fmt: skip


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def without_none(tensors):
    """Leaves out the tensors that a test sets to None."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def ones(*shape):
    return np.ones(shape, np.float32)


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


@pytest.fixture(scope="session")
def release():
    """The tensors of a tiny model as the release's program stored them."""
    with np.load(Path(__file__).parent.parent / "data/release_tiny.npz") as archive:
        return {name.removeprefix("weights/"): archive[name] for name in archive.files if name.startswith("weights/")}


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


def norm(x, w, name, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w[name + ".weight"] + w[name + ".bias"]


def embed_patches(image, weight):
    """(12, 12, 3) -> (9, D), without bias."""
    squares = [image[y : y + PATCH, x : x + PATCH] for y in range(0, 12, PATCH) for x in range(0, 12, PATCH)]
    return np.stack([np.einsum("ocyx,yxc->o", weight, square) for square in squares])


def run_blocks(x, w, names, activation, epsilon):
    """(N, D) -> (N, D) as PyTorch has it; names: of norm1, qkv, proj, norm2, fc1 and fc2, {} being the block."""

    def dense(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    for i in range(DEPTH):
        norm1, qkv, proj, norm2, fc1, fc2 = (name.format(i) for name in names)
        q, k, v = np.split(dense(norm(x, w, norm1, epsilon), qkv), 3, axis=-1)
        mixed = []
        for a, b, c in zip(*(np.split(m, HEADS, axis=-1) for m in (q, k, v)), strict=True):
            scores = np.exp(a @ b.T / np.sqrt(a.shape[-1]))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ c)
        x = x + dense(np.concatenate(mixed, -1), proj)
        x = x + dense(activation(dense(norm(x, w, norm2, epsilon), fc1)), fc2)
    return x


def renamed(tensors, names):
    """Layers under other names, {} being the block; one with several names is cut in as many along its first axis."""
    found = {}
    for old, new in names.items():
        for i in range(DEPTH if "{}" in old else 1):
            for kind in ("weight", "bias"):
                if (name := f"{old.format(i)}.{kind}") in tensors:
                    parts = np.split(tensors[name], len(new.split()))
                    found |= {f"{n.format(i)}.{kind}": x for n, x in zip(new.split(), parts, strict=True)}
    return found


@pytest.fixture(scope="session")
def timm(params):
    image = "image_embedding/"
    tensors = {
        "cls_token": params[image + "cls"], "pos_embed": params[image + "pos_embed"],
        "patch_embed.proj.weight": as_convolution(params[image + "kernel"]),
        "patch_embed.proj.bias": params[image + "bias"], "norm.weight": params["blocks/norm/scale"],
        "norm.bias": params["blocks/norm/bias"], "head.weight": ones(5, D), "head.bias": ones(5),
    }  # fmt: skip
    for i in range(DEPTH):
        for norm in ("norm1", "norm2"):
            tensors[f"blocks.{i}.{norm}.weight"] = params[f"blocks/{norm}/scale"][i]
            tensors[f"blocks.{i}.{norm}.bias"] = params[f"blocks/{norm}/bias"][i]
        for layer in ("attn/qkv", "attn/proj", "mlp_vis/fc1", "mlp_vis/fc2"):
            theirs = f"blocks.{i}." + layer.replace("mlp_vis", "mlp").replace("/", ".")
            tensors[f"{theirs}.weight"] = turned(params[f"blocks/{layer}/kernel"][i])
            tensors[f"{theirs}.bias"] = params[f"blocks/{layer}/bias"][i]
    return tensors


@pytest.fixture(scope="session")
def transformers(timm):
    block, embeddings = "vit.encoder.layer.{}.", "vit.embeddings."
    names = {
        "patch_embed.proj": embeddings + "patch_embeddings.projection", "norm": "vit.layernorm", "head": "classifier",
        "blocks.{}.norm1": block + "layernorm_before", "blocks.{}.norm2": block + "layernorm_after",
        "blocks.{}.attn.qkv": " ".join(f"{block}attention.attention.{part}" for part in ("query", "key", "value")),
        "blocks.{}.attn.proj": block + "attention.output.dense", "blocks.{}.mlp.fc1": block + "intermediate.dense",
        "blocks.{}.mlp.fc2": block + "output.dense",
    }  # fmt: skip
    first = {embeddings + "cls_token": timm["cls_token"], embeddings + "position_embeddings": timm["pos_embed"]}
    return first | renamed(timm, names)


@pytest.fixture(scope="session")
def google(params):
    image, encoder = "image_embedding/", "Transformer/"
    tensors = {
        "cls": params[image + "cls"], "embedding/bias": params[image + "bias"],
        "embedding/kernel": as_convolution(params[image + "kernel"]).transpose(2, 3, 1, 0),
        encoder + "posembed_input/pos_embedding": params[image + "pos_embed"],
        encoder + "encoder_norm/scale": params["blocks/norm/scale"],
        encoder + "encoder_norm/bias": params["blocks/norm/bias"], "head/kernel": ones(D, 5), "head/bias": ones(5),
        "pre_logits/kernel": ones(D, D), "pre_logits/bias": ones(D),
    }  # fmt: skip
    size = D // HEADS
    heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    for i in range(DEPTH):
        block = f"{encoder}encoderblock_{i}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for theirs, ours in (
            ("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2"),
            ("MlpBlock_3/Dense_0", "mlp_vis/fc1"), ("MlpBlock_3/Dense_1", "mlp_vis/fc2"),
        ):  # fmt: skip
            for kind in ("scale" if "norm" in ours else "kernel", "bias"):
                tensors[f"{block}{theirs}/{kind}"] = params[f"blocks/{ours}/{kind}"][i]
        for number, name in enumerate(("query", "key", "value")):
            kernel, bias = (
                params[f"blocks/attn/qkv/{kind}"][i][..., number * D : (number + 1) * D] for kind in ("kernel", "bias")
            )
            tensors[f"{attention}{name}/kernel"] = np.stack([kernel[:, head] for head in heads], axis=1)
            tensors[f"{attention}{name}/bias"] = np.stack([bias[head] for head in heads])
        out = params["blocks/attn/proj/kernel"][i]
        tensors[attention + "out/kernel"] = np.stack([out[head] for head in heads])
        tensors[attention + "out/bias"] = params["blocks/attn/proj/bias"][i]
    return tensors


@pytest.fixture(scope="session")
def bert(params):
    """With the prefix and the old names of norms, and with all that is left out."""
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
    """CLIP as a whole, with texts. Patches, [CLS] and positions are as small as CLIP's: there epsilon matters."""
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
    image, block, theirs = "vision_model.", "vision_model.encoder.layers.{}.", "visual.transformer.resblocks.{}."
    dotted = {name.replace("in_proj_", "in_proj."): tensor for name, tensor in openai.items()}
    return {
        image + "embeddings.class_embedding": openai["visual.class_embedding"],
        image + "embeddings.position_embedding.weight": openai["visual.positional_embedding"],
        image + "embeddings.position_ids": np.arange(10)[None], "logit_scale": openai["logit_scale"],
        "visual_projection.weight": openai["visual.proj"].T, "text_projection.weight": openai["text_projection"].T,
        "text_model.final_layer_norm.bias": openai["ln_final.bias"],
        "text_model.encoder.layers.5.self_attn.q_proj.weight": ones(8, 8),
    } | renamed(dotted, {
        "visual.conv1": image + "embeddings.patch_embedding", "visual.ln_pre": image + "pre_layrnorm",
        "visual.ln_post": image + "post_layernorm", theirs + "ln_1": block + "layer_norm1",
        theirs + "ln_2": block + "layer_norm2", theirs + "attn.out_proj": block + "self_attn.out_proj",
        theirs + "attn.in_proj": " ".join(f"{block}self_attn.{part}_proj" for part in "qkv"),
        theirs + "mlp.c_fc": block + "mlp.fc1", theirs + "mlp.c_proj": block + "mlp.fc2",
    })  # fmt: skip
