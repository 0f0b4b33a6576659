"""BERT: its embeddings, and the two layers of each block's MLP, become the text side of the tower.

The tower's attention and norms serve images and texts alike and come from the ViT, so BERT's own are left.
"""

from ivt_jax.conversion.tensors import Naming, linear, rule

RULES = (
    rule("text_embedding/word", "embeddings.word_embeddings.weight", "V D"),
    rule("text_embedding/position", "embeddings.position_embeddings.weight", "L D"),
    rule("text_embedding/token_type", "embeddings.token_type_embeddings.weight", "2 D"),
    rule("text_embedding/scale", "embeddings.LayerNorm.weight", "D"),
    rule("text_embedding/bias", "embeddings.LayerNorm.bias", "D"),
    rule("blocks/mlp_txt/fc1/kernel", "encoder.layer.{}.intermediate.dense.weight", "F D", linear),
    rule("blocks/mlp_txt/fc1/bias", "encoder.layer.{}.intermediate.dense.bias", "F"),
    rule("blocks/mlp_txt/fc2/kernel", "encoder.layer.{}.output.dense.weight", "D F", linear),
    rule("blocks/mlp_txt/fc2/bias", "encoder.layer.{}.output.dense.bias", "D"),
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
    """Without the prefix of the models around BERT; gamma and beta, which old files have, by their new names."""
    name = name.removeprefix("bert.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


NAMING = Naming(RULES, IGNORED, clean)
