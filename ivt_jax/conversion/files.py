"""Reads the tensors of a file of weights: safetensors, NumPy's .npz, or PyTorch's own (.pth, .bin).

The first bytes decide the format, not the suffix. Nothing in a file is executed: PyTorch's files are pickles and are
read by `torch.load(weights_only=True)`, which builds only tensors and plain containers.
"""

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import IS_POINTER, POINTER
from ivt_jax.common.messages import install

# The dtypes that weights may have, in the names of NumPy and PyTorch, and of safetensors.
FLOATS = ("float16", "bfloat16", "float32", "float64")
SAFETENSORS_FLOATS = ("F16", "BF16", "F32", "F64")
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
SAFETENSORS_INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
WRAPPERS = ("state_dict", "module", "model")  # keys under which training scripts store the tensors, beside epoch, ...
# Globals in the pickle of a NumPy number, such as the best score; the second is NumPy 2's.
NUMPY_NUMBER = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a file by its name, those with a dtype of FLOATS as float32.

    Integers and booleans stay as they are, because files hold indices; `tensors.read` refuses them as weights. Prints a
    line on stderr if float64 is rounded. Raises UserError, naming the file, if it cannot be read; and naming the tensor
    if it has another dtype or a value that is not finite or beyond float32.
    """
    try:
        start = _refuse_fragment(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start[8:9] == b"{":  # eight bytes with the length of a JSON header, and the header
        tensors = _read_safetensors(path)
    elif all(name.endswith(".npy") for name in _zipped(path)):
        tensors = _read_npz(path)
    elif any(name.endswith("/constants.pkl") for name in _zipped(path)):  # torch.save writes none
        raise UserError(
            f"{path} is a TorchScript archive, as OpenAI's own CLIP files are: it holds a program, not only tensors; "
            "name transformers' .safetensors of it, or a state dict that torch.save wrote"
        )
    else:
        tensors = _read_torch(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    if rounded := sum(array.dtype.name == "float64" for array in tensors.values()):
        print(f"{path}: float64 tensors rounded to float32: {rounded}", file=sys.stderr)
    return {name: _as_float32(path, name, array) for name, array in tensors.items()}


def _refuse_fragment(path: Path) -> bytes:
    """Returns the first bytes of a file. Raises UserError if it is not whole, or stands for another; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    again = "fetch it again"
    if not size:
        raise UserError(f"{path} is empty; {again}")
    if start.startswith(POINTER):
        raise UserError(f"{path} {IS_POINTER}")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise UserError(f"{path} is a web page, not weights; fetch the file by its download link")
    if start[8:9] == b"{":
        header, whole = _extent(path, int.from_bytes(start[:8], "little"))
        if size < (whole or header):
            raise UserError(f"{path} is cut short: {size} of {whole or f'more than {header}'} bytes; {again}")
    elif size < 9 and path.suffix == ".safetensors":
        raise UserError(f"{path} is cut short: {size} bytes; {again}")
    elif start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut short: {size} bytes, without the end of its archive; {again}")
    return start


def _extent(path: Path, length: int) -> tuple[int, int]:
    """Returns the bytes of a safetensors file up to the tensors, and of the whole file; 0 for what cannot be read.

    length: of the header in bytes.
    """
    if length > LONGEST_HEADER:
        return 0, 0
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        return 8 + length, 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return 8 + length, 0


def other_dtype(file: Path | str, name: str, dtype: object) -> UserError:
    """Returns the error for a tensor that is not of a dtype in FLOATS."""
    return UserError(
        f'{file}: tensor "{name}" has dtype {dtype}; weights must be float16, bfloat16, float32 or float64: '
        "fetch the weights as they were before they were quantised or converted"
    )


def _as_float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "biu":
        return array
    if array.dtype.name not in FLOATS:
        raise other_dtype(path, name, array.dtype)
    if not np.isfinite(array).all():
        raise UserError(f'{path}: tensor "{name}" has values that are not finite; fetch the file again')
    with np.errstate(over="ignore"):
        narrow = np.asarray(array, np.float32)
    if array.dtype.itemsize > narrow.dtype.itemsize and not np.isfinite(narrow).all():
        raise UserError(
            f'{path}: tensor "{name}" has values beyond 3.4e38, the largest float32 number; fetch the file again'
        )
    return narrow


def _zipped(path: Path) -> list[str]:
    """Returns the names in a zip archive, which .npz and PyTorch's files are; [""] for any other file."""
    if not zipfile.is_zipfile(path):
        return [""]
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


class Header(NamedTuple):
    """The header of a safetensors file."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # in the names of safetensors


def read_header(path: Path) -> Header:
    """Returns metadata, shapes and dtypes of a safetensors file; reads no tensor. Raises UserError, naming the file."""
    from safetensors import SafetensorError, safe_open

    try:
        _refuse_fragment(path)
        with safe_open(path, "numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
            dtypes = {name: tensor.get_dtype() for name, tensor in found.items()}
            return Header(file.metadata() or {}, shapes, dtypes)
    except (SafetensorError, OSError) as error:
        fault = (isinstance(error, OSError) and error.strerror) or _line(error)
        raise UserError(f"{path} cannot be read as safetensors: {fault}") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    for name, dtype in read_header(path).dtypes.items():
        if dtype not in SAFETENSORS_FLOATS + SAFETENSORS_INTEGERS:  # NumPy has no dtype for some of these
            raise other_dtype(path, name, dtype)
    return load_file(path)


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
            f"{install('torch')}"
        ) from None
    try:
        with torch.serialization.safe_globals([(Number, name) for name in NUMPY_NUMBER]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many kinds: a pickle that would run code, a damaged archive, no archive
        # torch.load adds the advice to load the file unsafely.
        found = re.search(r"WeightsUnpickler error: (.*?)(?:\. Please|$)", str(error), re.MULTILINE)
        fault = found[1] if found else _line(error)
        raise UserError(f"{path} is refused by torch.load(weights_only=True): {fault}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    return {name: _from_torch(path, name, value) for name, value in tensors.items()}


class Number:
    """Takes the place of a NumPy number in a checkpoint, so that nothing of NumPy is called."""

    def __init__(self, *described: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _from_torch(path: Path, name: str, value: Any) -> np.ndarray:
    if not hasattr(value, "is_floating_point"):
        raise UserError(f'{path}: "{name}" is a {type(value).__name__}, not a tensor')
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_floating_point() and dtype not in FLOATS:
        raise other_dtype(path, name, dtype)
    try:
        return (value.detach().float() if dtype == "bfloat16" else value.detach()).numpy()  # NumPy has no bfloat16
    except (TypeError, RuntimeError) as error:  # quantised or sparse
        raise UserError(
            f'{path}: tensor "{name}" ({dtype}) cannot be read as a dense array ({_line(error)}); save it as float32'
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
