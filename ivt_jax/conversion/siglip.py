"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025), both towers, in the naming of transformers.

SigLIP 2's models of a fixed resolution have the same tensor names. Its models for any resolution ("naflex") have other
names and are refused.
"""

import dataclasses

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.clip import INDEX, SCALE, TRANSFORMERS_BLOCK, text_name, tokens, transformers_text, vision_name
from ivt_jax.conversion.layers import block_rules, layer_rules
from ivt_jax.conversion.model import Conversion
from ivt_jax.conversion.tensors import Naming, rule
from ivt_jax.conversion.towers import TowerNamings, complete_towers, read_towers, scalar
from ivt_jax.conversion.vit import POSITIONS, Source
from ivt_jax.models.config import IVTConfig

EPSILON = 1e-6  # of SigLIP's norms
MEAN = DEVIATION = (0.5, 0.5, 0.5)  # of red, green and blue, for pixels from 0 to 1
HEAD = "image_head"

IMAGE = (
    rule(POSITIONS, "embeddings.position_embedding.weight", "N D", tokens),
    *layer_rules("image_embedding", "embeddings.patch_embedding."),
    *block_rules(TRANSFORMERS_BLOCK, ours="image_blocks", mlp="mlp"),
    *layer_rules("image_blocks/norm", "post_layernorm."),
    rule(f"{HEAD}/probe", "head.probe", "1 1 D"),
    *layer_rules(f"{HEAD}/attn/qkv", "head.attention.in_proj_"),
    *layer_rules(f"{HEAD}/attn/proj", "head.attention.out_proj."),
    *layer_rules(f"{HEAD}/norm", "head.layernorm."),
    *layer_rules(f"{HEAD}/mlp/fc1", "head.mlp.fc1."),
    *layer_rules(f"{HEAD}/mlp/fc2", "head.mlp.fc2."),
    SCALE,
    rule("similarity/bias", "logit_bias", "1", scalar),
)
TEXT = (*transformers_text(), *layer_rules("text_projection", "head."))
TOWERS = {
    "transformers": TowerNamings(Naming(IMAGE, INDEX, vision_name), Naming(TEXT, INDEX, text_name), r"text_model\..*")
}


def convert_siglip(siglip: Source, model_config: IVTConfig, method: str = "bilinear", seed: int = 0) -> Conversion:
    """Returns a model with both towers of SigLIP, with the options that it needs; see `complete_towers`.

    Raises UserError as `read_towers` and `complete_towers`, and if the widths of the embeddings differ.
    """
    image, text = read_towers(siglip, TOWERS, "SigLIP")
    if image.sizes["D"] != text.sizes["E"]:
        wide = f"embeddings of images have {image.sizes['D']} numbers, of texts {text.sizes['E']}"
        raise UserError(f"{siglip.file}: {wide}; name a file of one model")
    texts = dataclasses.replace(
        model_config.text, activation="gelu_tanh", causal=False, pooling="last", projection_bias=True
    )
    options = dataclasses.replace(
        model_config, image_norm=False, image_activation="gelu_tanh", norm_epsilon=EPSILON, pixel_mean=MEAN,
        pixel_deviation=DEVIATION, pooling="attention", text=texts,
    )  # fmt: skip
    return complete_towers(image, text, text.sizes["E"], options, siglip.file, method, seed)
