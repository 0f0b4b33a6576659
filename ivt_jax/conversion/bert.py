"""BERT's tensors: its embeddings and the MLPs of its layers become the text side of the tower.

Attention and norms serve images and texts alike and come from the ViT; BERT's own are ignored.
"""

from ivt_jax.conversion.layers import layer_rules
from ivt_jax.conversion.tensors import Naming, Rule, rule


def text_embedding(prefix: str) -> tuple[Rule, ...]:
    """Returns the rules of BERT's embeddings, whose names begin with `prefix`."""
    return (
        rule("text_embedding/word", f"{prefix}word_embeddings.weight", "V D"),
        rule("text_embedding/position", f"{prefix}position_embeddings.weight", "L D"),
        rule("text_embedding/token_type", f"{prefix}token_type_embeddings.weight", "2 D"),
        *layer_rules("text_embedding", f"{prefix}LayerNorm."),
    )


RULES = (
    *text_embedding("embeddings."),
    *layer_rules("blocks/mlp_txt/fc1", "encoder.layer.{}.intermediate.dense."),
    *layer_rules("blocks/mlp_txt/fc2", "encoder.layer.{}.output.dense."),
)
IGNORED = {
    r"encoder\.layer\.\d+\.attention\.(self\.(query|key|value)|output\.(dense|LayerNorm))\.(weight|bias)":
        "attention is the ViT's",
    r"encoder\.layer\.\d+\.output\.LayerNorm\.(weight|bias)": "norms are the ViT's",
    r"pooler\.dense\.(weight|bias)": "a pooler",
    r"cls\.(predictions|seq_relationship)\..*": "heads of BERT's pre-training",
    r"embeddings\.position_ids": "an index, no weight",
}  # fmt: skip


def clean(name: str) -> str:
    """Removes the prefix "bert."; replaces gamma and beta, the names in old files, with weight and bias."""
    name = name.removeprefix("bert.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


NAMING = Naming(RULES, IGNORED, clean)
