"""The layers of a transformer as PyTorch and Flax store them, and the rules that read them.

A source of weights lists the names of its layers; `layer_rules` and `block_rules` add kernel, scale and bias.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ivt_jax.conversion.tensors import Rule, rule, same


def linear(*weights: np.ndarray) -> np.ndarray:
    """PyTorch's (out, in) -> (in, out); several are joined along out."""
    return np.concatenate(weights).T


def joined(*biases: np.ndarray) -> np.ndarray:
    """Joins the biases of query, key and value."""
    return np.concatenate([bias.reshape(-1) for bias in biases])


def convolution(weight: np.ndarray) -> np.ndarray:
    """PyTorch's (out, channel, row, column) -> (row * column * channel, out), the order of `extract_patches`."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def convolution_weight(kernel: np.ndarray) -> np.ndarray:
    """(row * column * channel, out) -> (out, channel, row, column), the inverse of `convolution`."""
    side = round((len(kernel) / 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def heads_in(*kernels: np.ndarray) -> np.ndarray:
    """Query, key and value, each (in, heads, head) -> (in, 3 * heads * head)."""
    return np.concatenate([kernel.reshape(len(kernel), -1) for kernel in kernels], axis=1)


def rows(kernel: np.ndarray) -> np.ndarray:
    """(heads, head, out) or (row, column, channel, out) -> (product of the others, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


class Storage(NamedTuple):
    """How a framework stores layers: the ends of the tensors' names, and the shapes of all layers but norms."""

    kernel: str
    scale: str
    bias: str
    layers: Mapping[str, tuple[str, str, Callable[..., np.ndarray]]]  # -> shapes of kernel and bias, kernel's layout


SEPARATE = "query, key, value"
PYTORCH = Storage("weight", "weight", "bias", {
    "image_embedding": ("D 3 P P", "D", convolution),
    "qkv": ("3D D", "3D", linear),
    SEPARATE: ("D D", "D", linear),
    "proj": ("D D", "D", linear),
    "fc1": ("F D", "F", linear),
    "fc2": ("D F", "D", linear),
    "text_projection": ("E D", "E", linear),
})  # fmt: skip
FLAX = Storage("kernel", "scale", "bias", {
    "image_embedding": ("P P 3 D", "D", rows),
    SEPARATE: ("D H E", "H E", heads_in),
    "proj": ("H E D", "D", rows),
    "fc1": ("D F", "F", same),
    "fc2": ("F D", "D", same),
})  # fmt: skip


def layer_rules(ours: str, names: str, storage: Storage = PYTORCH) -> tuple[Rule, Rule]:
    """Returns the rules of a layer: scale and bias of a norm, kernel and bias of any other.

    ours: path of the layer. names: its name in the file with the separator, such as "norm."; or the names of query, key
    and value, separated by spaces.
    """
    kernels, scales, biases = (" ".join(name + end for name in names.split()) for end in storage[:3])
    layer = SEPARATE if " " in names else ours.rpartition("/")[2]
    if layer not in storage.layers:
        return rule(f"{ours}/scale", scales, "D"), rule(f"{ours}/bias", biases, "D")
    shape, bias_shape, layout = storage.layers[layer]
    join = joined if layer == SEPARATE else same
    return rule(f"{ours}/kernel", kernels, shape, layout), rule(f"{ours}/bias", biases, bias_shape, join)


class Block(NamedTuple):
    """Names of a block's layers, as `layer_rules` takes them; each begins with `prefix`, {} is the block's number."""

    prefix: str
    norm1: str
    qkv: str
    proj: str
    norm2: str
    fc1: str
    fc2: str


LAYERS = ("norm1", "attn/qkv", "attn/proj", "norm2", "{mlp}/fc1", "{mlp}/fc2")  # of our block, as in Block


def block_rules(block: Block, storage: Storage = PYTORCH, ours: str = "blocks", mlp: str = "mlp_vis") -> list[Rule]:
    """Returns the rules of norms, attention and MLP. ours, mlp: the names of our blocks and of the MLP in each."""
    found: list[Rule] = []
    for layer, names in zip(LAYERS, block[1:], strict=True):
        path = f"{ours}/{layer.format(mlp=mlp)}"
        found += layer_rules(path, " ".join(block.prefix + name for name in names.split()), storage)
    return found
