"""Hostile pictures and hostile texts at every door: refused or bounded, and no neighbour is harmed.

One folder of pictures goes through all that opens pictures, one list of texts through all that reads texts.
"""

import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import doctor
from input_pipeline.annotations import read_annotations
from input_pipeline.inspection import inspect_image
from input_pipeline.noun_phrases import attribute_phrases
from input_pipeline.perturbations import PERTURBATIONS, perturb
from input_pipeline.text_levels import LONGEST, clauses, draw_levels
from input_pipeline.text_levels import main as text_levels
from input_pipeline.text_levels import words as word_level
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax import search
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import load_image
from ivt_jax.gallery.shard import embed_shard
from ivt_jax.gallery.vectors import read_vectors
from ivt_jax.pages import report
from tests.conftest import needs_tensorflow
from tests.pages.test_report import write_run, write_split

ROOT = Path(__file__).parent.parent.parent

# ---- pictures


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(colour, mode="RGB", size=(30, 60)):
    return Image.new("RGB", size, colour).convert(mode)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, pixels, before=b""):
    """A PNG by hand; pixels: a stream of zlib; before: chunks between the header and them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(megabytes):
    """So many, compressed a thousandfold."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(megabytes)) + packer.flush()


def jpeg_of_65000():
    """A picture whose header says 65,000 x 65,000."""
    content = bytearray(encoded(flat("red"), "JPEG"))
    frame = content.index(b"\xff\xc0")  # then length (2), precision (1), height, width
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(content)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 30, 3), np.uint8))
GIF = encoded(flat("red", "P"), "GIF", save_all=True, append_images=[flat("lime", "P")])
GREY16 = Image.fromarray(np.full((60, 30), 0x80FF, np.uint16))
BOMB = png(65_000, 65_000, zeros(1))
# name -> the file, and the colour that every pixel has, or None where it is to be refused
PICTURES = {
    "animated.gif": (GIF, (255, 0, 0)),  # of which the first frame counts
    "bomb.jpg": (jpeg_of_65000(), None),
    "bomb.png": (BOMB, None),
    "cmyk.jpg": (encoded(flat((200, 40, 40), "CMYK"), "JPEG", quality=100), (200, 40, 40)),
    "cut.jpg": (encoded(NOISE, "JPEG")[:-700], None),
    "cut.png": (encoded(NOISE)[:400], None),
    "empty.jpg": (b"", None),
    "half_transparent.png": (encoded(flat((0, 120, 240), "RGBA")), (0, 120, 240)),
    "in truth a png.jpg": (encoded(flat((10, 200, 30))), (10, 200, 30)),
    "more_than_it_says.png": (png(30, 60, zeros(200)), (0, 0, 0)),
    "one_pixel.png": (encoded(flat((1, 2, 250), size=(1, 1))), (1, 2, 250)),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", None),
    "sixteen_bits.png": (encoded(GREY16), (0x80, 0x80, 0x80)),
    "text.png": (b"a man in a red coat", None),
    "text_bomb.png": (png(30, 60, zeros(1), chunk(b"zTXt", b"note\0\0" + zeros(200))), None),
}
GOOD = {name for name, (_, colour) in PICTURES.items() if colour}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """CUHK-PEDES' layout: the hostile pictures are its training images, one sound one is its test split."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "imgs").mkdir()
    for name, (content, _) in PICTURES.items():
        (root / "imgs" / name).write_bytes(content)
    records = [{"id": i, "file_path": n, "captions": [f"{n}."], "split": "train"} for i, n in enumerate(PICTURES)]
    (root / "imgs/sound.bmp").write_bytes(encoded(NOISE, "BMP"))
    records.append({"id": 99, "file_path": "sound.bmp", "captions": ["Sound."], "split": "test"})
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root


@pytest.fixture(scope="module")
def encoder(workdir):
    return Encoder(workdir)


def test_a_picture_is_opened_or_refused_in_one_line(dataset):
    for name, (_, colour) in PICTURES.items():
        path = dataset / "imgs" / name
        assert bool(inspect_image(dataset / "imgs", name).fault) == (colour is None), name
        if colour is None:
            with pytest.raises(UserError) as error:
                load_image(path, (8, 4))
            assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        else:
            np.testing.assert_allclose(load_image(path, (8, 4)), np.broadcast_to(colour, (8, 4, 3)), atol=4)


def test_the_doctor_names_them_and_the_reader_leaves_them_out(dataset, tmp_path, capsys):
    (tmp_path / "imgs").symlink_to(dataset / "imgs")
    (tmp_path / "reid_raw.json").write_text((dataset / "reid_raw.json").read_text())
    assert doctor.main(["--dataset=cuhk", f"--root={tmp_path}", "--workers=1", "--fix_list"]) == 2
    out = capsys.readouterr().out
    assert "error: 2 images are over 50 megapixels: bomb.jpg, bomb.png\n" in out
    assert "1 image is an empty file: empty.jpg" in out
    assert "2 images are in no supported image format: postscript.png, text.png" in out
    kept = {record.image_path for record in read_annotations(tmp_path, "cuhk_pedes").records}
    assert kept == GOOD | {"sound.bmp"}


@needs_tensorflow
def test_prepared_rows_stay_aligned_with_their_names(dataset, tmp_path):
    from input_pipeline import augment
    from input_pipeline.prepared import prepare

    builder = prepare(dataset, "cuhk_pedes", tmp_path / "prepared", max_damaged=0.9)
    rows = list(builder.as_data_source("train"))
    assert set(builder.info.metadata["damaged"]) == set(PICTURES) - GOOD
    assert [row["path"] for row in rows] == [name.encode() for name in PICTURES]
    for row, (name, (_, colour)) in zip(rows, PICTURES.items(), strict=True):
        assert [caption.decode() for caption in row["captions"]] == [f"{name}."]
        assert bool(row["image"]) == (colour is not None)
        if colour:
            pixels = augment.decode(row["image"]).numpy()
            np.testing.assert_allclose(pixels, np.broadcast_to(colour, pixels.shape), atol=4)


def embeddings_by_hand(encoder):
    """Name -> vector of a crop of the colour that it should have."""
    height, width = encoder.size
    crops = {name: np.broadcast_to(np.uint8(PICTURES[name][1]), (1, height, width, 3)) for name in sorted(GOOD)}
    return dict(zip(crops, encoder.embed(iter(crops.values())), strict=True))


def test_search_ranks_the_others_and_names_them(dataset, workdir, encoder):
    with search.index_folder(dataset / "imgs", workdir) as (searcher, problems):
        found = searcher.search("a man in a red coat", top=100).results
    assert {result.path for result in found} == GOOD | {"sound.bmp"}
    refused = set(PICTURES) - GOOD
    assert len(problems) == len(refused) and all(any(name in line for line in problems) for name in refused)
    assert np.isfinite([result.score for result in found]).all()


@pytest.mark.parametrize("kind", ["folder", "archive", "list"])
def test_rows_of_a_gallery_stay_aligned_with_their_names(dataset, encoder, tmp_path, kind):
    shard = dataset / "imgs"
    if kind == "list":
        shard = tmp_path / "imgs.txt"
        shard.write_text("".join(f"{dataset}/imgs/{name}\n" for name in PICTURES))
    elif kind == "archive":
        shard = tmp_path / "imgs.tar"
        with tarfile.open(shard, "w") as archive:
            for name in PICTURES:
                archive.add(dataset / "imgs" / name, name)
    embed_shard(encoder, shard, tmp_path / "out", batch=1)
    made = read_vectors(tmp_path / "out" / f"{shard.name}.safetensors")
    rows = {Path(name).name: row for name, row in zip(made.names, made.vectors, strict=True)}
    assert set(rows) - {"sound.bmp"} == GOOD
    assert {Path(name).name for name, _ in made.unreadable} == set(PICTURES) - GOOD
    assert all(reason and "\n" not in reason for _, reason in made.unreadable)
    for name, vector in embeddings_by_hand(encoder).items():
        assert rows[name] @ vector > 0.998, name  # JPEG moves a colour by a level or two
    different = np.stack([rows[name] for name in ("cmyk.jpg", "one_pixel.png", "in truth a png.jpg")])
    assert (different @ different.T - np.eye(3)).max() < 0.99  # so that a row in the wrong place would show


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from PIL import Image
from input_pipeline.builders import _encoded_image
from input_pipeline.annotations import Record
from input_pipeline.inspection import inspect_image
from ivt_jax.gallery.crops import load_batches, read_crops
from ivt_jax.encoding.images import load_image

def peak():  # MB; not ru_maxrss, which a child inherits from who starts it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000

folder, archive = Path(sys.argv[1]), Path(sys.argv[2])
Image.new("RGB", (30, 60)).save(folder / "warm.png"), Image.new("RGB", (30, 60)).save(folder / "warm.jpg")
names = ["warm.png", "warm.jpg", *sys.argv[3:]]
for number, name in enumerate(names):
    if number == 2:
        before = peak()
    inspect_image(folder, name)
    record = Record(name, 0, (), "", ())
    for read, given in ((load_image, (folder / name, (8, 4))), (_encoded_image, (folder, record))):
        try:
            read(*given)
        except ValueError:
            pass
crops = read_crops(archive)
list(load_batches(zip(crops.names, crops.contents), (8, 4), 4, [], []))
print(peak() - before)
"""


@pytest.mark.faults
def test_memory_does_not_grow_with_what_a_header_promises(dataset, tmp_path):
    """65,000 x 65,000 are 12.7 GB, the streams that expand 200 MB each."""
    names = [name for name in PICTURES if "bomb" in name or name.startswith("more")]
    (tmp_path / "imgs").mkdir()
    with tarfile.open(tmp_path / "imgs.tar", "w") as archive:
        for name in names:
            (tmp_path / "imgs" / name).write_bytes(PICTURES[name][0])
            archive.add(tmp_path / "imgs" / name, name)
    command = [sys.executable, "-c", MEMORY, tmp_path / "imgs", tmp_path / "imgs.tar", *names]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    grown = float(run.stdout)
    print(f"grown by {grown:.1f} MB")
    assert grown < 60


PREPARING = """
import sys, time
from input_pipeline import builders, prepare
encode = builders._encoded_image
builders._encoded_image = lambda *arguments: time.sleep(float(sys.argv[2])) or encode(*arguments)
sys.exit(prepare.main(["--dataset=cuhk", "--root=" + sys.argv[1], "--max_damaged=0.5"]))
"""


def prepare_in_a_process(root, pause):
    """Starts `python -m input_pipeline.prepare`, with a pause at every picture."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PREPARING, root, str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def former(tmp_path):
    """The prepared data, in tmp_path, of eight images of which one has changed since."""
    (tmp_path / "imgs").mkdir()
    for i in range(8):
        flat((10 * i, 0, 0)).save(tmp_path / f"imgs/{i}.png")
    records = [{"id": i, "file_path": f"{i}.png", "captions": ["A man."], "split": "train"} for i in range(8)]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    assert prepare_in_a_process(tmp_path, 0).wait(120) == 0
    (former,) = (tmp_path / "prepared").glob("*-*")
    flat("lime").save(tmp_path / "imgs/3.png")
    return former


def assert_prepared_anew(root, former):
    """Beside the former data are those of the images as they are now, whole, and nothing else."""
    (new,) = set((root / "prepared").glob("*-*")) - {former}
    assert {path.name for path in (root / "prepared").iterdir()} == {former.name, new.name, "lock"}

    from input_pipeline import augment
    from input_pipeline.prepared import prepare

    data = prepare(root, "cuhk_pedes").as_data_source("train")
    assert [tuple(augment.decode(row["image"]).numpy()[0, 0]) for row in data] == [
        (0, 255, 0) if i == 3 else (10 * i, 0, 0) for i in range(8)
    ]


@pytest.mark.faults
def test_a_process_killed_while_it_prepares_anew_leaves_the_former_data_and_nothing_half(tmp_path, former):
    before = {path: path.stat().st_mtime_ns for path in former.rglob("*")}
    process = prepare_in_a_process(tmp_path, 1)
    end = time.monotonic() + 60
    while not list((tmp_path / "prepared").glob(".partial/cuhk_pedes/incomplete*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait(60)
    assert {path: path.stat().st_mtime_ns for path in former.rglob("*")} == before
    assert list((tmp_path / "prepared").glob("*-*")) == [former] and (tmp_path / "prepared/.partial").exists()
    assert prepare_in_a_process(tmp_path, 0).wait(120) == 0
    assert_prepared_anew(tmp_path, former)


@pytest.mark.faults
def test_of_two_processes_at_once_one_prepares(tmp_path, former):
    two = [prepare_in_a_process(tmp_path, 0.2) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    assert sorted(text.count("images differ (1 changed: 3.png); preparing anew") for text in said) == [0, 1]
    assert sorted(text.count("preparing train: 8 images in") for text in said) == [0, 1]
    assert_prepared_anew(tmp_path, former)


# ---- texts

LINE = "A man with short black hair wears a red, black and white jacket, blue jeans and shoes; he carries a bag. "
MEGABYTE = LINE * (1_000_000 // len(LINE))
TEXTS = {
    "a megabyte": MEGABYTE,
    "a megabyte without a space": "x" * 1_000_000,
    "a megabyte of white space, then words": " " * 1_000_000 + "a red coat",
    "NUL and other control characters": "a man\0 in a \x1b[31mred\x07 coat\x7f\x85",
    "right to left, with an override that is never closed": "\u202eرجل يرتدي معطفا أحمر",
    "emoji": "a man \U0001f468\u200d\U0001f9b0 in a \U0001f9e5, \U0001f1eb\U0001f1f7",
    "combining marks": "a r\u0301\u0302\u0303ed coat" + "\u0301" * 5000,
    "punctuation alone": "?!... ,,, --- &&& ;;;",
    "markup": "</p><script>alert(1)</script>&amp;\"'",
    "line separators": "a man\u2028in a\u2029red\x0bcoat\x1c",
}
HALF = (
    "a \ud83d man in a red\udc80 coat"  # what \ud83d in JSON becomes; and a byte of the command line that is no UTF-8
)
BLANK = ["", " \t\n", "\u00a0\u2003\u3000"]


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


@pytest.mark.parametrize("text", [*TEXTS.values(), HALF, *BLANK, "\u200b"], ids=lambda text: ascii(text[:20]))
def test_any_text_has_ids(text):
    tokenizer = load_tokenizer()
    assert seconds(tokenizer.encode, [text], 64) < 1
    (ids,) = tokenizer.encode([text], 64)
    used = np.count_nonzero(ids)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    assert (ids[0], ids[used - 1]) == (tokenizer.begin_id, tokenizer.end_id) and not ids[used:].any()
    np.testing.assert_array_equal(tokenizer.encode([text[: 20 * 64]], 64), [ids])  # the end that is defined


def test_half_a_character_is_an_unknown_one_and_two_halves_are_a_whole():
    tokenizer = load_tokenizer()
    a, b, c, d = tokenizer.encode(["\ud83d a red coat", "\ufffd a red coat", "\ud83e\udde5", "\U0001f9e5"], 8)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize("rules", [("released", "attributes"), ("clauses", "released")])
@pytest.mark.parametrize("text", [*TEXTS.values(), HALF], ids=lambda text: ascii(text[:20]))
def test_levels_of_any_text_are_bounded(text, rules):
    def draw(caption):
        return draw_levels(caption, np.random.default_rng(0), phrase_rule=rules[0], word_rule=rules[1])

    assert seconds(draw, text) < 1
    drawn = draw(text)
    assert all(0 < len(part) <= 2 * LONGEST for part in drawn.values())
    assert drawn == draw(text.lstrip()[:LONGEST])  # the end that is defined


def test_spoiled_captions_are_bounded_and_never_empty():
    texts = [text for text in TEXTS.values() if text.strip()]
    distinct = " ".join(
        f"red{i} hat" for i in range(100_000)
    )  # each a phrase of its own, to be looked for in the whole
    for name in PERTURBATIONS:
        start = time.process_time()
        assert all(spoiled.strip() for spoiled in perturb(name, [*texts, distinct], 0))
        assert time.process_time() - start < 5


PARTS = ["red, ", "red and ", "zzz qqq ", "hat, ", "no hat or a hat or ", "hair is ", "a-", "'s", "<a", "&amp;", ", & "]
PARTS += ["hand held ", "black spandex, ", "a dark, short, hat ", "white pole, ", "red wall is "]


@pytest.mark.faults
@pytest.mark.parametrize("part", [LINE, *PARTS])
def test_the_grammar_is_linear(part):
    """From 100 kB to 1 MB ten times the time; were it quadratic, a hundred times."""
    small, large = part * (100_000 // len(part)), part * (1_000_000 // len(part))
    for read in (attribute_phrases, clauses, lambda text: word_level(text, np.random.default_rng(0), (), "released")):
        read(small)
        fast, slow = (min(seconds(read, text) for _ in range(3)) for text in (small, large))
        print(f"{part!r}: {fast:.3f} s, {slow:.3f} s")
        assert slow < 30 * max(fast, 0.02)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    for i, colour in enumerate(("red", "lime", "blue")):
        flat(colour).save(folder / f"{i}.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(flat("white")))  # a name in Latin-1
    return folder


@pytest.mark.parametrize("text", TEXTS.values(), ids=lambda text: ascii(text[:20]))
def test_search_takes_any_sentence_and_its_page_bears_it(workdir, crops, tmp_path, capfd, text):
    page = tmp_path / "found.html"
    code = search.main([f"--workdir={workdir}", f"--images={crops}", f"--html={page}", text])
    told = capfd.readouterr()
    if code == 2:  # a megabyte of white space before the first word, or no word at all that the model can read
        reason = r'(: describe a person| that the model knows: "[^\n]{1,60}")\n'
        assert re.fullmatch("error: the sentence has no word" + reason, told.err)
        assert text.startswith((" " * 1000, "x" * 1000, "?!...", "\u202e"))
        return
    assert code == 1 and len([line for line in told.out.splitlines() if re.match(r" +\d  [+-]", line)]) == 3
    assert r"caf\udce9.png: its name is not UTF-8" in told.err and told.err.count("\n") == 1
    html = page.read_bytes().decode("utf-8")
    assert "\0" not in html and "<script" not in html and len(html) < 40_000
    assert 'dir="auto"' in html


@pytest.mark.parametrize("text", [*BLANK, "\u200b\u200d", HALF], ids=ascii)
def test_search_refuses_what_says_nothing_in_one_line(workdir, crops, capsys, text):
    assert search.main([f"--workdir={workdir}", f"--images={crops}", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the sentence ") and error.count("\n") == 1


def test_the_report_bears_any_caption(tmp_path, monkeypatch):
    write_run(tmp_path)
    write_split(tmp_path, tmp_path / "data")
    usual = report.write_report(tmp_path).read_text(encoding="utf-8")
    strips = [{"caption": text, "crops": [], "first": 1} for text in TEXTS.values()]
    sections = report.retrieval_sections(tmp_path / "test") | {"strips": strips, "failures": strips}
    monkeypatch.setattr(report, "retrieval_sections", lambda folder: sections)
    html = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert len(html.encode("utf-8")) - len(usual) < 100_000  # of each caption a thousand characters
    assert "\0" not in html and "<script" not in html and "&lt;script&gt;" in html
    assert html.count('class="caption" dir="auto"') == 2 * len(TEXTS)  # so that no override reaches beyond it


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A dataset with these captions."""
    root = tmp_path_factory.mktemp("written")
    (root / "imgs").mkdir()
    flat("red").save(root / "imgs/a.png")
    flat("lime").save(root / "imgs/b.png")
    records = [
        {"id": 0, "file_path": "a.png", "captions": list(TEXTS.values()), "split": "train"},
        {"id": 1, "file_path": "b.png", "captions": ["A man."], "split": "test"},
    ]
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root


@needs_tensorflow
def test_captions_are_prepared_as_they_are(written, tmp_path):
    from input_pipeline.prepared import prepare

    (row,) = prepare(written, "cuhk_pedes", tmp_path).as_data_source("train")
    assert [caption.decode("utf-8") for caption in row["captions"]] == list(TEXTS.values())


def test_the_doctor_prints_nothing_that_a_terminal_obeys(written, tmp_path, capsys):
    (tmp_path / "imgs").symlink_to(written / "imgs")
    bad = TEXTS["NUL and other control characters"]
    records = [{"id": i, "file_path": f"{n}.png", "captions": [bad], "split": "train"} for i, n in enumerate("ab")]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    assert doctor.main(["--dataset=cuhk", f"--root={tmp_path}", "--workers=1"]) == 1  # there is no test split
    out = capsys.readouterr().out
    assert r'1 caption is the same for several persons: "a man\x00 in a \x1b[31mred\x07 coat\x7f"' in out
    assert "\x1b" not in out and "\0" not in out


@pytest.mark.faults
def test_the_levels_of_such_captions_are_written_and_read_again(written, tmp_path, capsys):
    start = time.process_time()
    out = tmp_path / "levels.json"
    assert text_levels(["--dataset=cuhk", f"--root={written}", f"--out={out}"]) == 0
    assert time.process_time() - start < 60
    (first, _) = read_annotations(out, "cuhk_pedes").records
    assert first.captions == tuple(TEXTS.values())


@pytest.mark.parametrize("where", ["captions", "file_path", "att"])
def test_half_a_character_in_the_annotations_is_refused_in_one_line(tmp_path, where):
    record = {"id": 0, "file_path": "a.png", "captions": ["A man."], "split": "train", "att": {"0": "red coat"}}
    record[where] = {"captions": [HALF], "file_path": HALF, "att": {"0": HALF}}[where]
    (tmp_path / "reid_raw.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=r"record 0 has a lone surrogate .*; correct its text") as error:
        read_annotations(tmp_path, "cuhk_pedes")
    assert "\n" not in str(error.value)
