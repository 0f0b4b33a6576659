"""Parameters as a safetensors file, which other programs read without JAX, Orbax or ivt_jax.

A tensor is called as its parameter, with dots: blocks.attn.qkv.kernel, (depth, width, 3 * width) float32. The layout is
the model's own: `x @ kernel + bias`, the blocks stacked along the first axis.
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
    """Writes parameters (NumPy arrays); the metadata tell the format of the folder and the digest of the config."""
    from safetensors.numpy import save

    flat = flatten_dict(params, sep=".")
    # In C order: safetensors writes the memory of an array as it lies.
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}
    content = save(tensors, {"ivt_jax_format": str(FORMAT), "config_sha256": config_digest(config)})
    path.write_bytes(content)  # `save_file` would make a file that its owner alone may read


def read_parameter_file(path: Path, config: ConfigDict, shapes_alone: bool = False) -> Any:
    """Returns the tree of parameters that `write_parameter_file` wrote, as float32, or leaves with only a `shape`.

    Raises UserError if the file cannot be read, was written with another config, or has a tensor whose dtype no weight
    may have.
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

    with np.errstate(over="ignore"):  # values beyond float32 become infinite; their users refuse them
        return unflatten_dict({name: np.asarray(x, np.float32) for name, x in load_file(path).items()}, sep=".")


def refuse_other_metadata(path: Path, config: ConfigDict) -> None:
    """Raises UserError where a file tells a format above ours, or that it was written with another config.

    Sizes such as the number of heads are in no tensor's shape: with another config the model computes something else.
    """
    told = read_header(path).metadata
    version = told.get("ivt_jax_format", "1")
    if not version.isdecimal() or int(version) > FORMAT:
        raise UserError(f"{path} has format {version}, this ivt_jax reads format {FORMAT} and older: update ivt_jax")
    if told.get("config_sha256") not in (None, config_digest(config)):
        raise UserError(f"{path} was written with another config than config.json beside it holds: bring that one back")


def config_digest(config: ConfigDict) -> str:
    """SHA-256 of the config as JSON: keys sorted, separated as `json.dumps` does."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def model_digest(config: ConfigDict, params: Any) -> str:
    """Returns the SHA-256 of `config.model` and of all parameters; a run and its export have the same."""
    digest = hashlib.sha256(json.dumps(config.model.to_dict(), sort_keys=True).encode())
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        value = np.ascontiguousarray(leaf)
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
