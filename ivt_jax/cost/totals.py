"""What a compiled program does in one run: matrix products, memory traffic and collectives, from its text.

Everything is counted as often as it runs: a loop's body by its trip count, an asynchronous operation once, each branch
of a conditional once. XLA's own `cost_analysis()` counts a loop's body once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ivt_jax.cost.hlo import Computation, Instruction, called, parse, trips

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
# These move no data. Of an asynchronous operation, its "done" is counted, not its "start".
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "add-dependency", "partition-id", "replica-id",
}  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveDone")  # of a TPU
SLICES = ("slice", "dynamic-slice", "gather")  # they read only what they return
UPDATES = ("dynamic-update-slice", "scatter")  # they write only what they change
# The axes of the left operand over which a product sums: of a dot, and of a call of cuBLAS.
CONTRACTED = re.compile(r'(?:lhs_contracting_dims=\{|"lhs_contracting_dimensions": ?\[)([\d", ]+)')


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
    products = traffic = 0
    counts: Counter[tuple[str, int]] = Counter()  # of the collectives, by kind and size of the groups
    sizes: Counter[tuple[str, int]] = Counter()
    for x, computation, times, fused in _executed(entry, computations):
        products += times * _products(x, computation)
        traffic += 0 if fused else times * _traffic(x, computation, computations)
        if found := _collective(x, computation, devices):
            counts[found.kind, found.group] += times
            sizes[found.kind, found.group] += times * found.size
    collectives = tuple(Collective(*key, counts[key], sizes[key]) for key in sorted(counts))
    return Totals(products, traffic, collectives)


def _executed(
    name: str, computations: dict[str, Computation], times: int = 1, fused: bool = False
) -> Iterator[tuple[Instruction, Computation, int, bool]]:
    """Yields each instruction that runs, its computation, how often it runs, and whether it is part of a fusion."""
    for x in computations[name].values():
        yield x, computations[name], times, fused
        inner = times * trips(x, computations) if x.op == "while" else times
        for body in called(x):
            yield from _executed(body, computations, inner, fused or x.op.startswith("fusion"))


def _products(x: Instruction, computation: Computation) -> int:
    """Returns the FLOPs of one matrix product: a dot, a TPU's convolution, or a call of cuBLAS or cuDNN's attention."""
    if x.op == "convolution":
        return _convolution(x, computation)
    if x.op == "custom-call" and "__cudnn$fmha" in x.rest:
        return _attention(x)
    contracted = CONTRACTED.search(x.rest) if x.op in ("dot", "custom-call") else None
    if not contracted:
        return 0
    left = computation[x.operands[0]].shapes[0].dims
    return 2 * math.prod(x.shapes[0].dims) * math.prod(left[axis] for axis in _integers(contracted[1]))


def _attention(x: Instruction) -> int:
    """Returns the FLOPs of cuDNN's attention: 2 products forward, 5 backward (it computes the scores again)."""
    scores = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([\d", ]+)\]', x.rest)
    products, size = 5 if "Backward" in x.rest else 2, x.shapes[0].dims[-1]
    return 2 * products * math.prod(_integers(scores[1])) * size if scores else 0


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _convolution(x: Instruction, computation: Computation) -> int:
    """Returns the FLOPs of a convolution, the form of all products on a TPU; terms with padding do not count.

    The axes over which a product is batched are spatial ones, dilated so that each output sees one input.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    assert labels, x.rest
    left, right = (computation[name].shapes[0].dims for name in x.operands[:2])
    result = x.shapes[0].dims
    flops = 2 * right[labels[2].index("i")] * result[labels[3].index("b")] * result[labels[3].index("f")]
    window = re.search(r"window=\{([^}]*)\}", x.rest)
    options = re.findall(r"(\w+)=([\w\-]+)", window[1]) if window else []
    for axis in range(len(result) - 2):
        size, kernel, outputs = (
            dims[label.index(str(axis))] for dims, label in zip((left, right, result), labels.groups(), strict=True)
        )
        flops *= _valid(size, kernel, outputs, {key: values.split("x")[axis] for key, values in options})
    return flops


def _valid(size: int, kernel: int, outputs: int, options: dict[str, str]) -> int:
    """Returns how many pairs of an output and a kernel's element meet an input, not padding, along one axis."""
    stride, dilation = int(options.get("stride", 1)), int(options.get("lhs_dilate", 1))
    spread, low = int(options.get("rhs_dilate", 1)), int(options.get("pad", "0_0").partition("_")[0])
    places = (i * stride + j * spread - low for i in range(outputs) for j in range(kernel))
    return sum(place % dilation == 0 and 0 <= place < size * dilation for place in places)


def _collective(x: Instruction, computation: Computation, devices: int) -> Collective | None:
    """Returns an instruction as one collective, None if it is none.

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
    return Collective(kind, group, 1, size * group if kind == "all-gather" else size)


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

    Arrays in a TPU's fast memory do not count. Of an array that is only sliced or updated in place, only these parts
    count.
    """
    if x.op in FREE or x.op.endswith("-start") or any(f'"{call}"' in x.rest for call in FREE_CALLS):
        return 0
    start = computation[x.operands[0]] if x.op.endswith("-done") else x
    op, sources = start.op.removesuffix("-start"), [computation[name] for name in start.operands]
    if op in ("fusion", "async"):
        fused = computations[next(called(start))]
        reads = zip(_parameters(fused), sources, strict=True)
        writes = zip(_written(fused, computations), x.shapes, strict=False)
        read = sum(min(_read(y, fused, computations), _memory(source)) for y, source in reads)
        return read + sum(min(write, shape.memory) for write, shape in writes)
    if op in SLICES:
        return _memory(x) + min(sum(shape.size for shape in x.shapes), _memory(sources[0]))
    if op in UPDATES:
        return 2 * _memory(computation[_change(start)])
    return _memory(x) - _workspace(x) + sum(_memory(computation[name]) for name in {*start.operands})


def _memory(x: Instruction) -> int:
    return sum(shape.memory for shape in x.shapes)


def _workspace(x: Instruction) -> int:
    """Returns the bytes of the scratch memory of cuBLAS or cuDNN, the last of its results."""
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
    return user.op in UPDATES and user.operands[0] == name


def _change(x: Instruction) -> str:
    """Returns the operand that an update writes into the array."""
    return x.operands[1 if x.op == "dynamic-update-slice" else -1]


def _whole(x: Instruction) -> int:
    """Returns the padded bytes of an array in a fusion, wherever it is: the caller's layout says where."""
    return sum(shape._replace(layout=re.sub(r"S\(\d+\)", "", shape.layout)).memory for shape in x.shapes)


def _written(fused: Computation, computations: dict[str, Computation]) -> list[int]:
    """Returns the bytes that a fusion writes to each of its results."""

    def write(x: Instruction) -> int:
        if x.op in ("bitcast", "reshape"):
            return write(fused[x.operands[0]])
        if x.op in UPDATES:
            return _whole(fused[_change(x)])
        if x.op in ("parameter", *KINDS) or "AsyncCollective" in x.rest:
            return 0
        if x.op == "fusion":
            return sum(_written(computations[next(called(x))], computations))
        return _whole(x)

    root = next(x for x in fused.values() if x.root)
    return [write(fused[name]) for name in root.operands] if root.op == "tuple" else [write(root)]
