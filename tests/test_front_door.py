"""`import ivt_jax` for programs, and the command `ivt`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import ivt_jax
from ivt_jax.__main__ import HELP, VERBS, installed_config
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.embedding import encode_images, encode_texts
from ivt_jax.encoding.images import load_image
from ivt_jax.retrieval.indexing.build import Options, build
from ivt_jax.retrieval.indexing.sources import read_folder
from tests.gallery.conftest import picture, write_model

ROOT = Path(__file__).parent.parent
TEXTS = ["a woman in a red coat", "a man", "a tall man with a very long black umbrella and a white cap"]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and five crops."""
    folder = tmp_path_factory.mktemp("door")
    write_model(folder / "model")
    (folder / "crops").mkdir()
    for seed in range(5):
        (folder / f"crops/{seed}.png").write_bytes(picture(seed))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ivt_jax.load(folder / "model")


def files(folder):
    return sorted((folder / "crops").iterdir())


def test_the_import_loads_no_jax():
    done = python("-c", "import sys, ivt_jax; print([name for name in ('jax', 'numpy', 'PIL') if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_pictures_are_embedded_as_in_evaluation(folder, model):
    pixels = np.stack([load_image(file, model.size) for file in files(folder)])
    expected = np.asarray(encode_images(model.model, jax.device_get(model.params), pixels))
    found = model.embed_images(files(folder))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_files_images_and_arrays_give_the_same_embedding(folder, model):
    file = files(folder)[0]
    with Image.open(file) as image:
        array = np.asarray(image.convert("RGB"))
        found = model.embed_images([file, str(file), image, array])
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-6)


def test_an_image_is_turned_upright_by_its_exif(model):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = model.embed_images([image, turned])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_any_number_is_embedded_in_batches(folder, model):
    many = files(folder) * 5  # 25 pictures, 8 fake devices: batches of 8, 8, 8 and 1
    np.testing.assert_allclose(model.embed_images(many, batch_size=1), model.embed_images(many), atol=1e-6)
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, 12)
    assert model.embed_images(np.zeros((2, 30, 20, 3), np.uint8)).shape == (2, 12)


def test_texts_are_embedded_as_in_evaluation(model):
    ids = model.tokenizer.encode(TEXTS, 24)
    expected = np.asarray(encode_texts(model.model, jax.device_get(model.params), ids, ids > 0))
    np.testing.assert_allclose(model.embed_texts(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TEXTS, batch_size=1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.jpg", r"^expected a list of pictures, not one: put it in brackets$"),
        (["nowhere.jpg"], r"^nowhere.jpg: .*No such file"),
        ([3], r"^not an image: int; expected a file, a PIL image or a uint8 array \(H, W, 3\)$"),
        ([np.zeros((9, 9, 3))], r"^not an image: array of float64, \(9, 9, 3\); expected "),
        ([np.zeros((9, 9), np.uint8)], r"^not an image: array of uint8, \(9, 9\); expected "),
        ([np.zeros((0, 9, 3), np.uint8)], r"^not an image: array of uint8, \(0, 9, 3\); expected "),
        ([Image.new("F", (9, 9))], r"^the PIL image: .* pixels have no agreed range"),
    ],
)
def test_other_images_are_refused(model, images, message):
    with pytest.raises(UserError, match=message):
        model.embed_images(images)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a man", r"^expected a list of texts, not one: put it in brackets$"),
        (["a man", " "], r"^texts: number 1 has no word that the model knows: ' '$"),
        ([b"a man"], r"^texts: number 0 is bytes; expected a string$"),
    ],
)
def test_other_texts_are_refused(model, texts, message):
    with pytest.raises(UserError, match=message):
        model.embed_texts(texts)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_row(folder, model, batch_size):
    for embed, items in ((model.embed_images, files(folder)), (model.embed_texts, TEXTS)):
        with pytest.raises(UserError, match=rf"^batch_size is {batch_size}; choose 1 or more$"):
            embed(items, batch_size=batch_size)


def test_a_model_reads_its_own_tokenizer_after_a_change_of_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    model = ivt_jax.load("model")
    (folder / "elsewhere/model").mkdir(parents=True)
    (folder / "elsewhere/model/config.json").write_text('{"config": {}, "tokenizer": "of another model"}')
    monkeypatch.chdir(folder / "elsewhere")
    assert model.embed_texts(TEXTS).shape == (3, 12)


def test_an_index_is_searched(folder, model):
    build(str(folder / "index"), read_folder(folder / "crops"), Options(folder / "model"))
    searcher = ivt_jax.open_index(folder / "index")
    answer = searcher.search(TEXTS[0])
    scores = (model.embed_images(files(folder)) @ model.embed_texts(TEXTS[:1]).T)[:, 0]
    assert [result.path for result in answer.results] == [f"{i}.png" for i in np.argsort(-scores)]
    np.testing.assert_allclose([result.score for result in answer.results], np.sort(scores)[::-1], atol=1e-3)


def test_every_verb_runs_a_module():
    modules = [module for module, _, _ in VERBS.values()]
    assert all(importlib.util.find_spec(module) for module in modules)
    assert [verb for verb, (module, flags, _) in VERBS.items() if flags] == ["train", "evaluate", "export"]


@pytest.mark.parametrize("text", [HELP, (ROOT / "README.md").read_text()], ids=["--help", "README"])
def test_the_module_of_a_verb_is_as_it_is_said(text):
    assert (
        "Each verb is also a module: `ivt search` is `python -m ivt_jax.search`. But train, evaluate and export are "
        "`python -m ivt_jax.main --mode=VERB`; `python -m input_pipeline.doctor` is doctor, and prepare likewise."
    ) in " ".join(text.split()).replace("Each is", "Each verb is")
    said = {verb: ("ivt_jax.main", [f"--mode={verb}"]) for verb in ("train", "evaluate", "export")}
    said |= {verb: (f"input_pipeline.{verb}", []) for verb in ("doctor", "prepare")}
    for verb, (module, flags, _) in VERBS.items():
        assert (module, flags) == said.get(verb, (f"ivt_jax.{verb}", []))


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert installed_config("--config=configs/synth.py:mla") == f"--config={ROOT}/configs/synth.py:mla"
    assert installed_config("configs/synth.py:mla", "--config") == f"{ROOT}/configs/synth.py:mla"
    for other in ("--config=mine.py", "--config.data.root=configs/synth.py", "configs/synth.py"):
        assert installed_config(other) == other
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/synth.py").touch()
    assert installed_config("--config=configs/synth.py:mla") == "--config=configs/synth.py:mla"


def test_a_verb_is_the_same_program_as_its_module():
    verb, module = python("-m", "ivt_jax", "search", "--index=nowhere", "red"), "ivt_jax.search"
    whole = python("-m", module, "--index=nowhere", "red")
    assert (verb.returncode, verb.stderr) == (whole.returncode, whole.stderr) and verb.returncode == 2
    assert "nowhere" in verb.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["fly"], 2)])
def test_the_command_names_its_verbs_on_one_screen(arguments, code):
    done = python("-m", "ivt_jax", *arguments)
    assert done.returncode == code and len((done.stdout + done.stderr).splitlines()) <= 24
    if arguments != ["fly"]:
        assert all(f"\n  {verb} " in done.stdout + done.stderr for verb in VERBS)
    else:
        assert done.stderr == "error: no verb 'fly'; ivt --help lists them\n"
