"""Which --source reads a file, by the names of its tensors, to say so where another was given."""

import re

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.vit import Source

# What a file of each source is called, and a pattern of whole names that no file of another has.
KINDS = {
    "release": ("checkpoint of the IVT release", r"(module\.)?encoder_vl\..*"),
    "vlmo": ("VLMo", r"(.*[./])?(relative_position_bias_table|transformer\.blocks\.\d+\.mlp_imag\..*)"),
    "clip": (
        "CLIP",
        r"(module\.)?visual\.(conv1\.weight|class_embedding)|"
        r"(vision_model\.)?(embeddings\.class_embedding|pre_layrnorm\..*)",
    ),
    "siglip": ("SigLIP", r"(vision_model\.)?(embeddings\.patch_embedding\.bias|head\.probe)"),
    "vit": (
        "ImageNet ViT",
        r"patch_embed\.proj\.weight|embedding/kernel|(vit\.)?embeddings\.patch_embeddings\.projection\.weight",
    ),
    "export": ("export", r"(image_)?blocks\.attn\.qkv\.kernel"),
    "bert": ("BERT", r"(bert\.)?embeddings\.word_embeddings\.weight"),
}
FLAGS = {source: f"--source={source}" for source in KINDS} | {"bert": "--source_text=bert"}
ALONE = ("release", "vlmo", "siglip")  # of one naming: their reader would only name the first tensor that is missing


def refuse_other_source(source: str, weights: Source) -> None:
    """Raises UserError, with the right source if one is recognised, if the tensors are not of `source`."""
    found = [kind for kind, (_, pattern) in KINDS.items() if _has(pattern, weights)]
    if source in found:
        return
    title = KINDS[source][0]
    if found:
        raise UserError(f"{weights.file} is no {title}, by its names; try {FLAGS[found[0]]}")
    if source in ALONE:
        first = ", ".join(sorted(weights.tensors)[:3])
        remedy = "docs/weights.md lists what each --source reads"
        raise UserError(f"{weights.file} is no {title}, by its names: it has {first}, ...; {remedy}")


def _has(pattern: str, weights: Source) -> bool:
    return any(re.fullmatch(pattern, name) for name in weights.tensors)
