import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import ivt_jax.checkpoint
import ivt_jax.gallery.encoder
import ivt_jax.workdir
from ivt_jax import search

COLOURS = {"red": (255, 0, 0), "dim": (200, 100, 100), "green": (0, 255, 0), "blue": (0, 0, 255)}


class MeanColour:
    """Stands for the model: an image's embedding is its mean colour, a text's the colour of its first token."""

    def __init__(self, config):
        pass

    def apply(self, variables, inputs, mask=None, *, method):
        if method == "encode_image":
            return inputs.mean((1, 2))[:, None]
        return variables["params"]["colours"][inputs]


class FirstWord:
    def encode(self, texts, length):
        return np.array([[1 + list(COLOURS).index(text.split()[0])] * length for text in texts], np.int32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one picture of each colour, and a model that knows colours."""
    config = ConfigDict(
        {
            "model": {"image_size": (4, 2), "width": 3, "vocab_size": 9, "dtype": "bfloat16"},
            "text": {"tokenizer": "", "length": {"sentence": 3}},
        }
    )
    params = {"colours": jnp.array([(0, 0, 0), *COLOURS.values()]) / 127.5 - 1}
    restored = ivt_jax.checkpoint.Restored(config, params, 7)
    monkeypatch.setattr(ivt_jax.gallery.encoder, "restore_params", lambda workdir: restored)
    monkeypatch.setattr(ivt_jax.gallery.encoder, "IVT", MeanColour)
    monkeypatch.setattr(ivt_jax.gallery.encoder.IVTConfig, "from_config", lambda model: None)
    monkeypatch.setattr(ivt_jax.workdir, "folder_tokenizer", lambda workdir, config: FirstWord())
    folder = tmp_path / "crops"
    for index, (name, colour) in enumerate(COLOURS.items()):
        path = folder / ("cam_a" if index % 2 else ".") / f"{name}.{('png', 'BMP', 'webp', 'jpg')[index]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + index, 20), colour).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def call(folder, *arguments):
    return search.main(["--workdir=run", f"--images={folder}", *arguments])


def test_ranks_the_folder_and_its_subfolders(folder, capsys, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 3)  # the last batch is short
    assert call(folder, "red coat") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["1", "2", "3", "4"]
    assert [line[2] for line in lines[:2]] == [str(folder / "red.png"), str(folder / "cam_a/dim.BMP")]
    # The colours, centred: red (1,-1,-1), dim (.569,-.216,-.216), blue and green share one channel of red's three.
    assert [float(line[1]) for line in lines] == pytest.approx([1, 0.8951, -1 / 3, -1 / 3], abs=5e-3)


def test_top_limits_what_is_shown(folder, capsys):
    assert call(folder, "--top=1", "green shirt") == 0
    assert re.fullmatch(r" *1  \+\d\.\d{4}  \S*green\.webp\n", capsys.readouterr().out)


def test_unreadable_pictures_are_named_and_skipped(folder, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    assert call(folder, "blue") == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 4 and "blue.jpg" in output.out.splitlines()[0]
    assert output.err == f"skipped {folder / 'broken.jpg'}: not a readable image\n"


def test_html_is_a_self_contained_strip(folder, tmp_path):
    page = tmp_path / "strip.html"
    assert call(folder, "--top=3", f"--html={page}", "red <b>coat</b>") == 0
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3 and "red &lt;b&gt;coat&lt;/b&gt;" in text
    assert text.index("red.png") < text.index("dim.BMP") and "4 pictures in" in text
    assert not re.search(r'(src|href)="https?:', text) and 'class="crop hit' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=nowhere", "red"], "nowhere is not a folder"),
        (["--images=EMPTY", "red"], "has no pictures"),
        (["--images=BROKEN", "red"], "none of the 1 pictures can be read"),
        (["--images=CROPS", "  "], "the sentence is empty"),
        (["--images=CROPS", "--html=nowhere/x.html", "red"], "nowhere/x.html cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/x.png").write_text("no picture")
    places = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken", "CROPS": folder}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert search.main(["--workdir=run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_top_must_be_positive(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(folder, "--top=0", "red")
    assert "whole number above 0" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ivt_jax import search\n"
        "try: search.main(['--help'])\n"
        "finally: print([m for m in ('jax', 'flax', 'tensorflow', 'orbax') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: python -m ivt_jax.search") and output.endswith("[]\n")


@pytest.mark.parametrize(
    ("best", "told"),
    [
        (0.29, "probably not in this folder: the best score lies below 0.3000 (from validation, with 1,200 pictures)"),
        # sigmoid(10 * 0.5 - 4) = 1 / (1 + 1/e) = 73.1 %
        (0.5, "if the person is in this folder, the first is right with 73% (from validation, with 1,200 pictures)"),
    ],
)
def test_validation_says_what_a_best_score_means(tmp_path, best, told):
    assert search.verdict(tmp_path, best) == ""
    learned = {"slope": 10.0, "offset": -4.0, "threshold": 0.3, "miss": 0.05, "caught": 0.4, "gallery": 1200}
    (tmp_path / "val").mkdir()
    (tmp_path / "val/summary.json").write_text(json.dumps({"calibration": learned}))
    assert search.verdict(tmp_path, best) == told
