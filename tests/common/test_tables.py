"""Tables of records: the dialects of CSV, JSONL, and mistakes. More are in tests/retrieval/indexing/test_sources.py."""

import pytest

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.tables import NoKeyError, read_table

ROWS = [(2, {"image": "a.jpg", "caption": "x; y"}), (3, {"image": "b.jpg", "caption": "two\nlines"})]


def records(folder, name, content, key=("image",), **more):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_table(path, key, **more))


@pytest.mark.parametrize(
    "content",
    [
        'image,caption\na.jpg,x; y\nb.jpg,"two\nlines"\n',
        'image;caption\na.jpg;"x; y"\nb.jpg;"two\nlines"\n\n',
        'image\tcaption\na.jpg\tx; y\nb.jpg\t"two\nlines"\n\t\n',
        b'\xef\xbb\xbfimage,caption\r\na.jpg,x; y\r\nb.jpg,"two\nlines"\r\n',
        'Image,CAPTION\na.jpg,x; y\nb.jpg,"two\nlines"',
        'image , caption,,\na.jpg , x; y\nb.jpg, "two\nlines",,\n,,\n',
        '\ufeffimage\tcaption\na.jpg\tx; y\nb.jpg\t"two\nlines"\n'.encode("utf-16-le"),
        ',image,caption\n0,a.jpg,x; y\n1,b.jpg,"two\nlines"\n',  # row numbers of pandas
        '"","image","caption"\n"1","a.jpg","x; y"\n"2","b.jpg","two\nlines"\n',  # and of R
    ],
)
def test_every_dialect_of_a_csv_has_the_same_records(tmp_path, content):
    assert records(tmp_path, "t.csv", content, known=("caption",)) == ROWS


def test_a_jsonl_has_the_texts_of_a_csv_and_lists_where_they_are_allowed(tmp_path):
    text = '{"IMAGE": "a.jpg", "caption": ["x", "y"], "n": 1.5}\n\n{"image": "b.jpg", "caption": null, "n": NaN}\n'
    expected = [
        (1, {"image": "a.jpg", "caption": ["x", "y"], "n": "1.5"}),
        (3, {"image": "b.jpg", "caption": "", "n": ""}),
    ]
    assert records(tmp_path, "t.JSONL", text, nested=("caption",)) == expected
    with pytest.raises(DataError, match=r"t.jsonl: line 1 is malformed: caption is a list or an object"):
        records(tmp_path, "t.jsonl", text)
    with pytest.raises(DataError, match=r"t.jsonl: line 1 is malformed: x is not Unicode text"):
        records(tmp_path, "t.jsonl", '{"image": "a", "x": ["\\ud800"]}', nested=("x",))


def test_the_first_accepted_name_of_the_key_counts_and_names_the_value(tmp_path):
    key = ("path", "image")
    assert records(tmp_path, "t.csv", "image,x\na.jpg,1\n", key) == [(2, {"path": "a.jpg", "x": "1"})]
    assert records(tmp_path, "t.csv", "image;Path\nb;a.jpg\n", key) == [(2, {"image": "b", "path": "a.jpg"})]


def test_names_in_several_cases_stay(tmp_path):
    text = "image,Caption,CAPTION,Camera\na.jpg,x,y,3\n"
    expected = {"image": "a.jpg", "Caption": "x", "CAPTION": "y", "Camera": "3"}
    assert records(tmp_path, "t.csv", text, known=("caption",)) == [(2, expected)]


def test_a_table_without_its_key_names_the_columns_that_it_has(tmp_path):
    with pytest.raises(NoKeyError, match=r"t.csv: the first line has no column image; it is file;Text;who$") as raised:
        records(tmp_path, "t.csv", "file;Text;who\na;b;c\n")
    assert raised.value.names == ["file", "Text", "who"]
    with pytest.raises(NoKeyError, match="it is empty") as raised:
        records(tmp_path, "t.csv", "")
    assert raised.value.names == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "image\n", r"t.tsv is neither .csv nor .jsonl: rename it if it is one of them"),
        ("t.csv", "image,,x\na,1,2\n", "t.csv: the first line has a column without a name, or two of the same name"),
        ("t.csv", 'image,x\na,"1\n2"\nb,1,2\n', "t.csv: line 4 has 3 values for 2 columns"),
        ("t.csv", 'image,x\na,1\nb,"2\nc,3\n', "t.csv: line 3 is malformed: unexpected end of data"),
        ("t.csv", b"image\na\nb\xe9\n", "t.csv: line 3 is not UTF-8 text: save the file as UTF-8"),
        ("t.jsonl", '{"image": "a"}\n["b"]\n', "t.jsonl: line 2 is malformed: expected an object"),
        ("t.jsonl", '{"image": "a", "x": 1, "x": 2}', "t.jsonl: line 1 is malformed: x is named twice"),
    ],
)
def test_mistakes_name_the_file_and_the_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as raised:
        records(tmp_path, name, content)
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none.csv cannot be read: No such file or directory"):
        list(read_table(tmp_path / "none.csv", ("image",)))
