"""The model that a config describes, and the shapes of its parameters."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from ivt_jax.models.config import IVTConfig
from ivt_jax.models.dual import Dual
from ivt_jax.models.ivt import IVT

Model = IVT | Dual


def build_model(section: Mapping[str, Any]) -> Model:
    """Returns the model of a config's `model`."""
    return model_of(IVTConfig.from_config(section))


def model_of(model_config: IVTConfig) -> Model:
    """Returns the model of these sizes and options."""
    return Dual(model_config) if model_config.towers == 2 else IVT(model_config)


@functools.cache
def parameter_shapes(model_config: IVTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path, such as "blocks/attn/qkv/kernel"; allocates nothing."""
    same = dataclasses.replace(model_config, unroll=False)  # one block is traced for all, which takes less time
    shapes = jax.eval_shape(lambda: model_of(same).init(jax.random.key(0))["params"])
    return {path: value.shape for path, value in flatten_dict(shapes, sep="/").items()}
