"""XLA's figures of a config's training step, compiled from shapes: memory, products, traffic and collectives."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ivt_jax.cost.totals import Collective, totals
from ivt_jax.training.program import batch_shapes, build_program


class Compiled(NamedTuple):
    """XLA's figures for one device."""

    arguments: int  # bytes of state and batch; the new state takes the place of the old one
    temporary: int  # bytes of all other buffers alive at the same time
    products: int  # FLOPs of the matrix products, counting the body of a loop as often as it runs
    traffic: int = 0  # bytes that the instructions read from and write to the device's memory, counted likewise
    collectives: tuple[Collective, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of memory."""
        return self.arguments + self.temporary

    @property
    def sent(self) -> float:
        """Bytes that the device sends in all collectives."""
        return sum(x.moved for x in self.collectives)

    def __str__(self) -> str:
        return (
            f"memory per device, compiled: {self.total / 1e9:.2f} GB (state and batch {self.arguments / 1e9:.3f}, "
            f"temporary {self.temporary / 1e9:.3f}); matrix products {self.products / 1e12:.3f} TFLOPs"
        )


class TooLargeError(Exception):
    """The compiler says that the step does not fit the device's memory. The message: its figures, in GiB."""


def compile_config(config: Any, devices: Sequence[jax.Device] | None = None) -> Compiled:
    """Compiles the step and allocates nothing; ViT-B takes 1 to 2 minutes.

    devices: those of a topology (`topologies.topology_devices`) or of this machine; None = all of this machine.
    Raises TooLargeError if the compiler refuses for lack of memory.
    """
    program = build_program(config, np.arange(3), 2, mask_id=0, devices=devices)
    given = program.hyperparameter_shapes
    try:
        compiled = program.step.lower(program.target, batch_shapes(config, program.mesh), given).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(_memory_figure(str(error))) from error
    uncounted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(given))
    return analyse(compiled, uncounted, program.mesh.size)


def analyse(compiled: Any, uncounted: int = 0, devices: int = 1) -> Compiled:
    """Returns the figures of a `jax.stages.Compiled`.

    uncounted: bytes of arguments besides state and batch. devices: those that the program runs on.
    """
    memory = compiled.memory_analysis()
    metrics = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the new state takes the old one's place
    arguments, temporary = memory.argument_size_in_bytes - uncounted, memory.temp_size_in_bytes + metrics
    return Compiled(arguments, temporary, *totals(compiled.as_text(), devices))


def _memory_figure(message: str) -> str:
    """Returns the figures of a compiler's refusal, such as "20.01G of 15.75G", or its first line."""
    found = re.search(r"Used ([\d.]+\w*) of ([\d.]+\w*) hbm", message)
    found = found or re.search(r"\(([\d.]+\w*)\) exceeds available HBM \(([\d.]+\w*)\)", message)
    return f"{found[1]} of {found[2]}" if found else message.strip().splitlines()[0]
