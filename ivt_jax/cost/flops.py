"""FLOPs of a training step, by formula from a config; needs no JAX.

A multiply-add counts as two FLOPs. Counted are the matrix products of the training objective, not norms, softmax, GELU
and the optimiser. `ivt_jax/cost/plan.py` has the memory.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPTIMIZER_SLOTS = {"sgd": 1, "adamw": 2}  # numbers kept for each parameter
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Pass:
    """One batch of sequences through the blocks; `kind`: image, text, or joint (both in one sequence)."""

    kind: str
    rows: int
    tokens: int


@dataclass(frozen=True)
class StepCost:
    """Of one step over the global batch, on all devices together.

    image, text, joint, heads, matching: forward FLOPs of the three encoders, of both reconstruction heads and of the
    similarities. recomputed: forward FLOPs that remat repeats.
    """

    image: int
    text: int
    joint: int
    heads: int
    matching: int
    recomputed: int

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass."""
        return self.image + self.text + self.joint + self.heads + self.matching

    @property
    def training(self) -> int:
        """FLOPs of forward and backward: a product has two gradients, each as dear as itself."""
        return 3 * self.forward + self.recomputed

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("image", "text", "joint", "heads", "matching")}
        shares = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
        return f"FLOPs per step: {self.training / 1e12:.3f} T; forward {self.forward / 1e9:.2f} G ({shares})"


def step_cost(config: Mapping[str, Any]) -> StepCost:
    """The cost of one step of a run; `config` as in configs/default.py, a ConfigDict or nested dicts."""
    model, mla, bmm = config["model"], config["mla"], config["bmm"]
    width, patches, pixels = model["width"], num_patches(model), 3 * model["patch_size"] ** 2
    passes = tower_passes(config)

    def encoder(kind: str) -> int:
        embedding = 0 if kind == "text" else 2 * patches * pixels * width
        depth, ratio = model["depth"], model["mlp_ratio"]
        return sum(p.rows * (embedding + tower_flops(p.tokens, width, depth, ratio)) for p in passes if p.kind == kind)

    heads = predicted_words(config) * 2 * width * (width + model["vocab_size"])
    if bmm["patch_weight"]:
        heads += reconstructed_rows(config) * int(bmm["patch_ratio"] * patches + 1e-4) * 2 * width * pixels
    return StepCost(
        image=encoder("image"),
        text=encoder("text"),
        joint=encoder("joint"),
        heads=heads,
        matching=4 * matching_side(config) ** 2 * width // mla["groups"],  # image to text and text to image
        recomputed=sum(p.rows * model["depth"] * attention_flops(p.tokens, width) for p in passes if model["remat"]),
    )


def tower_passes(config: Mapping[str, Any]) -> list[Pass]:
    """What goes through the blocks in one step, over the global batch."""
    mla, bmm, text_length = config["mla"], config["bmm"], config["text"]["length"]
    batch, image = config["data"]["batch_size"], 1 + num_patches(config["model"])
    passes = []
    if mla["weight"]:
        lengths = [text_length[level] for level in mla["levels"]]
        passes.append(Pass("image", batch * mla["views"], kept_tokens(image, bmm)))
        if bmm["align"] == "exact":  # one pattern for all levels, hence one length
            lengths = [max(lengths)] * len(lengths)
        passes += [Pass("text", batch * n, kept_tokens(length, bmm)) for length, n in Counter(lengths).items()]
    if bmm["word_weight"] or bmm["patch_weight"]:
        passes.append(Pass("joint", reconstructed_rows(config), image + text_length["sentence"]))
    return passes


def reconstructed_rows(config: Mapping[str, Any]) -> int:
    """Pairs of the batch whose words and patches are reconstructed, where any are."""
    return config["bmm"]["rows"] or config["data"]["batch_size"]


def predicted_words(config: Mapping[str, Any]) -> int:
    """Tokens of the batch that the word head predicts."""
    return (
        reconstructed_rows(config) * (config["text"]["length"]["sentence"] // 2) if config["bmm"]["word_weight"] else 0
    )


def matching_side(config: Mapping[str, Any]) -> int:
    """Rows, and columns, of the matrix of similarities: all levels (or views) of the batch; 0 without matching."""
    mla = config["mla"]
    return config["data"]["batch_size"] * max(mla["views"], len(mla["levels"])) if mla["weight"] else 0


def tower_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Forward FLOPs of one sequence through the blocks: qkv, attention, proj and one MLP for each token."""
    linear = 2 * tokens * width * (4 * width + 2 * int(width * mlp_ratio))
    return depth * (linear + attention_flops(tokens, width))


def attention_flops(tokens: int, width: int) -> int:
    """Forward FLOPs of the scores and of the weighted sums, all heads of one block."""
    return 4 * tokens**2 * width


def kept_tokens(tokens: int, bmm: Mapping[str, Any]) -> int:
    """Length of a sequence after masked alignment: `fast` shortens it, `exact` hides tokens within it."""
    return tokens - int(bmm["align_ratio"] / 2 * (tokens - 1) + 1e-4) if bmm["align"] == "fast" else tokens


def num_patches(model: Mapping[str, Any]) -> int:
    """Patches of an image; they overlap where the stride is below the patch size."""
    rows, columns = ((extent - model["patch_size"]) // model["stride"] + 1 for extent in model["image_size"])
    return rows * columns


def parameter_count(model: Mapping[str, Any]) -> int:
    """All parameters, the reconstruction heads included."""
    return sum(parameter_counts(model).values())


def parameter_counts(model: Mapping[str, Any]) -> dict[str, int]:
    """Parameters by part of the model; the word decoder is tied to the word embedding and counts there."""
    counts: dict[str, int] = {}
    for name, shape in parameter_shapes(model).items():
        part = name.partition("/")[0]
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def parameter_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path of every parameter -> its shape, as `IVT.init` makes them."""
    width, vocab, depth = model["width"], model["vocab_size"], model["depth"]
    hidden, pixels, tokens = int(width * model["mlp_ratio"]), 3 * model["patch_size"] ** 2, 1 + num_patches(model)
    mlp = {**_dense("fc1", width, hidden, depth), **_dense("fc2", hidden, width, depth)}
    parts = {
        "image_embedding": {
            **_dense("", pixels, width),
            **{name: (1, 1, width) for name in ("cls", "mask_token")},
            **{name: (1, tokens, width) for name in ("pos_embed", "type_embed")},
            **(_norm("norm", width) if model["image_norm"] else {}),
        },
        "text_embedding": {
            "word": (vocab, width),
            "position": (model["max_text_length"], width),
            "token_type": (2, width),
            **_norm("", width),
        },
        "blocks": {
            **_norm("norm1", depth, width),
            **_under("attn", _dense("qkv", width, 3 * width, depth) | _dense("proj", width, width, depth)),
            **_norm("norm2", depth, width),
            **_under("mlp_vis", mlp),
            **_under("mlp_txt", mlp),
            **_norm("norm", width),
        },
        "word_head": {**_dense("", width, width), **_norm("norm", width), "output/bias": (vocab,)},
        "patch_head": _dense("", width, pixels),
    }
    return {name: shape for part, shapes in parts.items() for name, shape in _under(part, shapes).items()}


def _under(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{inner}".strip("/"): shape for inner, shape in shapes.items()}


def _dense(name: str, inputs: int, outputs: int, *stack: int) -> dict[str, tuple[int, ...]]:
    return _under(name, {"kernel": (*stack, inputs, outputs), "bias": (*stack, outputs)})


def _norm(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return _under(name, {"scale": shape, "bias": shape})
