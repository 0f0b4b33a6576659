import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import ivt_jax.encoding.encoder
import ivt_jax.run.checkpoint
from ivt_jax import search
from ivt_jax.retrieval import searcher
from ivt_jax.retrieval.indexing import build
from ivt_jax.retrieval.indexing.sources import read_folder, read_list
from ivt_jax.retrieval.searcher import Phrase, Result
from ivt_jax.retrieval.stores.places import open_store
from tests.gallery.conftest import picture, write_model

COLOURS = {"red": (255, 0, 0), "dim": (200, 100, 100), "green": (0, 255, 0), "blue": (0, 0, 255)}


class MeanColour:
    """Stands for the model: an image's embedding is its mean colour, a text's the colour of its first token."""

    def __init__(self, section):
        self.config = SimpleNamespace(**{**section, "vocab_size": 1 + len(COLOURS), "embedding_width": 3})

    def apply(self, variables, inputs, mask=None, *, method):
        if method == "embed_image":
            return inputs.mean((1, 2))
        return variables["params"]["colours"][inputs[:, 0]]


class FirstColour:
    """Stands for the tokenizer: every token is the first colour that the text names."""

    digest = "colours"

    def encode(self, texts, length):
        words = [next((word for word in text.split() if word in COLOURS), "red") for text in texts]
        return np.array([[1 + list(COLOURS).index(word)] * length for word in words], np.int32)

    def mask(self, ids):
        return ids > 0

    def words(self, ids):
        return ids

    def unread(self, text, length):
        return [word for word in text.split() if not word.isascii()], "", False


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """The folder of a model that knows colours."""
    config = ConfigDict(
        {
            "model": {
                "image_size": (4, 2),
                "width": 3,
                "vocab_size": 9,
                "dtype": "bfloat16",
                "pixel_mean": (0.5,) * 3,
                "pixel_deviation": (0.5,) * 3,
            },
            "text": {"tokenizer": "", "length": {"sentence": 3}},
        }
    )
    params = {"colours": jnp.array([(0, 0, 0), *COLOURS.values()]) / 127.5 - 1}
    restored = ivt_jax.run.checkpoint.Restored(config, params, 7)
    monkeypatch.setattr(ivt_jax.encoding.encoder, "restore_params", lambda workdir: restored)
    monkeypatch.setattr(ivt_jax.encoding.encoder, "build_model", MeanColour)
    for module in (build, searcher):
        monkeypatch.setattr(module, "folder_tokenizer", lambda workdir, config: FirstColour())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"config": {}}')
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path):
    """A folder with one picture of each colour."""
    folder = tmp_path / "crops"
    for index, (name, colour) in enumerate(COLOURS.items()):
        path = folder / ("cam_a" if index % 2 else ".") / f"{name}.{('png', 'BMP', 'webp', 'jpg')[index]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + index, 20), colour).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def call(workdir, folder):
    """call(...): searches the folder; returns the exit code."""
    return lambda *arguments: search.main([f"--workdir={workdir}", f"--images={folder}", *arguments])


EVIL = {"red": 'a "b", =1\n.png', "dim": "<b>&.png", "green": "grün 🧢.png", "blue": "d.png"}  # names of the files
METADATA = [
    "path,camera,seen,track",
    '"a ""b"", =1\n.png",1,2024-05-01T14:30,"x, ""y"""',
    "<b>&.png,1,2024-05-02,",
    "grün 🧢.png,2,,z",
    "d.png,2,2024-05-03,z",
]


@pytest.fixture
def index(workdir, tmp_path):
    """An index of one picture of each colour, named to break what can be broken, with metadata."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (10, 20), colour).save(pictures / EVIL[name])
    (tmp_path / "list.csv").write_text("\n".join(METADATA), encoding="utf-8")
    build.build(tmp_path / "index", read_list(tmp_path / "list.csv", pictures), build.Options(workdir))
    return tmp_path / "index"


@pytest.fixture
def ask(index):
    """ask(...): searches the index; returns the exit code."""
    return lambda *arguments: search.main([f"--index={index}", *arguments])


def table_of(text):
    """The lines of a table, without those on what it rests on."""
    lines = text.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if " searched; index " in line)]


def paths_of(capsys):
    return [path.rpartition("/")[2] for path in capsys.readouterr().out.split("\0")[:-1]]


# ---- a folder


def test_ranks_the_folder_and_its_subfolders(call, folder, capsys):
    assert call("red coat") == 0
    *lines, told = [line.split() for line in table_of(capsys.readouterr().out)]
    assert [line[0] for line in lines] == ["1", "2", "3", "4"]
    # The colours, centred: red (1,-1,-1), dim (.569,-.216,-.216), blue and green share one channel of red's three.
    assert [float(line[1]) for line in lines] == pytest.approx([1, 0.8951, -1 / 3, -1 / 3], abs=5e-3)
    assert [line[2:5] for line in lines[:2]] == [["red", "coat", "?"]] * 2
    assert " ".join(told) == "no fit of phrases: no validation shows what this model can tell"
    assert [line[5] for line in lines[:2]] == [str(folder / "red.png"), str(folder / "cam_a/dim.BMP")]


def test_top_limits_what_is_shown(call, capsys):
    assert call("--top=1", "green shirt") == 0
    assert re.match(
        r"  1  \+\d\.\d{4}  green shirt \?  \S*green\.webp  odd: smaller than 8 x 25 pixels\nno fit",
        capsys.readouterr().out,
    )


def test_a_phrase_that_the_model_can_tell_has_its_fit(call, calibrated, folder, capsys):
    """Of four pictures 3, 2, 0 and 0 fit less well, and one, one, two and two as well, which count half."""
    assert call("red coat and glasses") == 0
    lines = table_of(capsys.readouterr().out)
    assert [line.split("  ")[3] for line in lines[:2]] == ["red coat 0.88 · glasses ?", "red coat 0.62 · glasses ?"]
    assert lines[-1] == "this model cannot tell: glasses"


def test_a_likely_spelling_is_suggested(call, capsys):
    assert call("a rde coat", "--paths") == 0
    assert capsys.readouterr().err == "did you mean: a red coat\n"


def test_unreadable_pictures_are_named_and_skipped(call, folder, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    assert call("blue") == 1
    output = capsys.readouterr()
    assert len(table_of(output.out)) == 4 + 1 and "blue.jpg" in output.out.splitlines()[0]
    assert output.err == f"skipped {folder / 'broken.jpg'}: not a readable image\n"


def test_nothing_is_left_of_the_index_of_a_folder(call, folder, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(search.tempfile, "tempdir", str(tmp_path / "temporary"))
    before = sorted(folder.rglob("*"))
    assert call("blue") == 0
    assert sorted(folder.rglob("*")) == before and not list((tmp_path / "temporary").iterdir())


# ---- queries


def test_sentences_have_weights_and_signs(ask, capsys):
    # Centred, red is (1,-1,-1), dim (.57,-.22,-.22), green (-1,1,-1), blue (-1,-1,1).
    assert ask("red coat", "--and", "3: blue bag", "--not", "green shoes", "--paths", "--null") == 0
    assert paths_of(capsys) == [EVIL[name] for name in ("blue", "red", "dim", "green")]
    assert ask("--not", "red coat", "--paths", "-0", "--top=2") == 0
    assert {*paths_of(capsys)} == {EVIL["green"], EVIL["blue"]}  # alike but for rounding


def test_an_image_finds_its_like(ask, tmp_path, capsys):
    Image.new("RGB", (30, 50), (10, 240, 20)).save(tmp_path / "crop.png")
    assert ask(f"--image={tmp_path}/crop.png", "--top=1") == 0
    assert re.match(r"  1  \+0\.99\d\d  .*grün 🧢\.png  odd: .*\n4 pictures searched", capsys.readouterr().out)
    assert ask(f"--image={tmp_path}/crop.png", "5: blue", "--paths", "-0", "--top=1") == 0
    assert paths_of(capsys) == [EVIL["blue"]]


def test_an_odd_query_picture_is_named(ask, tmp_path, capsys):
    Image.new("RGB", (1920, 1080), (10, 240, 20)).save(tmp_path / "frame.png")
    assert ask(f"--image={tmp_path}/frame.png", "--paths", "--top=1") == 0
    told = "the query's picture is wider than high, as a full frame is: cut the person out first\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--where", "camera = 2"], ["green", "blue"]),
        (["--where", "seen > '2024-05-01' and not camera = 2"], ["red", "dim"]),
        (["--where", "track is missing or seen = '2024-05-03'"], ["dim", "blue"]),
        (["--where", "camera = 3"], []),
        (["--where", "camera = 1 or camera = 2", "--where", " ", "--where", "track = 'z'"], ["green", "blue"]),
        (["--group=camera"], ["red", "green"]),
        (["--group=track"], ["red", "dim", "green"]),
        (["--distinct=0.85"], ["red", "green", "blue"]),  # dim is like red
        (["--distinct=0.95", "--exact", "--top=2"], ["red", "dim"]),
    ],
)
def test_filters_groups_and_distinct_ones(ask, capsys, arguments, found):
    assert ask("red", "--paths", "--null", *arguments) == 0
    assert paths_of(capsys) == [EVIL[name] for name in found]


def test_another_model_is_refused_with_the_remedy(ask, monkeypatch, capsys):
    monkeypatch.setattr(FirstColour, "digest", "others")
    assert ask("red") == 2
    error = capsys.readouterr().err
    assert "the index was made with tokenizer colours, " in error and "--workdir" in error and error.count("\n") == 1


# ---- what validation says


@pytest.fixture
def calibrated(workdir):
    """Red has a score of 1 with red, dim one of 0.8951."""
    learned = {"slope": 10.0, "offset": -9.0, "threshold": 0.3, "miss": 0.05, "caught": 0.4, "gallery": 1200}
    learned["nouns"] = {noun: [0.9, 9] for noun in ("red", "coat", "bag")}
    (workdir / "val").mkdir()
    (workdir / "val/summary.json").write_text(json.dumps({"calibration": learned}))
    return workdir / "val/summary.json"


def test_the_table_ends_with_what_validation_says(ask, call, calibrated, capsys):
    # sigmoid(10 - 9) = 1 / (1 + 1/e) = 73.1 %
    verdict = "73% likely that the first picture is right, if the person is in the index "
    verdict += "(from validation, with 1,200 pictures)"
    for action in (ask, call):
        assert action("red") == 0
        assert table_of(capsys.readouterr().out)[-1] == verdict
    calibrated.write_text(calibrated.read_text().replace("0.3,", "1.1,"))
    assert ask("red") == 0
    verdict = "no good match: the best score lies below 1.1000 (from validation, with 1,200 pictures)"
    assert table_of(capsys.readouterr().out)[-1] == verdict
    assert ask("red", "--csv") == 0
    assert capsys.readouterr().err.splitlines()[0] == verdict
    assert ask("red", "--and", "blue", "--paths") == 0
    assert capsys.readouterr().err.startswith("No confidence estimate: calibration covers single sentences")


# ---- forms


def test_json_is_one_object(ask, calibrated, tmp_path, capsys):
    assert ask("red coat", "--not", "0.25: blue bag", "--top=1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["query"] == {
        "terms": [{"text": "red coat", "weight": 1.0}, {"text": "blue bag", "weight": -0.25}],
        "image": None, "like": None, "image_weight": 1.0, "where": "", "unlike": [],
    }  # fmt: skip
    assert (told["searched"], told["good"], told["verdict"][:13]) == (4, None, "No confidence")
    (result,) = told["results"]
    assert result.pop("score") > 0.5
    assert result == {
        "rank": 1, "id": 0, "path": EVIL["red"], "file": f"{tmp_path}/pictures/{EVIL['red']}", "probability": None,
        "phrases": [
            {"text": "red coat", "score": 0.875, "wanted": True}, {"text": "blue bag", "score": 0.5, "wanted": False},
        ],
        "metadata": {"camera": 1, "seen": "2024-05-01T14:30:00+00:00", "track": 'x, "y"'},
        "odd": "smaller than 8 x 25 pixels", "folded_under": None,
    }  # fmt: skip


def test_json_has_the_image_and_no_results_where_there_are_none(ask, tmp_path, capsys):
    Image.new("RGB", (30, 50)).save(tmp_path / "crop.png")
    assert ask(f"--image={tmp_path}/crop.png", "--where=camera = 3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["query"]["image"] == f"{tmp_path}/crop.png" and told["query"]["where"] == "camera = 3"
    assert (told["results"], told["searched"], told["good"]) == ([], 0, False)


def test_an_answer_says_what_it_rests_on(ask, index, tmp_path, capsys):
    """In each form: index and model with their times, the files passed over, and pictures that are no crops."""
    (tmp_path / "pictures/more.mp4").write_bytes(b"")
    store = open_store(index)
    passed = {"not a readable image": 2, "in folders named @eaDir": 7}
    store.set_about(dataclasses.replace(store.about, passed=passed, updated="2024-05-01T12:00:00+00:00"))
    assert ask("red", "--json") == 0
    basis = json.loads(capsys.readouterr().out)["basis"]
    assert (basis["made"], basis["model"]) == (store.about.made, store.about.model)
    assert (basis["passed"], basis["odd"], basis["updated"]) == (passed, 4, "2024-05-01T12:00:00+00:00")
    assert basis["outdated"].endswith("has changed since; update the index: python -m ivt_jax.index --index=INDEX")
    lines = [
        f"4 pictures searched; index {basis['made'][:12]} of 2024-05-01T12:00:00+00:00, model {basis['model'][:12]}",
        "not in the index: not a readable image (2), in folders named @eaDir (7)", basis["outdated"],
        "4 results of an odd shape or size: their scores may be wrong",
    ]  # fmt: skip
    page = tmp_path / "found.html"
    assert ask("red", f"--html={page}") == 0
    assert capsys.readouterr().out.splitlines()[-4:] == lines
    assert all(f"<p>{line}</p>" in page.read_text() for line in lines)
    assert ask("red", "--csv") == 0
    assert capsys.readouterr().err.splitlines()[-4:] == lines


def test_csv_quotes_any_path(ask, tmp_path, capsys):
    assert ask("red coat and a blue bag", "--csv") == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert header == [
        "rank", "id", "score", "probability", "path", "file", "phrase.red coat", "phrase.blue bag", "metadata.camera",
        "metadata.seen", "metadata.track",
    ]  # fmt: skip
    assert [row[:2] + row[3:5] for row in rows[:2]] == [["1", "0", "", EVIL["red"]], ["2", "1", "", EVIL["dim"]]]
    assert rows[0][5] == f"{tmp_path}/pictures/{EVIL['red']}" and float(rows[0][2]) == pytest.approx(1, abs=1e-3)
    assert rows[0][6:] == ["", "", "1", "2024-05-01T14:30:00+00:00", 'x, "y"']
    assert {row[4]: row[9:] for row in rows}[EVIL["green"]] == ["", "z"]
    assert ask("red", "--not", "blue bag", "--csv") == 0
    assert "phrase.red,phrase.not blue bag," in capsys.readouterr().out


def test_no_cell_is_a_formula(workdir, tmp_path, capsys):
    for name in ("=cmd|' C'!A0.png", "@red.png", "-1.png"):
        Image.new("RGB", (10, 20), COLOURS["red"]).save(tmp_path / name)
    paths = ["=cmd|' C'!A0.png,+1,-1.5", "@red.png,a+b,2", "-1.png,=1,0"]
    (tmp_path / "list.csv").write_text("\n".join(["path,note,height", *paths]))
    build.build(tmp_path / "index", read_list(tmp_path / "list.csv", tmp_path), build.Options(workdir))
    assert search.main([f"--index={tmp_path}/index", "red", "--csv"]) == 0
    _, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    told = {row[4]: row[-2:] for row in rows}
    assert told == {"'=cmd|' C'!A0.png": ["'+1", "-1.5"], "'@red.png": ["a+b", "2.0"], "'-1.png": ["'=1", "0.0"]}


def test_what_the_model_does_not_read_is_told(ask, tmp_path, capsys):
    told = 'not read: "grün" (unknown to the model)'
    assert ask("red grün coat", "--top=1") == 0
    assert capsys.readouterr().out.splitlines()[1:2] == [told]
    page = tmp_path / "found.html"
    assert ask("red grün coat", "--paths", f"--html={page}") == 0
    assert capsys.readouterr().err == f"{told}\n" and "<p>not read: &#34;grün&#34; (unk" in page.read_text("utf-8")
    assert ask("red grün coat", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unread"] == told


def test_an_unfinished_index_says_so_in_every_form(ask, index, calibrated, tmp_path, capsys):
    told = "the index is unfinished (4 of 20,000 pictures); wait for its build, or run python -m ivt_jax.index again"
    verdict = f"No confidence estimate: {told}"
    store = open_store(index)
    store.set_about(dataclasses.replace(store.about, planned=20_000))
    assert ask("red") == 0
    assert table_of(capsys.readouterr().out)[4:] == [verdict]
    page = tmp_path / "found.html"
    for form in ("--csv", "--paths"):
        assert ask("red", form, f"--html={page}") == 0
        assert capsys.readouterr().err.splitlines()[0] == verdict
        assert f'<p class="verdict ">{verdict}</p>' in page.read_text(encoding="utf-8")
    assert ask("red", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["unfinished"], found["good"]) == (verdict, told, None)
    assert {result["probability"] for result in found["results"]} == {None}
    store.set_about(dataclasses.replace(store.about, planned=0))
    assert ask("red", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unfinished"] == "" and found["results"][0]["probability"] is not None


def test_paths_are_lines_or_end_with_nul(ask, tmp_path, capsys):
    assert ask("blue", "--paths", "--top=1") == 0
    assert capsys.readouterr() == (f"{tmp_path}/pictures/d.png\n", "")
    assert ask("red", "--paths", "--null", "--top=2") == 0
    assert capsys.readouterr().out == f"{tmp_path}/pictures/{EVIL['red']}\0{tmp_path}/pictures/<b>&.png\0"


def test_a_name_with_a_line_break_is_one_line_of_the_table(ask, capsys):
    assert ask("red") == 0
    lines = table_of(capsys.readouterr().out)
    assert len(lines) == 4 + 1 and r'pictures/a "b", =1\n.png  odd: ' in lines[0]


def test_html_is_a_self_contained_page(call, calibrated, tmp_path):
    page = tmp_path / "found.html"
    assert call("--top=3", f"--html={page}", "red <b>coat</b>", "--not", "0.25: blue bag") == 0
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 3 and "red &lt;b&gt;coat&lt;/b&gt;" in text
    assert text.index("red.png") < text.index("dim.BMP") and "4 pictures in" in text
    assert not re.search(r'(src|href)="https?:', text) and "<script" not in text
    assert re.findall(r"<small>\W*(.*?)</small>", text) == ["not", "0.25"]
    shares = re.findall(r'<dt dir="auto">(.*?)</dt>\s*<dd>(.*?)</dd>', text)
    assert shares[0] == ("red", "0.88") and text.count("width:88%") == 2
    assert [name for name, _ in shares] == ["red", "coat", "not blue bag"] * 3
    assert "cannot tell" not in text


def test_the_page_bears_any_name_and_shows_the_image_asked_for(ask, calibrated, tmp_path):
    page = tmp_path / "found.html"
    Image.new("RGB", (30, 50), (250, 0, 10)).save(tmp_path / "crop.png")
    assert ask(f"--image={tmp_path}/crop.png", "--where=camera <= 1", f"--html={page}") == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 3 and "Pictures like this one" in text
    assert "&lt;b&gt;&amp;.png" in text and r"a &#34;b&#34;, =1\n.png" in text and "<b>&" not in text
    assert "<code>camera &lt;= 1</code>" in text and "2 pictures in" in text
    assert ask("red", "--where=camera = 3", f"--html={page}") == 0
    assert 'class="verdict bad">no good match: there is no such picture<' in page.read_text(encoding="utf-8")


def test_explained_each_phrase_has_its_heat_map(tmp_path, capsys):
    """With the model itself, of random parameters."""
    workdir = write_model(tmp_path / "model")
    for seed in range(3):
        (tmp_path / "crops").mkdir(exist_ok=True)
        (tmp_path / "crops" / f"{seed}.png").write_bytes(picture(seed))
    build.build(tmp_path / "index", read_folder(tmp_path / "crops"), build.Options(workdir))
    (tmp_path / "crops/1.png").unlink()
    page = tmp_path / "found.html"
    arguments = [f"--index={tmp_path}/index", f"--html={page}", "--explain", "a man in a red coat with a black bag"]
    assert search.main(arguments) == 1
    assert capsys.readouterr().err == f"skipped {tmp_path}/crops/1.png: cannot be read any more\n"
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    assert len(pictures) == 12 == len({*pictures})  # three crops, and of each man, red coat and black bag
    assert page.read_text().count('alt="where black bag is seen"') == 3


def test_a_phrase_that_the_model_cannot_tell_has_no_heat_map():
    phrases = (Phrase("red coat", 0.9), Phrase("glasses", None), Phrase("hat", 0.2, False))
    asked = []

    class Mapping:
        def heat_maps(self, id, phrases):
            asked.append(phrases)
            return Image.new("RGB", (4, 8)), np.zeros((len(phrases), 2, 1), np.float32)

        def thumbnail(self, id):
            return None

    drawn = search.draw(Mapping(), Result(0, "a.jpg", 0.5, None, phrases, {}), explained=True)
    assert [phrase.text for phrase, _ in drawn["heats"]] == ["red coat", "hat"] == asked[0]
    unknown = tuple(phrase._replace(score=None) for phrase in phrases)  # no validation: all are drawn
    search.draw(Mapping(), Result(0, "a.jpg", 0.5, None, unknown, {}), explained=True)
    assert asked[1] == ["red coat", "glasses", "hat"]


# ---- files


@pytest.mark.parametrize("flag", ["--copy_to", "--copy-to"])
def test_copies_are_named_by_rank(ask, tmp_path, flag):
    assert ask("red", "--top=2", f"{flag}={tmp_path}/found") == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "found").iterdir()}
    originals = [(tmp_path / "pictures" / EVIL[name]).read_bytes() for name in ("red", "dim")]
    assert copied == {f"01_{EVIL['red']}": originals[0], f"02_{EVIL['dim']}": originals[1]}


def test_a_file_that_has_changed_since_is_not_copied(ask, tmp_path, capsys):
    Image.new("RGB", (10, 20), "white").save(tmp_path / "pictures" / EVIL["dim"])
    assert ask("red", "--top=2", f"--copy_to={tmp_path}/found") == 1
    assert [path.name[:2] for path in (tmp_path / "found").iterdir()] == ["01"]
    changed = f"skipped {tmp_path}/pictures/{EVIL['dim']}: has changed since it was indexed: update the index\n"
    assert capsys.readouterr().err == changed


def test_what_is_gone_is_told_and_the_rest_is_copied(ask, tmp_path, capsys):
    (tmp_path / "pictures" / EVIL["red"]).unlink()
    page = tmp_path / "found.html"
    assert ask("red", "--top=3", f"--copy_to={tmp_path}/found", f"--html={page}") == 1
    assert [path.name[:2] for path in sorted((tmp_path / "found").iterdir())] == ["02", "03"]
    told = capsys.readouterr()
    assert told.err == rf'skipped {tmp_path}/pictures/a "b", =1\n.png: cannot be read any more' + "\n"
    assert len(table_of(told.out)) == 3 + 1 and page.read_text().count("data:image/jpeg") == 3  # its thumbnail


def test_moved_pictures_print_the_remedy(ask, tmp_path, capsys):
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    assert ask("red", "--top=2", f"--copy_to={tmp_path}/found") == 1
    *skipped, last = capsys.readouterr().err.splitlines()
    assert len(skipped) == 2 and last.endswith(
        f"python -m ivt_jax.index --index={tmp_path}/index --moved --images=FOLDER"
    )
    assert not (tmp_path / "found").exists()


def test_where_nothing_is_found_the_missing_copies_are_told(ask, tmp_path, capsys):
    assert ask("red", "--where=camera = 99", f"--copy_to={tmp_path}/found") == 0
    assert capsys.readouterr().err == f"{tmp_path}/found: not made, because there is no picture to copy\n"
    assert not (tmp_path / "found").exists()


def test_a_copy_has_a_name_that_a_file_can_have(call, folder, tmp_path):
    name = "ü" * 125 + ".png"  # 254 bytes
    Image.new("RGB", (10, 20), COLOURS["red"]).save(folder / name)
    assert call("red", "--top=2", f"--copy_to={tmp_path}/found") == 0
    assert f"01_{'ü' * 124}.png" in {path.name.replace("02_", "01_") for path in (tmp_path / "found").iterdir()}


def test_a_long_suffix_is_cut_as_the_name(folder, workdir, tmp_path):
    """A list may name files without a usual suffix."""
    name = "a." + "b" * 253
    Image.new("RGB", (10, 20), COLOURS["red"]).save(folder / name, "PNG")
    (tmp_path / "list.csv").write_text(f"image\n{name}\n")
    build.build(tmp_path / "listed", read_list(tmp_path / "list.csv", folder), build.Options(workdir))
    assert search.main([f"--index={tmp_path}/listed", "red", f"--copy_to={tmp_path}/found"]) == 0
    assert [path.name for path in (tmp_path / "found").iterdir()] == [f"01_a.{'b' * 250}"]


def test_pictures_of_an_archive_are_found_and_copied(call, folder, tmp_path, capsys):
    with tarfile.open(folder / "more.tar", "w") as archive:
        archive.add(folder / "red.png", "a/rot.png")
    content = (folder / "red.png").read_bytes()
    (folder / "red.png").unlink()
    assert call("red", "--top=1", "--paths", f"--copy_to={tmp_path}/found") == 0
    assert capsys.readouterr().out == f"{folder}/more.tar/a/rot.png\n"
    assert (tmp_path / "found/01_rot.png").read_bytes() == content


def test_copies_are_all_there_or_none(ask, tmp_path, monkeypatch, capsys):
    copied = []

    def read(root, row):
        copied.append(row)
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        return b"x"

    monkeypatch.setattr(searcher, "read_unchanged", read)
    assert ask("red", f"--copy_to={tmp_path}/found") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/found cannot be written: No space left on device\n"
    assert not [path for path in tmp_path.iterdir() if "found" in path.name]


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=nowhere", "red"], "nowhere is not a folder"),
        (["--images=EMPTY", "red"], "has no pictures"),
        (["--images=BROKEN", "red"], "none of 1 picture can be read"),
        (["--images=CROPS", "  "], "the sentence is empty"),
        (["--images=CROPS"], "the query is empty"),
        (["--images=CROPS", "--html=nowhere/x.html", "red"], "nowhere/x.html cannot be written"),
        (["--images=CROPS", "--copy_to=EMPTY", "red"], "exists: name a new folder"),
        (["--images=CROPS", "--html=EMPTY", "red"], "is a folder: name a file"),
        (["--images=CROPS", "--html=EMPTY/x", "--copy_to=EMPTY/x", "red"], "x: name a file and a folder"),
        (["--images=CROPS", "--copy_to=nowhere/x", "red"], "its folder is missing or read-only"),
        (["--images=CROPS", "red", "--not", "3: red!"], "the parts of the query cancel each other out"),
        (["--images=CROPS", "2,5: red"], '2,5 before ":" is no weight: write a number such as 2.5'),
        (["--images=CROPS", "a man without a hat", "--and", "a hat"], "'hat' is both wanted and unwanted"),
        (["--images=CROPS", "red", "--not", "Red"], "'Red' is both wanted and unwanted: remove one of them"),
        (
            ["--images=CROPS", "red", "--image_weight=2"],
            "image_weight is the weight of a picture, and the query has none",
        ),
        (
            ["--images=CROPS", "red", "--where=path = 'a') or (path = 'b'", "--where=path = 'a'"],
            "the filter at character 11, ",
        ),
        (["--images=CROPS", "--where=camera = 1", "red"], "the index has no such field; it has: path alone"),
        (["--images=CROPS", "--image=nowhere.png"], "nowhere.png is not a file"),
        (["--index=EMPTY", "red"], "is not an index"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(workdir, folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/x.png").write_text("no picture")
    places = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken", "CROPS": folder}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert search.main([f"--workdir={workdir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where=colour = 1"], "colour"),
        (["--group=colour"], 'no field "colour"'),
        (["--distinct=2"], "at most 1"),
        (["--and", "0: hat"], "out of bounds"),
    ],
)
def test_a_query_that_cannot_be_asked_is_told_before_the_model_is_read(ask, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(searcher, "Encoder", None)
    assert ask("red", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=crops", "red"], "--images needs --workdir"),
        (["--index=x", "--images=crops", "red"], "not allowed with"),
        (["red"], "one of the arguments --index --images is required"),
        (["--index=x", "--json", "--csv", "red"], "not allowed with"),
        (["--index=x", "--null", "red"], "--null needs --paths"),
        (["--index=x", "--explain", "red"], "--explain needs --html"),
        (["--index=x", "--top=0", "red"], "whole number above 0"),
        (["--index=x", "--image=a.png", "--image=b.png"], "--image is given twice"),
        (["--index=x", "red", "blue"], "unrecognized arguments: blue"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        search.main(arguments)
    assert message in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ivt_jax import search\n"
        "try: search.main(['--help'])\n"
        "finally: print([m for m in ('jax', 'flax', 'tensorflow', 'orbax', 'lance') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: python -m ivt_jax.search") and output.endswith("[]\n")
