"""Every dataset's annotation file, read and checked, as one list of records."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from input_pipeline.errors import UserError

SPLITS = ("train", "val", "test")

_README = "see README, Datasets"


class DataError(UserError):
    """A dataset that is not as it should be. The message is one line: the file, the record, the remedy."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions. `image_path` is relative to `<root>/imgs`, with forward slashes."""

    image_path: str
    person_id: int
    captions: tuple[str, ...]
    split: str


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A dataset as its authors send it: the usual name of its folder, of its JSON file, and its key for the path."""

    folder: str
    files: tuple[str, ...]
    path_key: str
    remedy: str = _README  # what to do where the files are missing


LAYOUTS = {
    "cuhk_pedes": _Layout("CUHK-PEDES", ("reid_raw.json",), "file_path"),
    "icfg_pedes": _Layout("ICFG-PEDES", ("ICFG-PEDES.json", "ICFG_PEDES.json"), "file_path"),
    "rstp_reid": _Layout("RSTPReid", ("data_captions.json",), "img_path"),
    "pedes_synth": _Layout("PEDES-Synth", ("reid_raw.json",), "file_path", "`make data` generates it"),
}


def annotation_file(root: Path, name: str) -> Path:
    """The dataset's JSON file under `root`. Raises DataError, in one line, where the dataset or the file is missing."""
    if name not in LAYOUTS:
        raise DataError(f'data.name is "{name}"; expected one of {", ".join(LAYOUTS)}')
    layout = LAYOUTS[name]
    for file in layout.files:
        if (root / file).is_file():
            return root / file
    raise DataError(
        f"{root / layout.files[0]} not found: --config.data.root expects the {layout.folder} folder "
        f"with {' or '.join(layout.files)} and imgs/; {layout.remedy}"
    )


def read_annotations(root: Path, name: str) -> list[Record]:
    """All records of the dataset `name` (a key of LAYOUTS) under `root`, in the order of its annotation file.

    Empty captions are dropped from training records, and a training record without any other caption with them; in
    val and test, where numbers would change silently, they are refused. Raises DataError at the first fault.
    """
    path = annotation_file(root, name)
    layout = LAYOUTS[name]
    if not (root / "imgs").is_dir():
        raise DataError(f"{root / 'imgs'} not found: the images of {path.name} are expected in it; {_README}")
    entries = _read_json(path)
    records, dropped = [], 0
    for number, entry in enumerate(entries):
        record = _record(entry, layout.path_key, f"{path}: record {number}")
        captions = tuple(c for c in record.captions if c.strip())
        dropped += len(record.captions) - len(captions)
        if len(captions) < len(record.captions) and record.split != "train":
            raise DataError(f"{path}: record {number} ({record.image_path}) has an empty caption in {record.split}")
        if captions:
            records.append(dataclasses.replace(record, captions=captions))
    if dropped:
        logging.warning("%s: %d empty captions dropped from train", path, dropped)
    if not any(record.split == "train" for record in records):
        raise DataError(f"{path} holds no training record")
    return records


def hold_out_persons(records: Sequence[Record], share: float, seed: int = 0) -> list[Record]:
    """The same records, with a `share` of the training persons moved to val, for datasets without a val split.

    Who is held out depends on (person id, seed) alone: a keyed hash orders the persons, and the first of them go.
    """
    persons = {record.person_id for record in records if record.split == "train"}
    order = sorted(persons, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
    held_out = set(order[: round(share * len(order))])
    return [
        dataclasses.replace(record, split="val") if record.split == "train" and record.person_id in held_out else record
        for record in records
    ]


def _read_json(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or unpack it again") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); it may be truncated: unpack it again") from None
    if not isinstance(entries, list):
        raise DataError(f"{path} holds {_kind(entries)}; expected a list of records; {_README}")
    if not entries:
        raise DataError(f"{path} holds no records")
    return entries


def _record(entry: Any, path_key: str, where: str) -> Record:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {_kind(entry)}; expected an object; {_README}")
    for key in ("split", "captions", path_key, "id"):
        if key not in entry:
            hint = "This looks like caption_all.json, which has no splits; " if key == "split" else ""
            raise DataError(f'{where} has no "{key}". {hint}{_README}')
    split, captions, path, person = entry["split"], entry["captions"], entry[path_key], entry["id"]
    if not isinstance(split, str) or split.lower() not in SPLITS:
        raise DataError(f'{where} has "split" {json.dumps(split)}; expected one of {", ".join(SPLITS)}')
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
        raise DataError(f'{where} has "captions" that are not a list of at least one text; {_README}')
    if not isinstance(person, int) or isinstance(person, bool) or not 0 <= person < 2**31:
        raise DataError(f'{where} has "id" {json.dumps(person)}; expected a whole number from 0 to 2^31 - 1')
    if not isinstance(path, str) or not path.strip():
        raise DataError(f'{where} has "{path_key}" {json.dumps(path)}; expected the path of an image')
    posix = path.replace("\\", "/")
    if posix.startswith("/") or posix[1:2] == ":" or ".." in PurePosixPath(posix).parts:
        raise DataError(f'{where} has "{path_key}" {json.dumps(path)}; expected a path inside imgs/')
    return Record(posix, person, tuple(captions), split.lower())


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
