"""Files of weights: what is read, and that nothing in them runs."""

import contextlib
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from input_pipeline.errors import UserError
from ivt_jax.conversion.files import read_tensors

SAMPLE = np.arange(6, dtype=np.float32).reshape(2, 3)


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


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
        "installed: pip install 'ivt_jax[torch]'"
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

    def __init__(self, array):
        self.array = array

    def is_floating_point(self):
        return self.array.dtype.kind == "f"

    def detach(self):
        return self

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def numpy(self):
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

    serialization = SimpleNamespace(safe_globals=contextlib.nullcontext)
    stand_in = SimpleNamespace(load=load, calls=calls, content=None, serialization=serialization)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.UnpicklingError("Weights only load failed.\nmore"),
            r"is refused by torch.load\(weights_only=True\): W.*$",
        ),
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


def test_damaged_files_are_one_line(tmp_path):
    save_file({"a": SAMPLE}, tmp_path / "weights.safetensors")
    (tmp_path / "cut").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"cut cannot be read as safetensors: ") as error:
        read_tensors(tmp_path / "cut")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"nowhere cannot be read: No such file or directory$"):
        read_tensors(tmp_path / "nowhere")
