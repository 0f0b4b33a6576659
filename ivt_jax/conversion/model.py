"""Completes parameters read from a file to the whole tree of the model, and reads back those of an export."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.tensors import Flat, Loaded, Naming, TensorUse, read, rule
from ivt_jax.models.build import model_of, parameter_shapes
from ivt_jax.models.config import IVTConfig


class Conversion(NamedTuple):
    """The config of the model that the weights describe, its parameters (NumPy arrays), and the use of each tensor."""

    model_config: IVTConfig
    params: Any
    uses: list[TensorUse]


def complete(loaded: Loaded, model_config: IVTConfig, seed: int, file: str) -> Conversion:
    """Returns all parameters of the model: those read from `file`, and the missing ones initialised from `seed`.

    model_config: image size, stride, heads and options; the other sizes are read off the tensors. Raises UserError,
    naming the parameter, if one does not fit.
    """
    names = {"P": "patch_size", "D": "width", "depth": "depth", "V": "vocab_size", "L": "max_text_length"}
    sizes: dict[str, Any] = {name: loaded.sizes[letter] for letter, name in names.items()}
    mlp_ratio = loaded.sizes["F"] / loaded.sizes["D"]
    model_config = dataclasses.replace(model_config, mlp_ratio=mlp_ratio, **sizes)
    patch_size, width, heads = model_config.patch_size, model_config.width, model_config.num_heads
    if min(model_config.grid) < 1:
        raise UserError(f"{file}: patches of {patch_size} pixels do not fit the image size {model_config.image_size}")
    if width % heads:
        raise UserError(f"{file}: the width {width} is not a multiple of the {heads} heads")
    shapes = parameter_shapes(model_config)
    for path, value in loaded.flat.items():
        if value.shape != shapes[path]:
            (height, width), (rows, columns) = model_config.image_size, model_config.grid
            raise UserError(
                f"{file}: {path} has shape {value.shape}, a model of {height}x{width} pixels at stride "
                f"{model_config.stride} ({rows}x{columns} patches and [CLS]) has {shapes[path]}; give the image size "
                "and the stride that the weights were trained with"
            )
    return filled(loaded.flat, loaded.uses, model_config, seed)


def filled(flat: Flat, uses: list[TensorUse], model_config: IVTConfig, seed: int) -> Conversion:
    """Returns the conversion with the parameters of `flat`, and the missing ones initialised from `seed`."""
    shapes = parameter_shapes(model_config)
    missing = [path for path in shapes if path not in flat]
    params = unflatten_dict({**flat, **initial_params(model_config, missing, seed)}, sep="/")
    initialised = [TensorUse("initialised", "", shapes[path], f"{path}, from seed {seed}") for path in missing]
    return Conversion(model_config, params, [*uses, *initialised])


def initial_params(model_config: IVTConfig, paths: Sequence[str], seed: int) -> Flat:
    """Returns the parameters at `paths` as the model initialises them from `seed`; no others are allocated."""

    @jax.jit  # drops whatever the paths do not need
    def draw() -> dict[str, jax.Array]:
        flat = flatten_dict(model_of(model_config).init(jax.random.key(seed))["params"], sep="/")
        return {path: flat[path] for path in paths}

    return {path: np.asarray(value) for path, value in draw().items()}


def convert_export(tensors: Mapping[str, np.ndarray], file: str, model_config: IVTConfig) -> Conversion:
    """Returns the parameters of an export's model.safetensors, bit for bit.

    Tensors are named as the parameters, with dots. Raises UserError as `tensors.read`.
    """
    shapes = parameter_shapes(model_config)
    rules = tuple(rule(path, path.replace("/", "."), " ".join(map(str, shape))) for path, shape in shapes.items())
    loaded = read(Naming(rules, {}), tensors, file, {})
    return Conversion(model_config, unflatten_dict(loaded.flat, sep="/"), loaded.uses)
