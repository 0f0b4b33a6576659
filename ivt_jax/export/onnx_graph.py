"""The encoders as ONNX graphs, for ONNX Runtime and other programs that read ONNX.

The inputs are `images`, uint8 (batch, H, W, 3); `ids`, int32 (batch, length), and their `mask`, bool, False at padding.
The output `embeddings`, float32 (batch, D), has unit vectors. A row with an id outside of the vocabulary, or that
begins with padding, gives NaN (`is_valid`). The graphs compute in float32, whatever the model's dtype.

They are written node by node because the converter jax2onnx requires an Orbax older than ours. The functions below
follow ivt_jax/models/ one by one: each adds nodes to a graph and returns the name of the last one's output.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import install
from ivt_jax.conversion.layers import convolution_weight
from ivt_jax.export.manifest import Trained, write_manifest
from ivt_jax.models.embeddings import TEXT_NORM_EPSILON
from ivt_jax.models.ivt import IVTConfig
from ivt_jax.models.ops import MASKED

FILES = "image_encoder.onnx", "text_encoder.onnx"
OPSET, IR_VERSION = 20, 9  # the first that has Gelu, and its file format: ONNX Runtime 1.17 and later
LARGEST = 1_900_000_000  # bytes of parameters in a file, which can have 2 GiB; beyond, they go to FILE.data

Params = Mapping[str, Any]


class Graph:
    """Nodes and constants of one encoder; calling it adds a node and returns the name of its output."""

    def __init__(self, model_config: IVTConfig):
        try:
            import onnx
            import onnx.helper
            import onnx.numpy_helper
        except ImportError:
            raise UserError(f"ONNX graphs need onnx, which is not installed: {install('onnx')}") from None
        self.config, self.onnx = model_config, onnx
        self.nodes, self.constants = list[Any](), list[Any]()

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; inputs are names, or values, which become constants (lists as int64)."""
        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        made = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def save(self, path: Path, dtypes: Mapping[str, Any], shape: Sequence[str | int], result: str) -> None:
        """Writes the graph. dtypes, shape: of its inputs; result: the node with the embeddings (batch, D)."""
        helper = self.onnx.helper
        self.nodes.append(helper.make_node("Identity", [result], ["embeddings"]))
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, dtype in dtypes.items()
        ]
        floats = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        outputs = [helper.make_tensor_value_info("embeddings", floats, ["batch", self.config.embedding_width])]
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="ivt_jax")
        beside = sum(len(constant.raw_data) for constant in self.constants) > LARGEST
        self.onnx.save_model(model, path, save_as_external_data=beside, location=path.name + ".data")


def write_onnx(folder: Path, trained: Trained) -> None:
    """Writes the two encoders, the tokenizer and manifest.json into an empty folder.

    Parameters beyond 1.9 GB go to a file beside the encoder's, FILE.data. Raises UserError if onnx is not installed.
    """
    config, params = trained.model.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), trained.params)
    image, text = Graph(config), Graph(config)
    embedded = encode(image, params["blocks"], image_embedding(image, params["image_embedding"], "images"), "mlp_vis")
    image.save(folder / FILES[0], {"images": np.uint8}, ["batch", *config.image_size, 3], embedded)
    tokens = text_embedding(text, params["text_embedding"], "ids")
    key_bias = text("Unsqueeze", text("Where", "mask", np.float32(0), np.float32(MASKED)), [1, 2])  # (B, 1, 1, L)
    embedded = encode(text, params["blocks"], tokens, "mlp_txt", key_bias)
    embedded = text("Where", is_valid(text, "ids", "mask"), embedded, np.float32(np.nan))
    text.save(folder / FILES[1], {"ids": np.int32, "mask": np.bool_}, ["batch", "length"], embedded)
    write_manifest(folder, "onnx", FILES, trained, smallest_batch=0, opset=OPSET, dtype="float32")


def image_embedding(g: Graph, p: Params, images: str) -> str:
    """Embeds uint8 (B, H, W, 3) as the tokens (B, 1 + P, D) of [CLS] and patches, by a convolution."""
    config = g.config
    pixels = g("Div", g("Cast", images, to=g.onnx.TensorProto.FLOAT), np.float32(255))
    pixels = g("Sub", pixels, np.array(config.pixel_mean, np.float32))
    pixels = g("Div", pixels, np.array(config.pixel_deviation, np.float32))
    pixels = g("Transpose", pixels, perm=[0, 3, 1, 2])
    grid = g("Conv", pixels, convolution_weight(p["kernel"]), p["bias"], strides=[config.stride, config.stride])
    patches = g("Transpose", g("Reshape", grid, [0, config.width, config.num_patches]), perm=[0, 2, 1])
    batch = g("Shape", images, start=0, end=1)
    cls = g("Expand", p["cls"], g("Concat", batch, [1, config.width], axis=0))
    tokens = g("Add", g("Concat", cls, patches, axis=1), p["pos_embed"] + p["type_embed"])
    return layer_norm(g, p["norm"], tokens) if config.image_norm else tokens


def text_embedding(g: Graph, p: Params, ids: str) -> str:
    """Embeds int32 (B, L) as (B, L, D)."""
    length = g("Shape", ids, start=1, end=2)
    positions = g("Slice", p["position"] + p["token_type"][0], [0], length)
    # Gather refuses ids beyond the vocabulary and counts negative ones from the end; `is_valid` makes their row NaN.
    found = g("Where", known(g, ids), ids, np.int32(0))
    return layer_norm(g, p, g("Add", g("Gather", p["word"], found), positions), TEXT_NORM_EPSILON)


def known(g: Graph, ids: str) -> str:
    """Returns whether each id of (B, L) is in the vocabulary, (B, L) bool."""
    return g("And", g("GreaterOrEqual", ids, np.int32(0)), g("Less", ids, np.int32(g.config.vocab_size)))


def is_valid(g: Graph, ids: str, mask: str) -> str:
    """Returns whether all ids of a row of (B, L) are known and the first is not padding, (B, 1) bool."""
    integers = g("Cast", known(g, ids), to=g.onnx.TensorProto.INT32)
    all_known = g("Cast", g("ReduceMin", integers, [1], keepdims=1), to=g.onnx.TensorProto.BOOL)
    return g("And", all_known, g("Gather", mask, [0], axis=1))


def encode(g: Graph, blocks: Params, x: str, mlp_name: str, key_bias: str | None = None) -> str:
    """Encodes tokens (B, N, D) as embeddings (B, D): the blocks, the norm of the first token, at length 1."""
    layers = {name: blocks[name] for name in ("norm1", "attn", "norm2", mlp_name)}
    for i in range(g.config.depth):
        x = block(g, jax.tree.map(lambda leaf, i=i: leaf[i], layers), x, mlp_name, key_bias)
    first = layer_norm(g, blocks["norm"], g("Gather", x, np.int64(0), axis=1))
    norm = g("ReduceL2", first, [-1], keepdims=1)
    return g("Div", first, g("Max", norm, np.float32(1e-12)))


def block(g: Graph, p: Params, x: str, mlp_name: str, key_bias: str | None) -> str:
    """Applies a block with the MLP of one modality to (B, N, D)."""
    x = g("Add", x, attention(g, p["attn"], layer_norm(g, p["norm1"], x), key_bias))
    activation = g.config.image_activation if mlp_name == "mlp_vis" else "gelu"
    return g("Add", x, mlp(g, p[mlp_name], layer_norm(g, p["norm2"], x), activation))


def attention(g: Graph, p: Params, x: str, key_bias: str | None) -> str:
    """Applies multi-head self-attention to (B, N, D)."""
    size = g.config.width // g.config.num_heads
    parts = g("Split", linear(g, p["qkv"], x), outputs=3, axis=-1, num_outputs=3)
    q, k, v = (g("Reshape", part, [0, 0, g.config.num_heads, size]) for part in parts)  # 0: as in the input
    q = g("Mul", g("Transpose", q, perm=[0, 2, 1, 3]), np.float32(size**-0.5))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 2, 3, 1]))
    if key_bias is not None:
        scores = g("Add", scores, key_bias)
    mixed = g("MatMul", g("Softmax", scores, axis=-1), g("Transpose", v, perm=[0, 2, 1, 3]))
    return linear(g, p["proj"], g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, g.config.width]))


def mlp(g: Graph, p: Params, x: str, activation: str) -> str:
    """Returns fc2(activation(fc1(x)))."""
    hidden = linear(g, p["fc1"], x)
    if activation == "quick_gelu":
        hidden = g("Mul", hidden, g("Sigmoid", g("Mul", hidden, np.float32(1.702))))
    else:
        hidden = g("Gelu", hidden, approximate="none")  # exact, by erf
    return linear(g, p["fc2"], hidden)


def linear(g: Graph, p: Params, x: str) -> str:
    """Returns x @ kernel + bias."""
    return g("Add", g("MatMul", x, p["kernel"]), p["bias"])


def layer_norm(g: Graph, p: Params, x: str, epsilon: float | None = None) -> str:
    """Normalises the last axis; epsilon is the config's by default."""
    epsilon = g.config.norm_epsilon if epsilon is None else epsilon
    return g("LayerNormalization", x, p["scale"], p["bias"], axis=-1, epsilon=epsilon)
