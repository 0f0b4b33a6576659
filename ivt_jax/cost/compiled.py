"""What XLA says of a config's own training step, compiled from shapes alone: memory and matrix products of a device."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ivt_jax.training.program import batch_shapes, build_program

INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)|branch_computations=\{(.*?)\}")


@dataclass(frozen=True)
class Compiled:
    """XLA's figures for one device, in bytes and FLOPs.

    arguments: state and batch. temporary: everything else that is alive at once, by XLA's buffer assignment.
    products: FLOPs of the matrix products; the body of a loop counts as often as it runs.
    """

    arguments: int
    temporary: int
    products: int

    @property
    def total(self) -> int:
        """The step returns the state in the place of the one it was given."""
        return self.arguments + self.temporary

    def __str__(self) -> str:
        return (
            f"memory per device, compiled: {self.total / 1e9:.2f} GB (state and batch {self.arguments / 1e9:.3f}, "
            f"temporary {self.temporary / 1e9:.3f}); matrix products {self.products / 1e12:.3f} TFLOPs"
        )


def compile_config(config: Any) -> Compiled:
    """Compiles the step for all devices of this machine; allocates nothing on them. ViT-B takes a minute or two."""
    program = build_program(config, np.arange(3), 2, mask_id=0)
    given = program.hyperparameter_shapes
    compiled = program.step.lower(program.target, batch_shapes(config, program.mesh), given).compile()
    return analyse(compiled, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(given)))


def analyse(compiled: Any, uncounted: int = 0) -> Compiled:
    """Returns XLA's figures for a `jax.stages.Compiled`. uncounted: bytes of arguments besides state and batch."""
    memory = compiled.memory_analysis()
    grown = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the metrics: all else takes an argument's place
    return Compiled(
        arguments=memory.argument_size_in_bytes - uncounted,
        temporary=memory.temp_size_in_bytes + grown,
        products=matrix_products(compiled.as_text()),
    )


def matrix_products(text: str) -> int:
    """FLOPs of every `dot` in a compiled program's text (CPU), those of a loop's body as often as it runs."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start:
            name = start[2]
            computations[name] = []
            entry = name if start[1] else entry
        elif name:
            computations[name].append(line)
    totals: dict[str, int] = {}

    def total(name: str) -> int:
        if name not in totals:
            totals[name] = _dots(computations[name]) + sum(
                n * total(called) for called, n in _calls(computations[name])
            )
        return totals[name]

    return total(entry)


def _dots(lines: list[str]) -> int:
    shapes, flops = {}, 0
    for name, right in filter(None, (m and m.groups() for m in map(INSTRUCTION.match, lines))):
        shape = re.match(r"\w+\[([\d,]*)\]", right)
        shapes[name] = [int(size) for size in shape[1].split(",") if size] if shape else []
        dot = re.search(r" dot\((?:[^%)]*)%?([\w.\-]+).*lhs_contracting_dims=\{([\d,]+)\}", right)
        if dot:
            contracted = [shapes[dot[1]][int(axis)] for axis in dot[2].split(",")]
            flops += 2 * int(np.prod(shapes[name])) * int(np.prod(contracted))
    return flops


def _calls(lines: list[str]) -> list[tuple[str, int]]:
    """(computation, how often) that the instructions call."""
    calls = []
    for line in lines:
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for one, several in CALLED.findall(line):
            calls += [
                (called, int(trips[1]) if trips else 1) for called in [one, *re.findall(r"[\w.\-]+", several)] if called
            ]
    return calls
