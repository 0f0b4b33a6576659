"""From the parameters that a file gives to the whole tree of the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.tensors import Flat, Row, Sizes
from ivt_jax.models.ivt import IVT, IVTConfig, parameter_shapes


class Conversion(NamedTuple):
    """The model that the weights describe, its parameters as NumPy arrays, and where each comes from."""

    model: IVTConfig
    params: Any
    rows: list[Row]


def sized(model: IVTConfig, sizes: Sizes) -> IVTConfig:
    """`model` with the sizes that were read off the tensors (letters as in the tables of rules)."""
    return dataclasses.replace(
        model,
        patch_size=sizes["P"],
        width=sizes["D"],
        depth=sizes["depth"],
        mlp_ratio=sizes["F"] / sizes["D"],
        vocab_size=sizes["V"],
        max_text_length=sizes["L"],
    )


def complete(flat: Flat, sizes: Sizes, model: IVTConfig, seed: int, rows: Sequence[Row], file: str) -> Conversion:
    """Parameters of a file and, for those it lacks, what the model would be initialised with from `seed`.

    Raises UserError, naming the parameter, where one does not fit the image size, stride and heads of `model`.
    """
    model = sized(model, sizes)
    if min(model.grid) < 1:
        raise UserError(f"{file}: patches of {model.patch_size} pixels do not fit the image size {model.image_size}")
    if model.width % model.num_heads:
        raise UserError(f"{file}: the width {model.width} is not a multiple of the {model.num_heads} heads")
    shapes = parameter_shapes(model)
    for path, value in flat.items():
        if value.shape != shapes[path]:
            raise UserError(
                f"{file}: {path} has shape {value.shape}, {_described(model)} has {shapes[path]}; give the image size "
                "and the stride that the weights were trained with"
            )
    missing = [path for path in shapes if path not in flat]
    drawn = initial_params(model, missing, seed)
    made = [Row("initialised", "", shapes[path], f"{path}, from seed {seed}") for path in missing]
    return Conversion(model, unflatten_dict({**flat, **drawn}, sep="/"), [*rows, *made])


def initial_params(model: IVTConfig, paths: Sequence[str], seed: int) -> Flat:
    """The parameters at `paths` as training from random weights would start them; no other is allocated."""

    @jax.jit  # drops whatever the paths do not need
    def draw() -> dict[str, jax.Array]:
        flat = flatten_dict(IVT(model).init(jax.random.key(seed))["params"], sep="/")
        return {path: flat[path] for path in paths}

    return {path: np.asarray(value) for path, value in draw().items()}


def _described(model: IVTConfig) -> str:
    height, width = model.image_size
    rows, columns = model.grid
    return f"a model of {height}x{width} pixels at stride {model.stride} ({rows}x{columns} patches and [CLS])"
