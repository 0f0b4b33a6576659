"""The checkpoint of the IVT release, whose tower has the parameters of ours; and back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ivt_jax.conversion.model import Conversion, complete
from ivt_jax.conversion.tensors import Naming, convolution, linear, read, rule, same
from ivt_jax.models.ivt import IVTConfig

TOWER = "encoder_vl."
POSITION_IDS = TOWER + "embeddings.position_ids"  # 0, 1, 2, ...: an index that the release stores with its weights

RULES = (
    rule("image_embedding/cls", TOWER + "cls_token", "1 1 D"),
    rule("image_embedding/pos_embed", TOWER + "pos_embed", "1 N D"),
    rule("image_embedding/type_embed", TOWER + "type_embed", "1 N D"),
    rule("image_embedding/kernel", TOWER + "patch_embed.proj.weight", "D 3 P P", convolution),
    rule("image_embedding/bias", TOWER + "patch_embed.proj.bias", "D"),
    rule("text_embedding/word", TOWER + "embeddings.word_embeddings.weight", "V D"),
    rule("text_embedding/position", TOWER + "embeddings.position_embeddings.weight", "L D"),
    rule("text_embedding/token_type", TOWER + "embeddings.token_type_embeddings.weight", "2 D"),
    rule("text_embedding/scale", TOWER + "embeddings.LayerNorm.weight", "D"),
    rule("text_embedding/bias", TOWER + "embeddings.LayerNorm.bias", "D"),
    rule("blocks/norm1/scale", TOWER + "blocks.{}.norm1.weight", "D"),
    rule("blocks/norm1/bias", TOWER + "blocks.{}.norm1.bias", "D"),
    rule("blocks/attn/qkv/kernel", TOWER + "blocks.{}.attn.qkv.weight", "3D D", linear),
    rule("blocks/attn/qkv/bias", TOWER + "blocks.{}.attn.qkv.bias", "3D"),
    rule("blocks/attn/proj/kernel", TOWER + "blocks.{}.attn.proj.weight", "D D", linear),
    rule("blocks/attn/proj/bias", TOWER + "blocks.{}.attn.proj.bias", "D"),
    rule("blocks/norm2/scale", TOWER + "blocks.{}.norm2.weight", "D"),
    rule("blocks/norm2/bias", TOWER + "blocks.{}.norm2.bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", TOWER + "blocks.{}.mlp_vis.fc1.weight", "F D", linear),
    rule("blocks/mlp_vis/fc1/bias", TOWER + "blocks.{}.mlp_vis.fc1.bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", TOWER + "blocks.{}.mlp_vis.fc2.weight", "D F", linear),
    rule("blocks/mlp_vis/fc2/bias", TOWER + "blocks.{}.mlp_vis.fc2.bias", "D"),
    rule("blocks/mlp_txt/fc1/kernel", TOWER + "blocks.{}.mlp_txt.fc1.weight", "F D", linear),
    rule("blocks/mlp_txt/fc1/bias", TOWER + "blocks.{}.mlp_txt.fc1.bias", "F"),
    rule("blocks/mlp_txt/fc2/kernel", TOWER + "blocks.{}.mlp_txt.fc2.weight", "D F", linear),
    rule("blocks/mlp_txt/fc2/bias", TOWER + "blocks.{}.mlp_txt.fc2.bias", "D"),
    rule("blocks/norm/scale", TOWER + "norm.weight", "D"),
    rule("blocks/norm/bias", TOWER + "norm.bias", "D"),
)
IGNORED = {
    r"(classifier_img|bottleneck_img)\..*": "an unused head",
    r"temp": "an unused temperature",
    r"encoder_vl\.embeddings\.position_ids": "an index, no weight",
}
NAMING = Naming(RULES, IGNORED, clean=lambda name: name.removeprefix("module."))


def params_from_release(
    tensors: Mapping[str, np.ndarray], *, num_heads: int, image_size: tuple[int, int], stride: int
) -> tuple[IVTConfig, Any]:
    """The release's tensors by name, with or without `module.` -> the model's config and its parameters.

    What cannot be read off the tensors is given: the number of heads, the image size (height, width), the stride. The
    parameters are the whole tree that `IVT(config).apply({"params": params}, ...)` takes; the mask token and the heads
    of reconstruction, which the release lacks, are as the model initialises them, from seed 0. Raises UserError, naming
    the tensor, where one is missing, unexpected or of another shape.
    """
    height, width = image_size
    model = IVTConfig(num_heads=num_heads, image_size=(height, width), stride=stride)
    conversion = convert_release(tensors, "the release's tensors", model, seed=0)
    return conversion.model, conversion.params


def convert_release(tensors: Mapping[str, np.ndarray], file: str, model: IVTConfig, seed: int) -> Conversion:
    """As `params_from_release`; what else `model` says (dropout, dtype, ...) stays. Errors name `file`."""
    found = read(NAMING, tensors, file, {})
    return complete(found.flat, found.sizes, model, seed, found.rows, file)


def release_from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters -> the release's tensors, under the names it gives them. The mask token and the heads stay behind.

    The inverse of `params_from_release`, bit for bit.
    """
    flat = flatten_dict(params, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for entry in RULES:
        write = WRITE[entry.read]
        (name,), value = entry.names, np.asarray(flat[entry.ours])
        if "{}" in name:
            tensors |= {name.replace("{}", str(i)): write(layer) for i, layer in enumerate(value)}
        else:
            tensors[name] = write(value)
    tensors[POSITION_IDS] = np.arange(len(flat["text_embedding/position"]))[None]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def convolution_weight(kernel: np.ndarray) -> np.ndarray:
    """(row * column * channel, out) -> (out, channel, row, column)."""
    side = round((len(kernel) / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


WRITE: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    same: same,
    linear: np.transpose,
    convolution: convolution_weight,
}
