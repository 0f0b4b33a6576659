import json
import sys

import pytest

from input_pipeline.errors import UserError
from input_pipeline.saved_model import write_saved_model
from ivt_jax.export import saved_model
from ivt_jax.export.benchmark import LOAD
from ivt_jax.export.stablehlo import encoders


def test_tensorflow_alone_gives_the_same_embeddings(tmp_path, given_away, assert_same_elsewhere):
    image, text = encoders(given_away.trained.model, given_away.trained.params)
    saved_model.write_saved_model(tmp_path, given_away.trained)
    without_jax = 'sys.modules["jax"] = None  # as if it were not installed\n'
    assert_same_elsewhere(without_jax + LOAD["saved_model"])
    # The parameters are stored once, the attention that both encoders use as well.
    arrays = {id(leaf): leaf.nbytes for encoder in (image, text) for leaf in encoder.parameters}
    stored = (tmp_path / "variables/variables.data-00000-of-00001").stat().st_size
    assert sum(arrays.values()) < stored < sum(arrays.values()) + 3000
    assert (tmp_path / "saved_model.pb").stat().st_size < 150_000  # the words alone are 174,000
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["signatures"] == ["encode_images", "encode_texts"]
    assert {"saved_model.pb", "variables/variables.data-00000-of-00001", "tokenizer.json"} <= set(manifest["sha256"])


def test_without_tensorflow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError) as caught:
        write_saved_model(tmp_path, {})
    expected = "a SavedModel needs TensorFlow, which is not installed: pip install tensorflow-cpu"
    assert str(caught.value) == expected and not list(tmp_path.iterdir())
