"""FLOPs and memory of a training step, by formula from a config; needs no JAX.

A multiply-add counts as two FLOPs. Counted are the matrix products of `ivt_jax/objective.py`; norms, softmax, GELU and
the optimiser are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPTIMIZER_SLOTS = {"sgd": 1, "adamw": 2}  # numbers kept for each parameter
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Pass:
    """One batch of sequences through the blocks."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class StepCost:
    """Of one step over the global batch, on all devices together.

    image, text, joint, heads, matching: forward FLOPs of the three encoders, of both reconstruction heads and of the
    similarities. recomputed: forward FLOPs that remat repeats. state_bytes: parameters, gradients, optimiser
    and average.
    activation_bytes: an estimate of what the blocks and the word logits keep for the backward pass.
    """

    image: int
    text: int
    joint: int
    heads: int
    matching: int
    recomputed: int
    parameters: int
    state_bytes: int
    activation_bytes: int

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
        return (
            f"FLOPs per step: {self.training / 1e12:.3f} T; forward {self.forward / 1e9:.2f} G ({shares})\n"
            f"parameters: {self.parameters / 1e6:.2f} M, with gradients and optimiser "
            f"{self.state_bytes / 2**30:.2f} GiB\n"
            f"activations, estimated: {self.activation_bytes / 2**30:.2f} GiB over all devices"
        )


def step_cost(config: Mapping[str, Any]) -> StepCost:
    """The cost of one step of a run; `config` as in configs/default.py, a ConfigDict or nested dicts."""
    model, mla, bmm, text_length = config["model"], config["mla"], config["bmm"], config["text"]["length"]
    optimizer = config["optimizer"]
    batch, width, patches = config["data"]["batch_size"], model["width"], num_patches(model)
    pixels = 3 * model["patch_size"] ** 2

    image, text, joint = [], [], []
    heads = matching = logits = 0
    if mla["weight"]:
        lengths = [text_length[level] for level in mla["levels"]]
        if bmm["align"] == "exact":  # one pattern for all levels, hence one length
            lengths = [max(lengths)] * len(lengths)
        image = [Pass(batch * mla["views"], kept_tokens(1 + patches, bmm))]
        text = [Pass(batch, kept_tokens(length, bmm)) for length in lengths]
        side = batch * max(mla["views"], len(lengths))
        matching = 4 * side**2 * width // mla["groups"]  # image to text and text to image
    if bmm["word_weight"] or bmm["patch_weight"]:
        rows = bmm["rows"] or batch
        joint = [Pass(rows, 1 + patches + text_length["sentence"])]
        if bmm["word_weight"]:
            hidden = rows * (text_length["sentence"] // 2)
            heads += hidden * 2 * width * (width + model["vocab_size"])
            logits = hidden * model["vocab_size"]
        if bmm["patch_weight"]:
            heads += rows * int(bmm["patch_ratio"] * patches + 1e-4) * 2 * width * pixels

    def blocks(passes: list[Pass]) -> int:
        return sum(p.rows * tower_flops(p.tokens, width, model["depth"], model["mlp_ratio"]) for p in passes)

    def embedding(passes: list[Pass]) -> int:
        return sum(p.rows * 2 * patches * pixels * width for p in passes)

    passes = image + text + joint
    parameters = parameter_count(model)
    return StepCost(
        image=embedding(image) + blocks(image),
        text=blocks(text),
        joint=embedding(joint) + blocks(joint),
        heads=heads,
        matching=matching,
        recomputed=sum(p.rows * model["depth"] * attention_flops(p.tokens, width) for p in passes if model["remat"]),
        parameters=parameters,
        state_bytes=4 * parameters * (2 + OPTIMIZER_SLOTS[optimizer["name"]] + bool(optimizer["ema"])),
        activation_bytes=sum(activation_bytes(p, model) for p in passes) + 8 * logits,
    )


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


def activation_bytes(p: Pass, model: Mapping[str, Any]) -> int:
    """What JAX saves of one pass for the gradient of the blocks, before XLA fuses anything away.

    For each block and token: three widths of each norm and the softmax in float32; in the activations' dtype the norms'
    outputs, q, k, v, the heads' mix, the softmax again and four hidden widths of the MLP. With remat, the block's input
    and the outputs of qkv, proj and fc1 alone.
    """
    size, width = BYTES[model["dtype"]], model["width"]
    hidden = int(width * model["mlp_ratio"])
    if model["remat"]:
        per_token = size * (5 * width + hidden)
    else:
        softmax = model["num_heads"] * p.tokens * (4 + size)
        per_token = 24 * width + size * (6 * width + 4 * hidden) + softmax
    return p.rows * p.tokens * model["depth"] * per_token


def parameter_count(model: Mapping[str, Any]) -> int:
    """All parameters, the reconstruction heads included."""
    return sum(parameter_counts(model).values())


def parameter_counts(model: Mapping[str, Any]) -> dict[str, int]:
    """Parameters by part of the model; the word decoder is tied to the word embedding and counts there."""
    width, vocab = model["width"], model["vocab_size"]
    hidden, pixels = int(width * model["mlp_ratio"]), 3 * model["patch_size"] ** 2
    norm = 2 * width
    mlp = _dense(width, hidden) + _dense(hidden, width)
    block = 2 * norm + _dense(width, 3 * width) + _dense(width, width) + 2 * mlp
    return {
        # The patch projection, [CLS] and the mask token, then positions and types, and the norm where there is one.
        "image_embedding": _dense(pixels, width)
        + 2 * width
        + 2 * (1 + num_patches(model)) * width
        + norm * model["image_norm"],
        "text_embedding": (vocab + model["max_text_length"] + 2) * width + norm,
        "blocks": model["depth"] * block + norm,
        "word_head": _dense(width, width) + norm + vocab,
        "patch_head": _dense(width, pixels),
    }


def _dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
