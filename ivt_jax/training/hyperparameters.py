"""Hyperparameters as inputs of the training step: a sweep over them compiles the step once.

Inside the step the config holds traced numbers. A value that switches a part off stays a plain number, and the part is
not compiled. `is_on` accepts both; any other `if` on a traced number raises an error.
"""

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

# Config key -> the values that switch its part off, which are compiled in.
INPUTS: dict[str, tuple[float, ...]] = {
    "seed": (),
    "mla.weight": (0.0,),
    "match.temperature": (1.0, 0.0),  # 1: no scaling; 0: the scale that the model learns
    "id.weight": (0.0,),
    "itm.weight": (0.0,),
    "bmm.word_weight": (0.0,),
    "bmm.patch_weight": (0.0,),
    "bmm.word_ratio": (),
    "optimizer.momentum": (),
    "optimizer.b1": (),
    "optimizer.b2": (),
    "optimizer.epsilon": (),
    "optimizer.weight_decay": (),
    "optimizer.clip_norm": (0.0,),
    "optimizer.layer_decay": (1.0,),
    "optimizer.ema": (0.0,),
    "train.spike_factor": (0.0,),
}
# The step needs 1 - b of these, which is inexact when computed from b in float32: both are inputs, as an array (2,).
COMPLEMENTED = ("optimizer.b1", "optimizer.b2")
SHORTEST_TABLE = 1 << 16  # steps; runs up to this length share a program, longer ones share one per power of two


def is_on(value: Any, off: float = 0.0) -> bool:
    """Returns whether the part with this hyperparameter is compiled: the value is traced, or other than `off`."""
    return isinstance(value, jax.Array) or value != off


def plain_values(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of INPUTS that are not off, by key: float32 (), seed int32 (), COMPLEMENTED float32 (2,)."""
    values = {key: operator.attrgetter(key)(config) for key in INPUTS}
    on = {key: np.float32(values[key]) for key, off in INPUTS.items() if values[key] not in off}
    seed = np.int64(values["seed"]).astype(np.int32)  # jax.random.key makes the same key of the low 32 bits
    decays = {key: np.array(with_complement(values[key]), np.float32) for key in COMPLEMENTED}
    return {**on, "seed": seed, **decays}


def with_complement(decay: Any) -> tuple[Any, Any]:
    """Returns (b, 1 - b) for a plain decay b or a traced one of COMPLEMENTED."""
    return (decay[0], decay[1]) if isinstance(decay, jax.Array) else (decay, 1 - decay)


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of the config with these values, traced or not, at their keys."""
    copy = config.copy_and_resolve_references()
    with copy.ignore_type():
        copy.update_from_flattened_dict(dict(values))
    return copy


def rate_tables(schedules: Mapping[str, optax.Schedule], total_steps: int) -> dict[str, jax.Array]:
    """Returns each schedule as a table (N,) float32 of the rate at each update; N is at least `total_steps`.

    Computed inside the step, a schedule's numbers and the lengths of the epochs would be constants of the program.
    """
    steps = jnp.arange(max(SHORTEST_TABLE, 1 << (total_steps - 1).bit_length()))
    return {name: schedule(steps) for name, schedule in schedules.items()}


def read_tables(tables: Mapping[str, jax.Array]) -> dict[str, optax.Schedule]:
    """Returns schedules that read their rates from the tables."""
    return {name: lambda step, table=table: table[step] for name, table in tables.items()}
