"""CLIP (Radford et al. 2021): both of its towers, or its image tower with BERT, in two namings of the same model.

`openai` is the naming of OpenAI and open_clip. With both towers, the model computes CLIP's features. With BERT, the
tower computes CLIP's image features before their projection, and CLIP's text tower, which is narrower, is ignored.
"""

import dataclasses

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.layers import Block, block_rules, convolution, layer_rules, linear
from ivt_jax.conversion.model import Conversion
from ivt_jax.conversion.tensors import Loaded, Naming, Rule, TensorUse, read, rule
from ivt_jax.conversion.towers import TowerNamings, complete_towers, read_towers, scalar
from ivt_jax.conversion.vit import CLS, POSITIONS, Source, naming_of, with_bert
from ivt_jax.models.config import IVTConfig

KERNEL, BIAS, TYPES = "image_embedding/kernel", "image_embedding/bias", "image_embedding/type_embed"
WORDS, PLACES = "text_embedding/word", "text_embedding/position"
EPSILON = 1e-5  # of CLIP's norms
# Mean and standard deviation of red, green and blue, for pixels from 0 to 1, with which CLIP was trained.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PROJECTION, TEMPERATURE, TEXT = "the projection to CLIP's common space", "a temperature", "of CLIP's text tower"


def tokens(tensor: np.ndarray) -> np.ndarray:
    """(D,) -> (1, 1, D) or (N, D) -> (1, N, D)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


OPENAI_BLOCK = Block(
    "transformer.resblocks.{}.", "ln_1.", "attn.in_proj_", "attn.out_proj.", "ln_2.", "mlp.c_fc.", "mlp.c_proj."
)
TRANSFORMERS_BLOCK = Block(
    "encoder.layers.{}.", "layer_norm1.", "self_attn.q_proj. self_attn.k_proj. self_attn.v_proj.",
    "self_attn.out_proj.", "layer_norm2.", "mlp.fc1.", "mlp.fc2.",
)  # fmt: skip


def openai_image(blocks: str, mlp: str) -> tuple[Rule, ...]:
    """Returns the rules of the image tower; `blocks` and `mlp` are the names of our blocks and of the MLP in each."""
    return (
        rule(CLS, "visual.class_embedding", "D", tokens),
        rule(POSITIONS, "visual.positional_embedding", "N D", tokens),
        rule(KERNEL, "visual.conv1.weight", "D 3 P P", convolution),
        *layer_rules("image_embedding/norm", "visual.ln_pre."),
        *block_rules(OPENAI_BLOCK._replace(prefix="visual." + OPENAI_BLOCK.prefix), ours=blocks, mlp=mlp),
        *layer_rules(f"{blocks}/norm", "visual.ln_post."),
    )


def transformers_image(blocks: str, mlp: str) -> tuple[Rule, ...]:
    """Returns the same rules as `openai_image`, in the naming of transformers without the prefix "vision_model."."""
    return (
        rule(CLS, "embeddings.class_embedding", "D", tokens),
        rule(POSITIONS, "embeddings.position_embedding.weight", "N D", tokens),
        rule(KERNEL, "embeddings.patch_embedding.weight", "D 3 P P", convolution),
        *layer_rules("image_embedding/norm", "pre_layrnorm."),  # their spelling
        *block_rules(TRANSFORMERS_BLOCK, ours=blocks, mlp=mlp),
        *layer_rules(f"{blocks}/norm", "post_layernorm."),
    )


def transformers_text() -> tuple[Rule, ...]:
    """Returns the rules of CLIP's and SigLIP's text tower, without its projection and the prefix "text_model."."""
    return (
        rule(WORDS, "embeddings.token_embedding.weight", "V D"),
        rule(PLACES, "embeddings.position_embedding.weight", "L D"),
        *block_rules(TRANSFORMERS_BLOCK, ours="text_blocks", mlp="mlp"),
        *layer_rules("text_blocks/norm", "final_layer_norm."),
    )


SCALE = rule("similarity/log_scale", "logit_scale", "1", scalar)
OPENAI_TEXT = (
    rule(WORDS, "token_embedding.weight", "V D"),
    rule(PLACES, "positional_embedding", "L D"),
    *block_rules(OPENAI_BLOCK, ours="text_blocks", mlp="mlp"),
    *layer_rules("text_blocks/norm", "ln_final."),
    rule("text_projection/kernel", "text_projection", "D E"),
)
OPENAI_TEXTS = (  # some models of open_clip keep their text tower under "text."
    r"transformer\..*|token_embedding\..*|ln_final\..*|positional_embedding|text_projection(\..*)?|text\..*"
)
OPENAI_SIZES = {r"input_resolution|context_length|vocab_size": "a size, no weight"}
TRANSFORMERS_TEXTS = r"text_model\..*|text_projection\.weight"
INDEX = {r"embeddings\.position_ids": "an index, no weight"}


def openai_name(name: str) -> str:
    """Removes the prefixes "module." and "text."."""
    return name.removeprefix("module.").removeprefix("text.")


def vision_name(name: str) -> str:
    """Removes the prefix "vision_model."."""
    return name.removeprefix("vision_model.")


def text_name(name: str) -> str:
    """Removes the prefix "text_model."."""
    return name.removeprefix("text_model.")


# The image tower alone, for the single tower with BERT.
NAMINGS = {
    "openai": Naming(
        openai_image("blocks", "mlp_vis"),
        {r"visual\.proj": PROJECTION, r"logit_scale|logit_bias": TEMPERATURE, OPENAI_TEXTS: TEXT, **OPENAI_SIZES},
        clean=lambda name: name.removeprefix("module."),
    ),
    "transformers": Naming(
        transformers_image("blocks", "mlp_vis"),
        {r"visual_projection\.weight": PROJECTION, r"logit_scale": TEMPERATURE, TRANSFORMERS_TEXTS: TEXT, **INDEX},
        clean=vision_name,
    ),
}
TOWERS = {
    "openai": TowerNamings(
        Naming(
            (*openai_image("image_blocks", "mlp"), rule("image_projection/kernel", "visual.proj", "D E"), SCALE),
            OPENAI_SIZES,
            openai_name,
        ),
        Naming(OPENAI_TEXT, {}, openai_name),
        OPENAI_TEXTS,
    ),
    "transformers": TowerNamings(
        Naming(
            (
                *transformers_image("image_blocks", "mlp"),
                rule("image_projection/kernel", "visual_projection.weight", "E D", linear),
                SCALE,
            ),
            INDEX,
            vision_name,
        ),
        Naming(
            (*transformers_text(), rule("text_projection/kernel", "text_projection.weight", "E D", linear)),
            INDEX,
            text_name,
        ),
        TRANSFORMERS_TEXTS,
    ),
}


def convert_clip_towers(
    clip: Source, model_config: IVTConfig, activation: str, method: str = "bilinear", seed: int = 0
) -> Conversion:
    """Returns a model with both towers of CLIP, with the options that it needs; see `complete_towers`.

    activation: of the MLPs of both towers, which tensors do not show: "quick_gelu" for OpenAI's models, "gelu" for most
    others. Raises UserError as `read_towers` and `complete_towers`, and if the widths of the projections differ.
    """
    image, text = read_towers(clip, TOWERS, "CLIP")
    if image.sizes["E"] != text.sizes["E"]:
        wide = f"images are projected to {image.sizes['E']} numbers, texts to {text.sizes['E']}"
        raise UserError(f"{clip.file}: {wide}; name a file of one model")
    texts = dataclasses.replace(
        model_config.text, activation=activation, causal=True, pooling="end", projection_bias=False
    )
    options = dataclasses.replace(options_of(model_config, activation), text=texts)
    return complete_towers(without_bias(image), text, image.sizes["E"], options, clip.file, method, seed)


def convert_clip(
    clip: Source, text: Source, model_config: IVTConfig, activation: str, method: str, seed: int
) -> Conversion:
    """Returns the single tower with CLIP's image side and BERT's text side, as `convert_vit`, and CLIP's options.

    activation: of the image MLPs, as in `convert_clip_towers`.
    """
    naming = NAMINGS[naming_of(clip, NAMINGS, "CLIP")]
    image = without_bias(read(naming, clip.tensors, clip.file, {}))
    options = options_of(model_config, activation)
    return without_types(with_bert(image, clip.file, text, options, method, seed))


def options_of(model_config: IVTConfig, activation: str) -> IVTConfig:
    """Returns the config with the options of CLIP's image tower, and the mean and deviation of its pixels."""
    return dataclasses.replace(
        model_config, image_norm=True, image_activation=activation, norm_epsilon=EPSILON, pooling="class",
        pixel_mean=MEAN, pixel_deviation=DEVIATION,
    )  # fmt: skip


def without_types(conversion: Conversion) -> Conversion:
    """Sets the type embeddings to 0: random ones would be far larger than CLIP's tokens before its first norm."""
    embedding = conversion.params["image_embedding"]
    embedding["type_embed"] = np.zeros_like(embedding["type_embed"])
    note = f"{TYPES}, zeros: CLIP has none"
    uses = [use._replace(note=note) if use.note.startswith(TYPES) else use for use in conversion.uses]
    return conversion._replace(uses=uses)


def without_bias(image: Loaded) -> Loaded:
    """Returns `image` with a bias of the patch embedding, 0, which CLIP does not have."""
    bias = np.zeros(image.sizes["D"], np.float32)
    use = TensorUse("initialised", "", bias.shape, f"{BIAS}, zeros: CLIP has none")
    return Loaded(image.flat | {BIAS: bias}, image.sizes, [*image.uses, use])
