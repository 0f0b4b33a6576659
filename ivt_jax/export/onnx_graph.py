"""The encoders as ONNX graphs, for ONNX Runtime and other programs that read ONNX.

The inputs are `images`, uint8 (batch, H, W, 3); `ids`, int32 (batch, length), and their `mask`, bool, False at padding.
The output `embeddings`, float32 (batch, D), has unit vectors. A row with an id outside of the vocabulary, or that
begins with padding, gives NaN (`is_valid`). The graphs compute in float32, whatever the model's dtype.

They are written node by node because the converter jax2onnx requires an Orbax older than ours. The functions here and
in onnx_layers.py follow ivt_jax/models/ one by one: each adds nodes to a graph and returns the name of the last one's
output.
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
from ivt_jax.export.onnx_layers import attention_pooling, causal_bias, encode, layer_norm, pooled_text
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.embeddings import TEXT_NORM_EPSILON
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
        """Adds a node; returns the name of its output, or a list of names if there are several.

        inputs: names, or values, which become constants (lists as int64).
        """
        names = [x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs]
        made = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def save(self, path: Path, dtypes: Mapping[str, Any], shape: Sequence[str | int], result: str) -> None:
        """Writes the graph. dtypes, shape: of its inputs; result: name of the output with the embeddings (batch, D)."""
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
    image, text = Graph(config), Graph(config.text_tower if config.towers == 2 else config)
    image.save(folder / FILES[0], {"images": np.uint8}, ["batch", *config.image_size, 3], image_encoder(image, params))
    takes = {"ids": np.int32, "mask": np.bool_}
    text.save(folder / FILES[1], takes, ["batch", "length"], text_encoder(text, params))
    write_manifest(folder, "onnx", FILES, trained, smallest_batch=0, opset=OPSET, dtype="float32")


def image_encoder(g: Graph, params: Params) -> str:
    """Embeds `images`, uint8 (B, H, W, 3), as (B, D)."""
    blocks, mlp_name = ("image_blocks", "mlp") if g.config.towers == 2 else ("blocks", "mlp_vis")
    x = encode(g, params[blocks], image_embedding(g, params["image_embedding"], "images"), mlp_name)
    if not g.config.has_class_token:
        return unit(g, attention_pooling(g, params["image_head"], layer_norm(g, params[blocks]["norm"], x)))
    first = layer_norm(g, params[blocks]["norm"], g("Gather", x, np.int64(0), axis=1))
    return unit(g, projected(g, params.get("image_projection"), first))


def text_encoder(g: Graph, params: Params) -> str:
    """Embeds `ids`, int32 (B, L), with `mask`, bool (B, L), as (B, D)."""
    two, text = g.config.towers == 2, g.config.text
    blocks, mlp_name = ("text_blocks", "mlp") if two else ("blocks", "mlp_txt")
    length = g("Shape", "ids", start=1, end=2)
    bias = g("Unsqueeze", g("Where", "mask", np.float32(0), np.float32(MASKED)), [1, 2])  # (B, 1, 1, L)
    if two and text.causal:
        bias = g("Add", bias, causal_bias(g, length))
    x = encode(g, params[blocks], text_embedding(g, params["text_embedding"], "ids"), mlp_name, bias, length)
    pooled = pooled_text(g, x, "mask", length, text.pooling if two else "first")
    embedded = projected(g, params.get("text_projection"), layer_norm(g, params[blocks]["norm"], pooled))
    return g("Where", is_valid(g, "ids", "mask"), unit(g, embedded), np.float32(np.nan))


def image_embedding(g: Graph, p: Params, images: str) -> str:
    """Embeds uint8 (B, H, W, 3) as the tokens (B, N, D) of [CLS], if there is one, and patches, by a convolution."""
    config = g.config
    pixels = g("Div", g("Cast", images, to=g.onnx.TensorProto.FLOAT), np.float32(255))
    pixels = g("Sub", pixels, np.array(config.pixel_mean, np.float32))
    pixels = g("Div", pixels, np.array(config.pixel_deviation, np.float32))
    pixels = g("Transpose", pixels, perm=[0, 3, 1, 2])
    grid = g("Conv", pixels, convolution_weight(p["kernel"]), p["bias"], strides=[config.stride, config.stride])
    patches = g("Transpose", g("Reshape", grid, [0, config.width, config.num_patches]), perm=[0, 2, 1])
    if config.has_class_token:
        batch = g("Shape", images, start=0, end=1)
        cls = g("Expand", p["cls"], g("Concat", batch, [1, config.width], axis=0))
        patches = g("Concat", cls, patches, axis=1)
    tokens = g("Add", patches, p["pos_embed"] + p["type_embed"] if "type_embed" in p else p["pos_embed"])
    return layer_norm(g, p["norm"], tokens) if config.image_norm else tokens


def text_embedding(g: Graph, p: Params, ids: str) -> str:
    """Embeds int32 (B, L) as (B, L, D): as BERT in one tower, without types and norm in two."""
    as_bert = "token_type" in p
    length = g("Shape", ids, start=1, end=2)
    positions = g("Slice", p["position"] + p["token_type"][0] if as_bert else p["position"], [0], length)
    # Gather refuses ids beyond the vocabulary and counts negative ones from the end; `is_valid` makes their row NaN.
    found = g("Where", known(g, ids), ids, np.int32(0))
    tokens = g("Add", g("Gather", p["word"], found), positions)
    return layer_norm(g, p, tokens, TEXT_NORM_EPSILON) if as_bert else tokens


def known(g: Graph, ids: str) -> str:
    """Returns whether each id of (B, L) is in the vocabulary, (B, L) bool."""
    return g("And", g("GreaterOrEqual", ids, np.int32(0)), g("Less", ids, np.int32(g.config.vocab_size)))


def is_valid(g: Graph, ids: str, mask: str) -> str:
    """Returns whether all ids of a row of (B, L) are known and the first is not padding, (B, 1) bool."""
    integers = g("Cast", known(g, ids), to=g.onnx.TensorProto.INT32)
    all_known = g("Cast", g("ReduceMin", integers, [1], keepdims=1), to=g.onnx.TensorProto.BOOL)
    return g("And", all_known, g("Gather", mask, [0], axis=1))


def projected(g: Graph, p: Params | None, pooled: str) -> str:
    """Projects (B, D) to the width of the embeddings; None = the model has no projection."""
    if p is None:
        return pooled
    product = g("MatMul", pooled, p["kernel"])
    return g("Add", product, p["bias"]) if "bias" in p else product


def unit(g: Graph, x: str) -> str:
    """Scales (B, D) to length 1."""
    return g("Div", x, g("Max", g("ReduceL2", x, [-1], keepdims=1), np.float32(1e-12)))
