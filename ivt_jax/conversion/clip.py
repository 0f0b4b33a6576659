"""CLIP's image tower in two namings, into the shared tower: an experimental start (Radford et al. 2021).

OpenAI's names (`openai`), which open_clip has too, and transformers' (`transformers`) hold the same model. What CLIP
has otherwise than a ViT is in the options of the model; then the tower computes CLIP's image features as they are
before the projection to the space that CLIP shares with its texts. CLIP's own text tower is narrower and stays out.
"""

import dataclasses

import numpy as np

from ivt_jax.conversion.model import Conversion
from ivt_jax.conversion.tensors import Naming, Read, convolution, joined, linear, read, rule
from ivt_jax.conversion.vit import POSITIONS, Source, naming_of, with_bert
from ivt_jax.models.ivt import IVTConfig

KERNEL, BIAS = "image_embedding/kernel", "image_embedding/bias"
EPSILON = 1e-5  # of CLIP's norms
# Of the pixels, from 0 to 1, that CLIP learned from: red, green, blue.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
PROJECTION, TEMPERATURE, TEXT = "the projection to CLIP's common space", "a temperature", "of CLIP's text tower"


def tokens(tensor: np.ndarray) -> np.ndarray:
    """One or several vectors of width D -> (1, N, D)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


_BLOCK = "visual.transformer.resblocks.{}."
OPENAI = (
    rule("image_embedding/cls", "visual.class_embedding", "D", tokens),
    rule(POSITIONS, "visual.positional_embedding", "N D", tokens),
    rule(KERNEL, "visual.conv1.weight", "D 3 P P", convolution),
    rule("image_embedding/norm/scale", "visual.ln_pre.weight", "D"),
    rule("image_embedding/norm/bias", "visual.ln_pre.bias", "D"),
    rule("blocks/norm1/scale", _BLOCK + "ln_1.weight", "D"),
    rule("blocks/norm1/bias", _BLOCK + "ln_1.bias", "D"),
    rule("blocks/attn/qkv/kernel", _BLOCK + "attn.in_proj_weight", "3D D", linear),
    rule("blocks/attn/qkv/bias", _BLOCK + "attn.in_proj_bias", "3D"),
    rule("blocks/attn/proj/kernel", _BLOCK + "attn.out_proj.weight", "D D", linear),
    rule("blocks/attn/proj/bias", _BLOCK + "attn.out_proj.bias", "D"),
    rule("blocks/norm2/scale", _BLOCK + "ln_2.weight", "D"),
    rule("blocks/norm2/bias", _BLOCK + "ln_2.bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", _BLOCK + "mlp.c_fc.weight", "F D", linear),
    rule("blocks/mlp_vis/fc1/bias", _BLOCK + "mlp.c_fc.bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", _BLOCK + "mlp.c_proj.weight", "D F", linear),
    rule("blocks/mlp_vis/fc2/bias", _BLOCK + "mlp.c_proj.bias", "D"),
    rule("blocks/norm/scale", "visual.ln_post.weight", "D"),
    rule("blocks/norm/bias", "visual.ln_post.bias", "D"),
)
OPENAI_IGNORED = {
    r"visual\.proj": PROJECTION,
    r"logit_scale|logit_bias": TEMPERATURE,
    r"transformer\..*|token_embedding\..*|ln_final\..*|positional_embedding|text_projection(\..*)?|text\..*": TEXT,
    r"input_resolution|context_length|vocab_size": "a size, no weight",
}

_LAYER = "encoder.layers.{}."
_QKV = " ".join(_LAYER + f"self_attn.{part}_proj.KIND" for part in ("q", "k", "v"))
TRANSFORMERS = (
    rule("image_embedding/cls", "embeddings.class_embedding", "D", tokens),
    rule(POSITIONS, "embeddings.position_embedding.weight", "N D", tokens),
    rule(KERNEL, "embeddings.patch_embedding.weight", "D 3 P P", convolution),
    rule("image_embedding/norm/scale", "pre_layrnorm.weight", "D"),  # so spelt
    rule("image_embedding/norm/bias", "pre_layrnorm.bias", "D"),
    rule("blocks/norm1/scale", _LAYER + "layer_norm1.weight", "D"),
    rule("blocks/norm1/bias", _LAYER + "layer_norm1.bias", "D"),
    rule("blocks/attn/qkv/kernel", _QKV.replace("KIND", "weight"), "D D", linear),
    rule("blocks/attn/qkv/bias", _QKV.replace("KIND", "bias"), "D", joined),
    rule("blocks/attn/proj/kernel", _LAYER + "self_attn.out_proj.weight", "D D", linear),
    rule("blocks/attn/proj/bias", _LAYER + "self_attn.out_proj.bias", "D"),
    rule("blocks/norm2/scale", _LAYER + "layer_norm2.weight", "D"),
    rule("blocks/norm2/bias", _LAYER + "layer_norm2.bias", "D"),
    rule("blocks/mlp_vis/fc1/kernel", _LAYER + "mlp.fc1.weight", "F D", linear),
    rule("blocks/mlp_vis/fc1/bias", _LAYER + "mlp.fc1.bias", "F"),
    rule("blocks/mlp_vis/fc2/kernel", _LAYER + "mlp.fc2.weight", "D F", linear),
    rule("blocks/mlp_vis/fc2/bias", _LAYER + "mlp.fc2.bias", "D"),
    rule("blocks/norm/scale", "post_layernorm.weight", "D"),
    rule("blocks/norm/bias", "post_layernorm.bias", "D"),
)
TRANSFORMERS_IGNORED = {
    r"visual_projection\.weight": PROJECTION,
    r"logit_scale": TEMPERATURE,
    r"text_model\..*|text_projection\.weight": TEXT,
    r"embeddings\.position_ids": "an index, no weight",
}

NAMINGS = {
    "openai": Naming(OPENAI, OPENAI_IGNORED, clean=lambda name: name.removeprefix("module.")),
    "transformers": Naming(
        TRANSFORMERS, TRANSFORMERS_IGNORED, clean=lambda name: name.removeprefix("vision_model.")
    ),
}  # fmt: skip


def convert_clip(
    clip: Source, text: Source, model: IVTConfig, activation: str, method: str, seed: int
) -> Conversion:  # fmt: skip
    """As `convert_vit`, with the image side from CLIP, and the options of the model as CLIP needs them.

    activation: of the images' MLPs, which no tensor tells: OpenAI's models have "quick_gelu", most others "gelu".
    """
    naming = NAMINGS[naming_of(clip, NAMINGS, "CLIP")]
    image = for_our_pixels(read(naming, clip.tensors, clip.file, {}))
    model = dataclasses.replace(model, image_norm=True, image_activation=activation, norm_epsilon=EPSILON)
    return without_types(with_bert(image, clip.file, text, model, method, seed))


def without_types(made: Conversion) -> Conversion:
    """With types of zero: CLIP's tokens are so small before its norm that random types would drown them."""
    embedding = made.params["image_embedding"]
    embedding["type_embed"] = np.zeros_like(embedding["type_embed"])
    note = "image_embedding/type_embed, zeros: CLIP has none"
    rows = [row._replace(note=note) if row.note.startswith("image_embedding/type_embed") else row for row in made.rows]
    return made._replace(rows=rows)


def for_our_pixels(image: Read) -> Read:
    """With a patch kernel, and a bias, which CLIP lacks, that take pixels of mean 0.5 and deviation 0.5.

    No patch reaches beyond the image, so that the change is exact: (0.5 x + 0.5 - MEAN) / DEVIATION is what CLIP sees.
    """
    kernel = image.flat[KERNEL].astype(np.float64)
    by_channel = kernel.reshape(-1, 3, kernel.shape[-1])
    scaled = by_channel * (0.5 / DEVIATION)[:, None]
    bias = np.einsum("c,pco->o", (0.5 - MEAN) / DEVIATION, by_channel)
    ours = {KERNEL: scaled.reshape(kernel.shape), BIAS: bias}
    note = f"{KERNEL} and bias, CLIP's mean and deviation of pixels made ours"
    rows = [row._replace(note=note) if row.note == KERNEL else row for row in image.rows]
    return Read({**image.flat, **{path: x.astype(np.float32) for path, x in ours.items()}}, image.sizes, rows)
