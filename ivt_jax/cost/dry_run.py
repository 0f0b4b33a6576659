"""Describes a run before it starts: config, parameters and their places, FLOPs and memory, from shapes."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.cost.bound import PLAN_COLUMNS, compiled_report, plan_cells
from ivt_jax.cost.compiled import compile_config
from ivt_jax.cost.flops import persons, step_cost
from ivt_jax.cost.plan import BATCHES, MODELS, choices, device_flops, device_memory, plan_table, planned
from ivt_jax.cost.topologies import Topology, topology_devices
from ivt_jax.models.build import build_model
from ivt_jax.training.config_check import check_config, edge_notice, scale_notice
from ivt_jax.training.freezing import rate_notes
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.metrics import parameter_table
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.sharding import mesh_sizes, paths_of, sharding_table
from ivt_jax.training.train_step import init_state

ESTIMATE = (  # docs/hardware.md has the steps that were compared
    "It is an estimate, fitted to XLA's compiler for CPUs; nothing was compiled. Against those for TPUs it was between "
    "33% too low and 29% too high, against those for GPUs between 24% and 37% too high. --topology=v5e:4x4 (or h200:1) "
    "prints that of the accelerator's own compiler, --plan that of this machine's."
)

ASSUMED = "the published number of the training split; a run counts those of its data"


def dry_run(config: Any, devices: int = 1) -> str:
    """Returns the text of --dry_run for this number of devices; reads no data and allocates no parameter.

    Reads only shapes from the folder of `train.init_from`. Raises UserError for a config with a fault or one that does
    not fit the devices.
    """
    described, sizes = _described(config, devices)
    memory = f"{device_memory(config, sizes)}\n{_assumption(config, devices)} {ESTIMATE}"
    return "\n".join(line for line in [described, memory, _missing_start(config)] if line)


def dry_run_topology(config: Any, topology: Topology) -> Iterator[str]:
    """Yields the texts of --dry_run --topology: the config described, then what its compiler says, after a minute.

    Raises UserError as `dry_run` and `topology_devices`.
    """
    devices = topology_devices(topology)
    yield _described(config, len(devices))[0]
    yield f"compiling for {topology.name}, {counted(len(devices), 'device')}: about a minute for ViT-B"
    yield compiled_report(config, topology, devices)
    if note := _missing_start(config):
        yield note


def dry_run_topology_plan(config: Any, topology: Topology) -> Iterator[str]:
    """Yields the texts of --dry_run --plan --topology: a table, row by row as each is compiled, then the config's own.

    A row takes about a minute, more for larger batches; the devices must divide its batch. If the config as given does
    not fit the devices, the text says so. Raises UserError for any other fault, and as `topology_devices`.
    """
    check_config(config)
    devices = topology_devices(topology)
    number = len(devices)
    rows = [
        (f"ViT-{model}", f"{batch:,}", changed) for model, batch in itertools.product(MODELS, BATCHES)
        if not _misfit(changed := planned(config, model, batch, number), number)
    ]  # fmt: skip
    counts = counted(number, "device")
    yield f"Compiled for {topology.name}, {counts}; figures of each device and step. {choices(config)}.\n"
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in (PLAN_COLUMNS, ["---"] * len(PLAN_COLUMNS)))
    for model, batch, changed in progress(rows, len(rows), "compiling: ", "rows", brief=True):
        yield f"| {' | '.join([model, batch, *plan_cells(changed, topology, devices)])} |"
    if misfit := _misfit(config, number):
        yield f"\nthe config as given: not compiled: {misfit}"
    else:
        yield f"\nthe config as given:\n{compiled_report(config, topology, devices)}"


def _misfit(config: Any, devices: int) -> str:
    """Returns why the config does not fit this number of devices, "" if it does."""
    try:
        check_config(config, devices)
        mesh_sizes(config.runtime.mesh, devices)
    except UserError as error:
        return str(error)
    return ""


def _described(config: Any, devices: int) -> tuple[str, dict[str, int]]:
    """Returns config, parameters, their places and FLOPs as text, and the mesh."""
    check_config(config, devices)
    sizes = mesh_sizes(config.runtime.mesh, devices)
    tx = make_optimizer(config, make_schedules(config, np.arange(3), 2))
    classes = persons(config)
    state = jax.eval_shape(lambda: init_state(build_model(config.model), tx, config, classes))
    lines = [
        str(config),
        parameter_table(state.params, rate_notes(paths_of(state.params), config)),
        f"id_head: {classes:,} persons, {ASSUMED}" if config.id.weight else "",
        sharding_table(sizes, state),
        edge_notice(config),
        scale_notice(config),
        initial_params(config, shapes_alone=True).summary if not _missing_start(config) else "",
        str(step_cost(config)),
        f"FLOPs per device: {device_flops(config, devices) / 1e12:.3f} T",
    ]
    return "\n".join(line for line in lines if line), sizes


def _missing_start(config: Any) -> str:
    """Returns a note, not an error, if the folder of `train.init_from` is not there yet; else ""."""
    folder = config.train.init_from
    if folder and not Path(folder).exists():
        return f"note: train.init_from: {folder} is not there yet; a run needs it"
    return ""


def dry_run_plan(config: Any) -> Iterator[str]:
    """Yields the texts of --dry_run --plan: the table by formula, then XLA's figures of `config` on this machine.

    XLA takes 1 to 2 minutes for ViT-B. If the config does not fit this machine's devices, the text says so instead.
    """
    check_config(config)
    yield plan_table(config)
    devices, platform = jax.device_count(), jax.default_backend()
    title = f"\nthe config as given, on this machine's {counted(devices, f'{platform} device')}:"
    if misfit := _misfit(config, devices):
        yield f"{title} not compiled: {misfit}"
        return
    sizes = mesh_sizes(config.runtime.mesh, devices)
    products = f"matrix products {device_flops(config, devices) / 1e12:.3f} TFLOPs"
    lines = [title, f"{device_memory(config, sizes)}; {products}", _assumption(config, devices)]
    if platform == "cpu" and jax.__version_info__ < (0, 11) and config.model.dtype != "float32":
        lines += [str(device_memory(config, sizes, widened=True)), "As above, with activations kept in float32."]
        lines.append("On a CPU, XLA of JAX before 0.11 keeps some of them so: its own figure is between these two.")
    lines.append("compiling for this machine")
    yield "\n".join(lines)
    yield str(compile_config(config))


def _assumption(config: Any, devices: int) -> str:
    """Returns the assumption of the formula of the memory."""
    kept = f"with activations kept in model.dtype {config.model.dtype}"
    return f"The formula is for {counted(devices, 'device')}, {kept}."
