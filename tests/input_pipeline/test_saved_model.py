import json
import sys

import pytest

from input_pipeline.saved_model import write_saved_model
from ivt_jax.benchmarks.export import LOAD
from ivt_jax.common.errors import UserError
from ivt_jax.export import saved_model
from ivt_jax.export.stablehlo import encoders
from tests.conftest import needs_tensorflow


@needs_tensorflow
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
    assert manifest["signatures"] == ["encode_images", "encode_texts"] and manifest["smallest_batch"] == 0
    assert {"saved_model.pb", "variables/variables.data-00000-of-00001", "tokenizer.json"} <= set(manifest["sha256"])


@needs_tensorflow
def test_what_the_signatures_refuse(tmp_path, given_away):
    import tensorflow as tf

    saved_model.write_saved_model(tmp_path, given_away.trained)
    loaded = tf.saved_model.load(str(tmp_path))  # held: its variables go with it
    encode_images, encode_texts = (loaded.signatures[name] for name in saved_model.SIGNATURES)
    refused = tf.errors.InvalidArgumentError
    for shape, dtype in (((1, 21), tf.int32), ((1, 0), tf.int32), ((1, 4), tf.int64), ((4,), tf.int32)):
        with pytest.raises(refused):
            encode_texts(ids=tf.ones(shape, dtype), mask=tf.ones(shape, tf.bool))
    for shape, dtype in (((1, 24, 13, 3), tf.uint8), ((1, 24, 12, 4), tf.uint8), ((1, 24, 12, 3), tf.float32)):
        with pytest.raises(refused):
            encode_images(images=tf.zeros(shape, dtype))


def test_without_tensorflow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError) as caught:
        write_saved_model(tmp_path, {})
    expected = "a SavedModel needs TensorFlow, which is not installed: pip install tensorflow-cpu"
    assert str(caught.value) == expected and not list(tmp_path.iterdir())
