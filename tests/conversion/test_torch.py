"""Files that PyTorch itself wrote, read by PyTorch itself; tests/conversion/test_files.py has what needs neither."""

import collections
import pickle

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import read_tensors
from ivt_jax.conversion.release import params_from_release
from ivt_jax.conversion.vit import Source, convert_vit
from tests.conversion.conftest import Payload

torch = pytest.importorskip("torch")


class Disguised(Payload):
    """What makes a NumPy number, called with a payload."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (Payload(self.canary),)


class Array:
    """A NumPy array is no number: its reconstruction is not let through."""

    def __reduce__(self):
        return np.ones(2).__reduce__()


FORMATS = pytest.mark.parametrize("zipped", [True, False])


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def as_torch(tensors, prefix=""):
    return collections.OrderedDict((prefix + name, torch.tensor(value)) for name, value in tensors.items())


@FORMATS
@pytest.mark.parametrize("best", [61.5, np.float64(61.5), np.float32(61.5), np.int64(3), torch.tensor(61.5)], ids=repr)
def test_the_releases_checkpoint_is_read_and_converted(tmp_path, release, zipped, best):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(2)).sum().backward()
    optimizer.step()  # the state holds tensors from now on
    state = as_torch(release, prefix="module.")
    content = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 7, "best_acc": best}
    tensors = read_tensors(save(tmp_path / "ivt.pth", content, zipped))
    assert tensors.keys() == {f"module.{name}" for name in release}
    for name, value in release.items():
        np.testing.assert_array_equal(tensors[f"module.{name}"], value, err_msg=name)
    sizes = {"num_heads": 4, "image_size": (64, 32), "stride": 12}
    made, expected = (flatten_dict(params_from_release(t, **sizes)[1], sep="/") for t in (tensors, release))
    for path, value in expected.items():
        np.testing.assert_array_equal(made[path], value, err_msg=path)


def test_numpy_1_has_another_name_for_its_numbers(tmp_path):
    """PyTorch writes pickles of protocol 2, which end names by a line's end: one can be put for the other."""
    save(tmp_path / "new.pth", {"state_dict": {"a": torch.ones(2)}, "best_acc": np.float64(3)}, zipped=False)
    old = (tmp_path / "new.pth").read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != (tmp_path / "new.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(old)
    np.testing.assert_array_equal(read_tensors(tmp_path / "old.pth")["a"], [1, 1])


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_becomes_float32(tmp_path, dtype, zipped):
    sample = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    tensors = read_tensors(save(tmp_path / "w.pt", {"a": torch.tensor(sample, dtype=dtype).T}, zipped))
    assert tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a"], sample.T)


@FORMATS
def test_a_bin_of_bert_and_a_pth_of_a_vit_are_converted(tmp_path, bert, timm, model, params, zipped):
    sources = [
        Source(read_tensors(save(tmp_path / name, as_torch(tensors), zipped)), name)
        for name, tensors in (("vit.pth", timm), ("pytorch_model.bin", bert))
    ]
    made = flatten_dict(convert_vit(*sources, model, "bilinear", 0).params, sep="/")
    for path in ("text_embedding/word", "blocks/mlp_txt/fc1/kernel", "blocks/attn/qkv/kernel"):
        np.testing.assert_array_equal(made[path], params[path])


@FORMATS
def test_parameters_of_a_model_and_shared_storage_are_read(tmp_path, zipped):
    whole = torch.nn.Parameter(torch.arange(6.0))
    tensors = read_tensors(save(tmp_path / "w.pt", {"whole": whole, "part": whole[2:4]}, zipped))
    np.testing.assert_array_equal(tensors["whole"], np.arange(6))
    np.testing.assert_array_equal(tensors["part"], [2, 3])


@FORMATS
@pytest.mark.parametrize("payload", [Payload, Disguised])
@pytest.mark.parametrize("place", ["state_dict", "best_acc"])
def test_a_payload_is_refused_and_never_runs(tmp_path, zipped, payload, place):
    canary = tmp_path / "canary"
    content = {"state_dict": {"a": torch.ones(2)}, place: payload(canary)}
    save(tmp_path / "w.pth", content, zipped)
    with pytest.raises(UserError) as error:
        read_tensors(tmp_path / "w.pth")
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/w.pth is refused by torch.load(weights_only=True): Unsupported global")
    assert "\n" not in message and "\x1b" not in message and "weights_only` to `False" not in message
    assert not canary.exists()


@FORMATS
def test_the_canary_would_sing(tmp_path, zipped):
    """The same file, loaded without care: the payload runs."""
    canary = tmp_path / "canary"
    save(tmp_path / "w.pth", {"best_acc": Payload(canary)}, zipped)
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert canary.exists()


def test_no_more_than_numbers_is_let_through(tmp_path):
    save(tmp_path / "w.pth", {"state_dict": {"a": torch.ones(2)}, "best_acc": Array()})
    with pytest.raises(UserError, match=r"Unsupported global: GLOBAL numpy\._?core\.multiarray\._reconstruct was not"):
        read_tensors(tmp_path / "w.pth")
    save(tmp_path / "w.pth", {"state_dict": {"a": np.float64(3)}})
    with pytest.raises(UserError, match=r'w.pth: "a" is a Number, not a tensor$'):
        read_tensors(tmp_path / "w.pth")


def test_a_file_leaves_nothing_allowed_behind(tmp_path):
    save(tmp_path / "w.pth", {"state_dict": {"a": torch.ones(2)}, "best_acc": np.float64(3)})
    read_tensors(tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=True)


def test_torchscript_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(UserError, match=r"ViT-B-16.pt is a TorchScript archive, as OpenAI's own CLIP files are"):
        read_tensors(tmp_path / "ViT-B-16.pt")


def test_damaged_and_foreign_files_are_one_line(tmp_path):
    whole = save(tmp_path / "w.pth", {"a": torch.ones(1000)}).read_bytes()
    messages = {
        "cut": (whole[: len(whole) // 2], r"cut is cut short: \d+ bytes, without the end of its archive"),
        "text": (b"not a checkpoint", r"text is refused by torch.load\(weights_only=True\): "),
        "empty": (b"", "empty is empty; fetch it again"),
    }
    for name, (content, message) in messages.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read_tensors(tmp_path / name)
        assert "\n" not in str(error.value)
