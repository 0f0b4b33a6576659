"""The pictures of a folder, or of a list with their metadata."""

import datetime
import errno
import json
import os

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable
from ivt_jax.gallery.walk import describe_passed
from ivt_jax.retrieval.indexing.path_fields import add_fields, parse_pattern
from ivt_jax.retrieval.indexing.sources import Picture, read_folder, read_list
from tests.retrieval.conftest import fails


@pytest.fixture
def folder(tmp_path):
    """Five files of a few bytes; whether they are pictures is not asked here."""
    for number, name in enumerate(["b.jpg", "a.PNG", "cam 2/z.webp", "cam 2/deep/y.gif", "notes.txt"]):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + number))
    return tmp_path / "crops"


def written(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ---- folders


def test_a_folder_is_walked_and_sorted(folder):
    source = read_folder(folder)
    assert list(source.pictures) == ["a.PNG", "b.jpg", "cam 2/deep/y.gif", "cam 2/z.webp"]
    assert source.pictures["cam 2/z.webp"] == Picture("cam 2/z.webp", 3, 1_700_000_000_000_000_002, {})
    assert (source.root, source.fields, source.unreadable, source.closed) == (folder, {}, [], ())


def test_the_root_is_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert str(read_folder(folder.relative_to(folder.parent)).root) == str(folder)


def test_names_of_any_kind_are_paths(folder):
    names = ['it\'s "quoted".jpg', "two\nlines.jpg", "🧥.jpg", "-rf.jpg", "a,b;c.jpg", "$(x).jpg"]
    for name in names:
        (folder / name).write_bytes(b"x")
    assert {*names} < {*read_folder(folder).pictures}


def test_a_name_that_is_not_utf8_is_left_out_and_named(folder):
    name = os.fsdecode(b"caf\xe9.jpg")
    (folder / name).write_bytes(b"x")
    source = read_folder(folder)
    assert source.unreadable == [(name, "its name is not UTF-8, which an index cannot store: rename it")]
    assert len(source.pictures) == 4


def test_links_are_followed_within_the_folder_alone(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/s.jpg").write_bytes(b"secret")
    (folder / "in.jpg").symlink_to(folder / "cam 2/z.webp")
    (folder / "out.jpg").symlink_to(tmp_path / "secret/s.jpg")
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "latest").symlink_to(folder / "cam 2")
    (folder / "other").symlink_to(tmp_path / "secret")
    source = read_folder(folder)
    assert list(source.pictures) == ["a.PNG", "b.jpg", "cam 2/deep/y.gif", "cam 2/z.webp", "in.jpg"]
    assert source.pictures["in.jpg"].size == 3
    assert dict(source.unreadable) == {
        "out.jpg": "a link that leads out of the folder of pictures",
        "broken.jpg": "missing",
        "circle.jpg": "Too many levels of symbolic links",
        "other": "a link that leads out of the folder of pictures",
    }


@pytest.mark.parametrize(
    ("time", "changed"),
    [
        (2**63 - 1, 2**63 - 1),  # 2262-04-11 23:47:16
        (2**63, -(2**63)),
        (10_413_792_000_000_000_000, -8_032_952_073_709_551_616),  # 2300-01-01, less 2**64
        (-(2**63) - 1, 2**63 - 1),  # 1677
        (-1, -1),
        (0, 0),
        (10**30, 5_076_944_270_305_263_616),
    ],
)
def test_times_of_change_fit_into_64_bits(folder, monkeypatch, time, changed):
    stat = os.stat

    class Status:
        st_mode, st_size, st_mtime_ns = stat(folder / "b.jpg").st_mode, 7, time

    monkeypatch.setattr(os, "stat", lambda path, **options: Status if str(path).endswith("b.jpg") else stat(path))
    listed = written(folder / "list.csv", "path\nb.jpg\n")
    assert read_list(listed).pictures["b.jpg"] == Picture("b.jpg", 7, changed, {})


def test_a_folder_whose_folders_cannot_be_listed_has_no_pictures_to_index(folder, monkeypatch):
    fails(monkeypatch, "crops", errno.EACCES)
    with pytest.raises(UserError, match=r"crops cannot be listed: Permission denied$"):
        read_folder(folder)


def test_pipes_and_folders_are_not_opened(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    source = read_folder(folder)
    assert source.unreadable == [("pipe.jpg", "not a file")] and len(source.pictures) == 4


def test_a_folder_that_cannot_be_listed_is_named_and_remembered(folder, monkeypatch):
    fails(monkeypatch, "deep", errno.EACCES)
    source = read_folder(folder)
    assert list(source.pictures) == ["a.PNG", "b.jpg", "cam 2/z.webp"]
    assert source.unreadable == [("cam 2/deep", "Permission denied")] and source.closed == ("cam 2/deep",)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "nowhere is not a folder; name the folder of pictures with --images"),
        ("crops/notes.txt", "notes.txt is not a folder"),
        ("empty", r"empty has no pictures \(.jpg "),
    ],
)
def test_a_folder_without_pictures_is_an_error(folder, tmp_path, place, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / place)


# ---- lists

CSV = """\
path,camera,height,seen,time,track,note
a.PNG,3,1.5,true,2024-05-01,0007,
./cam 2//z.webp,-12,,FALSE,2024-05-01T14:30:00+02:00,12,"two
lines, ""blue"" coat"
b.jpg,,2e-3,,,,3
"""
UTC = datetime.UTC
METADATA = {
    "a.PNG": {"camera": 3, "height": 1.5, "seen": True, "time": datetime.datetime(2024, 5, 1, tzinfo=UTC),
              "track": "0007", "note": None},
    "cam 2/z.webp": {"camera": -12, "height": None, "seen": False,
                     "time": datetime.datetime(2024, 5, 1, 12, 30, tzinfo=UTC), "track": "12",
                     "note": 'two\nlines, "blue" coat'},
    "b.jpg": {"camera": None, "height": 0.002, "seen": None, "time": None, "track": None, "note": "3"},
}  # fmt: skip
TYPES = {
    "camera": "integer", "height": "number", "seen": "boolean", "time": "time", "track": "text", "note": "text",
}  # fmt: skip


def metadata_of(source):
    return {path: dict(picture.metadata) for path, picture in source.pictures.items()}


@pytest.mark.parametrize("change", [str, lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_each_column_of_a_csv_has_its_type(folder, change):
    source = read_list(written(folder / "list.csv", change(CSV)))
    expected = {path: dict(known) for path, known in METADATA.items()}
    if "\r" in change(CSV):
        expected["cam 2/z.webp"]["note"] = 'two\r\nlines, "blue" coat'
    assert metadata_of(source) == expected and list(source.pictures) == list(METADATA)
    assert source.fields == TYPES and source.root == folder and not source.unreadable
    assert source.pictures["b.jpg"][:3] == ("b.jpg", 1, 1_700_000_000_000_000_000)
    assert {type(known["camera"]) for known in metadata_of(source).values()} == {int, type(None)}


def test_a_jsonl_is_read_like_a_csv(folder):
    lines = [
        {"path": "a.PNG", "camera": 3, "height": 1.5, "seen": True, "time": "2024-05-01", "track": "0007"},
        {"path": "cam 2/z.webp", "camera": -12, "height": None, "seen": False, "time": "2024-05-01T12:30:00Z",
         "track": "12", "note": 'two\nlines, "blue" coat'},
        {"path": "b.jpg", "height": 0.002, "note": 3},
    ]  # fmt: skip
    text = "\n\n".join(map(json.dumps, lines)) + "\n"
    source = read_list(written(folder / "list.JSONL", text))
    assert metadata_of(source) == METADATA and source.fields == TYPES


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", "-0", "999999999999999999"], "integer"),
        (["1", "1000000000000000000"], "text"),  # not exact in 64 bits of either kind
        (["1", "2.5"], "number"),
        (["-2.5", "999999999999999.5"], "number"),
        (["1000000000000000.5"], "text"),  # more digits than a double holds
        (["+1"], "text"),
        (["1."], "text"),
        ([".5"], "text"),
        (["1", "007"], "text"),
        (["1", "1e999"], "text"),
        (["12e4", "13e4"], "text"),  # as cameras and persons are called
        (["1.5e3", "2e-7"], "number"),
        (["00120101", "04101012"], "text"),
        (["0.5", "nan"], "text"),
        (["1", "true"], "text"),
        (["True", "FALSE"], "boolean"),
        (["2024-05-01", "2024-05-01 08:00"], "time"),
        (["2024-05-01", "2024-13-01"], "text"),
        (["0001-01-01T00:00+14:00"], "text"),  # before all time
        (["2024-05-01", "1"], "text"),
        ([" 1"], "text"),
        (["", ""], "text"),
    ],
)
def test_a_field_has_the_first_type_that_fits_all_its_values(folder, texts, kind):
    for number in range(len(texts)):
        (folder / f"{number}.jpg").write_bytes(b"x")
    lines = [f"{number}.jpg,{text}" for number, text in enumerate(texts)]
    source = read_list(written(folder / "list.csv", "\n".join(["path,x", *lines])))
    assert source.fields == {"x": kind}
    if kind == "text":
        assert [known["x"] for known in metadata_of(source).values()] == [text or None for text in texts]


def test_a_number_that_python_wrote_and_json_does_not_know_is_missing(folder):
    text = '{"path": "a.PNG", "x": NaN}\n{"path": "b.jpg", "x": 1e-200}\n'
    source = read_list(written(folder / "list.jsonl", text))
    assert source.fields == {"x": "number"} and metadata_of(source) == {"a.PNG": {"x": None}, "b.jpg": {"x": 1e-200}}


def test_a_list_of_paths_alone_is_enough(folder):
    source = read_list(written(folder / "list.csv", "path\nb.jpg\n"))
    assert source.fields == {} and metadata_of(source) == {"b.jpg": {}}


def test_paths_are_those_of_the_folder_that_is_named(folder, tmp_path):
    listed = written(tmp_path / "list.csv", f"path\nz.webp\ndeep/../deep/y.gif\n{folder}/cam 2/deep/../none.jpg\n")
    source = read_list(listed, folder / "cam 2")
    assert list(source.pictures) == ["z.webp", "deep/y.gif"] and source.root == folder / "cam 2"
    assert source.unreadable == [("none.jpg", "missing")]


def test_a_listed_link_out_of_the_folder_is_skipped(folder, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/s.jpg").write_bytes(b"secret")
    (folder / "other").symlink_to(tmp_path / "secret")
    source = read_list(written(folder / "list.csv", "path\nother/s.jpg\na.PNG\n"))
    assert source.unreadable == [("other/s.jpg", "a link that leads out of the folder of pictures")]
    assert list(source.pictures) == ["a.PNG"]


def test_every_listed_file_counts_whatever_its_suffix(folder):
    source = read_list(written(folder / "list.csv", "path\nnotes.txt\nnul\0.jpg\n" + "x" * 300 + "\n"))
    assert list(source.pictures) == ["notes.txt"]
    assert [reason for _, reason in source.unreadable] == ["embedded null byte", "File name too long"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", "l.csv: the first line has no column path; it is empty"),
        ("l.csv", "file;camera\na;1\n", "l.csv: the first line has no column path; it is file;camera"),
        ("l.csv", "path,,x\na,1,2\n", "l.csv: the first line has a column without a name, or two of"),
        ("l.csv", "path,x,x\na,1,2\n", "l.csv: the first line has a column without a name, or two of"),
        ("l.csv", 'path, "x,""y"\na.PNG\n', "l.csv: line 2 has 1 values for 2 columns"),
        ("l.csv", "path,x\na.PNG\n", "l.csv: line 2 has 1 values for 2 columns"),
        ("l.csv", 'path,x\na.PNG,"1\n2"\nb.jpg,1,2\n', "l.csv: line 4 has 3 values for 2 columns"),
        ("l.csv", 'path,x\na.PNG,"1"2\n', "l.csv: line 2 is malformed: "),
        ("l.csv", 'path,x\na.PNG,"1\n', "l.csv: line 2 is malformed: "),
        ("l.csv", "path,x\n,1\n", "l.csv: line 2 has no path"),
        ("l.csv", "path\n", "l.csv names no pictures"),
        (
            "l.csv",
            "path,x\na.PNG,1\n,\n./a.PNG,\n",
            "l.csv: line 4 names a.PNG again, after line 2, with another x: remove one of them",
        ),
        ("l.csv", "path\n../a.PNG\n", r"l.csv: line 2: ../a.PNG is not in \S+/crops; set --images to their common f"),
        ("l.csv", "path\n/etc/passwd\n", "l.csv: line 2: /etc/passwd is not in "),
        ("l.csv", "path\n.\n", "l.csv: line 2: . is not in "),
        ("l.csv", "path\na.PNG\n".encode("utf-16-le"), "l.csv: line 1 is not UTF-8 text: save the file as UTF-8"),
        ("l.csv", b"path\na.PNG\nb\xe9.jpg\n", "l.csv: line 3 is not UTF-8 text: save the file as UTF-8"),
        ("l.jsonl", '{"path": "a.PNG"}\n{"path": \n', "l.jsonl: line 2 is malformed: "),
        ("l.jsonl", '["a.PNG"]\n', "l.jsonl: line 1 is malformed: expected an object"),
        ("l.jsonl", '{"path": "a.PNG", "x": [1]}', "l.jsonl: line 1 is malformed: x is a list or an object"),
        ("l.jsonl", '{"path": "a.PNG", "x": "\\ud800"}', "l.jsonl: line 1 is malformed: x is not Unicode text"),
        ("l.jsonl", '{"path": "a.PNG", "x": "\\udfff"}', "l.jsonl: line 1 is malformed: x is not Unicode text"),
        ("l.jsonl", '{"path": "a.PNG", "path": "b.jpg"}', "l.jsonl: line 1 is malformed: path is named twice"),
        ("l.jsonl", '{"path": "a.PNG", "x": 1, "x": 1}', "l.jsonl: line 1 is malformed: x is named twice"),
        ("l.jsonl", '{"path": "a.PNG", "": 1}', "l.jsonl: line 1 is malformed: a value has no name"),
        ("l.jsonl", "[" * 100_000, "l.jsonl: line 1 is malformed: "),
        ("l.jsonl", '{"camera": 1}', "l.jsonl: line 1 has no path"),
        ("l.jsonl", '{"path": null}', "l.jsonl: line 1 has no path"),
        ("l.txt", "a.PNG\n", "l.txt is neither .csv nor .jsonl"),
    ],
)
def test_mistakes_in_a_list_name_file_and_line(folder, name, content, message):
    with pytest.raises(UserError, match=message) as raised:
        read_list(written(folder / name, content))
    assert "\n" not in str(raised.value)


def test_a_list_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"/none.csv cannot be read: No such file or directory"):
        read_list(tmp_path / "none.csv")


# ---- fields from paths

PATHS = ("3/2024-05-01_007.jpg", "3/2024-05-02_012.jpg", "12/2024-05-02T14:30_7.jpg")
MAY_1, MAY_2 = datetime.datetime(2024, 5, 1, tzinfo=UTC), datetime.datetime(2024, 5, 2, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path):
    """tree(*paths): a folder of these files."""

    def tree(*paths):
        for path in paths:
            (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / path).write_bytes(b"x")
        return read_folder(tmp_path / "tree")

    return tree


def fields_of(source, pattern):
    return add_fields(source, parse_pattern(pattern))


def test_fields_of_paths_have_the_types_of_a_list(tree):
    source = fields_of(tree(*PATHS), "{camera}/{date}_{track}.jpg")
    assert source.fields == {"camera": "integer", "date": "time", "track": "text"} and source.unmatched == ()
    assert metadata_of(source) == {
        "3/2024-05-01_007.jpg": {"camera": 3, "date": MAY_1, "track": "007"},
        "3/2024-05-02_012.jpg": {"camera": 3, "date": MAY_2, "track": "012"},
        "12/2024-05-02T14:30_7.jpg": {"camera": 12, "date": MAY_2.replace(hour=14, minute=30), "track": "7"},
    }
    assert source.origin == {"images": str(source.root), "path_fields": "{camera}/{date}_{track}.jpg"}


def test_a_path_that_does_not_fit_is_indexed_without_fields(tree):
    source = fields_of(
        tree(*PATHS, "x.jpg", "3/a/2024-05-01_1.jpg", "3/2024-05-01_1.JPG"), "{camera}/{date}_{track}.jpg"
    )
    assert source.unmatched == ("3/2024-05-01_1.JPG", "3/a/2024-05-01_1.jpg", "x.jpg") and len(source.pictures) == 6
    assert metadata_of(source)["x.jpg"] == {"camera": None, "date": None, "track": None}
    assert source.fields == {"camera": "integer", "date": "time", "track": "text"}


@pytest.mark.parametrize(
    ("pattern", "path", "known"),
    [
        ("{a}_{b}.jpg", "1_2_3.jpg", {"a": "1", "b": "2_3"}),  # as few as possible from the left
        ("{a}_{b}.png", "x_y.png.png", {"a": "x", "b": "y.png"}),
        ("{a}-{b}-x/{c}", "1-2-3-x/4", {"a": "1", "b": "2-3", "c": "4"}),
        ("*_{b}.jpg", "1_2_3.jpg", {"b": "3"}),  # * is as much as possible
        ("**/{b}.*", "x/y/z.jpg", {"b": "z"}),
        ("**/{b}.*", "z.jpg", {"b": "z"}),
        ("**/cam {c}/*", "x/cam 7/y.png", {"c": "7"}),
        ("**/cam {c}/**", "x/cam 7/y/z.png", {"c": "7"}),
        ("{{{a}}}.jpg", "{1}.jpg", {"a": "1"}),
        ("a.b({x}.jpg", "a.b(1.jpg", {"x": "1"}),  # no regular expression
        ("{Ort, genau}/*", "Tür\n5/1.jpg", {"Ort, genau": "Tür\n5"}),
    ],
)
def test_a_pattern_is_that_of_the_whole_path(pattern, path, known):
    parsed = parse_pattern(pattern)
    assert dict(zip(parsed.names, parsed.regex.fullmatch(path).groups(), strict=True)) == known


@pytest.mark.parametrize(
    ("pattern", "path"), [("{a}.jpg", "x/1.jpg"), ("{a}.jpg", ".jpg"), ("*/{a}.jpg", "1.jpg"), ("x.{a}", "xy1")]
)
def test_another_path_does_not_fit(pattern, path):
    assert not parse_pattern(pattern).regex.fullmatch(path)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.jpg", "it names no field; expected for example {camera}/{date}_{track}.jpg"),
        ("", "it names no field"),
        ("{a", "the brace at character 1 has no other; {{ and }} stand for braces"),
        ("{a}/b}.jpg", "the brace at character 6 has no other"),
        ("{a}/{}.jpg", "a field has no name"),
        ("{a/b}.jpg", "the field a/b has a / in its name"),
        ("{a}/{a}.jpg", "two fields are called a"),
        ("{a}{b}.jpg", "nothing separates {b} from what precedes it: put a text between them"),
        ("{a}*", "nothing separates * from what precedes it"),
        ("/{a}.jpg", "it begins with /; paths are below the folder of pictures"),
        ("{path}.jpg", "path is the path itself; choose another name"),
        ("{a\udce9}.jpg", "the name of a field is not UTF-8"),
    ],
)
def test_a_malformed_pattern_is_one_line(pattern, message):
    with pytest.raises(UserError) as error:
        parse_pattern(pattern)
    assert str(error.value).startswith(f"--path_fields={printable(pattern)}: {message}") and "\n" not in str(
        error.value
    )


def test_a_pattern_that_fits_no_path_is_refused(tree):
    with pytest.raises(UserError, match=r"no path fits it, such as 12/2024-05-02T14:30_7\.jpg$"):
        fields_of(tree(*PATHS), "{camera}/{date}_{track}.png")


def test_a_value_that_is_no_mistake_of_a_list_is_named_by_its_path(tree):
    source = fields_of(tree("1/a.jpg", "2/a.jpg", "x/a.jpg"), "{camera}/*")
    assert source.fields == {"camera": "text"}
    assert source.notes == ("field camera is text, because x/a.jpg has 'x'; 2 of 3 values are of type integer",)


# ---- what a folder holds beside its pictures

BESIDE = {  # name -> whether it is taken
    "c.heic": True, "d.avif": True, "e.tif": True, "f.TIFF": True, "g.jfif": True, "h.jpe": True, "i.mpo": True,
    "film.mp4": False, "other.MP4": False, "raw.dng": False, "old.jp2": False, "README": False,
    "._a.PNG": False, ".hidden.jpg": False, "@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg": False, "cam 2/@eaDir/z.jpg": False,
    ".Trash-0/files/x.jpg": False, ".thumbnails/large/y.png": False, "__MACOSX/crops/._b.jpg": False,
    "#recycle/r.jpg": False, "$RECYCLE.BIN/S-1/r.jpg": False, "My Previews.lrdata/p.jpg": False,
}  # fmt: skip


def test_passed_over_files_are_counted_by_reason(folder):
    for name in BESIDE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    source = read_folder(folder)
    taken = [name for name, is_taken in BESIDE.items() if is_taken]
    assert [*source.pictures] == sorted(["a.PNG", "b.jpg", "cam 2/deep/y.gif", "cam 2/z.webp", *taken])
    assert sum(source.passed.values()) == 1 + len(BESIDE) - len(taken)  # and notes.txt
    assert source.passed == {
        ("suffix", ".mp4"): 2, ("suffix", ".dng"): 1, ("suffix", ".jp2"): 1, ("suffix", ".txt"): 1, ("suffix", ""): 1,
        ("folder", "@eaDir"): 2, ("folder", ".Trash-0"): 1, ("folder", ".thumbnails"): 1, ("folder", "__MACOSX"): 1,
        ("folder", "#recycle"): 1, ("folder", "$RECYCLE.BIN"): 1, ("folder", "My Previews.lrdata"): 1,
        ("hidden", ""): 2,
    }  # fmt: skip


def test_counts_of_passed_over_files_as_text():
    counts = {("suffix", ".mp4"): 8, ("suffix", ".dng"): 4, ("folder", "@eaDir"): 1160, ("hidden", ""): 3}
    assert describe_passed(counts) == "12 of no picture format (.mp4 8, .dng 4), 1,160 in @eaDir/, 3 hidden"
    many = {("suffix", f".{letter}"): 1 for letter in "abcdefg"} | {("suffix", ".z\n"): 9}
    assert describe_passed(many) == r"16 of no picture format (.z\n 9, .a 1, .b 1, .c 1, .d 1, ...)"
    folders = {("folder", f".{letter}"): 7 - number for number, letter in enumerate("abcdefg")}
    assert describe_passed(folders) == "7 in .a/, 6 in .b/, 5 in .c/, 4 in .d/, 3 in .e/, 3 in 2 other such folders"
    assert describe_passed({}) == "" == describe_passed({("folder", ".empty"): 0})


def test_a_folder_of_films_is_refused_with_counts(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no pictures \(.jpg .*\); passed over: 1 of no picture format \(.mp4 1\): "):
        read_folder(tmp_path)


def test_a_list_may_name_hidden_pictures_and_a_folder_may_be_hidden_itself(folder, tmp_path):
    (folder / ".x.jpg").write_bytes(b"x")
    source = read_list(written(folder / "list.csv", "path\n.x.jpg\n"))
    assert list(source.pictures) == [".x.jpg"] and not source.passed
    folder.rename(tmp_path / ".crops")
    assert len(read_folder(tmp_path / ".crops").pictures) == 4


# ---- lists as people have them

PLAIN = {"a.PNG": {"camera": 3, "note": "x, y"}, "b.jpg": {"camera": 4, "note": "two\nlines"}}


def excel(separator, ends="\r\n"):
    return (
        ends.join(["path,camera,note", 'a.PNG,3,"x, y"', 'b.jpg,4,"two\nlines"', ""])
        .replace("x, y", "\0")
        .replace(",", separator)
        .replace("\0", "x, y")
    )


@pytest.mark.parametrize(
    "content",
    [
        excel(","),
        excel(";"),
        excel("\t", "\n"),
        excel(";").encode("utf-8-sig"),
        "\ufeff".encode("utf-16-le") + excel("\t").encode("utf-16-le"),
        "\ufeff".encode("utf-16-be") + excel(",").encode("utf-16-be"),
        excel(",").replace("path,camera,note", "path, camera ,note "),
        excel(",").replace("path", "Path"),
        excel(";").replace("path", '" PATH"'),
        excel(",").replace("path,camera,note", "path, camera, note").replace(',3,"', ', 3 , "'),
        excel(",").replace("note", "note,,").replace('y"', 'y",,').replace('lines"', 'lines",,') + ",,,,\r\n  ,,,,\r\n",
        excel(";") + ";;\r\n\r\n",
        excel(",").replace('lines"', 'lines",'),
        excel(",", "\r"),
    ],
)  # fmt: skip
def test_a_csv_is_read_as_spreadsheets_and_people_write_it(folder, content):
    source = read_list(written(folder / "list.csv", content))
    assert source.fields == {"camera": "integer", "note": "text"} and metadata_of(source) == PLAIN
    assert source.unreadable == [] and source.notes == ()


def test_separators_in_a_list_of_paths_are_parts_of_names(folder):
    (folder / "a;b\tc.jpg").write_bytes(b"x")
    assert metadata_of(read_list(written(folder / "list.csv", "path\na;b\tc.jpg\n"))) == {"a;b\tc.jpg": {}}


def test_blanks_around_values_stay_where_the_header_has_none(folder):
    assert metadata_of(read_list(written(folder / "list.csv", "path,x\na.PNG, 1\n"))) == {"a.PNG": {"x": " 1"}}


def test_a_path_in_capitals_is_one_in_jsonl_too_and_else_a_field(folder):
    text = '{"Path": "a.PNG", "camera": 3}\n{"path": "b.jpg", "Path": "other"}\n'
    source = read_list(written(folder / "list.jsonl", text.encode("utf-16")))
    assert metadata_of(source) == {"a.PNG": {"camera": 3, "Path": None}, "b.jpg": {"camera": None, "Path": "other"}}


def test_a_value_may_be_longer_than_pythons_limit(folder):
    long = "word " * 40_000
    assert metadata_of(read_list(written(folder / "list.csv", f'path,x\na.PNG,"{long}"\n'))) == {"a.PNG": {"x": long}}


def test_damage_is_named_by_the_line_where_it_begins(folder):
    text = 'path,x\na.PNG,1\nb.jpg,"2\n' + "c.jpg,3\n" * 100
    with pytest.raises(UserError, match=r"list.csv: line 3 is malformed: "):
        read_list(written(folder / "list.csv", text))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (
            [*["2024-05-01"] * 15, "2024-13-45", *["2024-05-02"] * 4],
            "field x is text, because line 17 has '2024-13-45'; 19 of 20 values are of type time",
        ),
        (["unknown", "1", "2.5"], "field x is text, because line 2 has 'unknown'; 2 of 3 values are of type number"),
        (["1", "", "2", "gate"], "field x is text, because line 5 has 'gate'; 2 of 3 values are of type integer"),
        (
            [*map(str, range(18)), "a" * 90, "-"],
            f"field x is text, because line 20 has '{'a' * 60} ...'; 18 of 20 values are of type integer",
        ),
        (["true", "false", "yes"], "field x is text, because line 4 has 'yes'; 2 of 3 values are of type boolean"),
        ([*map(str, range(17)), "a", "b", "c"], None),  # more than a tenth
        (["blue", "red", "1"], None),
        (["gate"], None),
        (["", "gate", "hall"], None),
    ],
)
def test_the_line_that_makes_text_of_a_field_is_named(folder, values, note):
    for number in range(len(values)):
        (folder / f"{number}.jpg").write_bytes(b"x")
    lines = [f"{number}.jpg,{value}" for number, value in enumerate(values)]
    source = read_list(written(folder / "list.csv", "\n".join(["path,x", *lines])))
    assert source.fields == {"x": "text"} and source.notes == ((note,) if note else ())
    assert [known["x"] for known in metadata_of(source).values()] == [value or None for value in values]


def test_lines_outside_the_folder_are_passed_over_and_never_looked_at(folder, tmp_path, monkeypatch):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    text = f"path,x\na.PNG,1\n../secret.jpg,2\n,3\n{tmp_path}/secret.jpg,4\n/etc/passwd,5\n.,6\nb.jpg,7\n"
    listed = written(folder / "list.csv", text)
    looked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looked.append(str(path)) or stat(path, **options))
    source = read_list(listed)
    assert not [path for path in looked if "secret" in path or "passwd" in path]
    assert metadata_of(source) == {"a.PNG": {"x": 1}, "b.jpg": {"x": 7}}
    outside = f"not in {folder}"
    assert source.unreadable == [
        ("line 3 of list.csv: ../secret.jpg", outside),
        ("line 4 of list.csv", "no path"),
        (f"line 5 of list.csv: {tmp_path}/secret.jpg", outside),
        ("line 6 of list.csv: /etc/passwd", outside),
        ("line 7 of list.csv: .", outside),
    ]


def test_an_absolute_path_is_in_the_folder_whatever_link_leads_there(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    listed = written(tmp_path / "list.csv", f"path\n{folder}/a.PNG\n{tmp_path}/link/b.jpg\ncam 2/z.webp\n")
    source = read_list(listed, tmp_path / "link")
    assert list(source.pictures) == ["a.PNG", "b.jpg", "cam 2/z.webp"] and source.unreadable == []


def test_lines_that_name_a_picture_again_are_counted(folder):
    text = "path,x\na.PNG,1\nb.jpg,2\na.PNG,3\n./a.PNG,1\nb.jpg,4\n"
    message = r"line 4 names a.PNG again, after line 2, with another x: remove one .* \(2 lines name a picture again\)$"
    with pytest.raises(UserError, match=message):
        read_list(written(folder / "list.csv", text))


def test_a_table_with_a_line_for_each_caption_names_each_picture_once(folder):
    text = "image,caption,camera\na.PNG,A man.,3\nb.jpg,A woman.,4\n./a.PNG,He walks.,3\n"
    source = read_list(written(folder / "list.csv", text))
    assert list(source.pictures) == ["a.PNG", "b.jpg"] and source.fields == {"caption": "text", "camera": "integer"}
    assert [picture.metadata for picture in source.pictures.values()] == [
        {"caption": "A man.", "camera": 3}, {"caption": "A woman.", "camera": 4},
    ]  # fmt: skip
