"""Parameters as a safetensors file, which other programs read without JAX, Orbax or ivt_jax.

A tensor has the name of its parameter, with dots: blocks.attn.qkv.kernel, (depth, width, 3 * width) float32. The layout
is the model's: `x @ kernel + bias`, with blocks stacked along the first axis.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import SAFETENSORS_FLOATS, other_dtype, read_header
from ivt_jax.run.workdir import FORMAT

NAME = "model.safetensors"


def write_parameter_file(path: Path, params: Any, config: ConfigDict) -> None:
    """Writes parameters (NumPy arrays) as float32, with the folder's format and the config's digest as metadata."""
    from safetensors.numpy import save

    # In C order: safetensors writes the memory of an array without regard to strides. `ascontiguousarray` would give
    # scalars an axis.
    tensors = {name: np.asarray(x, np.float32, order="C") for name, x in flatten_dict(params, sep=".").items()}
    content = save(tensors, {"ivt_jax_format": str(FORMAT), "config_sha256": config_digest(config)})
    path.write_bytes(content)  # `save_file` would create a file that only its owner may read


def read_parameter_file(path: Path, config: ConfigDict, shapes_alone: bool = False) -> Any:
    """Returns the tree of parameters that `write_parameter_file` wrote, as float32, or leaves with only a `shape`.

    Raises UserError if the file cannot be read, was written with another config, or has a tensor of another dtype than
    weights may have.
    """
    refuse_other_metadata(path, config)
    header = read_header(path)
    for name, dtype in header.dtypes.items():
        if dtype not in SAFETENSORS_FLOATS:
            raise other_dtype(path, name, dtype)
    if shapes_alone:
        leaves = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in header.shapes.items()}
        return unflatten_dict(leaves, sep=".")
    from safetensors.numpy import load_file

    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which callers refuse
        return unflatten_dict({name: np.asarray(x, np.float32) for name, x in load_file(path).items()}, sep=".")


def refuse_other_metadata(path: Path, config: ConfigDict) -> None:
    """Raises UserError if a file has a newer format or was written with another config.

    With another config, such as another number of heads, equal shapes would compute something else.
    """
    metadata = read_header(path).metadata
    version = metadata.get("ivt_jax_format", "1")
    if not version.isdecimal() or int(version) > FORMAT:
        raise UserError(f"{path} has format {version}, this ivt_jax reads format {FORMAT} and older: update ivt_jax")
    if metadata.get("config_sha256") not in (None, config_digest(config)):
        raise UserError(
            f"{path} was written with another config than config.json beside it holds: restore that config.json"
        )


def config_digest(config: ConfigDict) -> str:
    """Returns the SHA-256 of the config as `json.dumps` writes it with sorted keys."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def model_digest(config: ConfigDict, params: Any) -> str:
    """Returns the SHA-256 of `config.model` and of all parameters; a run and its export have the same."""
    digest = hashlib.sha256(json.dumps(config.model.to_dict(), sort_keys=True).encode())
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        value = np.asarray(leaf, order="C")
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
