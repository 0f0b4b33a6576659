import json
from pathlib import Path

import pytest

from input_pipeline.annotations import Record, hold_out_persons, local_root, read_annotations
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import is_remote

GOOD = {"split": "train", "captions": ["A woman.", "She."], "file_path": "cam_a/000_45.bmp", "id": 1}


def write(root, records, name="reid_raw.json"):
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    text = records if isinstance(records, bytes) else json.dumps(records, ensure_ascii=False).encode()
    (root / name).write_bytes(text)
    return root


def read(root, name="cuhk_pedes"):
    return list(read_annotations(root, name).records)


def record(path, person, *captions, split="train", attributes=()):
    return Record(path, person, captions, split, attributes or ((),) * len(captions))


# ---- the shapes, whatever the file is called


@pytest.mark.parametrize("extra", [{}, {"processed_tokens": [["a", "woman"], ["she"]]}, {"split": "Train"}])
@pytest.mark.parametrize("name", ["cuhk_pedes", "pedes_synth"])
@pytest.mark.parametrize("file", ["reid_raw.json", "my own copy.json"])
def test_cuhk_records(tmp_path, name, extra, file):
    assert read(write(tmp_path, [GOOD | extra], file), name) == [record("cam_a/000_45.bmp", 1, "A woman.", "She.")]


@pytest.mark.parametrize("file", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_icfg_records_keep_their_split_whatever_their_folder_is_called(tmp_path, file):
    raw = {"split": "train", "captions": ["The man."], "file_path": "test/0001/x.jpg", "id": 0}
    raw |= {"processed_tokens": [["the"]]}
    assert read(write(tmp_path, [raw], file), "icfg_pedes") == [record("test/0001/x.jpg", 0, "The man.")]


def test_rstp_records_with_their_stray_characters(tmp_path):
    raw = {"split": "train", "captions": ["A \u7537 man, {}", "b"], "img_path": "0000_c14_0031.jpg", "id": 0}
    got = read(write(tmp_path, [raw], "data_captions.json"), "rstp_reid")
    assert got == [record("0000_c14_0031.jpg", 0, "A \u7537 man, {}", "b")]


def test_ufine_records_have_their_images_beside_the_annotations(tmp_path):
    raw = {"split": "train", "captions": ["A.", "B."], "file_path": "images/1.jpg", "id": 1}
    annotations = read_annotations(write(tmp_path, [raw], "data_captions.json"), "rstp_reid")
    assert (annotations.images, annotations.records[0].image_path) == (tmp_path, "images/1.jpg")


def test_the_processed_cuhk_file_has_a_record_per_caption_with_its_attributes(tmp_path, capsys):
    def raw(path, person, caption, **att):
        return {"id": person, "file_path": path, "captions": caption, "processed_tokens": ["a"], "att": att}

    splits = {
        "train": [
            raw("cam_a/1.png", 3, "A red coat.", upper="a red coat", hair=" long hair "),
            raw("cam_a/2.png", 3, "Blue jeans."),
            raw("cam_a/1.png", 3, "White shoes.", shoes="white shoes", hat=""),
        ],
        "val": [raw("cam_b/7.png", 9, "A hat.")],
        "test": [raw("cam_b/8.png", 11, "A bag.")],
    }
    assert read(write(tmp_path, splits, "cuhk_pedes_att.json")) == [
        record("cam_a/1.png", 3, "A red coat.", "White shoes.",
               attributes=(("a red coat", "long hair"), ("white shoes",))),
        record("cam_a/2.png", 3, "Blue jeans."),
        record("cam_b/7.png", 9, "A hat.", split="val"),
        record("cam_b/8.png", 11, "A bag.", split="test"),
    ]  # fmt: skip
    assert capsys.readouterr().err == ""  # two captions of one image are as they should be


def test_the_processed_icfg_file_repeats_its_test_records_as_query_and_gallery(tmp_path):
    raw = {"id": 0, "file_path": "train/1.jpg", "captions": ["A man."], "processed_tokens": [["a", "man"]]}
    test = raw | {"id": 4, "file_path": "test/2.jpg"}
    splits = {"train": [raw], "test": [test], "query": [test], "gallery": [test]}
    got = read(write(tmp_path, splits, "ICFG_PEDES_VISTXT.json"), "icfg_pedes")
    assert got == [record("train/1.jpg", 0, "A man."), record("test/2.jpg", 4, "A man.", split="test")]


def test_the_processed_rstp_file(tmp_path):
    splits = {s: [{"id": i, "img_path": f"{i}.jpg", "captions": "A."}] for i, s in enumerate(("train", "val", "test"))}
    got = read(write(tmp_path, splits, "rstpreid_vistxt.json"), "rstp_reid")
    assert got == [record(f"{i}.jpg", i, "A.", split=s) for i, s in enumerate(("train", "val", "test"))]


def test_the_root_may_name_the_file(tmp_path):
    write(tmp_path, [GOOD])
    write(tmp_path, {"train": [GOOD | {"captions": "Another."}]}, "cuhk_pedes_att.json")
    assert read(tmp_path)[0].captions == ("A woman.", "She.")
    assert read(tmp_path / "cuhk_pedes_att.json")[0].captions == ("Another.",)


def test_a_changed_file_is_read_again(tmp_path):
    assert len(read(write(tmp_path, [GOOD]))) == 1
    assert len(read(write(tmp_path, [GOOD, GOOD | {"file_path": "2.jpg"}]))) == 2


def test_captions_alone_are_refused_with_the_remedy(tmp_path):
    raw = {key: value for key, value in GOOD.items() if key != "split"}
    with pytest.raises(
        DataError,
        match=r"reid_raw.json not found.*; another JSON file: .*caption_all.json: record 0 has no \"split\".*Use ",
    ):
        read(write(tmp_path, [raw], "caption_all.json"))


# ---- what is mended, and counted


def images(count, **extra):
    return [GOOD | {"file_path": f"{i}.jpg"} | extra for i in range(count)]


def test_records_keep_the_order_of_the_file_and_a_byte_order_mark_is_no_fault(tmp_path):
    splits = ["test", "train", "val", "train"]
    records = [raw | {"id": i, "split": splits[i]} for i, raw in enumerate(images(4))]
    write(tmp_path, b"\xef\xbb\xbf" + json.dumps(records).encode())
    assert [r.person_id for r in read(tmp_path)] == [0, 1, 2, 3]


def test_records_of_one_image_are_joined_and_counted(tmp_path, capsys):
    twice = GOOD | {"captions": ["One more.", "A woman."], "file_path": "cam_a/./000_45.bmp"}
    got = read(write(tmp_path, [GOOD, *images(1), twice]))
    assert [r.captions for r in got] == [("A woman.", "She.", "One more.", "A woman."), ("A woman.", "She.")]
    assert [r.copies for r in got] == [2, 1]
    assert "reid_raw.json: 3 records of 2 images; joined 1 to another record\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"id": 2},
            'record 0 and record 1 (cam_a/000_45.bmp) are one image with "id" 1 and 2; remove the wrong record',
        ),
        ({"split": "val"}, 'are one image with "split" train and val; remove the wrong record'),
    ],
)
def test_one_image_of_two_persons_or_in_two_splits_is_refused(tmp_path, other, message):
    with pytest.raises(DataError) as error:
        read(write(tmp_path, [GOOD, GOOD | other]))
    assert message in str(error.value)


def test_empty_captions_are_dropped_from_train_and_counted(tmp_path, capsys):
    one, two, three = images(3)
    records = [one | {"captions": ["", "A man.", " \n"]}, two | {"captions": "\t"}, three]
    got = read(write(tmp_path, records))
    assert [r.captions for r in got] == [("A man.",), ("A woman.", "She.")]
    assert got[0].attributes == ((),)
    assert "reid_raw.json: 3 empty captions dropped from train\n" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "test"])
def test_empty_captions_in_evaluation_splits_stay_and_are_named(tmp_path, split, capsys):
    one, two, three, four, five = images(5)
    records = [five, *(r | {"captions": ["A man.", ""], "split": split} for r in (one, two, three, four))]
    got = read(write(tmp_path, records))
    assert [r.captions for r in got[1:]] == [("A man.", "")] * 4
    told = "empty captions in val or test are kept as queries: record 1, record 2, record 3, ...\n"
    assert told in capsys.readouterr().err


# ---- what is refused


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (without("split"), 'record 1 has no "split". This looks like caption_all.json'),
        ({"id": 1}, 'record 1 has no "split"; see docs/datasets.md'),
        (without("captions"), 'record 1 has no "captions"'),
        (without("file_path"), 'record 1 has no "file_path"'),
        (without("id"), 'record 1 has no "id"'),
        (["A man."], "record 1 is a list; expected an object"),
        (None, "record 1 is null; expected an object"),
        (GOOD | {"split": "dev"}, 'record 1 has "split" "dev"'),
        (GOOD | {"split": None}, 'record 1 has "split" null'),
        (GOOD | {"captions": {}}, 'record 1 has "captions" that are neither a text nor a list'),
        (GOOD | {"captions": []}, 'record 1 has "captions" that are neither a text nor a list of at least one'),
        (GOOD | {"captions": ["A man.", 3]}, 'record 1 has "captions"'),
        (GOOD | {"id": "p7"}, 'record 1 has "id" "p7"; expected a whole number'),
        (GOOD | {"id": "-7"}, 'record 1 has "id" "-7"; expected a whole number'),
        (GOOD | {"id": ""}, 'record 1 has "id" ""; expected a whole number'),
        (GOOD | {"id": "\u0667"}, "expected a whole number"),  # an Arabic seven
        (GOOD | {"id": "9" * 10}, "expected a whole number"),
        (GOOD | {"id": "9" * 5000}, "expected a whole number"),
        (GOOD | {"id": 1.5}, 'record 1 has "id" 1.5'),
        (GOOD | {"id": True}, 'record 1 has "id" true'),
        (GOOD | {"id": -1}, 'record 1 has "id" -1'),
        (GOOD | {"file_path": ""}, 'record 1 has "file_path" ""'),
        (GOOD | {"file_path": 5}, 'record 1 has "file_path" 5'),
        (GOOD | {"file_path": "/etc/x.jpg"}, "expected a path inside the folder of images"),
        (GOOD | {"file_path": "C:\\x.jpg"}, "expected a path inside the folder of images"),
        (GOOD | {"file_path": "a/../../x.jpg"}, "expected a path inside the folder of images"),
        (GOOD | {"file_path": "a\\..\\x.jpg"}, "expected a path inside the folder of images"),
        (GOOD | {"file_path": "x\0.jpg"}, "expected a path inside the folder of images"),
        (GOOD | {"att": ["red"]}, 'record 1: "att" is a list; expected an object'),
        (GOOD | {"att": {"coat": 1}}, 'record 1: "att" has a phrase that is not a text'),
    ],
)
def test_a_faulty_record_is_named_in_one_line(tmp_path, faulty, message):
    with pytest.raises(DataError) as error:
        read(write(tmp_path, [GOOD, faulty]))
    assert message in str(error.value) and "reid_raw.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"split": "tr', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'[{"split": "\xff\xfe"}]', "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"train": []}', "holds no records"),
        (b'{"train": {}}', "holds an object; expected a list of records, or an object of such lists"),
        (b'{"persons": []}', "holds an object; expected a list of records"),
        (b'{"train": [], "train": []}', 'reid_raw.json has "train" twice; remove one of them'),
        (b'[{"split": "train", "split": "test"}]', 'reid_raw.json: record 0 has "split" twice; remove one of them'),
        (b'{"train": [{"id": 1, "id": 2}]}', 'reid_raw.json: train record 0 has "id" twice'),
        (b"3", "holds a number"),
        (b"[]", "holds no records"),
    ],
)
def test_a_faulty_file_is_named_in_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read(write(tmp_path, content), "cuhk_pedes")
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_what_is_expected_where(tmp_path):
    root = tmp_path / "CUHK-PEDES"
    with pytest.raises(DataError, match=r"PEDES/reid_raw.json not found: .*expects the CUHK-PEDES folder with .*imgs/"):
        read(root, "cuhk_pedes")
    with pytest.raises(DataError, match=r"PEDES-Synth folder with reid_raw.json and imgs/; `make data` generates it$"):
        read(root, "pedes_synth")
    root.mkdir()
    (root / "reid_raw.json").write_text(json.dumps([GOOD]))
    assert len(read(root, "cuhk_pedes")) == 1  # images are looked for when they are opened
    with pytest.raises(DataError, match=r'data.name is "market"; expected one of cuhk_pedes'):
        read(root, "market")
    with pytest.raises(DataError, match="holds no training record"):
        read(write(root, [GOOD | {"split": "test"}]), "cuhk_pedes")


@pytest.mark.parametrize(
    ("root", "remote"), [("gs://bucket/cuhk", True), ("data/CUHK-PEDES", False), ("/gs:/x", False)]
)
def test_a_remote_root_has_a_scheme_and_no_images_to_open(root, remote):
    assert is_remote(root) == remote
    if not remote:
        assert local_root(root) == Path(root)
        return
    with pytest.raises(UserError, match="gs://bucket/cuhk: expected a local folder with the images"):
        local_root(root)


def test_held_out_persons_leave_train_whole_and_depend_on_their_ids_alone():
    records = [record(f"{p}_{i}.jpg", p, "A man.") for p in range(40) for i in range(2)]
    records.append(record("t.jpg", 99, "A man.", split="test"))
    held = hold_out_persons(records, 0.25)
    assert [r.image_path for r in held] == [r.image_path for r in records]
    val = {r.person_id for r in held if r.split == "val"}
    assert len(val) == 10
    assert not val & {r.person_id for r in held if r.split == "train"} and held[-1].split == "test"
    backwards = hold_out_persons(records[::-1], 0.25)
    assert {r.person_id for r in backwards if r.split == "val"} == val
    assert {r.person_id for r in hold_out_persons(records, 0.25, seed=1) if r.split == "val"} != val
    assert hold_out_persons(records, 0.0) == records


def test_half_a_character_is_refused(tmp_path):
    for caption, path in (("a \\ud800 man", "a.jpg"), ("a man", "a\\ud800.jpg")):
        text = f'[{{"split": "train", "captions": ["{caption}"], "file_path": "{path}", "id": 1}}]'
        (tmp_path / "reid_raw.json").write_text(text)
        with pytest.raises(DataError, match=r"reid_raw.json: record 0 has a lone surrogate .*; correct its text"):
            read_annotations(tmp_path, "cuhk_pedes")


def test_a_number_of_thousands_of_digits_is_one_line(tmp_path):
    (tmp_path / "reid_raw.json").write_text(f'[{{"split": "train", "id": {"9" * 5000}}}]')
    with pytest.raises(DataError, match=r"reid_raw.json is not valid JSON \(Exceeds the limit"):
        read_annotations(tmp_path, "cuhk_pedes")


def test_a_quarantine_is_utf_8_or_utf_16_with_a_byte_order_mark_and_any_other_file_is_refused_in_one_line(tmp_path):
    records = [
        {"split": "train", "captions": ["A man."], "file_path": name, "id": 1} for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    lines = "a.jpg\r\nc.jpg\n"
    for encoded in (lines.encode("utf-8-sig"), lines.encode("utf-16"), b"\xfe\xff" + lines.encode("utf-16-be")):
        (tmp_path / "quarantine.txt").write_bytes(encoded)
        assert [r.image_path for r in read_annotations(tmp_path, "cuhk_pedes").records] == ["b.jpg"]
    for encoded in (b"\xff\xfa", b"caf\xe9.jpg\n", lines.encode("utf-16")[:-1]):
        (tmp_path / "quarantine.txt").write_bytes(encoded)
        with pytest.raises(DataError, match=r"quarantine.txt cannot be read .*; save it as UTF-8 text, or remove it"):
            read_annotations(tmp_path, "cuhk_pedes")


def test_lines_of_a_quarantine_that_name_no_image_are_counted(tmp_path, capsys):
    names = ("a.jpg", "b.jpg", "c.jpg")
    records = [{"split": "train", "captions": ["A man."], "file_path": name, "id": 1} for name in names]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    (tmp_path / "quarantine.txt").write_text("a.jpg\nb.jpg \n../c.jpg\n")
    assert [r.image_path for r in read_annotations(tmp_path, "cuhk_pedes").records] == ["b.jpg", "c.jpg"]
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/quarantine.txt leaves out images: 1 of train",
        f"{tmp_path}/quarantine.txt: 2 paths that reid_raw.json does not name: '../c.jpg', 'b.jpg '",
    ]
    (tmp_path / "quarantine.txt").write_text("d.jpg\n")
    assert len(read_annotations(tmp_path, "cuhk_pedes").records) == 3
    assert capsys.readouterr().err.endswith("quarantine.txt: 1 path that reid_raw.json does not name: 'd.jpg'\n")


@pytest.mark.parametrize("of_records", ["{0}", "imgs/{0}", "{1}/imgs/{0}"])
@pytest.mark.parametrize("of_quarantine", ["{0}", "imgs/{0}", "./{0}", "{1}/imgs/{0}"])
def test_a_quarantine_names_images_in_every_form_that_annotations_may_have(tmp_path, capsys, of_records, of_quarantine):
    (tmp_path / "imgs").mkdir()
    names = [of_records.format(name, tmp_path) for name in ("a.jpg", "b.jpg")]
    records = [{"split": "train", "captions": ["A man."], "file_path": name, "id": 1} for name in names]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    (tmp_path / "quarantine.txt").write_text(of_quarantine.format("a.jpg", tmp_path) + "\n")
    assert [r.image_path for r in read_annotations(tmp_path, "cuhk_pedes").records] == ["b.jpg"]
    assert capsys.readouterr().err == f"{tmp_path}/quarantine.txt leaves out images: 1 of train\n"


def test_a_quarantine_leaves_out_names_that_hold_other_line_breaks(tmp_path):
    names = ("a\u2028.jpg", "b\r.jpg", "c.jpg", "d.jpg")
    records = [{"split": "train", "captions": ["A man."], "file_path": name, "id": 1} for name in names]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    (tmp_path / "quarantine.txt").write_bytes("a\u2028.jpg\nb\r.jpg\nc.jpg\r\n".encode())
    assert [r.image_path for r in read_annotations(tmp_path, "cuhk_pedes").records] == ["d.jpg"]


def test_few_persons_lend_at_least_one_to_validation():
    records = [Record(f"{i}.jpg", i, ("A man.",), "train", ((),)) for i in range(7)]
    assert sum(record.split == "val" for record in hold_out_persons(records, 0.05)) == 1
    assert sum(record.split == "val" for record in hold_out_persons(records, 0.0)) == 0


# ---- forms that mean the same


@pytest.mark.parametrize(("value", "person"), [("7", 7), ("0042", 42), ("0", 0), (7.0, 7), ("2147483647", 2**31 - 1)])
def test_a_person_id_may_be_digits(tmp_path, value, person):
    assert read(write(tmp_path, [GOOD | {"id": value}]))[0].person_id == person


def test_digits_and_a_number_are_one_person(tmp_path):
    records = [r | {"id": value} for r, value in zip(images(3), ("7", 7, "007"), strict=True)]
    assert [r.person_id for r in read(write(tmp_path, records))] == [7, 7, 7]
    (joined,) = read(write(tmp_path, [GOOD | {"id": "1"}, GOOD]))
    assert (joined.person_id, joined.copies) == (1, 2)


def forms(root):
    """One image in every form that its path may have; the folder of images is a link."""
    resolved = (root / "imgs").resolve()
    return [
        "cam_a/1.jpg", "imgs/cam_a/1.jpg", "./imgs/cam_a/1.jpg", "imgs\\cam_a\\1.jpg", f"{root}/imgs/cam_a/1.jpg",
        f"{root.resolve()}/imgs/cam_a/1.jpg", f"{resolved}/cam_a/1.jpg",
    ]  # fmt: skip


def test_paths_may_begin_with_the_folder_of_images_or_be_absolute(tmp_path):
    (tmp_path / "disk/pictures").mkdir(parents=True)
    (tmp_path / "disk/data").mkdir()
    (tmp_path / "disk/data/imgs").symlink_to(tmp_path / "disk/pictures")
    (tmp_path / "data").symlink_to(tmp_path / "disk/data")
    root = tmp_path / "data"
    records = [GOOD | {"file_path": path, "captions": [f"Man {i}."]} for i, path in enumerate(forms(root))]
    (image,) = read(write(root, records))
    assert (image.image_path, image.copies, len(image.captions)) == ("cam_a/1.jpg", 7, 7)


def test_absolute_paths_of_images_beside_the_annotations(tmp_path):
    root = write(tmp_path / "UFine", [GOOD | {"file_path": f"{tmp_path}/UFine/images/1.jpg"}])
    annotations = read_annotations(root, "cuhk_pedes")
    assert (annotations.images, annotations.records[0].image_path) == (root, "images/1.jpg")


def test_a_folder_imgs_within_imgs_is_part_of_the_path(tmp_path):
    (tmp_path / "imgs/imgs").mkdir(parents=True)
    assert read(write(tmp_path, [GOOD | {"file_path": "imgs/1.jpg"}]))[0].image_path == "imgs/1.jpg"


@pytest.mark.parametrize(
    "path",
    ["{root}/1.jpg", "{root}/../imgs/1.jpg", "{root}/imgs/../../1.jpg", "{root}2/imgs/1.jpg", "/imgs/1.jpg",
     "imgs", "imgs/", "imgs/../1.jpg", "{root}/imgs"],
)  # fmt: skip
def test_paths_elsewhere_are_refused_in_one_line(tmp_path, path):
    root = tmp_path / "data"
    with pytest.raises(DataError) as error:
        read(write(root, [GOOD | {"file_path": path.format(root=root)}]))
    given = json.dumps(path.format(root=root))
    expected = f'record 0 has "file_path" {given}; expected a path inside the folder of images'
    assert str(error.value) == f"{root}/reid_raw.json: {expected}"


def test_a_portable_folder_knows_images_by_the_absolute_paths_of_another_machine(tmp_path):
    """Its annotations were read where the images were; here there are none."""
    records = [GOOD | {"file_path": "/data/imgs/CUHK-PEDES/imgs/cam_a/1.jpg"}]
    (tmp_path / "reid_raw.json").write_text(json.dumps(records))
    assert read(tmp_path)[0].image_path == "cam_a/1.jpg"
    with pytest.raises(DataError, match="expected a path inside the folder of images"):
        read(write(tmp_path / "whole", records))
