"""Reads a table of own pictures and captions, CSV or JSONL, as the records of a dataset ("own").

docs/datasets.md describes every column. `read_records` returns a record for each row; rows of one image are joined by
`input_pipeline.annotations`. A table without a column `split` is divided by `divide`, a function of the persons alone,
so that the doctor, preparation and training agree.
"""

import csv
import hashlib
import io
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from input_pipeline.records import Record
from input_pipeline.variants import SPLITS
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import printable
from ivt_jax.common.messages import counted
from ivt_jax.common.tables import SUFFIXES, NoKeyError, read_table

REQUIRED, OPTIONAL = ("image", "caption"), ("person", "split", "attributes")
SEE_OWN = "see docs/datasets.md, Own data"
# Names that people give these columns. They are not read, because `id` may number rows; messages name them.
_SYNONYMS = {
    "image": ("file_path", "img_path", "image_path", "filepath", "path", "file", "file_name", "filename", "img",
              "images", "picture"),
    "caption": ("captions", "text", "texts", "description", "descriptions", "sentence", "sentences"),
    "person": ("id", "person_id", "pid", "identity", "persons", "label"),
    "split": ("set", "subset", "partition", "splits"),
    "attributes": ("att", "attribute"),
}  # fmt: skip
_SPLIT_NAMES = {**dict(zip(SPLITS, SPLITS, strict=True)), "validation": "val", "valid": "val", "dev": "val"}
_MISSING = {"NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "None", "NULL", "null"}  # as R, Excel and pandas write ""
_SHARE = 10  # one person in _SHARE is for test, one for val, if the table has no splits
_LEAST = len(SPLITS)  # persons that can be divided


def find_table(root: Path) -> Path:
    """Returns the table: `root`, or the only .csv or .jsonl in it. Raises DataError if there is none, or several."""
    if root.is_file() and root.suffix.lower() not in SUFFIXES:
        raise DataError(f"{root} is neither .csv nor .jsonl: rename it if it is one of them; {SEE_OWN}")
    if root.is_file():
        return root
    tables = sorted(path for path in root.glob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if len(tables) == 1:
        return tables[0]
    if tables:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{root} has {len(tables)} tables: {names}; name one of them, such as {tables[0]}")
    what = f"{root} has no table (.csv, .jsonl)" if root.is_dir() else f"{root} not found"
    raise DataError(f"{what}: expected a table of images and captions; {SEE_OWN}")


def read_records(path: Path) -> list[Record]:
    """Returns the records of a table in its order, one for each row; `copies` is 0, because a row stands for a caption.

    Prints a line on stderr if persons or splits are not given. Raises DataError, in one line, at the first fault.
    """
    table = _read_rows(path)
    given = {name for _, row in table for name in row}
    inside = relative_to(path.parent)
    images = [_image(row, f"{path}: line {line}", path.parent, inside) for line, row in table]
    persons = _persons(table, path) if "person" in given else images
    ids = person_ids(persons)
    if "split" in given:
        splits = [_split(row, f"{path}: line {line}") for line, row in table]
    else:
        drawn = _divided(persons, path)
        splits = [drawn[person] for person in persons]
    _say_what_is_not_given(path, given, splits, persons)
    records = []
    for (line, row), image, person, split in zip(table, images, persons, splits, strict=True):
        where = f"line {line}"
        captions = _captions(row, f"{path}: {where}")
        phrases = _phrases(row.get("attributes", ""), f"{path}: {where}")
        attributes = (phrases,) * len(captions)
        records.append(Record(image, ids[person], captions, split, attributes, 0, where, person))
    return records


def relative_to(folder: Path) -> Callable[[str], str | None]:
    """Returns a function of a path that returns it relative to the folder of a table, None if it leads out of it."""
    roots = [PurePosixPath(root.as_posix()) for root in (folder.absolute(), folder.resolve())]

    def relative(path: str) -> str | None:
        pure = PurePosixPath(path.strip().replace("\\", "/"))
        pure = next((pure.relative_to(root) for root in roots if pure.is_relative_to(root)), pure)
        whole = str(pure)
        outside = pure.is_absolute() or whole[1:2] == ":" or ".." in pure.parts or "\0" in whole or not pure.parts
        return None if outside else whole

    return relative


def person_ids(persons: Iterable[str]) -> dict[str, int]:
    """Returns each person's number: itself if all are whole numbers below 2^31, else its place in sorted order."""
    names = {*persons}
    if all(re.fullmatch(r"[0-9]{1,10}", name) and int(name) < 2**31 for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(sorted(names))}


def divide(persons: Iterable[str]) -> dict[str, str]:
    """Returns the split of each person, for a table without splits: a tenth for test, a tenth for val, at least one.

    A hash of the person's name orders the persons. Raises DataError for fewer than three. Prepared data depend on the
    result: if it changes for the same persons, raise the version of the builder.
    """
    order = sorted({*persons}, key=lambda person: hashlib.sha256(f"0/{person}".encode()).digest())
    if len(order) < _LEAST:
        raise DataError(f"{counted(len(order), 'person')} cannot be divided into train, val and test")
    share = max(round(len(order) / _SHARE), 1)
    return {
        person: "test" if place < share else "val" if place < 2 * share else "train"
        for place, person in enumerate(order)
    }


def splits_table(records: Iterable[Record]) -> str:
    """Returns the content of a run's splits.csv: image, person and split of each record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "person", "split"))
    writer.writerows((record.image_path, record.person_name, record.split) for record in records)
    return text.getvalue()


def _read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns the line and the values of each row. Raises DataError if a required column is missing."""
    known = (*REQUIRED[1:], *OPTIONAL)
    try:
        table = list(read_table(path, REQUIRED[:1], known, nested=("caption", "attributes")))
    except NoKeyError as error:
        raise _no_column(path, "image", error.names) if error.names else error from None
    if not table:
        raise DataError(f"{path} has no rows: add images and captions; {SEE_OWN}")
    names = dict.fromkeys(name for _, row in table for name in row)
    for name in REQUIRED:
        if name not in names:
            raise _no_column(path, name, names)
    return [(line, {name: "" if _is_missing(value) else value for name, value in row.items()}) for line, row in table]


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value.strip() in _MISSING


def _no_column(path: Path, missing: str, names: Collection[str]) -> DataError:
    renamed = [f"{other} to {name}" for name in (*REQUIRED, *OPTIONAL) for other in _likely(name, names)]
    hint = f"; rename {', '.join(renamed)}" if renamed else ""
    expected = f"expected {' and '.join(REQUIRED)}, and where they are known {', '.join(OPTIONAL)}"
    found = printable(", ".join(names))
    return DataError(f"{path} has no column {missing}; it has {found}; {expected}{hint}; {SEE_OWN}")


def _likely(name: str, names: Collection[str]) -> list[str]:
    """Returns the first column that people use for `name`, none if the table has `name` itself."""
    if name in names:
        return []
    return [other for synonym in _SYNONYMS[name] for other in names if other.lower() == synonym][:1]


def _say_what_is_not_given(path: Path, given: Collection[str], splits: Sequence[str], persons: Sequence[str]) -> None:
    divided = {split: len({p for p, s in zip(persons, splits, strict=True) if s == split}) for split in SPLITS}
    drawn = ", ".join(f"{count:,} {split}" for split, count in divided.items())
    meaning = {
        "person": "every image counts as a person of its own",
        "split": f"a draw divides the persons: {drawn}",
    }
    for name, line in meaning.items():
        if name not in given:
            hint = "".join(f" (if {other} is it, rename it to {name})" for other in _likely(name, given))
            print(f"{path} has no column {name}: {line}{printable(hint)}", file=sys.stderr)


def _image(row: Mapping[str, Any], where: str, folder: Path, inside: Callable[[str], str | None]) -> str:
    path = row.get("image", "")
    if not path.strip():
        raise DataError(f"{where} has no image; name the picture, or remove the line")
    relative = inside(path)
    if relative is None:
        remedy = f"put the table into a folder that holds all pictures; paths are relative to it; {SEE_OWN}"
        raise DataError(f"{where}: image {printable(path)} is not in {folder}; {remedy}")
    return relative


def _captions(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if "caption" not in row:
        raise DataError(f"{where} has no caption; give one, or remove the line")
    captions = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where} has a caption that is neither a text nor a list of at least one text; {SEE_OWN}")
    return tuple(captions)


def _persons(table: Sequence[tuple[int, Mapping[str, Any]]], path: Path) -> list[str]:
    """Returns the person of each row as written; whole numbers without zeros in front, or the ".0" of pandas."""
    persons = []
    for line, row in table:
        person = row.get("person", "").strip()
        if not person:
            remedy = "name the person, or remove the column, and every image counts as a person of its own"
            raise DataError(f"{path}: line {line} has no person; {remedy}")
        persons.append(person)
    if all(re.fullmatch(r"[0-9]{1,20}(\.0)?", person) for person in persons):
        return [str(int(person.partition(".")[0])) for person in persons]
    return persons


def _split(row: Mapping[str, Any], where: str) -> str:
    split = row.get("split", "").strip()
    if split.lower() not in _SPLIT_NAMES:
        expected = "expected train, val (validation, valid, dev) or test"
        raise DataError(f'{where} has split "{printable(split)}"; {expected}; without the column, a draw divides')
    return _SPLIT_NAMES[split.lower()]


def _divided(persons: Sequence[str], path: Path) -> dict[str, str]:
    try:
        return divide(persons)
    except DataError as error:
        raise DataError(f"{path} has no column split, and {error}; add the column, or more persons") from None


def _phrases(value: Any, where: str) -> tuple[str, ...]:
    """Returns the attribute phrases: of a list, of an object {kind: phrase}, or of a text with "|" between them."""
    phrases = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [*value.values()]
    if not all(isinstance(phrase, str) for phrase in phrases):
        raise DataError(f"{where} has attributes with a phrase that is not a text; {SEE_OWN}")
    return tuple(phrase.strip() for phrase in phrases if phrase.strip())
