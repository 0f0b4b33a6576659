"""Memory and FLOPs of each device before a run, by formula, for batches, models and numbers of devices.

Nothing is computed or compiled here. `ivt_jax/cost/compiled.py` has XLA's own figures; tests compare the two.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from ivt_jax.cost import flops
from ivt_jax.losses.heads import HEADS, init_heads
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig, hidden_units
from ivt_jax.training.freezing import is_frozen
from ivt_jax.training.optimizer import MUON_STEPS, is_block_kernel, slots_of
from ivt_jax.training.sharding import mesh_sizes, place

MODELS = {"B": {"width": 768, "depth": 12, "num_heads": 12}, "L": {"width": 1024, "depth": 24, "num_heads": 16}}
BATCHES = (64, 256, 1024, 4096, 16384)
DEVICES = (1, 8, 64, 256)
MARKS = (16, 40, 80, 141)  # GB of memory that accelerators have; of the 17.2 of a TPU v5e programs get 16.9 (15.75 GiB)
PARTS = ("parameters", "optimizer", "average", "gradients", "activations", "matching", "batch")  # that are printed
# Similarity matrices (float32) that CMPM keeps for both directions and the backward pass, fitted to XLA's buffers.
MATRICES = 8
LOGITS = 3  # the same of the classifier's logits


class Memory(NamedTuple):
    """Bytes on one device during a step."""

    parameters: int  # held throughout the step, as are optimizer, average and batch
    optimizer: int
    average: int
    batch: int  # its rows of the batch, and for image-text matching those among which negatives are drawn
    gradients: int  # of every pass through the tower, whole on every device; they are added at the end
    copies: int  # of weights for the products: gathered from the devices that split them, or transposed
    activations: int  # kept for the backward pass
    working: int  # one block of the largest pass, backward
    matching: int  # the similarity matrices, and the classifier's logits
    logits: int  # of the word head
    updated: int  # the optimiser's new slots, and what is kept outside the blocks
    number: int  # bytes of one number of the activations
    microbatches: int

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The largest of three moments: the matching, the backward pass with logits and block in turn, the update."""
        beside = self.activations if self.microbatches == 1 else 0  # else matching has nothing but embeddings
        held = self.logits + self.copies
        backward = held + self.activations + max(self.working, 2 * self.logits)
        return self.state + self.batch + self.gradients + max(held + beside + self.matching, backward, self.updated)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {getattr(self, name) / 1e9:.3f}" for name in PARTS)
        return (
            f"memory per device, by formula: {self.total / 1e9:.2f} GB with activations of {self.number} bytes a "
            f"number ({figures}; the total includes one block's working memory)"
        )


def device_memory(config: Mapping[str, Any], sizes: Mapping[str, int], *, widened: bool = False) -> Memory:
    """Returns the memory of a run on a mesh of these sizes.

    widened: counts bfloat16 activations as float32. XLA's CPU backend before JAX 0.11 keeps some of them so: its memory
    is between the figures without and with `widened`.
    """
    model, optimizer, microbatches = config["model"], config["optimizer"], config["runtime"]["microbatches"]
    devices, side = math.prod(sizes.values()), flops.matching_side(config)
    shapes = trained_shapes(config)
    whole = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    parts = {name: place(name, shape, sizes).parts for name, shape in shapes.items()}
    trained = {name: size for name, size in whole.items() if not is_frozen(name, config["train"]["freeze"])}
    parameters = sum(size // parts[name] for name, size in whole.items())
    gathered = sum(size for name, size in whole.items() if parts[name] > 1)
    mlp = sum(size for name, size in whole.items() if "/mlp" in name)
    passes = [flops.Pass(p.kind, p.rows // (devices * microbatches), p.tokens) for p in flops.tower_passes(config)]
    size = 4 if widened else flops.BYTES[model["dtype"]]
    slots = sum(slots_of(optimizer["name"], name) * size // parts[name] for name, size in trained.items())
    gradients = sum(sum(size for name, size in trained.items() if _is_in_blocks(name, p.kind)) for p in passes)
    gradients += sum(size for name, size in trained.items() if name.startswith(HEADS))
    embeddings = sum(embedding_bytes(p, config, size) for p in passes)
    blocks = [block_bytes(p, {**model, **flops.tower_of(model, p.kind)}, size) for p in passes]
    biases = [bias_bytes(p, config) for p in flops.tower_passes(config)]
    cached = 4 * flops.embedding_width(model) * 2 * side // devices if microbatches > 1 else 0
    classifier = LOGITS * 4 * flops.classified_rows(config) * flops.persons(config) // devices
    matrices = MATRICES * 4 * side**2 // config["mla"]["groups"]
    return Memory(
        parameters=parameters,
        optimizer=slots,
        average=parameters if optimizer["ema"] else 0,
        batch=batch_bytes(config) // devices + negative_bytes(config, devices),
        gradients=gradients + (sum(trained.values()) if microbatches > 1 else 0),  # their sum so far
        copies=max(gathered, mlp),
        activations=sum(kept for kept, _ in blocks) + embeddings + cached + sum(biases),
        working=max((working + bias for (_, working), bias in zip(blocks, biases, strict=True)), default=0),
        matching=matrices // matching_devices(config, devices) + classifier,
        logits=4 * flops.predicted_words(config) * model["vocab_size"] // (devices * microbatches),
        updated=slots + embeddings,
        number=size,
        microbatches=microbatches,
    )


def trained_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters of a training by path: the model's, and those of the heads of its losses."""
    heads = jax.eval_shape(lambda: init_heads(jax.random.key(0), config, flops.persons(config)))
    shapes = {path: value.shape for path, value in flatten_dict(heads, sep="/").items()}
    return parameter_shapes(IVTConfig.from_config(config["model"])) | shapes


def _is_in_blocks(name: str, kind: str) -> bool:
    """Returns whether a parameter is a matrix of attention or of the MLPs that a pass of this kind goes through."""
    part, layer = name.split("/")[:2]
    other = {"image": ("text_blocks", "mlp_txt"), "text": ("image_blocks", "mlp_vis"), "joint": ()}[kind]
    return part.endswith("blocks") and layer.startswith(("attn", "mlp")) and part not in other and layer not in other


def device_flops(config: Mapping[str, Any], devices: int) -> int:
    """Returns the FLOPs of one device's matrix products in a step; with micro-batches, it encodes its rows twice."""
    cost = flops.step_cost(config)
    again = cost.image + cost.text if config["runtime"]["microbatches"] > 1 else 0
    split = cost.training - 3 * cost.matching + again
    return split // devices + 3 * cost.matching // matching_devices(config, devices) + muon_flops(config)


def muon_flops(config: Mapping[str, Any]) -> int:
    """Returns the FLOPs of Muon's iterations, which each device computes by itself; 0 with another optimiser."""
    if config["optimizer"]["name"] != "muon":
        return 0
    freeze = config["train"]["freeze"]
    kernels = (x for name, x in trained_shapes(config).items() if is_block_kernel(name) and not is_frozen(name, freeze))
    # A step of the iteration has the products X X^T (m, m), its square, and theirs with X (m, n); m is at most n.
    sizes = ((depth, *sorted(sides)) for depth, *sides in kernels)
    return MUON_STEPS * sum(depth * (4 * m * m * n + 2 * m**3) for depth, m, n in sizes)


def matching_devices(config: Mapping[str, Any], devices: int) -> int:
    """Returns how many devices share the similarities: all with sharded matching, else each computes all."""
    return devices if config["runtime"]["matching"] == "sharded" else 1


def block_bytes(p: flops.Pass, model: Mapping[str, Any], size: int) -> tuple[int, int]:
    """Returns the bytes that JAX keeps of all blocks of a pass for the gradient, and of one block's backward pass.

    size: bytes of one activation. Kept for each block and token: the norms' inputs and outputs, q, k, v, the heads'
    mix, the softmax (not by cuDNN), the activation function and its slope. With remat only the block's input and the
    outputs of qkv, proj and fc1; the block is computed again first. The backward pass counts widths, and scores in
    float32; it is fitted to XLA's buffers.
    """
    width, hidden = model["width"], hidden_units(model["width"], model["mlp_ratio"])
    softmax = 0 if model["attention"] == "cudnn" else model["num_heads"] * p.tokens
    if model["remat"]:
        kept = size * (5 * width + hidden)
        working = size * (10 * width + 2 * hidden)
    else:
        kept = size * (8 * width + 2 * hidden + softmax)
        working = size * (7 * width + 4 * hidden)
    numbers = p.rows * p.tokens
    return numbers * model["depth"] * kept, numbers * (working + 4 * softmax)


def bias_bytes(p: flops.Pass, config: Mapping[str, Any]) -> int:
    """Returns the bytes of a pass's relative position biases, which rows share; their gradient takes as many again."""
    model = config["model"]
    if not model["relative_positions"]:
        return 0
    return 4 * model["depth"] * model["num_heads"] * p.tokens**2


def embedding_bytes(p: flops.Pass, config: Mapping[str, Any], size: int) -> int:
    """Returns the bytes kept outside the blocks: patches, tokens and, for BERT's texts, the embedding's norm."""
    model = config["model"]
    texts = {"image": 0, "text": p.tokens, "joint": config["text"]["length"]["sentence"]}[p.kind]
    patch_bytes = 0 if p.kind == "text" else flops.patches_of(model) * 3 * model["patch_size"] ** 2 * size
    width, norm = flops.tower_of(model, p.kind)["width"], 3 if model["towers"] == 1 else 0
    return p.rows * (patch_bytes + 4 * width * (p.tokens + norm * texts))


def batch_bytes(config: Mapping[str, Any]) -> int:
    """Returns the bytes of the global batch from the input pipeline: pixels in uint8, all else in int32."""
    mla, length = config["mla"], config["text"]["length"]
    images = mla["views"] * (math.prod(config["model"]["image_size"]) * 3 + 4 * 4)
    texts = sum(length[level] for level in {*mla["levels"], "sentence"})
    return config["data"]["batch_size"] * (images + 5 * texts + 4 * (length["sentence"] + 2))  # ids and mask


def negative_bytes(config: Mapping[str, Any], devices: int) -> int:
    """Returns the bytes of what image-text matching draws for a device's rows, and of the gathered batch."""
    if not config["itm"]["weight"]:
        return 0
    row = math.prod(config["model"]["image_size"]) * 3 + 4 * 4 + 5 * config["text"]["length"]["sentence"]
    batch = config["data"]["batch_size"]
    return row * (batch // devices + (batch if devices > 1 else 0))


def planned(config: Any, model: str, batch: int, devices: int) -> Any:
    """Returns a copy of the config with a model of MODELS and this batch; its fsdp, as far as it divides."""
    changed = copy.deepcopy(config)
    changed["model"].update(MODELS[model])
    changed["data"]["batch_size"] = batch
    changed["bmm"]["rows"] = config["bmm"]["rows"] * batch // config["data"]["batch_size"]
    fsdp = config["runtime"]["mesh"]["fsdp"]
    changed["runtime"]["mesh"].update({"data": -1, "fsdp": devices if fsdp == -1 else math.gcd(fsdp, devices)})
    return changed


def choices(config: Any) -> str:
    """Returns the keys of a plan's config that decide about memory, in words."""
    model, runtime = config["model"], config["runtime"]
    return (
        f"{model['dtype']}, remat {'on' if model['remat'] else 'off'}, {config['mla']['views']} views, "
        f"micro-batches {runtime['microbatches']}, matching {runtime['matching']}"
    )


def plan_table(config: Any) -> str:
    """Returns a Markdown table of memory and FLOPs by formula, for ViT-B and ViT-L with the other keys of `config`."""
    columns = (*PARTS, "total")
    header = ["model", "batch", "devices", "data x fsdp", *columns, "fits", "TFLOPs"]
    lines = [header, ["---"] * len(header)]
    for name, batch, devices in itertools.product(MODELS, BATCHES, DEVICES):
        if batch % (devices * config["runtime"]["microbatches"]):
            continue
        changed = planned(config, name, batch, devices)
        sizes = mesh_sizes(changed["runtime"]["mesh"], devices)
        memory = device_memory(changed, sizes)
        fits = next((f"{mark} GB" for mark in MARKS if memory.total <= mark * 1e9), "none")
        numbers = [f"{getattr(memory, column) / 1e9:,.2f}" for column in columns]
        row = [f"ViT-{name}", f"{batch:,}", str(devices), f"{sizes['data']} x {sizes['fsdp']}"]
        lines.append([*row, *numbers, fits, f"{device_flops(changed, devices) / 1e12:,.1f}"])
    title = (
        "Every figure of this table is by formula: GB (1e9 bytes) and TFLOPs of a step, for each device. "
        f"{choices(config)}. The total includes one block's working memory, which has no column."
    )
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])
