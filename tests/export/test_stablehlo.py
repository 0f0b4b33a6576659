import json

import jax
import numpy as np
import pytest
import tokenizers

from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.benchmarks.export import LOAD
from ivt_jax.common.errors import UserError
from ivt_jax.export import stablehlo
from tests.export.conftest import assert_files


@pytest.fixture
def written(tmp_path, given_away):
    stablehlo.write_stablehlo(tmp_path, given_away.trained)
    return tmp_path


def test_jax_alone_gives_the_same_embeddings(written, assert_same_elsewhere):
    loaded = assert_same_elsewhere(LOAD["stablehlo"])
    assert not loaded & {"flax", "orbax", "tensorflow"}


def test_the_programs_are_for_every_platform_and_any_batch(written, given_away):
    for name, shape in (("image", "(batch, 24, 12, 3)"), ("text", "(batch, length)")):
        program = jax.export.deserialize((written / f"{name}_encoder.stablehlo").read_bytes())
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert str(program.in_avals[0].shape) == shape
        assert str(program.out_avals[0].shape) == "(batch, 16)" and program.out_avals[0].dtype == np.float32
        # Float32 products are exact ones on accelerators as well.
        products = [line for line in program.mlir_module().splitlines() if "stablehlo.dot_general" in line]
        assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    with pytest.raises(ValueError, match="shapes"):  # more text positions than the model has
        program.call(np.zeros((1, 21), np.int32), np.ones((1, 21), bool))


def test_what_the_programs_refuse(written):
    encode_images, encode_texts = (
        jax.export.deserialize((written / f"{side}_encoder.stablehlo").read_bytes()).call for side in ("image", "text")
    )

    def encode_ids(ids):
        return encode_texts(ids, np.ones(ids.shape, bool))

    for encode, shape, dtype, message in (
        (encode_images, (0, 24, 12, 3), np.uint8, "Expected value >= 1 for dimension variable 'batch'"),
        (encode_ids, (0, 4), np.int32, "Expected value >= 1 for dimension variable 'batch'"),
        (encode_ids, (1, 0), np.int32, "Expected value >= 1 for dimension variable 'length'"),
        (encode_ids, (1, 4), np.float32, "expected int32 and called with float32"),
        (encode_images, (1, 24, 12, 3), np.float32, "expected uint8 and called with float32"),
        (encode_images, (1, 24, 13, 3), np.uint8, r"mismatch for args\[0\]"),
        (encode_images, (1, 24, 12, 4), np.uint8, r"mismatch for args\[0\]"),
        (encode_images, (24, 12, 3), np.uint8, r"mismatch for args\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(np.zeros(shape, dtype))


def test_each_program_holds_its_own_parameters_alone(written, given_away):
    """The sizes, counted by hand: 16 wide, 2 blocks, an MLP of 64, 2,726 words and 20 text positions.

    Of two towers, the other is 12 wide, with 3 blocks; the head has a query, and a block but for one norm.
    """
    block = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 4 * 16
    config = given_away.trained.model.config
    tokens = 1 + config.num_patches
    image = 2 * block + 2 * 16 + (108 * 16 + 16) + 16 + 2 * tokens * 16
    text = 2 * block + 2 * 16 + (2726 + 20 + 2) * 16 + 2 * 16
    if config.towers == 2:
        image = 2 * block + 2 * 16 + (108 * 16 + 16) + config.num_patches * 16 + 16 + block - 2 * 16
        block = (12 * 36 + 36) + (12 * 12 + 12) + (12 * 48 + 48) + (48 * 12 + 12) + 4 * 12
        text = 3 * block + 2 * 12 + (2726 + 20) * 12 + (12 * 16 + 16)
    for name, count in (("image", image), ("text", text)):
        size = (written / f"{name}_encoder.stablehlo").stat().st_size
        most = 35_000 if config.relative_positions else 30_000  # whose program is longer
        assert 4 * count < size < 4 * count + most  # another MLP would be 17,000, the other embeddings more


def test_the_manifest_tells_what_a_user_needs(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert (manifest["format"], manifest["format_version"], manifest["dtype"]) == ("stablehlo", 2, "float32")
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    image, text = manifest["encoders"]["image"], manifest["encoders"]["text"]
    assert image["inputs"] == [{"name": "images", "dtype": "uint8", "shape": ["batch", 24, 12, 3]}]
    assert text["inputs"] == [
        {"name": "ids", "dtype": "int32", "shape": ["batch", "length"]},
        {"name": "mask", "dtype": "bool", "shape": ["batch", "length"]},
    ]
    output = {"name": "embeddings", "dtype": "float32", "shape": ["batch", 16]}
    assert image["outputs"] == text["outputs"] == [output]
    assert manifest["smallest_batch"] == 1 and manifest["text"]["vocab_size"] == 2726
    assert manifest["text"]["embedded_as_nan"].startswith("a row with an id outside of 0 to vocab_size - 1")
    assert (manifest["embedding"]["dimension"], manifest["embedding"]["normalised"]) == (16, "L2")
    assert (manifest["images"]["height"], manifest["images"]["width"]) == (24, 12)
    assert manifest["images"]["mean"] == manifest["images"]["deviation"] == [0.5, 0.5, 0.5]
    assert [manifest["text"][key] for key in ("length", "max_length", "lower_cased")] == [16, 20, True]
    assert_files(written, ["image_encoder.stablehlo", "text_encoder.stablehlo"])


def test_the_manifest_and_tokenizer_json_suffice_to_tokenize(written):
    text = json.loads((written / "manifest.json").read_text())["text"]
    backend = tokenizers.Tokenizer.from_file(str(written / text["tokenizer"]))
    for caption in ("A woman in a RED coat.", "zzyzx " * 30):
        pieces = backend.encode(caption, add_special_tokens=False).ids[: text["length"] - 2]
        row = [text["begin_id"], *pieces, text["end_id"]]
        row += [text["pad_id"]] * (text["length"] - len(row))
        assert row == load_tokenizer().encode([caption], text["length"])[0].tolist()


def test_what_does_not_fit_into_a_file_is_refused(tmp_path, given_away, monkeypatch):
    monkeypatch.setattr(stablehlo, "LARGEST", 10_000)
    with pytest.raises(UserError, match=r"stablehlo: 0\.0 GB of parameters do not fit") as caught:
        stablehlo.write_stablehlo(tmp_path, given_away.trained)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
