"""What a config compiles to: model, state and training step on a mesh. Needs no data and no TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.datasets import count_training_persons
from ivt_jax.losses.mla import gathered_loss, mla_loss, sharded_mla_loss
from ivt_jax.models.build import Model, build_model
from ivt_jax.training.hyperparameters import plain_values, rate_tables, read_tables, with_values
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.sharding import BATCH, make_mesh, state_sharding
from ivt_jax.training.train_step import init_state, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config compiles to: the model, its mesh, and the jitted step."""

    model: Model
    mesh: Mesh
    objective: Any  # (config, perhaps with traced numbers) -> the objective of the rows that the devices share
    init: Any  # () -> TrainState, sharded
    step: Any  # jitted: (state, global batch, hyperparameters) -> (state, scalar metrics); the state is donated
    target: Any  # the state's shapes and shardings, to restore a checkpoint into
    hyperparameters: Any  # () -> the step's third argument, on all devices: "values" and "rates" (hyperparameters.py)
    hyperparameter_shapes: Any  # their shapes and shardings, to compile the step


def build_program(
    config: ConfigDict,
    epoch_starts: np.ndarray,
    total_steps: int,
    mask_id: int,
    persons: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Returns the program of a config; computes and allocates nothing.

    epoch_starts: first step of each epoch (epochs + 1,); with total_steps it shapes the learning rates.
    persons: those of the training data, classes of the identity loss; 0 = as many as a run without data assumes.
    devices: those that it is compiled for, None = all of this run.
    """
    model = build_model(config.model)
    mesh = make_mesh(config.runtime.mesh, devices)
    schedules = make_schedules(config, epoch_starts, total_steps)
    tx = make_optimizer(config, schedules)
    axes = mesh.axis_names if mesh.size > 1 else ()  # one device needs no collectives
    matching, values = _matching(config, axes), plain_values(config)

    def init(seed):
        classes = persons or count_training_persons(config.data)
        return init_state(model, tx, with_values(config, {"seed": seed}), classes)

    def hyperparameters():
        return {"values": values, "rates": rate_tables(schedules, total_steps)}

    def objective(config):
        return Objective(model, config, mask_id, matching, axes)

    def step(state, batch, inputs):
        traced, rates = with_values(config, inputs["values"]), read_tables(inputs["rates"])
        rate, traced_tx = rates["weight"](state.step), make_optimizer(traced, rates)
        state, metrics = train_step(state, batch, objective(traced), traced_tx, mesh if axes else None)
        return state, {**metrics, "learning_rate": rate}

    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init, values["seed"])
    sharding = state_sharding(mesh, shapes)
    compute = jax.jit(hyperparameters, out_shardings=everywhere)
    return Program(
        model=model,
        mesh=mesh,
        objective=objective,
        init=functools.partial(jax.jit(init, out_shardings=sharding), values["seed"]),
        step=jax.jit(step, donate_argnums=0, out_shardings=(sharding, everywhere)),
        target=jax.tree.map(_placed, shapes, sharding),
        hyperparameters=compute,
        hyperparameter_shapes=jax.tree.map(lambda x: _placed(x, everywhere), jax.eval_shape(compute)),
    )


def _matching(config: ConfigDict, axes: tuple[str, ...]) -> Callable[..., jax.Array]:
    """Returns the objective's matching, of rows that are split over the devices of these axes."""
    sharded = config.runtime.matching == "sharded"
    matching = sharded_mla_loss if sharded else functools.partial(gathered_loss, mla_loss)
    return functools.partial(matching, axes=axes)


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def batch_shapes(config: Any, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes and shardings of a global batch (input_pipeline/pipeline.py)."""
    batch, length, views = config.data.batch_size, config.text.length, config.mla.views

    def rows(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=NamedSharding(mesh, BATCH))

    levels = {*config.mla.levels, "sentence"}
    return {
        "images": rows(views, *config.model.image_size, 3, dtype=np.uint8),
        "erase": rows(views, 4),
        "text": {level: rows(length[level]) for level in levels},
        "mask": {level: rows(length[level], dtype=bool) for level in levels},
        "words": rows(length["sentence"]),
        "person_ids": rows(),
        "pair_ids": rows(),
    }
