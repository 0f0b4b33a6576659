"""Files of weights: what is read, and that nothing in them runs."""

import contextlib
import json
import pickle
import struct
import sys
import zipfile
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import read_header, read_tensors
from tests.conversion.conftest import Payload

SAMPLE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that a payload would make; every way to unpickle is an error as well."""

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    return tmp_path / "canary"


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_safetensors_are_read_as_float32(tmp_path, dtype):
    save_file({"a": SAMPLE.astype(dtype), "n": np.array([3])}, tmp_path / "weights")  # no suffix: content tells
    tensors = read_tensors(tmp_path / "weights")
    assert tensors["a"].dtype == np.float32 and tensors["n"].dtype == np.int64
    np.testing.assert_array_equal(tensors["a"], SAMPLE)


def test_npz_is_read(tmp_path):
    np.savez(tmp_path / "weights.npz", **{"Transformer/a": SAMPLE})
    np.testing.assert_array_equal(read_tensors(tmp_path / "weights.npz")["Transformer/a"], SAMPLE)


# Dtypes of safetensors that no weight may have, with the bits of one number. `tensors.read` refuses integers.
REFUSED = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "C64": 64,
}  # fmt: skip


def write_safetensors(path, dtype, shape, bits):
    """Writes the file by hand, because NumPy does not have all of these dtypes."""
    size = int(np.prod(shape)) * bits // 8
    header = {"bad": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))


@pytest.mark.parametrize("dtype", REFUSED)
@pytest.mark.parametrize("shape", [(4, 2), (), (0, 3)])
def test_other_numbers_are_refused_in_one_line(tmp_path, dtype, shape):
    if np.prod(shape) == 1 and REFUSED[dtype] < 8:
        shape = (*shape, 8)  # a file has whole bytes
    write_safetensors(tmp_path / "weights", dtype, shape, REFUSED[dtype])
    with pytest.raises(UserError) as error:
        read_tensors(tmp_path / "weights")
    assert str(error.value) == (
        f'{tmp_path}/weights: tensor "bad" has dtype {dtype}; weights must be float16, bfloat16, float32 or float64: '
        "fetch the weights as they were before they were quantised or converted"
    )


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "U3", "S3", "M8[s]", "V2", "longdouble"])
@pytest.mark.parametrize("shape", [(4, 2), (), (0, 3)])
def test_other_arrays_are_refused_in_one_line(tmp_path, dtype, shape):
    """NumPy stores bfloat16 as V2."""
    array = np.zeros(shape, dtype)
    np.savez(tmp_path / "weights.npz", bad=array)
    with pytest.raises(UserError) as error:
        read_tensors(tmp_path / "weights.npz")
    assert f'tensor "bad" has dtype {array.dtype}; weights must be float16' in str(error.value)


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_empty_tensors_are_read(tmp_path, shape):
    save_file({"a": np.zeros(shape, ml_dtypes.bfloat16), "b": SAMPLE}, tmp_path / "weights")
    found = read_tensors(tmp_path / "weights")["a"]
    assert (found.dtype, found.shape) == (np.float32, shape)


def test_rounding_of_float64_is_printed(tmp_path, capsys):
    third = np.array([1 / 3, -(2.0**-149), 3.4e38])
    np.savez(tmp_path / "big.npz", a=third.astype(">f8"))
    assert read_tensors(tmp_path / "big.npz")["a"].tolist() == np.float32(third).tolist()
    assert capsys.readouterr().err.endswith("big.npz: float64 tensors rounded to float32: 1\n")
    save_file({"a": third, "b": third, "c": SAMPLE}, tmp_path / "weights")
    found = read_tensors(tmp_path / "weights")["a"]
    assert found.tolist() == [11184811 / 2**25, -(2.0**-149), np.float32(3.4e38)]  # 1/3 with 24 bits
    assert capsys.readouterr().err == f"{tmp_path}/weights: float64 tensors rounded to float32: 2\n"
    save_file({"a": SAMPLE}, tmp_path / "weights")
    read_tensors(tmp_path / "weights")
    assert capsys.readouterr().err == ""


def test_what_float32_cannot_hold_is_refused(tmp_path, recwarn):
    save_file({"bad": np.array([1, -3.5e38])}, tmp_path / "weights")
    beyond = 'weights: tensor "bad" has values beyond 3.4e38, the largest float32 number; fetch'
    with pytest.raises(UserError, match=beyond):
        read_tensors(tmp_path / "weights")
    assert not list(recwarn)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(tmp_path, value):
    save_file({"good": SAMPLE, "bad": np.array([0, value], np.float16)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r'weights.safetensors: tensor "bad" has values that are not finite'):
        read_tensors(tmp_path / "weights.safetensors")


def pickled(path, payload):
    path.write_bytes(pickle.dumps({"state_dict": payload}))


def zipped(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": payload}))


@pytest.mark.parametrize("write", [pickled, zipped])
@pytest.mark.usefixtures("no_torch")
def test_without_pytorch_a_pickle_is_refused_unread(tmp_path, canary, write):
    write(tmp_path / "weights.pth", Payload(canary))
    with pytest.raises(UserError) as error:
        read_tensors(tmp_path / "weights.pth")
    assert str(error.value) == (
        f"{tmp_path}/weights.pth is neither safetensors nor .npz; PyTorch's own files need PyTorch, which is not "
        "installed: pip install -e '.[torch]' in the clone of this project"
    )
    assert not canary.exists()


def test_a_pickle_inside_npz_is_refused_unread(tmp_path, canary):
    np.savez(tmp_path / "weights.npz", a=np.array([Payload(canary)], object))
    with pytest.raises(UserError, match=r"weights.npz cannot be read as .npz: Object arrays cannot be loaded"):
        read_tensors(tmp_path / "weights.npz")
    assert not canary.exists()


@pytest.mark.usefixtures("no_torch")
def test_torchscript_is_refused_unread(tmp_path, canary):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        for name in ("data", "constants"):
            archive.writestr(f"ViT-B-16/{name}.pkl", pickle.dumps(Payload(canary)))
    with pytest.raises(UserError, match=r"ViT-B-16.pt is a TorchScript archive, .* or a state dict that") as error:
        read_tensors(tmp_path / "ViT-B-16.pt")
    assert "\n" not in str(error.value) and not canary.exists()


class Tensor:
    """What is used of torch.Tensor."""

    def __init__(self, array, dtype=""):
        self.array, self.dtype = array, f"torch.{dtype or array.dtype}"

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def detach(self):
        return self

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def numpy(self):
        if self.dtype in ("torch.bfloat16", "torch.qint8"):
            raise TypeError("Got unsupported ScalarType\nmore")
        return self.array


@pytest.fixture
def torch(monkeypatch):
    """A stand-in that gives `content`, or raises it, and keeps how it was called."""
    calls = []

    def load(path, **how):
        calls.append(how)
        if isinstance(stand_in.content, Exception):
            raise stand_in.content
        return stand_in.content

    allowed = SimpleNamespace(safe_globals=contextlib.nullcontext)
    stand_in = SimpleNamespace(load=load, calls=calls, content=None, serialization=allowed)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    return stand_in


@pytest.mark.parametrize("wrap", [dict, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}])
def test_pytorch_loads_weights_only(tmp_path, canary, torch, wrap):
    pickled(tmp_path / "weights.pth", Payload(canary))
    torch.content = wrap({"a": Tensor(SAMPLE.astype(np.float16)), "n": Tensor(np.array([2]))})
    tensors = read_tensors(tmp_path / "weights.pth")
    np.testing.assert_array_equal(tensors["a"], SAMPLE)
    assert tensors["a"].dtype == np.float32 and tensors["n"].tolist() == [2]
    assert torch.calls == [{"map_location": "cpu", "weights_only": True}] and not canary.exists()


def test_pytorch_tensors_are_read_or_refused_by_their_dtype(tmp_path, torch, capsys):
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02...")
    torch.content = {"a": Tensor(SAMPLE, "bfloat16"), "b": Tensor(SAMPLE.astype(np.float64))}
    tensors = read_tensors(tmp_path / "weights.bin")
    assert [tensors[name].dtype for name in "ab"] == [np.float32] * 2
    assert capsys.readouterr().err.endswith("weights.bin: float64 tensors rounded to float32: 1\n")
    dense = r" \(qint8\) cannot be read as a dense array \(Got unsupported ScalarType\); save it as float32$"
    for dtype, array, message in (
        ("float8_e4m3fn", SAMPLE, " has dtype float8_e4m3fn; weights must be float16"),
        ("complex64", SAMPLE.astype(np.complex64), " has dtype complex64; weights must be float16"),
        ("qint8", SAMPLE.astype(np.int8), dense),
    ):
        torch.content = {"bad": Tensor(array, dtype)}
        with pytest.raises(UserError, match=f'weights.bin: tensor "bad"{message}'):
            read_tensors(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.UnpicklingError("Weights only\nmore"), r"is refused by torch.load\(weights_only=True\): W.*$"),
        ([1], "holds a list, not tensors by name"),
        ({"state_dict": {"a": 3}}, '"a" is a int, not a tensor'),
        ({}, "holds no tensors"),
    ],
)
def test_what_pytorch_finds_amiss_is_one_line(tmp_path, torch, content, message):
    torch.content = content
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02...")
    with pytest.raises(UserError, match=message) as error:
        read_tensors(tmp_path / "weights.bin")
    assert "\n" not in str(error.value) and "weights.bin" in str(error.value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 598641023\n"


def damaged(tmp_path):
    """File name -> content, and the error for it after the path."""
    save_file({"a": SAMPLE, "b": SAMPLE}, tmp_path / "whole.safetensors", {"format": "pt"})
    np.savez(tmp_path / "whole.npz", a=SAMPLE)
    whole, zipped = ((tmp_path / name).read_bytes() for name in ("whole.safetensors", "whole.npz"))
    header = 8 + int.from_bytes(whole[:8], "little")
    return {
        "cut": (whole[:-4], f" is cut short: {len(whole) - 4} of {len(whole)} bytes; fetch it again"),
        "names": (whole[:header], f" is cut short: {header} of {len(whole)} bytes; fetch it again"),
        "header": (whole[:30], f" is cut short: 30 of more than {header} bytes; fetch it again"),
        "start.safetensors": (whole[:5], " is cut short: 5 bytes; fetch it again"),
        "zip": (zipped[:-9], f" is cut short: {len(zipped) - 9} bytes, without the end of its archive; fetch it again"),
        "empty": (b"", " is empty; fetch it again"),
        "pointer": (POINTER, " is a Git LFS pointer, not the file itself: run git lfs pull"),
        "page": (b"<!DOCTYPE html><html>", " is a web page, not weights; fetch the file by its download link"),
    }


@pytest.mark.parametrize("name", ["cut", "names", "header", "start.safetensors", "zip", "empty", "pointer", "page"])
def test_what_is_not_whole_says_how(tmp_path, name):
    content, message = damaged(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_tensors, *([read_header] if name not in ("zip", "page") else [])):
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert str(error.value) == f"{tmp_path}/{name}{message}"


def test_damaged_files_are_one_line(tmp_path):
    save_file({"a": SAMPLE}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"nowhere cannot be read: No such file or directory$"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere cannot be read as safetensors: No such file or directory") as error:
        read_header(tmp_path / "nowhere")
    assert "\n" not in str(error.value)
