"""Weights and tokenizers on this machine: a file, and a folder as a repository of the hub has it. No hub is asked."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax import convert, index, search
from ivt_jax.common.files import digest
from tests.conversion.conftest import TINY
from tests.conversion.test_first_day import LENGTHS, published
from tests.conversion.test_hub import VIT, cache, store  # noqa: F401  (a fixture)

TEXT_WIDTHS = {"clip": 8, "siglip": 12}


def write(folder, files):
    """Writes the files of a repository: tensors, JSON content, or a file to copy."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name.endswith(".safetensors"):
            save_file({key: np.array(value, order="C") for key, value in content.items()}, folder / name)
        elif isinstance(content, dict):
            (folder / name).write_text(json.dumps(content))
        else:
            shutil.copy(content, folder / name)
    return folder


@pytest.fixture(params=["clip", "siglip"])
def towers(request, cache, tmp_path):  # noqa: F811
    """A repository of two towers in a folder, its tokenizer alone in another, and the flags for the file by itself."""
    kind, words = request.param, tmp_path / "words"
    words.mkdir()
    files = published(kind, words)
    folder = write(tmp_path / "repository", files)
    write(tmp_path / "alone", {"towers.safetensors": files["model.safetensors"]})
    heads = ["model.width=12", "model.num_heads=3", f"model.text.width={TEXT_WIDTHS[kind]}", "model.text.num_heads=2"]
    call = [f"--source={kind}", f"--weights={tmp_path}/alone/towers.safetensors", f"--out={tmp_path}/out"]
    alone = [*call, *(f"--config.{flag}" for flag in heads)]
    return SimpleNamespace(kind=kind, folder=folder, words=words, files=files, alone=alone, out=tmp_path / "out")


def recorded(out):
    return json.loads((out / "config.json").read_text())


def refused(command, capsys, message, folder):
    """The command ends with one line that has the message, and leaves the folder as it was."""
    before = sorted(folder.iterdir())
    assert convert.main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert sorted(folder.iterdir()) == before


# ---- the tokenizer


@pytest.mark.parametrize("name", ["no/such-name", "words/no-such-folder", "bert-base-uncase"])
def test_a_named_tokenizer_that_cannot_be_loaded_is_refused(towers, tmp_path, capsys, name):
    refused([*towers.alone, f"--config.text.tokenizer={name}"], capsys, f'tokenizer "{name}" is not a folder', tmp_path)


def test_a_named_folder_without_a_tokenizer_is_refused(towers, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flag = f"--config.text.tokenizer={tmp_path}/empty"
    refused([*towers.alone, flag], capsys, "empty: a tokenizer folder holds tokenizer.json, ", tmp_path)


def test_a_file_of_two_towers_without_a_tokenizer_is_refused(towers, tmp_path, capsys):
    title, files, name = {
        "clip": ("CLIP", "vocab.json and merges.txt or tokenizer.json", "openai/clip-vit-base-patch16"),
        "siglip": ("SigLIP", "spiece.model or tokenizer.json", "google/siglip-base-patch16-224"),
    }[towers.kind]
    message = (
        f"error: --config.text.tokenizer: {title}'s tokenizer is not in the weights file; name a folder with {files}, "
        f"or a name on the hub, as {name}\n"
    )
    refused(towers.alone, capsys, message, tmp_path)
    config = [f"--config=configs/cuhk.py:{towers.kind}", "--config.model.image_size=(40,20)"]
    # The config names one on the hub, which cannot be reached.
    refused([*towers.alone, *config], capsys, f'tokenizer "{name}" is not a folder and cannot be loaded', tmp_path)


def test_the_tokenizer_beside_the_file_is_taken(towers):
    for path in towers.words.iterdir():
        shutil.copy(path, towers.out.parent / "alone" / path.name)
    assert convert.main(towers.alone) == 0
    expected = load_tokenizer(str(towers.words)).digest
    assert recorded(towers.out)["tokenizer"] == expected == load_tokenizer(str(towers.out)).digest


def test_a_tokenizer_beside_the_file_that_does_not_fit_is_named(towers, tmp_path, capsys):
    shutil.copy(SHIPPED, tmp_path / "alone/vocab.txt")
    refused(towers.alone, capsys, f"error: {tmp_path}/alone: the tokenizer has 2726 entries, ", tmp_path)


def test_vocabulary_of_byte_pairs_without_merges_is_no_tokenizer(towers, tmp_path, capsys):
    (tmp_path / "alone/vocab.json").write_text("{}")
    refused(towers.alone, capsys, "tokenizer is not in the weights file", tmp_path)


def test_pixels_of_flags_take_precedence_over_those_of_the_source(towers):
    flags = [f"--config.text.tokenizer={towers.words}", "--config.model.pixel_mean=(0.1,0.2,0.3)"]
    assert convert.main([*towers.alone, *flags]) == 0
    model = recorded(towers.out)["config"]["model"]
    assert model["pixel_mean"] == [0.1, 0.2, 0.3]
    assert model["pixel_deviation"] == {"clip": [0.26862954, 0.26130258, 0.27577711], "siglip": [0.5] * 3}[towers.kind]


@pytest.mark.parametrize("command", ["index", "search"])
def test_a_folder_without_a_tokenizer_names_a_remedy(towers, tmp_path, capsys, command):
    assert convert.main([*towers.alone, f"--config.text.tokenizer={towers.words}"]) == 0
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (towers.out / name).rename(kept / name)
    record = recorded(towers.out)
    record["config"]["text"]["tokenizer"] = "no/such-name"
    (towers.out / "config.json").write_text(json.dumps(record))
    Image.new("RGB", (30, 60), (200, 20, 20)).save(tmp_path / "red.png")
    call = [f"--workdir={towers.out}", f"--images={tmp_path}"]
    run, call = {
        "index": (index.main, [*call, f"--index={tmp_path}/index"]), "search": (search.main, [*call, "a red coat"])
    }[command]  # fmt: skip
    capsys.readouterr()
    assert run(call) == 2
    err = capsys.readouterr().err
    remedy = f"put its tokenizer.json and tokenizer_config.json into {towers.out}, or convert again with --config.text."
    assert err.count("error: ") == 1 and remedy in err and "vocab.txt" not in err, err
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the remedy works
        (kept / name).rename(towers.out / name)
    assert run(call) == 0


# ---- the size


def test_the_file_alone_gives_the_model_of_the_repository(towers, cache, tmp_path, capsys):  # noqa: F811
    """Image size, stride and lengths as the model was trained, and a line that says so."""
    store(cache, "tiny/towers", towers.files)
    hub = [f"--source={towers.kind}", "--weights=hf:tiny/towers", f"--out={tmp_path}/hub"]
    assert convert.main(hub) == 0
    capsys.readouterr()
    assert convert.main([*towers.alone, f"--config.text.tokenizer={towers.words}"]) == 0
    size = "image size: 20x20 at stride 5, as the model was trained; "
    other = (
        f'--config.model.image_size="(H,W)" and --config.model.stride=S, or --config=configs/cuhk.py:{towers.kind}, '
    )
    assert f"{size}{other}give another\n" in capsys.readouterr().out
    model, expected = (recorded(folder)["config"] for folder in (towers.out, tmp_path / "hub"))
    assert model["model"] == expected["model"] and model["text"]["length"] == expected["text"]["length"]
    assert model["model"]["image_size"] == [20, 20] and model["text"]["length"]["word"] == LENGTHS[towers.kind]


def test_given_sizes_and_configs_take_precedence_over_the_taught_size(towers, capsys):
    tokenizer = f"--config.text.tokenizer={towers.words}"
    flags = ["--config.model.image_size=(30,15)", "--config.text.length.word=3", "--config.model.stride=3"]
    flags = flags[: 1 if towers.kind == "siglip" else 3]
    assert convert.main([*towers.alone, tokenizer, *flags]) == 0
    config = recorded(towers.out)["config"]
    expected = ([30, 15], 5, 64) if towers.kind == "siglip" else ([30, 15], 3, 3)
    assert (config["model"]["image_size"], config["model"]["stride"], config["text"]["length"]["word"]) == expected
    assert "image size: 30x15 at stride " in capsys.readouterr().out
    other = [f"--out={towers.out}2", "--config=configs/synth.py", "--config.model.image_size=(25,15)"]
    assert convert.main([*towers.alone, tokenizer, *other]) == 0
    assert recorded(towers.out.with_name("out2"))["config"]["model"]["image_size"] == [25, 15]
    assert "image size: 25x15 at stride 5, with flags, else of configs/synth.py; " in capsys.readouterr().out


# ---- a folder, as it was downloaded


def test_a_folder_is_read_as_the_repository(towers, cache, tmp_path, capsys):  # noqa: F811
    store(cache, "tiny/towers", towers.files)
    call = [f"--source={towers.kind}", f"--out={tmp_path}/hub", "--weights=hf:tiny/towers"]
    assert convert.main(call) == 0
    expected = recorded(tmp_path / "hub")
    file = towers.folder / "model.safetensors"
    for number, place in enumerate((towers.folder, file)):
        out = tmp_path / f"out{number}"
        assert convert.main([f"--source={towers.kind}", f"--out={out}", f"--weights={place}"]) == 0
        found = recorded(out)
        assert found["config"].pop("text") | {"tokenizer": ""} == expected["config"]["text"] | {"tokenizer": ""}
        assert found["config"] == {key: value for key, value in expected["config"].items() if key != "text"}
        assert found["tokenizer"] == expected["tokenizer"]
        files = {"model.safetensors": digest(file)}
        if place == file:
            assert found["weights"] == {"source": towers.kind, "files": files}
        else:
            folders = {"weights": {"folder": "repository", "files": files}}
            assert found["weights"] == {"source": towers.kind, "files": {}, "folders": folders}
    assert "image size: 20x20 at stride 5, as the model was trained" in capsys.readouterr().out


def test_a_vit_and_a_bert_are_read_from_folders(tmp_path, cache, transformers, bert):  # noqa: F811
    words = np.random.default_rng(5).normal(size=(2726, 12)).astype(np.float32)
    bert = {**bert, "bert.embeddings.word_embeddings.weight": words}
    write(tmp_path / "vit", {"model.safetensors": transformers, "config.json": VIT})
    write(tmp_path / "bert", {"model.safetensors": bert, "config.json": {"model_type": "bert"}, "vocab.txt": SHIPPED})
    heads = [flag for flag in TINY if "num_heads" not in flag and "width" not in flag]  # the repository's
    call = ["--source=vit", f"--weights={tmp_path}/vit", "--source_text=bert", f"--out={tmp_path}/out", *heads]
    assert convert.main([*call, f"--weights_text={tmp_path}/bert"]) == 0
    assert recorded(tmp_path / "out")["tokenizer"] == load_tokenizer().digest
    assert [*recorded(tmp_path / "out")["weights"]["folders"]] == ["weights", "weights_text"]


def test_a_config_of_another_model_beside_a_file_is_left_out(towers):
    file = towers.folder / "model.safetensors"
    for content in ({"model_type": "bert"}, {"config": {}}, {}):
        (towers.folder / "config.json").write_text(json.dumps(content))
        shutil.rmtree(towers.out, ignore_errors=True)
        assert convert.main([*towers.alone, f"--weights={file}"]) == 0
        assert recorded(towers.out)["config"]["model"]["image_size"] == [20, 20]


FOLDERS = {
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), "{} has no weights that can be read: it ha"),
    "not described": (lambda folder: (folder / "config.json").unlink(), "{} has no config.json, which says the num"),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "{}/model.safetensors is a Git LFS pointer, not the file itself: run git lfs pull",
    ),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "{}/tokenizer.json is a Git LFS pointer, not the file itself: run git lfs pull",
    ),
    "another": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "{} has a model of type bert; "
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_faulty_folder_is_one_line(towers, tmp_path, capsys, fault):
    spoil, message = FOLDERS[fault]
    spoil(towers.folder)
    if fault == "tokenizer":
        (towers.folder / "tokenizer_config.json").unlink(missing_ok=True)
    command = [f"--source={towers.kind}", f"--weights={towers.folder}", f"--out={towers.out}"]
    refused(command, capsys, "error: " + message.format(towers.folder), tmp_path)


@pytest.mark.parametrize("source", ["release", "vlmo", "export"])
def test_sources_of_a_file_name_it(towers, tmp_path, capsys, source):
    command = [f"--source={source}", f"--weights={towers.folder}", f"--out={towers.out}"]
    refused(command, capsys, f"{towers.folder} is a folder; --source={source} reads a file: name it", tmp_path)


def test_a_downloaded_file_is_no_export(towers, tmp_path, capsys):
    file = towers.folder / "model.safetensors"
    message = f"error: {file} is no export, by its names; try --source={towers.kind}\n"
    refused(["--source=export", f"--weights={file}", f"--out={towers.out}"], capsys, message, tmp_path)


def test_a_place_that_is_neither_is_one_line(towers, tmp_path, capsys):
    message = (
        "nowhere is no file or folder; name a file of weights, a folder as the hub has it, or hf:OWNER/NAME for one"
    )
    refused([f"--source={towers.kind}", "--weights=nowhere", f"--out={towers.out}"], capsys, message, tmp_path)
