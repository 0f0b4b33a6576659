"""The least time of a compiled step on an accelerator, by the published rates of its chip, as text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from ivt_jax.cost.compiled import Compiled, TooLargeError, compile_config
from ivt_jax.cost.flops import step_cost
from ivt_jax.cost.topologies import Chip, Topology

PLAN_COLUMNS = ["model", "batch", "GB", "fits", "TFLOPs", "GB read and written", "GB sent", "at least ms", "by", "MFU"]


class Bound(NamedTuple):
    """The least seconds of each unit of a chip for a step, at its published rate. The units work side by side."""

    products: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Least seconds of the step."""
        return max(self)

    @property
    def limit(self) -> str:
        """Name of the unit that takes longest."""
        return self._fields[self.index(self.step)]


def step_bound(compiled: Compiled, chip: Chip) -> Bound:
    """Returns the bound of a step of one device."""
    return Bound(compiled.products / chip.flops, compiled.traffic / chip.hbm, compiled.sent / chip.links)


def best_mfu(config: Any, bound: Bound, chip: Chip, devices: int) -> float:
    """Returns the MFU of a step that takes as long as the bound: the model's products alone, nothing recomputed."""
    return min(1.0, 3 * step_cost(config).forward / devices / (bound.step * chip.flops))


def compiled_report(config: Any, topology: Topology, devices: Sequence[jax.Device]) -> str:
    """Compiles the config for a topology; returns its memory, products, traffic, collectives and bound."""
    try:
        compiled = compile_config(config, devices)
    except TooLargeError as error:
        return f"does not fit a {topology.kind}: its compiler says {error}"
    chip, bound = topology.chip, step_bound(compiled, topology.chip)
    fits = "fits" if compiled.total <= chip.memory else "does not fit"
    lines = [
        f"{compiled}: {fits} the {chip.memory / 1e9:.1f} GB of a {topology.kind}",
        f"read from and written to that memory: {compiled.traffic / 1e9:.2f} GB a step",
        *collectives_table(compiled),
        f"A step takes at least {1e3 * bound.step:.2f} ms at the published rates of a {topology.kind}, "
        f"limited by its {bound.limit}:",
        f"- products {1e3 * bound.products:.2f} ms at {chip.flops / 1e12:.0f} TFLOP/s (bfloat16)",
        f"- memory {1e3 * bound.memory:.2f} ms at {chip.hbm / 1e9:,.0f} GB/s",
        f"- links {1e3 * bound.links:.2f} ms at {chip.links / 1e9:.0f} GB/s sent by each device",
        f"MFU is at most {best_mfu(config, bound, chip, len(devices)):.1%}",
    ]
    return "\n".join(lines)


def collectives_table(compiled: Compiled) -> list[str]:
    """Returns the lines of a Markdown table of the collectives of a step, by kind and size of the groups."""
    if not compiled.collectives:
        return ["collectives: none"]
    lines = ["| collective | group | per step | MB, full arrays | MB sent by each device |", "|---|---|---|---|---|"]
    return lines + [
        f"| {x.kind} | {x.group} | {x.times} | {x.size / 1e6:,.2f} | {x.moved / 1e6:,.2f} |"
        for x in compiled.collectives
    ]


def plan_cells(config: Any, topology: Topology, devices: Sequence[jax.Device]) -> list[str]:
    """Compiles the config for a topology; returns its cells of the columns from "GB" on."""
    try:
        compiled = compile_config(config, devices)
    except TooLargeError as error:
        return [str(error), "no", *[""] * (len(PLAN_COLUMNS) - 4)]
    chip, bound = topology.chip, step_bound(compiled, topology.chip)
    fits = "yes" if compiled.total <= chip.memory else "no"
    cells = [f"{compiled.total / 1e9:.2f}", fits, f"{compiled.products / 1e12:.2f}", f"{compiled.traffic / 1e9:.1f}"]
    cells += [f"{compiled.sent / 1e9:.3f}", f"{1e3 * bound.step:.1f}", bound.limit]
    return [*cells, f"{best_mfu(config, bound, chip, len(devices)):.0%}"]
