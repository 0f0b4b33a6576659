"""From the hub to a search in three lines, with CLIP and with SigLIP of tiny sizes, without a network."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from input_pipeline.tokenizer import load_tokenizer
from ivt_jax import convert, index, search
from tests.conversion.test_hub import COMMIT, cache, publish, store  # noqa: F401  (a fixture)
from tests.input_pipeline.test_clip_and_siglip import write_clip, write_siglip

pytest.importorskip("ivt_jax.conversion.siglip")
TOWERS = Path(__file__).parent.parent / "data/towers_tiny.npz"
TOKENIZERS = {"clip": write_clip, "siglip": write_siglip}
LENGTHS = {"clip": 77, "siglip": 64}
SIZES = {"image_size": 20, "patch_size": 5, "num_attention_heads": 3, "hidden_size": 12}


def published(kind, folder):
    """The files of a repository: random weights of the published names, with words and positions of the tokenizer."""
    prefix, rng = f"{kind}/weights/", np.random.default_rng(0)
    with np.load(TOWERS) as given:
        tensors = {name.removeprefix(prefix): given[name] for name in given.files if name.startswith(prefix)}
    TOKENIZERS[kind](folder)
    embeddings, entries = "text_model.embeddings.", load_tokenizer(str(folder)).vocab_size
    width = tensors[f"{embeddings}token_embedding.weight"].shape[1]
    for name, rows in (("token_embedding", entries), ("position_embedding", LENGTHS[kind])):
        tensors[f"{embeddings}{name}.weight"] = rng.normal(size=(rows, width)).astype(np.float32)
    text = {"num_attention_heads": 2, "hidden_size": width, "max_position_embeddings": LENGTHS[kind]}
    described = {"model_type": kind, "vision_config": SIZES, "text_config": text}
    files = {path.name: path for path in folder.iterdir()}
    return {"model.safetensors": tensors, "config.json": described, **files}


@pytest.fixture(params=["clip", "siglip"])
def repository(request, cache, tmp_path):  # noqa: F811
    (tmp_path / "tokenizer").mkdir()
    store(cache, f"tiny/{request.param}", published(request.param, tmp_path / "tokenizer"))
    (tmp_path / "photos").mkdir()
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        Image.new("RGB", (30, 60), colour).save(tmp_path / f"photos/{name}.png")
    return request.param


def test_three_lines_search_photographs(repository, tmp_path, monkeypatch, capsys):
    weights, found = f"{tmp_path}/weights", f"--index={tmp_path}/index"
    assert convert.main([f"--source={repository}", f"--weights=hf:tiny/{repository}", f"--out={weights}"]) == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))  # the folder has all that a search needs
    assert index.main([f"--workdir={weights}", f"--images={tmp_path}/photos", found]) == 0
    capsys.readouterr()
    assert search.main([found, "a woman in a red coat with a black backpack"]) == 0
    out = capsys.readouterr().out
    assert out.count(".png") == 2 and "%" not in out  # scores without a validation give no probability
    config = json.loads((tmp_path / "weights/config.json").read_text())["config"]
    assert config["model"]["image_size"] == [20, 20] and config["model"]["stride"] == 5
    assert set(config["text"]["length"].values()) == {LENGTHS[repository]}
    assert config["text"]["tokenizer"] == f"tiny/{repository}@{COMMIT}"


def test_the_first_day_online_leaves_all_for_the_second_offline(repository, cache, tmp_path, monkeypatch, capsys):  # noqa: F811
    """From an empty cache: one request, and then weights, tokenizer and search need the hub no more."""
    name, call = f"tiny/{repository}", [f"--source={repository}", f"--weights=hf:tiny/{repository}"]
    stored = cache / f"models--tiny--{repository}"
    snapshot = shutil.copytree(stored / f"snapshots/{COMMIT}", tmp_path / "hub")  # its links followed
    shutil.rmtree(stored)
    asked = publish(monkeypatch, cache, snapshot, name)
    assert convert.main([*call, f"--out={tmp_path}/weights"]) == 0
    assert asked[0] == (name, None) and sorted(asked[1:]) == sorted(path.name for path in snapshot.iterdir())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert convert.main([*call, f"--out={tmp_path}/again"]) == 0
    for tokenizer in (name, f"{name}@{COMMIT}", str(tmp_path / "weights")):
        assert load_tokenizer(tokenizer).digest == load_tokenizer(str(snapshot)).digest
    found = f"--index={tmp_path}/index"
    assert index.main([f"--workdir={tmp_path}/weights", f"--images={tmp_path}/photos", found]) == 0
    capsys.readouterr()
    assert search.main([found, "a woman in a red coat"]) == 0
    assert capsys.readouterr().out.count(".png") == 2


def test_a_tokenizer_of_another_model_is_one_line(repository, tmp_path, capsys):
    other = {"clip": "siglip", "siglip": "clip"}[repository]
    (tmp_path / "other").mkdir()
    TOKENIZERS[other](tmp_path / "other")
    call = [f"--source={repository}", f"--weights=hf:tiny/{repository}", f"--out={tmp_path}/weights"]
    assert convert.main([*call, f"--config.text.tokenizer={tmp_path}/other"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: the tokenizer has ") and err.count("\n") == 1
    assert not (tmp_path / "weights").exists()
