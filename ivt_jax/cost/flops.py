"""FLOPs of a training step, by formula from a config; needs no JAX.

Counts the matrix products of the training objective (a multiply-add is two FLOPs), not norms, softmax, GELU and the
optimiser. Gradients of frozen parameters are counted, although a step omits them. `config` is a ConfigDict or nested
dicts, as configs/default.py. `ivt_jax/cost/plan.py` has the memory.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from input_pipeline.datasets import count_training_persons
from ivt_jax.models.config import hidden_units
from ivt_jax.models.patches import num_patches

BYTES = {"float32": 4, "bfloat16": 2}


class Pass(NamedTuple):
    """One batch of sequences through the blocks."""

    kind: str  # image, text, or joint (both in one sequence)
    rows: int
    tokens: int


class StepCost(NamedTuple):
    """FLOPs of one step over the global batch, on all devices together."""

    image: int  # the encoders; forward only, as all but `recomputed`
    text: int
    joint: int
    heads: int  # both reconstruction heads, and the classifiers
    matching: int  # the similarities
    drawing: int  # the similarities by which image-text matching draws negatives; without gradients
    recomputed: int  # what remat repeats: attention

    @property
    def forward(self) -> int:
        return self.image + self.text + self.joint + self.heads + self.matching + self.drawing

    @property
    def training(self) -> int:
        """Forward and backward: a product has two gradients, each with as many FLOPs."""
        return 3 * self.forward - 2 * self.drawing + self.recomputed

    def __str__(self) -> str:
        names = ["image", "text", "joint", "heads", "matching"] + ["drawing"] * (self.drawing > 0)
        parts = {name: getattr(self, name) for name in names}
        shares = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
        return f"FLOPs per step: {self.training / 1e12:.3f} T; forward {self.forward / 1e9:.2f} G ({shares})"


def step_cost(config: Mapping[str, Any]) -> StepCost:
    """Returns the cost of one step."""
    model, mla, bmm = config["model"], config["mla"], config["bmm"]
    width, patches, pixels = model["width"], patches_of(model), 3 * model["patch_size"] ** 2
    passes = tower_passes(config)

    def encoder(kind: str) -> int:
        return sum(p.rows * row_flops(model, p) for p in passes if p.kind == kind)

    heads = predicted_words(config) * 2 * width * (width + model["vocab_size"])
    if bmm["patch_weight"]:
        heads += reconstructed_rows(config) * int(bmm["patch_ratio"] * patches + 1e-4) * 2 * width * pixels
    heads += classified_rows(config) * 2 * embedding_width(model) * persons(config)
    heads += matched_rows(config) * 2 * width * 2
    return StepCost(
        image=encoder("image"),
        text=encoder("text"),
        joint=encoder("joint"),
        heads=heads,
        matching=4 * matching_side(config) ** 2 * embedding_width(model) // mla["groups"],  # both directions
        drawing=4 * config["data"]["batch_size"] ** 2 * embedding_width(model) if matched_rows(config) else 0,
        recomputed=sum(attention_flops(p, tower_of(model, p.kind)) for p in passes if model["remat"]),
    )


def tower_passes(config: Mapping[str, Any]) -> list[Pass]:
    """Returns the passes through the blocks in one training step of the global batch."""
    mla, bmm, text_length = config["mla"], config["bmm"], config["text"]["length"]
    batch, image = config["data"]["batch_size"], image_tokens(config["model"])
    passes = []

    def kept(tokens: int) -> int:  # with masked alignment, `fast` shortens a sequence, `exact` hides tokens within it
        return tokens - int(bmm["align_ratio"] / 2 * (tokens - 1) + 1e-4) if bmm["align"] == "fast" else tokens

    if mla["weight"] or config["id"]["weight"]:
        lengths = [text_length[level] for level in mla["levels"]]
        passes.append(Pass("image", batch * mla["views"], kept(image)))
        if bmm["align"] == "exact":  # one pattern for all levels, hence one length
            lengths = [max(lengths)] * len(lengths)
        passes += [Pass("text", batch * n, kept(length)) for length, n in Counter(lengths).items()]
    if bmm["word_weight"] or bmm["patch_weight"]:
        passes.append(Pass("joint", reconstructed_rows(config), image + text_length["sentence"]))
    if config["itm"]["weight"]:
        passes.append(Pass("joint", matched_rows(config), image + text_length["sentence"]))
    return passes


def reconstructed_rows(config: Mapping[str, Any]) -> int:
    """Returns the number of pairs whose words and patches are reconstructed, if `bmm` has a weight."""
    return config["bmm"]["rows"] or config["data"]["batch_size"]


def matched_rows(config: Mapping[str, Any]) -> int:
    """Returns the number of pairs, positive and negative, that image-text matching classifies."""
    return 3 * config["data"]["batch_size"] if config["itm"]["weight"] else 0


def predicted_words(config: Mapping[str, Any]) -> int:
    """Returns the number of tokens of the batch that the word head predicts."""
    words = config["text"]["length"]["sentence"] // 2
    return reconstructed_rows(config) * words if config["bmm"]["word_weight"] else 0


def persons(config: Mapping[str, Any]) -> int:
    """Returns the published number of training persons, the classes of the identity loss; reads no data."""
    return count_training_persons(config["data"])


def classified_rows(config: Mapping[str, Any]) -> int:
    """Returns the number of embeddings of the batch that the classifier sees: of all views and levels."""
    mla = config["mla"]
    return config["data"]["batch_size"] * (mla["views"] + len(mla["levels"])) if config["id"]["weight"] else 0


def matching_side(config: Mapping[str, Any]) -> int:
    """Returns the number of rows, and of columns, of the similarity matrix over all levels or views; 0 without MLA."""
    mla = config["mla"]
    return config["data"]["batch_size"] * max(mla["views"], len(mla["levels"])) if mla["weight"] else 0


def row_flops(model: Mapping[str, Any], p: Pass) -> int:
    """Returns the forward FLOPs of one row of a pass, from its pixels or ids to its embedding."""
    tower = tower_of(model, p.kind)
    pixels = 0 if p.kind == "text" else patches_of(model) * 3 * model["patch_size"] ** 2
    blocks = tower_flops(p.tokens, tower["width"], tower["depth"], tower["mlp_ratio"])
    return 2 * pixels * model["width"] + blocks + pooling_flops(model, p)


def tower_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Returns the forward FLOPs of one sequence through the blocks: qkv, attention, proj and one MLP per token."""
    linear = 2 * tokens * width * (4 * width + 2 * hidden_units(width, mlp_ratio))
    return depth * (linear + 4 * tokens**2 * width)  # attention: the scores and the weighted sums


def attention_flops(p: Pass, tower: Mapping[str, Any]) -> int:
    """Returns the forward FLOPs of attention's scores and weighted sums in all blocks of a pass."""
    return p.rows * tower["depth"] * 4 * p.tokens**2 * tower["width"]


def pooling_flops(model: Mapping[str, Any], p: Pass) -> int:
    """Returns the forward FLOPs of a row from its tokens to its embedding: a projection, or attention pooling.

    The query of attention pooling is the same for all rows and is left out.
    """
    width, projection = tower_of(model, p.kind)["width"], model["projection"]
    if p.kind == "image" and not has_class_token(model):
        hidden = hidden_units(width, model["mlp_ratio"])
        return 2 * width * (2 * p.tokens * width + 2 * p.tokens + width + 2 * hidden)
    return 0 if p.kind == "joint" else 2 * width * projection


def tower_of(model: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Returns the section with width, depth, num_heads and mlp_ratio of the blocks of a pass."""
    return model["text"] if kind == "text" and model["towers"] == 2 else model


def has_class_token(model: Mapping[str, Any]) -> bool:
    """Returns whether images have a class token; otherwise they are pooled by attention."""
    return model["pooling"] == "class"


def image_tokens(model: Mapping[str, Any]) -> int:
    """Returns the number of tokens of an image: patches, and the class token if there is one."""
    return patches_of(model) + has_class_token(model)


def embedding_width(model: Mapping[str, Any]) -> int:
    """Returns the dimension of an embedding. model: the config's section."""
    return model["projection"] or model["width"]


def patches_of(model: Mapping[str, Any]) -> int:
    """Returns the number of patches of an image. model: the config's section."""
    return num_patches(model["image_size"], model["patch_size"], model["stride"])
