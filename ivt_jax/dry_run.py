"""What a run would be: its config, parameters, FLOPs and memory, from shapes alone."""

from typing import Any

import jax

from ivt_jax.config_check import check_config
from ivt_jax.flops import step_cost
from ivt_jax.metrics import parameter_table
from ivt_jax.models.ivt import IVT, IVTConfig


def dry_run(config: Any) -> str:
    """The text of --dry_run; touches no data and allocates no parameter. Raises UserError for a config at fault."""
    check_config(config)
    model = IVT(IVTConfig.from_config(config.model))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0))["params"])
    return "\n".join([str(config), parameter_table(params), str(step_cost(config))])
