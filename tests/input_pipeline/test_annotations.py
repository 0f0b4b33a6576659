import json
import logging

import pytest

from input_pipeline.annotations import DataError, Record, hold_out_persons, read_annotations

GOOD = {"split": "train", "captions": ["A woman.", "She."], "file_path": "cam_a/000_45.bmp", "id": 1}


def write(root, records, name="reid_raw.json"):
    (root / "imgs").mkdir(exist_ok=True)
    text = records if isinstance(records, bytes) else json.dumps(records, ensure_ascii=False).encode()
    (root / name).write_bytes(text)
    return root


@pytest.mark.parametrize("extra", [{}, {"processed_tokens": [["a", "woman"], ["she"]]}, {"split": "Train"}])
@pytest.mark.parametrize("name", ["cuhk_pedes", "pedes_synth"])
def test_cuhk_records(tmp_path, name, extra):
    expected = [Record("cam_a/000_45.bmp", 1, ("A woman.", "She."), "train")]
    assert read_annotations(write(tmp_path, [GOOD | extra]), name) == expected


@pytest.mark.parametrize("file", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_icfg_records_keep_their_split_whatever_their_folder_is_called(tmp_path, file):
    record = {"split": "train", "captions": ["The man."], "file_path": "test/0001/x.jpg", "id": 0}
    record |= {"processed_tokens": [["the"]]}
    expected = [Record("test/0001/x.jpg", 0, ("The man.",), "train")]
    assert read_annotations(write(tmp_path, [record], file), "icfg_pedes") == expected


def test_rstp_records_with_their_stray_characters(tmp_path):
    record = {"split": "train", "captions": ["A \u7537 man, {}", "b"], "img_path": "0000_c14_0031.jpg", "id": 0}
    (got,) = read_annotations(write(tmp_path, [record], "data_captions.json"), "rstp_reid")
    assert got == Record("0000_c14_0031.jpg", 0, ("A \u7537 man, {}", "b"), "train")


def test_records_keep_the_order_of_the_file_and_a_byte_order_mark_is_no_fault(tmp_path):
    records = [GOOD | {"id": i, "split": s} for i, s in enumerate(["test", "train", "val", "train"])]
    write(tmp_path, b"\xef\xbb\xbf" + json.dumps(records).encode())
    assert [r.person_id for r in read_annotations(tmp_path, "cuhk_pedes")] == [0, 1, 2, 3]


def test_empty_captions_are_dropped_from_train_and_counted(tmp_path, caplog):
    records = [GOOD | {"captions": ["", "A man.", " \n"]}, GOOD | {"captions": ["\t"], "id": 2}, GOOD]
    with caplog.at_level(logging.WARNING):
        got = read_annotations(write(tmp_path, records), "cuhk_pedes")
    assert [r.captions for r in got] == [("A man.",), ("A woman.", "She.")]
    assert "3 empty captions dropped from train" in caplog.text


@pytest.mark.parametrize("split", ["val", "test"])
def test_empty_captions_in_evaluation_splits_are_refused(tmp_path, split):
    write(tmp_path, [GOOD, GOOD | {"captions": ["A man.", ""], "split": split}])
    message = rf"reid_raw.json: record 1 \(cam_a/000_45.bmp\) has an empty caption in {split}"
    with pytest.raises(DataError, match=message):
        read_annotations(tmp_path, "cuhk_pedes")


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("split"), 'record 1 has no "split". This looks like caption_all.json'),
        (without("captions"), 'record 1 has no "captions"'),
        (without("file_path"), 'record 1 has no "file_path"'),
        (without("id"), 'record 1 has no "id"'),
        (["A man."], "record 1 is a list; expected an object"),
        (None, "record 1 is null; expected an object"),
        (GOOD | {"split": "dev"}, 'record 1 has "split" "dev"'),
        (GOOD | {"split": None}, 'record 1 has "split" null'),
        (GOOD | {"captions": "A man."}, 'record 1 has "captions" that are not a list'),
        (GOOD | {"captions": []}, 'record 1 has "captions" that are not a list of at least one text'),
        (GOOD | {"captions": ["A man.", 3]}, 'record 1 has "captions"'),
        (GOOD | {"id": "7"}, 'record 1 has "id" "7"; expected a whole number'),
        (GOOD | {"id": 1.5}, 'record 1 has "id" 1.5'),
        (GOOD | {"id": True}, 'record 1 has "id" true'),
        (GOOD | {"id": -1}, 'record 1 has "id" -1'),
        (GOOD | {"file_path": ""}, 'record 1 has "file_path" ""'),
        (GOOD | {"file_path": 5}, 'record 1 has "file_path" 5'),
        (GOOD | {"file_path": "/etc/x.jpg"}, "expected a path inside imgs/"),
        (GOOD | {"file_path": "C:\\x.jpg"}, "expected a path inside imgs/"),
        (GOOD | {"file_path": "a/../../x.jpg"}, "expected a path inside imgs/"),
        (GOOD | {"file_path": "a\\..\\x.jpg"}, "expected a path inside imgs/"),
    ],
)
def test_a_faulty_record_is_named_in_one_line(tmp_path, record, message):
    with pytest.raises(DataError) as error:
        read_annotations(write(tmp_path, [GOOD, record]), "cuhk_pedes")
    assert message in str(error.value) and "reid_raw.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"split": "tr', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'[{"split": "\xff\xfe"}]', "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"train": []}', "holds an object; expected a list of records"),
        (b"[]", "holds no records"),
    ],
)
def test_a_faulty_file_is_named_in_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_annotations(write(tmp_path, content), "cuhk_pedes")
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named_with_what_is_expected_where(tmp_path):
    root = tmp_path / "CUHK-PEDES"
    with pytest.raises(DataError, match=r"PEDES/reid_raw.json not found: .*expects the CUHK-PEDES folder with .*imgs/"):
        read_annotations(root, "cuhk_pedes")
    with pytest.raises(DataError, match=r"PEDES-Synth folder with reid_raw.json and imgs/; `make data` generates it$"):
        read_annotations(root, "pedes_synth")
    root.mkdir()
    (root / "reid_raw.json").write_text(json.dumps([GOOD]))
    with pytest.raises(DataError, match=r"CUHK-PEDES/imgs not found"):
        read_annotations(root, "cuhk_pedes")
    with pytest.raises(DataError, match=r'data.name is "market"; expected one of cuhk_pedes'):
        read_annotations(root, "market")
    with pytest.raises(DataError, match="holds no training record"):
        read_annotations(write(root, [GOOD | {"split": "test"}]), "cuhk_pedes")


def test_held_out_persons_leave_train_whole_and_depend_on_their_ids_alone():
    records = [Record(f"{p}_{i}.jpg", p, ("A man.",), "train") for p in range(40) for i in range(2)]
    records.append(Record("t.jpg", 99, ("A man.",), "test"))
    held = hold_out_persons(records, 0.25)
    assert [r.image_path for r in held] == [r.image_path for r in records]
    val = {r.person_id for r in held if r.split == "val"}
    assert len(val) == 10
    assert not val & {r.person_id for r in held if r.split == "train"} and held[-1].split == "test"
    backwards = hold_out_persons(records[::-1], 0.25)
    assert {r.person_id for r in backwards if r.split == "val"} == val
    assert {r.person_id for r in hold_out_persons(records, 0.25, seed=1) if r.split == "val"} != val
    assert hold_out_persons(records, 0.0) == records
