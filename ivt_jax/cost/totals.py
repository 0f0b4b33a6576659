"""What a compiled program does in one run: matrix products, memory traffic and collectives, from its text.

Everything is counted as often as it runs: a loop's body by its trip count, an asynchronous operation once, of a
conditional all branches. XLA's own `cost_analysis()` counts a loop's body once.
"""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

from ivt_jax.cost.hlo import Computation, Instruction, called, parse, trips

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
# They move no data. Of what runs asynchronously, the "done" is counted, and not the "start".
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "add-dependency", "partition-id", "replica-id",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveDone")  # of a TPU
SLICES = ("slice", "dynamic-slice", "gather")  # they read only what they return


class Totals(NamedTuple):
    """What one device does in one run of the program."""

    products: int  # FLOPs of the matrix products; a multiply-add is two
    traffic: int  # bytes that its instructions read from and write to the device's memory
    collectives: tuple["Collective", ...]


class Collective(NamedTuple):
    """The collectives of one kind over groups of one size."""

    kind: str
    group: int  # devices that exchange data with each other
    times: int  # per run
    size: int  # bytes of the full arrays: gathered, summed, or before scattering

    @property
    def moved(self) -> float:
        """Bytes that each device sends, with the rings that need the fewest: each sends (n - 1) / n of the whole array
        to gather or to scatter it, and twice that to sum it.
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.size
        return (2 if self.kind == "all-reduce" else 1) * self.size * (self.group - 1) / self.group


def totals(text: str, devices: int = 1) -> Totals:
    """Returns the totals of a compiled program's text. devices: those that it runs on."""
    entry, computations = parse(text)

    @functools.cache
    def total(name: str, fused: bool) -> Counter:
        counts: Counter = Counter()
        computation = computations[name]
        for x in computation.values():
            counts["products"] += _products(x, computation)
            counts["traffic"] += 0 if fused else _traffic(x, computation, computations)
            if exchange := _exchange(x, computation, devices):
                kind, group, size = exchange
                counts.update({("times", kind, group): 1, ("size", kind, group): size})
            times = trips(x, computations) if x.op == "while" else 1
            for name in called(x):
                inner = total(name, fused or x.op.startswith("fusion"))
                counts.update({key: times * value for key, value in inner.items()})
        return counts

    counts = total(entry, False)
    keys = sorted(key[1:] for key in counts if key[0] == "times")
    collectives = tuple(
        Collective(kind, group, counts["times", kind, group], counts["size", kind, group]) for kind, group in keys
    )
    return Totals(counts["products"], counts["traffic"], collectives)


def _products(x: Instruction, computation: Computation) -> int:
    """Returns the FLOPs of one matrix product: a dot, a TPU's convolution, or a call of cuBLAS or cuDNN's attention."""
    if x.op == "convolution":
        return _convolution(x, computation)
    found = None
    if x.op == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", x.rest)
    elif x.op == "custom-call" and "__cublas" in x.rest:
        found = re.search(r'"lhs_contracting_dimensions": ?\[([\d", ]+)\]', x.rest)
    elif x.op == "custom-call" and "__cudnn$fmha" in x.rest:
        return _attention(x)
    if not found:
        return 0
    left = computation[x.operands[0]].shapes[0].dims
    return 2 * math.prod(x.shapes[0].dims) * math.prod(left[int(axis)] for axis in re.findall(r"\d+", found[1]))


def _attention(x: Instruction) -> int:
    """Returns the FLOPs of cuDNN's attention: 2 products forward, 5 backward (it computes the scores again)."""
    scores = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([\d", ]+)\]', x.rest)
    if not scores:
        return 0
    return (
        2
        * (5 if "Backward" in x.rest else 2)
        * x.shapes[0].dims[-1]
        * math.prod(map(int, re.findall(r"\d+", scores[1])))
    )


def _convolution(x: Instruction, computation: Computation) -> int:
    """Returns the FLOPs of a convolution, in which form a TPU has all products; terms with padding do not count.

    The axes over which a product is batched are spatial ones, dilated so that each output sees one input.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    assert labels, x.rest
    left, right = (computation[name].shapes[0].dims for name in x.operands[:2])
    result = x.shapes[0].dims
    flops = 2 * right[labels[2].index("i")] * result[labels[3].index("b")] * result[labels[3].index("f")]
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\w\-x]+)", _braces(x.rest, "window="))}
    for axis in range(len(result) - 2):
        size, kernel, outputs = (
            dims[label.index(str(axis))] for dims, label in zip((left, right, result), labels.groups(), strict=True)
        )
        flops *= _valid(size, kernel, outputs, {key: values[axis] for key, values in window.items()})
    return flops


def _valid(size: int, kernel: int, outputs: int, options: dict[str, str]) -> int:
    """Returns how many pairs of an output and a kernel's element meet an input, and no padding, along one axis."""
    stride, dilation = int(options.get("stride", 1)), int(options.get("lhs_dilate", 1))
    spread, low = int(options.get("rhs_dilate", 1)), int(options.get("pad", "0_0").partition("_")[0])
    places = (i * stride + j * spread - low for i in range(outputs) for j in range(kernel))
    return sum(place % dilation == 0 and 0 <= place < size * dilation for place in places)


def _exchange(x: Instruction, computation: Computation, devices: int) -> tuple[str, int, int] | None:
    """Returns kind, size of the groups and bytes of the full arrays of a collective; None for all else.

    A TPU spreads a collective over the fusions that run at the same time, and repeats it in each with the same
    chain_id: only the first counts, which AsyncCollectiveStart names.
    """
    kind = x.op.removesuffix("-start")
    if kind not in KINDS:
        return None
    if "chain_id=" in x.rest and not any("AsyncCollectiveStart" in y.rest for y in computation.values()):
        return None
    group = _group(x.rest, devices)
    size = sum(shape.size for name in x.operands for shape in computation[name].shapes)
    return kind, group, size * (group if kind == "all-gather" else 1)


def _group(rest: str, devices: int) -> int:
    """Returns the number of devices in each group of a collective, in any of the notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found[1].count(",") + 1
    return devices


def _traffic(x: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    """Returns the bytes that an instruction outside of fusions moves from and to the device's memory.

    What lies in a TPU's fast memory does not count. Of an array that is only sliced or updated in place, only those
    parts do.
    """
    if x.op in FREE or x.op.endswith("-start") or any(f'"{call}"' in x.rest for call in FREE_CALLS):
        return 0
    start = computation[x.operands[0]] if x.op.endswith("-done") else x
    sources = [computation[name] for name in start.operands]
    if start.op.startswith(("fusion", "async")):
        fused = computations[next(called(start))]
        reads = zip(_parameters(fused), sources, strict=True)
        writes = zip(_written(fused, computations), x.shapes, strict=False)
        read = sum(min(_read(y, fused, computations), _memory(source)) for y, source in reads)
        return read + sum(min(write, shape.memory) for write, shape in writes)
    results = _memory(x)
    if start is not x:
        read = sum(map(_memory, sources))
        return results + (min(read, sum(shape.size for shape in x.shapes)) if "slice" in x.op else read)
    if x.op in SLICES:
        return results + min(sum(shape.size for shape in x.shapes), _memory(computation[x.operands[0]]))
    if x.op in ("dynamic-update-slice", "scatter"):
        changed = x.operands[1 if x.op == "dynamic-update-slice" else -1]
        return 2 * _memory(computation[changed])
    return results - _workspace(x) + sum(_memory(computation[name]) for name in {*x.operands})


def _memory(x: Instruction) -> int:
    return sum(shape.memory for shape in x.shapes)


def _workspace(x: Instruction) -> int:
    """Returns the bytes that cuBLAS or cuDNN gets to work in, which are the last of its results."""
    last = x.shapes[-1]
    return last.memory if x.op == "custom-call" and "__cu" in x.rest and last.dtype in ("s8", "u8") else 0


def _parameters(fused: Computation) -> list[Instruction]:
    return sorted((x for x in fused.values() if x.op == "parameter"), key=lambda x: int(x.rest))


def _read(x: Instruction, fused: Computation, computations: dict[str, Computation]) -> int:
    """Returns the bytes of a fusion's parameter that the fusion reads."""
    read = 0
    for user in (y for y in fused.values() if x.name in y.operands):
        if user.op in SLICES and user.operands[0] == x.name:
            read += sum(shape.size for shape in user.shapes)
        elif user.op in ("bitcast", "reshape"):
            read += _read(user, fused, computations)
        elif user.op == "fusion":
            inner = computations[next(called(user))]
            places = [y for y, name in zip(_parameters(inner), user.operands, strict=True) if name == x.name]
            read += sum(_read(y, inner, computations) for y in places)
        elif not (user.op in ("tuple", *KINDS) or "AsyncCollective" in user.rest or _updates(user, x.name)):
            return _whole(x)
    return min(read, _whole(x))


def _updates(user: Instruction, name: str) -> bool:
    return user.op in ("dynamic-update-slice", "scatter") and user.operands[0] == name


def _whole(x: Instruction) -> int:
    """Returns the padded bytes of an array in a fusion; where it lies, the caller's layout says."""
    return sum(shape._replace(layout=re.sub(r"S\(\d+\)", "", shape.layout)).memory for shape in x.shapes)


def _written(fused: Computation, computations: dict[str, Computation]) -> list[int]:
    """Returns the bytes that a fusion writes to each of its results."""

    def write(x: Instruction) -> int:
        if x.op in ("bitcast", "reshape"):
            return write(fused[x.operands[0]])
        if x.op in ("dynamic-update-slice", "scatter"):
            return _whole(fused[x.operands[1 if x.op == "dynamic-update-slice" else -1]])
        if x.op in ("parameter", *KINDS) or "AsyncCollective" in x.rest:
            return 0
        if x.op == "fusion":
            return sum(_written(computations[next(called(x))], computations))
        return _whole(x)

    root = next(x for x in fused.values() if x.root)
    return [write(fused[name]) for name in root.operands] if root.op == "tuple" else [write(root)]


def _braces(text: str, start: str) -> str:
    """Returns what stands in braces behind `start`."""
    found = re.search(re.escape(start) + r"\{([^}]*)\}", text)
    return found[1] if found else ""
