"""ImageNet ViTs in three namings, and the initial tower made of one of them and of BERT (REFERENCE, section 2).

timm's (`timm`), Google's JAX checkpoints (`google`) and transformers' `ViTModel` (`transformers`) hold the same model.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion import bert
from ivt_jax.conversion.model import Conversion, complete
from ivt_jax.conversion.positions import resize_positions
from ivt_jax.conversion.tensors import Naming, Read, convolution, joined, linear, read, rule
from ivt_jax.models.embeddings import patch_grid
from ivt_jax.models.ivt import IVTConfig

POSITIONS = "image_embedding/pos_embed"
CLASSIFIER, POOLER = "the classifier", "a pooler"

TIMM = (
    rule("image_embedding/cls", "cls_token", "1 1 D"),
    rule(POSITIONS, "pos_embed", "1 N D"),
    rule("image_embedding/kernel", "patch_embed.proj.weight", "D 3 P P", convolution),
    rule("image_embedding/bias", "patch_embed.proj.bias", "D"),
    rule("blocks/norm1/scale", "blocks.{}.norm1.weight", "D"),
    rule("blocks/norm1/bias", "blocks.{}.norm1.bias", "D"),
    rule("blocks/attn/qkv/kernel", "blocks.{}.attn.qkv.weight", "3D D", linear),
    rule("blocks/attn/qkv/bias", "blocks.{}.attn.qkv.bias", "3D"),
    rule("blocks/attn/proj/kernel", "blocks.{}.attn.proj.weight", "D D", linear),
    rule("blocks/attn/proj/bias", "blocks.{}.attn.proj.bias", "D"),
    rule("blocks/norm2/scale", "blocks.{}.norm2.weight", "D"),
    rule("blocks/norm2/bias", "blocks.{}.norm2.bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", "blocks.{}.mlp.fc1.weight", "F D", linear),
    rule("blocks/mlp_vis/fc1/bias", "blocks.{}.mlp.fc1.bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", "blocks.{}.mlp.fc2.weight", "D F", linear),
    rule("blocks/mlp_vis/fc2/bias", "blocks.{}.mlp.fc2.bias", "D"),
    rule("blocks/norm/scale", "norm.weight", "D"),
    rule("blocks/norm/bias", "norm.bias", "D"),
)

_HF = "encoder.layer.{}."
_HF_QKV = " ".join(_HF + f"attention.attention.{part}.KIND" for part in ("query", "key", "value"))
TRANSFORMERS = (
    rule("image_embedding/cls", "embeddings.cls_token", "1 1 D"),
    rule(POSITIONS, "embeddings.position_embeddings", "1 N D"),
    rule("image_embedding/kernel", "embeddings.patch_embeddings.projection.weight", "D 3 P P", convolution),
    rule("image_embedding/bias", "embeddings.patch_embeddings.projection.bias", "D"),
    rule("blocks/norm1/scale", _HF + "layernorm_before.weight", "D"),
    rule("blocks/norm1/bias", _HF + "layernorm_before.bias", "D"),
    rule("blocks/attn/qkv/kernel", _HF_QKV.replace("KIND", "weight"), "D D", linear),
    rule("blocks/attn/qkv/bias", _HF_QKV.replace("KIND", "bias"), "D", joined),
    rule("blocks/attn/proj/kernel", _HF + "attention.output.dense.weight", "D D", linear),
    rule("blocks/attn/proj/bias", _HF + "attention.output.dense.bias", "D"),
    rule("blocks/norm2/scale", _HF + "layernorm_after.weight", "D"),
    rule("blocks/norm2/bias", _HF + "layernorm_after.bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", _HF + "intermediate.dense.weight", "F D", linear),
    rule("blocks/mlp_vis/fc1/bias", _HF + "intermediate.dense.bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", _HF + "output.dense.weight", "D F", linear),
    rule("blocks/mlp_vis/fc2/bias", _HF + "output.dense.bias", "D"),
    rule("blocks/norm/scale", "layernorm.weight", "D"),
    rule("blocks/norm/bias", "layernorm.bias", "D"),
)
# transformers 5 writes files with the names above, but has these in memory: a state dict of its model has them.
IN_MEMORY = {
    "layers.": "encoder.layer.",
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def transformers_name(name: str) -> str:
    """Without the prefix of the models around the ViT; a name that the model has in memory as its files have it."""
    name = name.removeprefix("vit.")
    if name.startswith("layers."):
        for new, old in IN_MEMORY.items():
            name = name.replace(new, old)
    return name


def heads_in(*kernels: np.ndarray) -> np.ndarray:
    """Query, key and value, each (in, heads, head) -> (in, 3 * heads * head)."""
    return np.concatenate([kernel.reshape(len(kernel), -1) for kernel in kernels], axis=1)


def heads_out(kernel: np.ndarray) -> np.ndarray:
    """(heads, head, out) -> (heads * head, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


def pixels(kernel: np.ndarray) -> np.ndarray:
    """(row, column, channel, out) -> (row * column * channel, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


_JAX = "Transformer/encoderblock_{}/"
_JAX_ATTENTION = _JAX + "MultiHeadDotProductAttention_1/"
_JAX_QKV = " ".join(_JAX_ATTENTION + f"{part}/KIND" for part in ("query", "key", "value"))
GOOGLE = (
    rule("image_embedding/cls", "cls", "1 1 D"),
    rule(POSITIONS, "Transformer/posembed_input/pos_embedding", "1 N D"),
    rule("image_embedding/kernel", "embedding/kernel", "P P 3 D", pixels),
    rule("image_embedding/bias", "embedding/bias", "D"),
    rule("blocks/norm1/scale", _JAX + "LayerNorm_0/scale", "D"),
    rule("blocks/norm1/bias", _JAX + "LayerNorm_0/bias", "D"),
    rule("blocks/attn/qkv/kernel", _JAX_QKV.replace("KIND", "kernel"), "D H E", heads_in),
    rule("blocks/attn/qkv/bias", _JAX_QKV.replace("KIND", "bias"), "H E", joined),
    rule("blocks/attn/proj/kernel", _JAX_ATTENTION + "out/kernel", "H E D", heads_out),
    rule("blocks/attn/proj/bias", _JAX_ATTENTION + "out/bias", "D"),
    rule("blocks/norm2/scale", _JAX + "LayerNorm_2/scale", "D"),
    rule("blocks/norm2/bias", _JAX + "LayerNorm_2/bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", _JAX + "MlpBlock_3/Dense_0/kernel", "D F"),
    rule("blocks/mlp_vis/fc1/bias", _JAX + "MlpBlock_3/Dense_0/bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", _JAX + "MlpBlock_3/Dense_1/kernel", "F D"),
    rule("blocks/mlp_vis/fc2/bias", _JAX + "MlpBlock_3/Dense_1/bias", "D"),
    rule("blocks/norm/scale", "Transformer/encoder_norm/scale", "D"),
    rule("blocks/norm/bias", "Transformer/encoder_norm/bias", "D"),
)


NAMINGS = {
    "timm": Naming(TIMM, {r"head\.(weight|bias)": CLASSIFIER, r"pre_logits\.fc\.(weight|bias)": POOLER}),
    "google": Naming(GOOGLE, {r"head/(kernel|bias)": CLASSIFIER, r"pre_logits/(kernel|bias)": POOLER}),
    "transformers": Naming(
        TRANSFORMERS,
        {r"classifier\.(weight|bias)": CLASSIFIER, r"pooler\.dense\.(weight|bias)": POOLER},
        clean=transformers_name,
    ),
}


class Source(NamedTuple):
    """Tensors by name, and the file they come from, for errors."""

    tensors: Mapping[str, np.ndarray]
    file: str


def naming_of(source: Source, namings: Mapping[str, Naming] = NAMINGS, kind: str = "ViT") -> str:
    """Whose names the tensors have: what the patch embedding is called tells. Raises UserError for others'."""
    for name, naming in namings.items():
        patches = next(rule for rule in naming.rules if rule.ours == "image_embedding/kernel").names[0]
        if patches in {naming.clean(tensor) for tensor in source.tensors}:
            return name
    first = ", ".join(sorted(source.tensors)[:3])
    raise UserError(
        f"{source.file} is no {kind} in the naming of {', '.join(namings)}: it has {first}, ...; "
        "docs/weights.md tells which --source takes what"
    )


def convert_vit(vit: Source, text: Source, model: IVTConfig, method: str, seed: int) -> Conversion:
    """The tower that training starts from: attention, norms, image side from a ViT, text side from BERT.

    model: image size, stride and heads wanted, and what else no tensor tells; the other sizes are the tensors'. The
    positions are resized by `method` from the ViT's square grid. Type embedding, mask token and heads are as the model
    initialises them from `seed`. Raises UserError as `tensors.read`, and where the two do not go together.
    """
    image = read(NAMINGS[naming_of(vit)], vit.tensors, vit.file, {"H": model.num_heads})
    return with_bert(image, vit.file, text, model, method, seed)


def with_bert(image: Read, file: str, text: Source, model: IVTConfig, method: str, seed: int) -> Conversion:
    """The tower of the attention, norms and image side that were read from `file`, and of BERT's text side."""
    words = read(bert.NAMING, text.tensors, text.file, {})
    for letter, what in (("D", "wide"), ("depth", "deep"), ("F", "wide in the MLPs")):
        ours, theirs = image.sizes[letter], words.sizes[letter]
        if ours != theirs:
            raise UserError(f"{file} is {ours} {what}, {text.file} {theirs}; name a pair of the same size")
    sizes = words.sizes | image.sizes
    image = resized(image, file, model, method)
    return complete(image.flat | words.flat, sizes, model, seed, [*image.rows, *words.rows], f"{file}, {text.file}")


def resized(image: Read, file: str, model: IVTConfig, method: str) -> Read:
    """With the positions on the model's grid of patches."""
    side = math.isqrt(image.sizes["N"] - 1)
    if side < 1 or side**2 != image.sizes["N"] - 1:
        raise UserError(f"{file}: position embedding of length {image.sizes['N']}; expected [CLS] and a square grid")
    grid = patch_grid(model.image_size, image.sizes["P"], model.stride)
    if min(grid) < 1:
        raise UserError(f"{file}: patches of {image.sizes['P']} pixels do not fit the image size {model.image_size}")
    if grid == (side, side):
        return image
    positions = resize_positions(image.flat[POSITIONS], (side, side), grid, method)
    note = f"{POSITIONS}, {side}x{side} -> {grid[0]}x{grid[1]} patches, {method}"
    rows = [row._replace(action="resized", note=note) if row.note == POSITIONS else row for row in image.rows]
    return Read(image.flat | {POSITIONS: positions}, image.sizes, rows)
