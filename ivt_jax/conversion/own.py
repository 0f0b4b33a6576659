"""Our own parameters back from the safetensors file of an export, bit for bit."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from ivt_jax.conversion.model import Conversion
from ivt_jax.conversion.tensors import Naming, read, rule
from ivt_jax.models.ivt import IVTConfig, parameter_shapes


def convert_own(tensors: Mapping[str, np.ndarray], file: str, model: IVTConfig) -> Conversion:
    """Every parameter of `model`, whose tensors are called as they are, with dots, and none besides.

    Raises UserError, naming file and tensor, where one is missing, unexpected or of another shape.
    """
    shapes = parameter_shapes(model)
    rules = tuple(rule(path, path.replace("/", "."), " ".join(map(str, shape))) for path, shape in shapes.items())
    found = read(Naming(rules, {}), tensors, file, {})
    return Conversion(model, unflatten_dict(found.flat, sep="/"), found.rows)
