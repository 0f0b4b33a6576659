"""XLA's figures of a config's training step, compiled from shapes: memory and matrix products of one device."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from ivt_jax.training.program import batch_shapes, build_program

INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=(\{.*?\}|%?[\w.\-]+)")


class Compiled(NamedTuple):
    """XLA's figures for one device."""

    arguments: int  # bytes of state and batch; the new state takes the place of the old one
    temporary: int  # bytes of all other buffers alive at the same time
    products: int  # FLOPs of the matrix products, counting the body of a loop as often as it runs

    @property
    def total(self) -> int:
        return self.arguments + self.temporary

    def __str__(self) -> str:
        return (
            f"memory per device, compiled: {self.total / 1e9:.2f} GB (state and batch {self.arguments / 1e9:.3f}, "
            f"temporary {self.temporary / 1e9:.3f}); matrix products {self.products / 1e12:.3f} TFLOPs"
        )


def compile_config(config: Any) -> Compiled:
    """Compiles the step for all devices of this machine and allocates nothing on them; ViT-B takes 1 to 2 minutes."""
    program = build_program(config, np.arange(3), 2, mask_id=0)
    given = program.hyperparameter_shapes
    compiled = program.step.lower(program.target, batch_shapes(config, program.mesh), given).compile()
    return analyse(compiled, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(given)))


def analyse(compiled: Any, uncounted: int = 0) -> Compiled:
    """Returns the figures of a `jax.stages.Compiled`. uncounted: bytes of arguments besides state and batch."""
    memory = compiled.memory_analysis()
    metrics = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the new state takes the old one's place
    arguments, temporary = memory.argument_size_in_bytes - uncounted, memory.temp_size_in_bytes + metrics
    return Compiled(arguments, temporary, matrix_products(compiled.as_text()))


def matrix_products(text: str) -> int:
    """Returns the FLOPs of every `dot` in a compiled program's text (CPU), in a loop's body as often as it runs."""
    found = re.findall(r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    computations = {name: body.splitlines() for _, name, body in found}

    @functools.cache
    def total(name: str) -> int:
        flops = _dots(computations[name])
        for line in computations[name]:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            called = re.findall(r"[\w.\-]+", " ".join(CALLED.findall(line)))
            flops += sum(map(total, called)) * (int(trips[1]) if trips else 1)
        return flops

    return next(total(name) for entry, name, _ in found if entry)


def _dots(lines: list[str]) -> int:
    shapes, flops = {}, 0
    for name, right in (found.groups() for line in lines if (found := INSTRUCTION.match(line))):
        shape = re.match(r"\w+\[([\d,]*)\]", right)
        shapes[name] = [int(size) for size in shape[1].split(",") if size] if shape else []
        dot = re.search(r" dot\((?:[^%)]*)%?([\w.\-]+).*lhs_contracting_dims=\{([\d,]+)\}", right)
        if dot:
            contracted = [shapes[dot[1]][int(axis)] for axis in dot[2].split(",")]
            flops += 2 * math.prod(shapes[name]) * math.prod(contracted)
    return flops
