"""Reads the text of a program that XLA compiled for CPU, GPU or TPU into computations and their instructions.

https://openxla.org/xla/operation_semantics describes the operations, https://openxla.org/xla/tiled_layout the layouts.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", re.M | re.S)
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(([^)]*)\)(.*)")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(r"(?:calls|body|condition|branch_computations)=(\{.*?\}|%?[\w.\-]+)")


class Shape(NamedTuple):
    """An array in a program's text, such as bf16[12,100,768]{2,1,0:T(8,128)(2,1)S(1)}."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Bytes of the numbers alone."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def memory(self) -> int:
        """Bytes in the device's memory (HBM), with the padding of a TPU's tiles; 0 for an array elsewhere (S)."""
        if re.search(r"S\([1-9]", self.layout):
            return 0
        order = [int(axis) for axis in self.layout.partition(":")[0].split(",") if axis]
        found = re.search(r"T\(([\d,]+)\)", self.layout)
        if not found:
            return self.size
        tiles = map(int, found[1].split(",")[::-1])  # the innermost first, as `order`
        pairs = itertools.zip_longest((self.dims[axis] for axis in order), tiles, fillvalue=1)
        return math.prod(-(-dim // tile) * tile for dim, tile in pairs) * self._bits // 8

    @property
    def _bits(self) -> int:
        number = re.search(r"\d+", self.dtype)
        return int(number[0]) if number else 8 if self.dtype == "pred" else 0


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    op: str
    operands: tuple[str, ...]
    rest: str  # attributes; of a constant and a parameter also the text in parentheses
    root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[str, dict[str, Computation]]:
    """Returns the name of the entry, and all computations of a compiled program's text."""
    computations, entry = {}, ""
    for is_entry, name, body in COMPUTATION.findall(text):
        lines = (found for line in body.splitlines() if (found := INSTRUCTION.match(line)))
        computations[name] = {found[2]: _instruction(found) for found in lines}
        entry = name if is_entry else entry
    return entry, computations


def _instruction(found: re.Match[str]) -> Instruction:
    root, name, shapes, op, inner, rest = found.groups()
    arrays = tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in SHAPE.findall(shapes)
    )
    if op in ("constant", "parameter"):
        return Instruction(name, arrays, op, (), inner, bool(root))
    return Instruction(name, arrays, op, tuple(re.findall(r"%([\w.\-]+)", inner)), rest, bool(root))


def called(x: Instruction) -> Iterator[str]:
    """Yields the computations that an instruction runs, but not the arithmetic of a reduction or a sort."""
    found = CALLED.findall(x.rest)
    if x.op == "call":
        found += re.findall(r"to_apply=(%?[\w.\-]+)", x.rest)
    return (name for names in found for name in re.findall(r"[\w.\-]+", names))


def trips(x: Instruction, computations: dict[str, Computation]) -> int:
    """Returns how often a loop's body runs. A TPU's program names no count: JAX's loops count from 0 to a constant."""
    if known := re.search(r'"known_trip_count": ?\{"n": ?"(\d+)"', x.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", x.rest)
    limits = [y.rest for y in computations[condition[1]].values() if y.op == "constant"] if condition else []
    return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else 1
