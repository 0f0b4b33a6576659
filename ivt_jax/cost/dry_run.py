"""Describes a run before it starts: config, parameters and their places, FLOPs and memory, from shapes."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import counted
from ivt_jax.cost.compiled import compile_config
from ivt_jax.cost.flops import step_cost
from ivt_jax.cost.plan import device_flops, device_memory, plan_table
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.training.config_check import check_config, edge_notice
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.metrics import parameter_table
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.sharding import mesh_sizes, sharding_table
from ivt_jax.training.train_step import init_state


def dry_run(config: Any, devices: int = 1) -> str:
    """Returns the text of --dry_run for this number of devices; reads no data and allocates no parameter.

    Reads only shapes from the folder of `train.init_from`. Raises UserError for a config with a fault or one that does
    not fit the devices.
    """
    check_config(config, devices)
    sizes = mesh_sizes(config.runtime.mesh, devices)
    tx = make_optimizer(config, make_schedules(config, np.arange(3), 2))
    state = jax.eval_shape(lambda: init_state(IVT(IVTConfig.from_config(config.model)), tx, config))
    lines = [
        str(config),
        parameter_table(state.params),
        sharding_table(sizes, state),
        edge_notice(config),
        initial_params(config, shapes_alone=True).summary,
        str(step_cost(config)),
        f"FLOPs per device: {device_flops(config, devices) / 1e12:.3f} T",
        f"{device_memory(config, sizes)}\n{_assumption(config, devices)} Nothing was compiled: --plan adds XLA's own "
        "figure for this machine.",
    ]
    return "\n".join(line for line in lines if line)


def dry_run_plan(config: Any) -> Iterator[str]:
    """Yields the texts of --dry_run --plan: the table by formula, then XLA's figures of `config` on this machine.

    XLA takes 1 to 2 minutes for ViT-B. If the config does not fit this machine's devices, the text says so instead.
    """
    check_config(config)
    yield plan_table(config)
    devices, platform = jax.device_count(), jax.default_backend()
    title = f"\nthe config as given, on this machine's {counted(devices, f'{platform} device')}:"
    try:
        check_config(config, devices)
        sizes = mesh_sizes(config.runtime.mesh, devices)
    except UserError as error:
        yield f"{title} not compiled: {error}"
        return
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
