"""Memory and FLOPs of each device before a run, by formula, as batch, model and devices grow.

Nothing is computed or compiled here. `ivt_jax/cost/compiled.py` has XLA's own figures; tests compare the two.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ivt_jax.cost.flops import (
    BYTES,
    OPTIMIZER_SLOTS,
    Pass,
    matching_side,
    predicted_words,
    step_cost,
    tower_passes,
)
from ivt_jax.models.ivt import IVTConfig, parameter_shapes
from ivt_jax.models.patches import num_patches
from ivt_jax.training.sharding import mesh_sizes, place

MODELS = {
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
}
BATCHES = (64, 256, 1024, 4096, 16384)
DEVICES = (1, 8, 64, 256)
MARKS = (16, 40, 80, 141)  # GB of memory that accelerators have
# Of similarities, float32, that CMPM keeps for both directions and the backward pass, fitted to XLA's buffers.
MATRICES = {"global": 8, "sharded": 7}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while it takes a step.

    parameters, optimizer, average, batch: what lies there throughout. gradients: of every pass through the tower, which
    are added at the end. turned: the MLPs' weights and the embeddings once more, as the products want them.
    activations: what is kept for the backward pass. working: one block of the largest pass, computed back.
    matching: the matrices of similarities. logits: of the word head. updated: the optimiser's new slots and embeddings.
    number: bytes of a number of the activations.
    """

    parameters: int
    optimizer: int
    average: int
    batch: int
    gradients: int
    turned: int
    activations: int
    working: int
    matching: int
    logits: int
    updated: int
    number: int

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The larger of two moments: the backward pass, where matching, logits and block take turns; the update."""
        turn = max(self.working, self.matching, 2 * self.logits)
        backward = self.activations + self.logits + turn + self.turned
        return self.state + self.batch + self.gradients + max(backward, self.updated)

    def __str__(self) -> str:
        parts = ("parameters", "optimizer", "average", "gradients", "activations", "matching", "batch")
        figures = ", ".join(f"{name} {getattr(self, name) / 1e9:.3f}" for name in parts)
        return (
            f"memory per device, by formula: {self.total / 1e9:.2f} GB with activations of {self.number} bytes a "
            f"number ({figures}, and what a block works with)"
        )


def device_memory(config: Mapping[str, Any], sizes: Mapping[str, int], *, widened: bool = False) -> Memory:
    """The memory of a run on a mesh of these sizes.

    widened: activations in bfloat16 are kept as float32. XLA's CPU backend before JAX 0.11 does that to a part of them:
    its memory lies between the figures without and with `widened`.
    """
    model, optimizer, microbatches = config["model"], config["optimizer"], config["runtime"]["microbatches"]
    devices = math.prod(sizes.values())
    shapes = parameter_shapes(IVTConfig.from_config(model))
    held = {name: 4 * math.prod(shape) // place(name, shape, sizes).parts for name, shape in shapes.items()}
    parameters = sum(held.values())
    mlp = sum(size for name, size in held.items() if "/mlp_" in name)
    attention = sum(size for name, size in held.items() if "/attn/" in name)
    others = parameters - mlp - attention
    passes = [Pass(p.kind, p.rows // (devices * microbatches), p.tokens) for p in tower_passes(config)]
    size = 4 if widened else BYTES[model["dtype"]]
    slots = OPTIMIZER_SLOTS[optimizer["name"]] * parameters
    gradients = sum(attention + (mlp if p.kind == "joint" else mlp // 2) for p in passes)
    embeddings = sum(embedding_bytes(p, config, size) for p in passes)
    kept = sum(kept_bytes(p, model, size) for p in passes)
    cached = 4 * model["width"] * 2 * matching_side(config) // devices if microbatches > 1 else 0
    return Memory(
        parameters=parameters,
        optimizer=slots,
        average=parameters if optimizer["ema"] else 0,
        batch=batch_bytes(config) // devices,
        gradients=gradients + (parameters if microbatches > 1 else 0),  # their sum so far
        turned=mlp + 2 * others,
        activations=kept + embeddings + cached,
        working=max((working_bytes(p, model, size) for p in passes), default=0),
        matching=MATRICES[config["runtime"]["matching"]]
        * 4
        * matching_side(config) ** 2
        // config["mla"]["groups"]
        // spread(config, devices),
        logits=4 * predicted_words(config) * model["vocab_size"] // (devices * microbatches),
        updated=slots + others + embeddings,
        number=size,
    )


def device_flops(config: Mapping[str, Any], devices: int) -> int:
    """Matrix products of one device in a step; micro-batches encode images and texts once more (gradient caching)."""
    cost = step_cost(config)
    again = cost.image + cost.text if config["runtime"]["microbatches"] > 1 else 0
    split = cost.training - 3 * cost.matching + again
    return split // devices + 3 * cost.matching // spread(config, devices)


def spread(config: Mapping[str, Any], devices: int) -> int:
    """Over how many devices the similarities are split.

    XLA splits them by rows where the rows lie as the batch does; the stack of several levels or views does not, and
    every device computes the whole. Sharded matching splits them always.
    """
    mla, matching = config["mla"], config["runtime"]["matching"]
    return devices if matching == "sharded" or max(mla["views"], len(mla["levels"])) == 1 else 1


def kept_bytes(p: Pass, model: Mapping[str, Any], size: int) -> int:
    """What JAX keeps of a pass's blocks for their gradient; `size` is that of a number in the activations' dtype.

    For each block and token: the softmax in float32; in the activations' dtype the norms' inputs and outputs, q, k, v,
    the heads' mix, the softmax again, the activation and its slope; stochastic depth's two masks.
    With remat, the block's input and the outputs of qkv, proj and fc1 alone.
    """
    width, hidden = model["width"], int(model["width"] * model["mlp_ratio"])
    if model["remat"]:
        per_token = size * (5 * width + hidden)
    else:
        softmax = model["num_heads"] * p.tokens * (4 + size)
        masks = 2 * width if model["drop_path"] else 0
        per_token = size * (8 * width + 2 * hidden) + softmax + masks
    return p.rows * p.tokens * model["depth"] * per_token


def working_bytes(p: Pass, model: Mapping[str, Any], size: int) -> int:
    """What the backward pass of one block needs at once: numbers of widths and softmaxes, fitted to XLA's buffers.

    With remat the block is first computed again.
    """
    width, hidden = model["width"], int(model["width"] * model["mlp_ratio"])
    widths, hiddens, softmaxes = (10, 2, 3) if model["remat"] else (7, 4, 1)
    softmax = softmaxes * model["num_heads"] * p.tokens * 4
    masks = 2 * width if model["drop_path"] else 0
    return p.rows * p.tokens * (size * (widths * width + hiddens * hidden) + softmax + masks)


def embedding_bytes(p: Pass, config: Mapping[str, Any], size: int) -> int:
    """What is kept outside the blocks: the patches, the tokens and, of texts, the embedding's norm."""
    model = config["model"]
    patches = num_patches(model["image_size"], model["patch_size"], model["stride"])
    texts = {"image": 0, "text": p.tokens, "joint": config["text"]["length"]["sentence"]}[p.kind]
    patch_bytes = 0 if p.kind == "text" else patches * 3 * model["patch_size"] ** 2 * size
    return p.rows * (patch_bytes + 4 * model["width"] * (p.tokens + 3 * texts))


def batch_bytes(config: Mapping[str, Any]) -> int:
    """The global batch as it comes from the input pipeline: pixels in uint8, all else in int32."""
    mla, length = config["mla"], config["text"]["length"]
    images = mla["views"] * (math.prod(config["model"]["image_size"]) * 3 + 4 * 4)
    texts = sum(length[level] for level in {*mla["levels"], "sentence"}) + length["sentence"]
    return config["data"]["batch_size"] * (images + 4 * (texts + 2))


def plan_rows(config: Any) -> Iterator[tuple[str, int, int, dict[str, int], Any]]:
    """(model, batch, devices, mesh, config) of every row of the plan: `config` with another tower and batch."""
    for name, tower in MODELS.items():
        for batch in BATCHES:
            for devices in DEVICES:
                changed = copy.deepcopy(config)
                changed["model"].update(tower)
                changed["data"]["batch_size"] = batch
                changed["bmm"]["rows"] = config["bmm"]["rows"] * batch // config["data"]["batch_size"]
                if batch % (devices * config["runtime"]["microbatches"]) == 0:
                    fsdp = config["runtime"]["mesh"]["fsdp"]
                    sizes = mesh_sizes(
                        {"data": -1, "fsdp": devices if fsdp == -1 else math.gcd(fsdp, devices)}, devices
                    )
                    yield name, batch, devices, sizes, changed


def plan_table(config: Any) -> str:
    """A Markdown table of memory and FLOPs, all by formula, for ViT-B and ViT-L under the other keys of `config`."""
    columns = ("parameters", "optimizer", "average", "gradients", "activations", "matching", "batch", "total")
    header = ["model", "batch", "devices", "data x fsdp", *columns, "fits", "TFLOPs"]
    lines = [header, ["---"] * len(header)]
    for name, batch, devices, sizes, changed in plan_rows(config):
        memory = device_memory(changed, sizes)
        tera = device_flops(changed, devices) / 1e12
        fits = next((f"{mark} GB" for mark in MARKS if memory.total <= mark * 1e9), "none")
        numbers = [f"{getattr(memory, column) / 1e9:,.2f}" for column in columns]
        mesh = f"{sizes['data']} x {sizes['fsdp']}"
        lines.append([f"ViT-{name}", f"{batch:,}", str(devices), mesh, *numbers, fits, f"{tera:,.1f}"])
    model = config["model"]
    told = (
        "Every figure of this table is by formula: GB (1e9 bytes) and TFLOPs of a step, for each device. "
        f"{model['dtype']}, remat {'on' if model['remat'] else 'off'}, {config['mla']['views']} views, "
        f"micro-batches {config['runtime']['microbatches']}, matching {config['runtime']['matching']}. "
        "Beside the columns, the total has what a block works with while it is computed back."
    )
    return "\n".join([told, "", *("| " + " | ".join(line) + " |" for line in lines)])
