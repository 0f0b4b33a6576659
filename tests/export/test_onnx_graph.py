import json
import sys

import numpy as np
import pytest

from ivt_jax.benchmarks.export import LOAD
from ivt_jax.common.errors import UserError
from ivt_jax.export import onnx_graph
from tests.export.conftest import assert_files


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


@pytest.fixture
def written(onnx, tmp_path, given_away):
    onnx_graph.write_onnx(tmp_path, given_away.trained)
    return tmp_path


def test_onnx_runtime_alone_gives_the_same_embeddings(written, assert_same_elsewhere):
    pytest.importorskip("onnxruntime")
    loaded = assert_same_elsewhere(LOAD["onnx"])
    assert not loaded & {"jax", "tensorflow", "onnx"}


def test_parameters_that_do_not_fit_lie_beside(onnx, tmp_path, given_away, assert_same_elsewhere, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_graph, "LARGEST", 100_000)  # below the text side's 202 kB, above the image side's 55 kB
    onnx_graph.write_onnx(tmp_path, given_away.trained)
    assert not (tmp_path / "image_encoder.onnx.data").exists()
    assert (tmp_path / "text_encoder.onnx").stat().st_size < 30_000
    assert "text_encoder.onnx.data" in json.loads((tmp_path / "manifest.json").read_text())["sha256"]
    assert_same_elsewhere(LOAD["onnx"])


def test_graphs_are_valid_and_say_what_they_take(onnx, written):
    for name, takes, shape in (
        ("image", ["images"], ["batch", 24, 12, 3]),
        ("text", ["ids", "mask"], ["batch", "length"]),
    ):
        model = onnx.load(written / f"{name}_encoder.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == 20 and model.ir_version == 9
        (result,) = model.graph.output
        assert ([given.name for given in model.graph.input], result.name) == (takes, "embeddings")
        for given in model.graph.input:
            assert [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim] == shape


def test_the_manifest_tells_the_form_and_the_digests(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert (manifest["format"], manifest["opset"], manifest["dtype"]) == ("onnx", 20, "float32")
    assert manifest["smallest_batch"] == 0
    assert_files(written, ["image_encoder.onnx", "text_encoder.onnx"])


def test_texts_beyond_the_text_positions_are_refused(written):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(written / "text_encoder.onnx")
    with pytest.raises(Exception, match=r"20 by 21|21 by 20"):
        session.run(None, {"ids": np.ones((1, 21), np.int32), "mask": np.ones((1, 21), bool)})


def test_what_the_graphs_refuse(written):
    onnxruntime = pytest.importorskip("onnxruntime")
    image, text = (onnxruntime.InferenceSession(written / f"{side}_encoder.onnx") for side in ("image", "text"))
    with pytest.raises(Exception, match="Unexpected input data type"):
        text.run(None, {"ids": np.ones((1, 4), np.int64), "mask": np.ones((1, 4), bool)})
    with pytest.raises(Exception, match="indices element out of data bounds"):
        text.run(None, {"ids": np.ones((1, 0), np.int32), "mask": np.ones((1, 0), bool)})
    with pytest.raises(Exception, match="Unexpected input data type"):
        image.run(None, {"images": np.zeros((1, 24, 12, 3), np.float32)})
    for shape in ((1, 24, 13, 3), (1, 24, 12, 4), (24, 12, 3)):
        with pytest.raises(Exception, match=r"Got invalid dimensions|Invalid rank"):
            image.run(None, {"images": np.zeros(shape, np.uint8)})


def test_without_onnx_one_line_says_what_to_install(tmp_path, given_away, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError) as caught:
        onnx_graph.write_onnx(tmp_path, given_away.trained)
    expected = "ONNX graphs need onnx, which is not installed: pip install -e '.[onnx]' in the clone of this project"
    assert str(caught.value) == expected and not list(tmp_path.iterdir())
