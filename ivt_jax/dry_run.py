"""What a run would be: its config, parameters, FLOPs and memory, from shapes alone."""

from typing import Any

import jax

from ivt_jax.config_check import check_config
from ivt_jax.flops import step_cost
from ivt_jax.init_from import plan
from ivt_jax.metrics import parameter_table
from ivt_jax.models.ivt import IVT, IVTConfig


def dry_run(config: Any) -> str:
    """The text of --dry_run; touches no data and allocates no parameter. Raises UserError for a config at fault.

    Of the folder that `train.init_from` names, it reads shapes alone.
    """
    check_config(config)
    model = IVT(IVTConfig.from_config(config.model))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0))["params"])
    lines = [str(config), parameter_table(params), plan(config), str(step_cost(config))]
    return "\n".join(line for line in lines if line)
