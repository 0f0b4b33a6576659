"""ImageNet ViTs in three namings, and the initial tower made of one of them and of BERT (REFERENCE, section 2)."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion import bert
from ivt_jax.conversion.layers import FLAX, Block, block_rules, layer_rules
from ivt_jax.conversion.model import Conversion, complete
from ivt_jax.conversion.positions import resize_positions
from ivt_jax.conversion.tensors import Loaded, Naming, read, rule
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.patches import patch_grid

CLS, POSITIONS = "image_embedding/cls", "image_embedding/pos_embed"
CLASSIFIER, POOLER = "the classifier", "a pooler"

TIMM = (
    rule(CLS, "cls_token", "1 1 D"),
    rule(POSITIONS, "pos_embed", "1 N D"),
    *layer_rules("image_embedding", "patch_embed.proj."),
    *block_rules(Block("blocks.{}.", "norm1.", "attn.qkv.", "attn.proj.", "norm2.", "mlp.fc1.", "mlp.fc2.")),
    *layer_rules("blocks/norm", "norm."),
)
TRANSFORMERS_BLOCK = Block(
    "encoder.layer.{}.", "layernorm_before.",
    "attention.attention.query. attention.attention.key. attention.attention.value.", "attention.output.dense.",
    "layernorm_after.", "intermediate.dense.", "output.dense.",
)  # fmt: skip
TRANSFORMERS = (
    rule(CLS, "embeddings.cls_token", "1 1 D"),
    rule(POSITIONS, "embeddings.position_embeddings", "1 N D"),
    *layer_rules("image_embedding", "embeddings.patch_embeddings.projection."),
    *block_rules(TRANSFORMERS_BLOCK),
    *layer_rules("blocks/norm", "layernorm."),
)
# transformers 5 writes the names above to files; a state dict of its model has these.
IN_MEMORY = {
    "layers.": "encoder.layer.", ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.", ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.", ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}  # fmt: skip


def transformers_name(name: str) -> str:
    """Removes the prefix "vit."; replaces a name that transformers 5 has in memory with the name in its files."""
    name = name.removeprefix("vit.")
    if name.startswith("layers."):
        for new, old in IN_MEMORY.items():
            name = name.replace(new, old)
    return name


_ATTENTION = "MultiHeadDotProductAttention_1/"
GOOGLE_BLOCK = Block(
    "Transformer/encoderblock_{}/", "LayerNorm_0/",
    f"{_ATTENTION}query/ {_ATTENTION}key/ {_ATTENTION}value/", f"{_ATTENTION}out/",
    "LayerNorm_2/", "MlpBlock_3/Dense_0/", "MlpBlock_3/Dense_1/",
)  # fmt: skip
GOOGLE = (
    rule(CLS, "cls", "1 1 D"),
    rule(POSITIONS, "Transformer/posembed_input/pos_embedding", "1 N D"),
    *layer_rules("image_embedding", "embedding/", FLAX),
    *block_rules(GOOGLE_BLOCK, FLAX),
    *layer_rules("blocks/norm", "Transformer/encoder_norm/", FLAX),
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
    """Tensors by name, and their file, which errors name."""

    tensors: Mapping[str, np.ndarray]
    file: str


def naming_of(source: Source, namings: Mapping[str, Naming] = NAMINGS, kind: str = "ViT") -> str:
    """Returns the naming that has the source's name of the patch embedding. Raises UserError if none has it."""
    for name, naming in namings.items():
        patches = next(rule for rule in naming.rules if rule.ours == "image_embedding/kernel").names[0]
        if patches in {naming.clean(tensor) for tensor in source.tensors}:
            return name
    first = ", ".join(sorted(source.tensors)[:3])
    raise UserError(
        f"{source.file} is no {kind} in the naming of {', '.join(namings)}: it has {first}, ...; "
        "docs/weights.md lists what each --source reads"
    )


def convert_vit(vit: Source, text: Source, model_config: IVTConfig, method: str, seed: int) -> Conversion:
    """Returns the tower that training starts from: attention, norms and image side of a ViT, text side of BERT.

    model_config: image size, stride, heads and options; the other sizes are those of the tensors. method: how positions
    are resized from the ViT's square grid. Type embedding, mask token and heads are initialised from `seed`. Raises
    UserError as `tensors.read`, and if the sizes of ViT and BERT differ.
    """
    image = read(NAMINGS[naming_of(vit)], vit.tensors, vit.file, {"H": model_config.num_heads})
    return with_bert(image, vit.file, text, model_config, method, seed)


def with_bert(image: Loaded, file: str, text: Source, model_config: IVTConfig, method: str, seed: int) -> Conversion:
    """Returns the tower with the image side `image`, read from `file`, and BERT's text side."""
    words = read(bert.NAMING, text.tensors, text.file, {})
    for letter, what in (("D", "wide"), ("depth", "deep"), ("F", "wide in the MLPs")):
        ours, theirs = image.sizes[letter], words.sizes[letter]
        if ours != theirs:
            raise UserError(f"{file} is {ours} {what}, {text.file} {theirs}; name a pair of the same size")
    image = resized(image, file, model_config, method)
    both = Loaded(image.flat | words.flat, words.sizes | image.sizes, image.uses + words.uses)
    return complete(both, model_config, seed, f"{file}, {text.file}")


def resized(image: Loaded, file: str, model_config: IVTConfig, method: str) -> Loaded:
    """Returns `image` with the positions resized to the model's grid of patches."""
    count = image.sizes["N"] - model_config.has_class_token
    side = math.isqrt(count)
    if side < 1 or side**2 != count:
        expected = "[CLS] and a square grid" if model_config.has_class_token else "a square grid"
        raise UserError(f"{file}: position embedding of length {image.sizes['N']}; expected {expected}")
    patch_size, image_size = image.sizes["P"], model_config.image_size
    grid = patch_grid(image_size, patch_size, model_config.stride)
    if min(grid) < 1:
        raise UserError(f"{file}: patches of {patch_size} pixels do not fit the image size {image_size}")
    if grid == (side, side):
        return image
    positions = resize_positions(image.flat[POSITIONS], (side, side), grid, method)
    note = f"{POSITIONS}, {side}x{side} -> {grid[0]}x{grid[1]} patches, {method}"
    uses = [use._replace(action="resized", note=note) if use.note == POSITIONS else use for use in image.uses]
    return Loaded(image.flat | {POSITIONS: positions}, image.sizes, uses)
