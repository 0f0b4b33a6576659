"""CLIP's image tower (Radford et al. 2021) as an experimental start, in two namings of the same model.

`openai` is the naming of OpenAI and open_clip. With the options that `convert_clip` sets, the tower computes CLIP's
image features before their projection to the space shared with texts. CLIP's text tower is narrower and is ignored.
"""

import dataclasses

import numpy as np

from ivt_jax.conversion.layers import Block, block_rules, convolution, layer_rules
from ivt_jax.conversion.model import Conversion
from ivt_jax.conversion.tensors import Loaded, Naming, read, rule
from ivt_jax.conversion.vit import CLS, POSITIONS, Source, naming_of, with_bert
from ivt_jax.models.ivt import IVTConfig

KERNEL, BIAS, TYPES = "image_embedding/kernel", "image_embedding/bias", "image_embedding/type_embed"
EPSILON = 1e-5  # of CLIP's norms
# Of the pixels (0 to 1) that CLIP was trained on: red, green, blue.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
PROJECTION, TEMPERATURE, TEXT = "the projection to CLIP's common space", "a temperature", "of CLIP's text tower"


def tokens(tensor: np.ndarray) -> np.ndarray:
    """(D,) -> (1, 1, D) or (N, D) -> (1, N, D)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


OPENAI_BLOCK = Block(
    "visual.transformer.resblocks.{}.", "ln_1.", "attn.in_proj_", "attn.out_proj.", "ln_2.", "mlp.c_fc.", "mlp.c_proj."
)
OPENAI = (
    rule(CLS, "visual.class_embedding", "D", tokens),
    rule(POSITIONS, "visual.positional_embedding", "N D", tokens),
    rule(KERNEL, "visual.conv1.weight", "D 3 P P", convolution),
    *layer_rules("image_embedding/norm", "visual.ln_pre."),
    *block_rules(OPENAI_BLOCK),
    *layer_rules("blocks/norm", "visual.ln_post."),
)
OPENAI_IGNORED = {
    r"visual\.proj": PROJECTION,
    r"logit_scale|logit_bias": TEMPERATURE,
    r"transformer\..*|token_embedding\..*|ln_final\..*|positional_embedding|text_projection(\..*)?|text\..*": TEXT,
    r"input_resolution|context_length|vocab_size": "a size, no weight",
}

TRANSFORMERS_BLOCK = Block(
    "encoder.layers.{}.", "layer_norm1.", "self_attn.q_proj. self_attn.k_proj. self_attn.v_proj.",
    "self_attn.out_proj.", "layer_norm2.", "mlp.fc1.", "mlp.fc2.",
)  # fmt: skip
TRANSFORMERS = (
    rule(CLS, "embeddings.class_embedding", "D", tokens),
    rule(POSITIONS, "embeddings.position_embedding.weight", "N D", tokens),
    rule(KERNEL, "embeddings.patch_embedding.weight", "D 3 P P", convolution),
    *layer_rules("image_embedding/norm", "pre_layrnorm."),  # their spelling
    *block_rules(TRANSFORMERS_BLOCK),
    *layer_rules("blocks/norm", "post_layernorm."),
)
TRANSFORMERS_IGNORED = {
    r"visual_projection\.weight": PROJECTION,
    r"logit_scale": TEMPERATURE,
    r"text_model\..*|text_projection\.weight": TEXT,
    r"embeddings\.position_ids": "an index, no weight",
}
NAMINGS = {
    "openai": Naming(OPENAI, OPENAI_IGNORED, clean=lambda name: name.removeprefix("module.")),
    "transformers": Naming(TRANSFORMERS, TRANSFORMERS_IGNORED, clean=lambda name: name.removeprefix("vision_model.")),
}


def convert_clip(
    clip: Source, text: Source, model_config: IVTConfig, activation: str, method: str, seed: int
) -> Conversion:
    """As `convert_vit`, with the image side of CLIP; sets the options of the model that CLIP needs.

    activation: of the image MLPs, which the tensors do not determine: "quick_gelu" for OpenAI's models, "gelu" for most
    others.
    """
    naming = NAMINGS[naming_of(clip, NAMINGS, "CLIP")]
    image = for_our_pixels(read(naming, clip.tensors, clip.file, {}))
    model_config = dataclasses.replace(model_config, image_norm=True, image_activation=activation, norm_epsilon=EPSILON)
    return without_types(with_bert(image, clip.file, text, model_config, method, seed))


def without_types(conversion: Conversion) -> Conversion:
    """Sets the type embeddings to 0: random ones would be far larger than CLIP's tokens before its first norm."""
    embedding = conversion.params["image_embedding"]
    embedding["type_embed"] = np.zeros_like(embedding["type_embed"])
    note = f"{TYPES}, zeros: CLIP has none"
    uses = [use._replace(note=note) if use.note.startswith(TYPES) else use for use in conversion.uses]
    return conversion._replace(uses=uses)


def for_our_pixels(image: Loaded) -> Loaded:
    """Returns `image` with a patch kernel and bias for pixels of mean 0.5 and deviation 0.5.

    CLIP's input is (0.5 x + 0.5 - MEAN) / DEVIATION for our pixel x. No patch reaches beyond the image, so the change
    is exact.
    """
    kernel = image.flat[KERNEL].astype(np.float64)
    by_channel = kernel.reshape(-1, 3, kernel.shape[-1])
    scaled = (by_channel * (0.5 / DEVIATION)[:, None]).reshape(kernel.shape)
    bias = np.einsum("c,pco->o", (0.5 - MEAN) / DEVIATION, by_channel)
    note = f"{KERNEL} and bias, CLIP's mean and deviation of pixels made ours"
    uses = [use._replace(note=note) if use.note == KERNEL else use for use in image.uses]
    flat = image.flat | {KERNEL: scaled.astype(np.float32), BIAS: bias.astype(np.float32)}
    return Loaded(flat, image.sizes, uses)
