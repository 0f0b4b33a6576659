"""What a config compiles to: the model on its mesh, the state, the training step. Needs no data and no TensorFlow."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ivt_jax.losses.mla import mla_loss, sharded_mla_loss
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.optimizer import make_optimizer, make_schedules
from ivt_jax.sharding import make_mesh, state_sharding
from ivt_jax.train_step import init_state, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config compiles to: the model, its place on the mesh, and the jitted step."""

    model: IVT
    mesh: jax.sharding.Mesh
    init: Any  # () -> TrainState, sharded
    step: Any  # jitted: (state, global batch) -> (state, scalar metrics); the state is donated
    target: Any  # the state's shapes and shardings, to restore a checkpoint into


def build_program(config: ConfigDict, epoch_starts: np.ndarray, total_steps: int, mask_id: int) -> Program:
    """Nothing is computed or allocated here; `epoch_starts` and `total_steps` shape the learning rates."""
    model = IVT(IVTConfig.from_config(config.model))
    mesh = make_mesh(config.runtime.mesh)
    schedules = make_schedules(config, epoch_starts, total_steps)
    tx = make_optimizer(config, schedules)
    init = functools.partial(init_state, model, tx, config)
    shapes = jax.eval_shape(init)
    sharding = state_sharding(mesh, shapes)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding)

    matching = functools.partial(sharded_mla_loss, mesh=mesh) if config.runtime.matching == "sharded" else mla_loss

    def step(state, batch):
        rate = schedules["weight"](state.step)
        state, metrics = train_step(state, batch, model=model, tx=tx, config=config, mask_id=mask_id, matching=matching)
        return state, {**metrics, "learning_rate": rate}

    everywhere = NamedSharding(mesh, PartitionSpec())
    return Program(
        model=model,
        mesh=mesh,
        init=jax.jit(init, out_shardings=sharding),
        step=jax.jit(step, donate_argnums=0, out_shardings=(sharding, everywhere)),
        target=target,
    )
