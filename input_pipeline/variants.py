"""Reads annotation files of all known shapes, recognised by content, as one flat list of entries.

- a list of records, each with its split: CUHK-PEDES (reid_raw.json), ICFG-PEDES, RSTPReid, UFine6926
- an object {split: list of records}, one record per caption: the processed files of the IVT release
- a list of records without splits: CUHK-PEDES as its authors send it (caption_all.json), which is refused
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ivt_jax.common.errors import DataError

SPLITS = ("train", "val", "test")
PATH_KEYS = ("file_path", "img_path")
SEE_DOCS = "see docs/datasets.md"

# ICFG_PEDES_VISTXT.json repeats its test records under these names.
_REPEATED = {"query", "gallery"}


class Entry(NamedTuple):
    """A raw record. where: its place in the file, for messages. is_image: record of an image, else of a caption."""

    value: Any
    split: str
    where: str
    is_image: bool


class _DuplicateKey(dict):
    """A JSON object that has `key` twice, so its value is ambiguous."""

    key: str


def read_entries(path: Path) -> list[Entry]:
    """Returns the entries of an annotation file in order. Raises DataError if its shape is not a known one."""
    document = _read_json(path)
    if isinstance(document, dict):
        check_object(document, str(path))
    if isinstance(document, list):
        places = [(value, f"record {i}") for i, value in enumerate(document)]
        entries = [Entry(value, _split(value, f"{path}: {place}"), place, True) for value, place in places]
    elif _is_split_table(document):
        entries = [
            Entry(value, split.lower(), f"{split} record {i}", False)
            for split, values in document.items()
            for i, value in enumerate(values)
            if split.lower() in SPLITS
        ]
    else:
        expected = "expected a list of records, or an object of such lists named train, val, test"
        raise DataError(f"{path} holds {kind(document)}; {expected}; {SEE_DOCS}")
    if not entries:
        raise DataError(f"{path} holds no records")
    return entries


def check_object(value: Any, where: str) -> None:
    """Raises DataError unless `value` is a JSON object that names each key once."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {kind(value)}; expected an object; {SEE_DOCS}")
    if isinstance(value, _DuplicateKey):
        raise DataError(f'{where} has "{value.key}" twice; remove one of them')


def kind(value: Any) -> str:
    """Returns what a JSON value is, such as "a list"."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _is_split_table(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    names = {name.lower() for name in document}
    known = bool(names & {*SPLITS}) and names <= {*SPLITS, *_REPEATED}
    return known and all(isinstance(values, list) for values in document.values())


def _split(value: Any, where: str) -> str:
    check_object(value, where)
    if "split" not in value:
        if "captions" in value and any(key in value for key in PATH_KEYS):
            raise DataError(
                f'{where} has no "split". This looks like caption_all.json, which has no splits. '
                f"Use reid_raw.json, which has them; {SEE_DOCS}"
            )
        raise DataError(f'{where} has no "split"; {SEE_DOCS}')
    split = value["split"]
    if not isinstance(split, str) or split.lower() not in SPLITS:
        raise DataError(f'{where} has "split" {json.dumps(split)}; expected one of {", ".join(SPLITS)}')
    return split.lower()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it, or unpack it again") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits raises ValueError
        raise DataError(f"{path} is not valid JSON ({error}); it may be truncated: unpack it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    duplicate = None
    for key, item in pairs:
        if key in value:
            duplicate = key
        value[key] = item
    if duplicate is None:
        return value
    marked = _DuplicateKey(value)
    marked.key = duplicate
    return marked
