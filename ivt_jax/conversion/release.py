"""The checkpoint of the IVT release, whose tower has the parameters of ours, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ivt_jax.conversion.bert import text_embedding
from ivt_jax.conversion.layers import Block, block_rules, convolution, convolution_weight, layer_rules, linear
from ivt_jax.conversion.model import Conversion, complete
from ivt_jax.conversion.tensors import Naming, read, rule, same
from ivt_jax.models.config import IVTConfig

TOWER, BLOCK = "encoder_vl.", "encoder_vl.blocks.{}."
POSITION_IDS = TOWER + "embeddings.position_ids"  # 0, 1, 2, ...: an index that the release stores with its weights

RULES = (
    rule("image_embedding/cls", TOWER + "cls_token", "1 1 D"),
    rule("image_embedding/pos_embed", TOWER + "pos_embed", "1 N D"),
    rule("image_embedding/type_embed", TOWER + "type_embed", "1 N D"),
    *layer_rules("image_embedding", TOWER + "patch_embed.proj."),
    *text_embedding(TOWER + "embeddings."),
    *block_rules(Block(BLOCK, "norm1.", "attn.qkv.", "attn.proj.", "norm2.", "mlp_vis.fc1.", "mlp_vis.fc2.")),
    *layer_rules("blocks/mlp_txt/fc1", BLOCK + "mlp_txt.fc1."),
    *layer_rules("blocks/mlp_txt/fc2", BLOCK + "mlp_txt.fc2."),
    *layer_rules("blocks/norm", TOWER + "norm."),
)
IGNORED = {
    r"(classifier_img|bottleneck_img)\..*": "an unused head",
    r"temp": "an unused temperature",
    r"encoder_vl\.embeddings\.position_ids": "an index, no weight",
}
NAMING = Naming(RULES, IGNORED, clean=lambda name: name.removeprefix("module."))
INVERSE: Mapping[Any, Callable[..., np.ndarray]] = {same: same, linear: np.transpose, convolution: convolution_weight}


def params_from_release(
    tensors: Mapping[str, np.ndarray], *, num_heads: int, image_size: tuple[int, int], stride: int
) -> tuple[IVTConfig, Any]:
    """Converts the release's tensors by name, with or without `module.`, to the model's config and its parameters.

    Heads, image size (height, width) and stride are arguments because the tensors do not determine them. The parameters
    are the whole tree of `IVT(config).apply({"params": params}, ...)`; the mask token and the reconstruction heads,
    which the release does not have, are initialised from seed 0. Raises UserError, naming the tensor, if one is
    missing, unexpected or of another shape.
    """
    height, width = image_size
    model_config = IVTConfig(num_heads=num_heads, image_size=(height, width), stride=stride)
    conversion = convert_release(tensors, "the release's tensors", model_config, seed=0)
    return conversion.model_config, conversion.params


def convert_release(tensors: Mapping[str, np.ndarray], file: str, model_config: IVTConfig, seed: int) -> Conversion:
    """As `params_from_release`, for a model with the options (dropout, dtype, ...) of `model_config`."""
    return complete(read(NAMING, tensors, file, {}), model_config, seed, file)


def release_from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns our parameters as the release's tensors by name, without mask token and reconstruction heads.

    The inverse of `params_from_release`, bit for bit.
    """
    flat = flatten_dict(params, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for entry in RULES:
        write = INVERSE[entry.layout]
        (name,), value = entry.names, np.asarray(flat[entry.ours])
        if "{}" in name:
            tensors |= {name.replace("{}", str(i)): write(layer) for i, layer in enumerate(value)}
        else:
            tensors[name] = write(value)
    tensors[POSITION_IDS] = np.arange(len(flat["text_embedding/position"]))[None]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
