"""Tensors out of a file of weights, whatever its format; nothing in a file is ever executed.

The format is told by the first bytes, not by the suffix: safetensors, NumPy's .npz, or PyTorch's own (.pth, .bin). The
last is a pickle, so it is left to `torch.load(weights_only=True)`, which builds tensors and plain containers alone.
"""

import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.errors import UserError

WRAPPERS = ("state_dict", "model")  # where a training script's checkpoint keeps its tensors
# What a NumPy number beside the tensors (the best score, say) is made with; the second is NumPy 2's.
NUMPY_NUMBER = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by its name; those of whatever floating-point type as float32.

    Raises UserError, naming the file, where it cannot be read, and the tensor, where a value is not finite.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start[8:] == b"{":  # eight bytes with the length of a JSON header, and the header
        tensors = _read_safetensors(path)
    elif _is_npz(path):
        tensors = _read_npz(path)
    elif _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, as OpenAI's own CLIP files are: it holds a program, not tensors alone; "
            "name transformers' .safetensors of it, or a state dict that torch.save wrote"
        )
    else:
        tensors = _read_torch(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    tensors = {name: _as_float32(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f'{path}: tensor "{name}" has values that are not finite; fetch the file again')
    return tensors


def _as_float32(array: np.ndarray) -> np.ndarray:
    """Whole numbers and booleans as they are; bfloat16, which NumPy does not count as floating, as float32, too."""
    return array if array.dtype.kind in "biu" else np.asarray(array, np.float32)


def _is_npz(path: Path) -> bool:
    """PyTorch's files are zip archives as well, with a pickle inside."""
    return zipfile.is_zipfile(path) and all(name.endswith(".npy") for name in _zipped(path))


def _is_torchscript(path: Path) -> bool:
    """torch.jit.save writes constants beside the pickle of the model, torch.save does not."""
    return zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in _zipped(path))


def _zipped(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


class Header(NamedTuple):
    """What a safetensors file tells before its tensors."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Metadata and shapes of a safetensors file; no tensor is read. Raises UserError, naming the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return Header(file.metadata() or {}, shapes)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {_line(error)}") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that NumPy has no name for
        raise UserError(f"{path} cannot be read as safetensors: {_line(error)}") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:  # ValueError: an array of Python objects, a pickle
        raise UserError(f"{path} cannot be read as .npz: {_line(error)}") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is neither safetensors nor .npz; PyTorch's own files need PyTorch, which is not installed: "
            "pip install 'ivt_jax[torch]'"
        ) from None
    try:
        with torch.serialization.safe_globals([(Number, name) for name in NUMPY_NUMBER]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: a pickle that wants to run code, a damaged archive, no archive at all
        raise UserError(f"{path} is refused by torch.load(weights_only=True): {_torch_line(error)}") from None
    return {name: _from_torch(path, name, value) for name, value in _state_dict(path, content).items()}


class Number:
    """Stands where a checkpoint has a NumPy number: the number is read past, and nothing of NumPy is called."""

    def __init__(self, *described: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _state_dict(path: Path, content: Any) -> dict[str, Any]:
    """The tensors by name, out of what a training script may have put around them (optimiser, epoch, ...)."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return content


def _from_torch(path: Path, name: str, value: Any) -> np.ndarray:
    if not hasattr(value, "is_floating_point"):
        raise UserError(f'{path}: "{name}" is a {type(value).__name__}, not a tensor')
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _torch_line(error: Exception) -> str:
    """What torch.load found, without the lines around it, which advise to load the file unsafely."""
    found = re.search(r"WeightsUnpickler error: (.*?)(?:\. Please|$)", str(error), re.MULTILINE)
    return found[1] if found else _line(error)
