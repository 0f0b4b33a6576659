"""Tables of own data: every column and form, divisions, faults, and the doctor's lines about them."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from input_pipeline import doctor, own
from input_pipeline.annotations import dataset_name, read_annotations, title_of
from input_pipeline.statistics import split_counts, training_persons
from ivt_jax.common.errors import DataError, UserError
from tests.input_pipeline.test_doctor import encoded, scene

DOCS = Path(__file__).parents[2] / "docs/datasets.md"


def table(folder, content, name="my.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def read(folder, content, name="my.csv"):
    return read_annotations(table(folder, content, name), "own").records


def rows(records):
    return [(r.image_path, r.person_name, r.split, r.captions, r.attributes) for r in records]


EXPECTED = [
    ("a/1.jpg", "anna", "train", ("A red coat.", "Blue, jeans."), (("red coat", "black bag"), ())),
    ("a/2.jpg", "ben", "val", ("Two\nlines.",), ((),)),
    ("3.jpg", "carla", "test", ("A man.",), (("hat",),)),
]
CSV = """\
image,caption,person,split,attributes,camera,note
a/1.jpg,A red coat.,anna,train,red coat| black bag |,3,x
a/1.jpg,"Blue, jeans.",anna,Train,,3,
./a/2.jpg,"Two
lines.",ben,validation,,4,y
3.jpg,A man.,carla,TEST,hat,4,
"""


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        CSV.encode("utf-8-sig"),
        CSV.replace("\n", "\r\n").replace('"Two\r\nlines."', '"Two\nlines."'),
        CSV.replace("Blue, jeans", "Blue; jeans").replace(",", ";").replace("Blue; jeans", "Blue, jeans"),
        CSV.replace("Blue, jeans", "\0").replace(",", "\t").replace("\0", "Blue, jeans"),
        CSV.replace("image,caption,person", "Image,CAPTION,Person"),
        CSV.encode("utf-16"),
    ],
)
def test_a_csv_as_people_have_it(tmp_path, content):
    assert rows(read(tmp_path, content)) == EXPECTED


def test_a_table_of_r(tmp_path, capsys):
    header = '"","image","caption","person","split","attributes"\n'
    content = header + '"1","a.jpg","A.",7,"train",NA\n"2","a.jpg",NA,7,"train",NA\n'
    assert rows(read(tmp_path, content)) == [("a.jpg", "7", "train", ("A.",), ((),))]
    assert "1 empty caption dropped from train" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"my.csv: line 4 has no person"):
        read(tmp_path, content + '"3","b.jpg","B.",NA,"val",NA\n')


def test_a_jsonl_has_lists_of_captions_and_attributes(tmp_path):
    lines = [
        {"image": f"{tmp_path}/a/1.jpg", "caption": ["A red coat."], "person": "anna", "split": "train",
         "attributes": {"upper": "red coat", "bag": " black bag "}},
        {"image": "a\\1.jpg", "caption": "Blue, jeans.", "person": "anna", "split": "train", "attributes": None},
        {"image": "a/2.jpg", "caption": "Two\nlines.", "person": "ben", "split": "dev", "attributes": []},
        {"image": "3.jpg", "caption": ["A man."], "person": "carla", "split": "test", "attributes": ["hat"]},
    ]  # fmt: skip
    assert rows(read(tmp_path, "\n".join(map(json.dumps, lines)), "my.jsonl")) == EXPECTED
    several = {"image": "b.jpg", "caption": ["x", "y"], "split": "train", "person": 7, "attributes": "a|b"}
    (record,) = read(tmp_path, json.dumps(several), "other.jsonl")
    assert (record.captions, record.attributes, record.copies) == (("x", "y"), (("a", "b"),) * 2, 1)


@pytest.mark.parametrize(
    ("persons", "ids", "names"),
    [
        (("0042", "7", "42"), [42, 7, 42], ["42", "7", "42"]),
        (("3.0", "1.0", "2.0"), [3, 1, 2], ["3", "1", "2"]),  # as pandas writes them
        (("p10", "p9", "0042"), [1, 2, 0], ["p10", "p9", "0042"]),
        (("-1", "5", "5"), [0, 1, 1], ["-1", "5", "5"]),
        (("2147483648", "5", "6"), [0, 1, 2], ["2147483648", "5", "6"]),
    ],
)
def test_whole_numbers_keep_their_number_and_other_persons_are_numbered_in_order(tmp_path, persons, ids, names):
    lines = [f"{number}.jpg,x,train,{person}" for number, person in enumerate(persons)]
    records = read(tmp_path, "\n".join(["image,caption,split,person", *lines]))
    assert [record.person_id for record in records] == ids
    assert [record.person_name for record in records] == names


def test_without_persons_every_image_is_one_and_without_splits_a_draw_divides(tmp_path, capsys):
    names = [f"{number:02d}.jpg" for number in range(25)]
    path = table(tmp_path, "image,caption,id\n" + "".join(f"{name},x,1\n{name},y,1\n" for name in names))
    records = read_annotations(tmp_path, "own").records
    order = sorted(names, key=lambda name: hashlib.sha256(f"0/{name}".encode()).hexdigest())
    expected = {name: "test" if i < 2 else "val" if i < 4 else "train" for i, name in enumerate(order)}
    assert {record.image_path: record.split for record in records} == expected
    assert len(records) == 25 and {len(record.captions) for record in records} == {2}
    assert split_counts(records) == {"train": (21, 21, 42), "val": (2, 2, 4), "test": (2, 2, 4)}
    assert capsys.readouterr().err == (
        f"{path} has no column person: every image counts as a person of its own (if id is it, rename it to person)\n"
        f"{path} has no column split: a draw divides the persons: 21 train, 2 val, 2 test\n"
    )


def test_the_draw_is_of_the_persons_alone(tmp_path):
    content = "image,caption,person\n" + "".join(f"{i}.jpg,x,{i % 5}\n" for i in range(20))
    first = {r.person_name: r.split for r in read(tmp_path, content)}
    again = {r.person_name: r.split for r in read(tmp_path, content + "new.jpg,z,3\n")}
    assert first == again and sorted(first.values()) == ["test", "train", "train", "train", "val"]


def test_the_splits_of_a_run_are_a_table_too(tmp_path):
    text = own.splits_table(read(tmp_path, CSV))
    assert text == "image,person,split\na/1.jpg,anna,train\na/2.jpg,ben,val\n3.jpg,carla,test\n"


SEE = "; see docs/datasets.md, Own data"
EXPECT = "; expected image and caption, and where they are known person, split, attributes"
SPLIT = "; expected train, val (validation, valid, dev) or test; without the column, a draw divides"
HEAD = "image,caption,person,split\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_path,captions,id\na,b,c\n", " has no column image; it has file_path, captions, id" + EXPECT
         + "; rename file_path to image, captions to caption, id to person" + SEE),
        ("image;Text\na;b\n", " has no column caption; it has image, Text" + EXPECT + "; rename Text to caption" + SEE),
        ("image,caption\n", " has no rows: add images and captions" + SEE),
        ("", ": the first line has no column image; it is empty"),
        (HEAD + "a.jpg,x,anna,train\na.jpg,y,ben,train\n",
         ': line 2 and line 3 (a.jpg) are one image with "person" anna and ben; remove the wrong record'),
        (HEAD + "a.jpg,x,anna,train\n./a.jpg,y,anna,test\n",
         ': line 2 and line 3 (a.jpg) are one image with "split" train and test; remove the wrong record'),
        (HEAD + "a.jpg,x,anna,holdout\n", ': line 2 has split "holdout"' + SPLIT),
        (HEAD + "a.jpg,x,anna,\n", ': line 2 has split ""' + SPLIT),
        (HEAD + "a.jpg,x,,train\n", ": line 2 has no person; name the person, or remove the column, and every image "
         "counts as a person of its own"),
        (HEAD + ",x,anna,train\n", ": line 2 has no image; name the picture, or remove the line"),
        (HEAD + "../a.jpg,x,anna,train\n", ": line 2: image ../a.jpg is not in FOLDER; put the table into a folder "
         "that holds all pictures; paths are relative to it" + SEE),
        (HEAD + "a.jpg,x,anna,val\n", " holds no training record"),
        (HEAD + "a.jpg,,anna,train\n", " holds no training record"),  # empty captions are dropped
        ("image,caption,person\na.jpg,x,anna\nb.jpg,x,ben\n",
         " has no column split, and 2 persons cannot be divided into train, val and test; add the column, or more "
         "persons"),
    ],
)  # fmt: skip
def test_a_fault_of_a_table_is_one_line(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert str(error.value) == f"{tmp_path}/my.csv{message.replace('FOLDER', str(tmp_path))}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"image": "a.jpg"}, "my.jsonl: line 2 has no caption"),
        ({"image": "a.jpg", "caption": []}, "line 2 has a caption that is neither a text nor a list of at least one"),
        ({"image": "a.jpg", "caption": ["x", 1]}, "line 2 has a caption that is neither a text nor a list"),
        ({"image": "a.jpg", "caption": {"a": "x"}}, "line 2 has a caption that is neither a text nor a list"),
        (
            {"image": "a.jpg", "caption": "x", "attributes": ["x", 1]},
            "line 2 has attributes with a phrase that is not a",
        ),
        ({"caption": "x"}, "line 2 has no image; name the picture, or remove the line"),
        ({"image": ["a.jpg"], "caption": "x"}, "line 2 is malformed: image is a list or an object"),
    ],
)
def test_a_fault_of_a_jsonl_is_one_line(tmp_path, line, message):
    lines = [{"image": "0.jpg", "caption": "x", "split": "train"}, {"split": "train", **line}]
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, "\n".join(map(json.dumps, lines)), "my.jsonl")
    assert "\n" not in str(error.value)


def test_a_folder_has_one_table(tmp_path):
    with pytest.raises(DataError, match=r" has no table \(.csv, .jsonl\): expected a table"):
        read_annotations(tmp_path, "own")
    with pytest.raises(DataError, match=r"nowhere not found: expected a table of images and captions"):
        read_annotations(tmp_path / "nowhere", "own")
    table(tmp_path, CSV, "a.csv"), table(tmp_path, CSV, ".hidden.csv")
    assert read_annotations(tmp_path, "own").path == tmp_path / "a.csv"
    table(tmp_path, "", "b.JSONL")
    with pytest.raises(DataError, match=r"has 2 tables: a.csv, b.JSONL; name one of them, such as \S+/a.csv$"):
        read_annotations(tmp_path, "own")
    with pytest.raises(DataError, match=r"notes.txt is neither .csv nor .jsonl: rename it if it is one of them"):
        read_annotations(table(tmp_path, CSV, "notes.txt"), "own")
    with pytest.raises(DataError, match=r"a.csv is a table of own data: use --config=configs/own.py or --dataset=own"):
        read_annotations(tmp_path / "a.csv", "cuhk_pedes")


def test_titles():
    assert [title_of(dataset_name({"name": name, "root": "data/shop/My crops.csv", "title": title}))
            for name, title in (("own", ""), ("own", "Shop"), ("cuhk_pedes", ""), ("cuhk_pedes", "CUHK, cleaned"))
    ] == ["My crops", "Shop", "CUHK-PEDES", "CUHK, cleaned"]  # fmt: skip
    roots = ("data/shop/", "gs://bucket/shop", ".")
    assert [dataset_name({"name": "own", "root": root}) for root in roots] == ["shop", "shop", "own"]
    assert training_persons("own", 0.05) == 1000  # what a run without data assumes


# ---- with pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with a clean table of ten persons, two pictures and captions of each; each picture is another scene."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "crops").mkdir()
    lines = ["image,caption,person,camera"]
    for number in range(20):
        (folder / f"crops/{number}.jpg").write_bytes(encoded(scene(number)))
        lines.append(f"crops/{number}.jpg,Person {number} in red.,p{number // 2},{number % 3}")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    return folder


def call(root, *arguments):
    return doctor.main(["--dataset=own", f"--root={root}", "--workers=1", *arguments])


def test_the_doctor_calls_a_clean_table_clean(pictures, capsys):
    assert call(pictures) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:5] == [
        f"{pictures}/shop.csv",
        "split      persons    images  captions",
        "train            8        16        16",
        "val              1         2         2",
        "test             1         2         2",
    ]
    assert out[-1] == "clean" and "published" not in " ".join(out)


def test_the_doctor_names_persons_as_written(pictures, tmp_path, capsys):
    shutil.copytree(pictures / "crops", tmp_path / "crops")
    (tmp_path / "crops/2.jpg").write_bytes((tmp_path / "crops/0.jpg").read_bytes())
    lines = [(0, "anna", "train"), (1, "anna", "test"), (2, "ben", "train"), (3, "carla", "train"), (9, "dora", "val")]
    text = "".join(f"crops/{number}.jpg,Person {number}.,{who},{split}\n" for number, who, split in lines)
    table(tmp_path, HEAD + text + "crops/none.jpg,x,eve,train\n")
    assert call(tmp_path) == 2
    out = capsys.readouterr().out
    assert "error: 1 person id is in several splits (if each split numbers its own persons, --allow=sh" in out
    assert ": anna (train, test)\n" in out and "\npersons: anna to eve\n" in out
    assert "1 image equals an image of another person: person ben crops/2.jpg = person anna crops/0.jpg\n" in out
    assert "error: 1 image is missing: crops/none.jpg\n" in out
    assert call(tmp_path, "--fix_list", "--allow=shared_persons") == 2
    assert (tmp_path / "quarantine.txt").read_text() == "crops/none.jpg\n"
    assert call(tmp_path, "--allow=shared_persons") == 1


def test_the_example_of_the_documentation_is_read(tmp_path, capsys):
    section = DOCS.read_text().partition("\n## Own data\n")[2].partition("\n## ")[0]
    examples = dict(re.findall(r"```(csv|json)\n(.*?)```", section, re.DOTALL))
    first = rows(read(tmp_path, examples["csv"], "my.csv"))
    assert first == rows(read(tmp_path, examples["json"], "my.jsonl"))
    assert {split for _, _, split, _, _ in first} == {"train", "val", "test"}
    assert any(len(captions) > 1 for *_, captions, _ in first) and any(any(phrases) for *_, phrases in first)
    for column in (*own.REQUIRED, *own.OPTIONAL):
        assert f"| `{column}` |" in section, column
    assert all(f"`{name}`" in section for name in ("validation", "valid", "dev"))
