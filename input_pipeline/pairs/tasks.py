"""Finds what to index: shards, and lists of pairs, CSV or JSONL, which are cut into blocks.

A list has the columns `image` (or `path`), a file relative to the list's folder or a URL, and `caption`. In a JSONL,
`caption` (or `captions`) may be a list: each caption is a pair. Many processes read the blocks, and the index keeps
them. A block has a line for each pair:

    {"line": 2, "image": "imgs/a.jpg", "caption": "A red car."}
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.pairs import store
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import is_remote, write_bytes
from ivt_jax.common.tables import read_table

BLOCK = 10_000  # pairs


class Task(NamedTuple):
    """A shard to index. path: of the .tar or of the block; source: the list of a block, "" for a .tar."""

    path: str
    source: str = ""


def find_tasks(patterns: Sequence[str], folder: Path) -> list[Task]:
    """Returns the shards that the patterns match, and the blocks of the lists, which it writes into `folder`/lists.

    Raises UserError if a pattern matches nothing or another kind of file, or if a list is malformed.
    """
    tasks = []
    for path in dict.fromkeys(path for pattern in patterns for path in store.find(pattern)):
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".tar":
            tasks.append(Task(path))
        elif suffix not in (".csv", ".jsonl"):
            raise UserError(f"--pairs: {path} is no .tar, .csv or .jsonl; narrow the pattern")
        elif is_remote(path):
            raise UserError(f"--pairs: {path}: a list must be a local file; it may name images by their URLs")
        else:
            tasks += [Task(str(block), path) for block in _cut(path, folder / "lists")]
    if not tasks:
        raise DataError(f"--pairs={' '.join(patterns)}: the lists have no lines: name others, or add pairs")
    return tasks


def _cut(source: str, folder: Path) -> list[Path]:
    """Writes the blocks of a list into `folder` and returns them. Raises UserError if the list is malformed."""
    stem = f"{Path(source).stem}-{hashlib.sha256(source.encode(errors='surrogateescape')).hexdigest()[:8]}"
    blocks: list[Path] = []
    pairs = _pairs(source)
    while some := [*itertools.islice(pairs, BLOCK)]:
        blocks.append(folder / f"{stem}-{len(blocks):05d}.jsonl")
        lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in some)
        write_bytes(blocks[-1], "".join(lines).encode())
    return blocks


def _pairs(source: str) -> Iterator[dict[str, Any]]:
    path, names = Path(source), ("caption", "captions")
    for line, record in read_table(path, ("image", "path"), names, nested=names):
        if path.suffix.lower() == ".csv" and not {*names} & {*record}:
            raise DataError(f"{path}: the first line has no column caption; it has {', '.join(record)}")
        found = record.get("caption") or record.get("captions") or ""
        captions = found if isinstance(found, list) else [found]
        if not all(isinstance(caption, str) for caption in captions):
            raise DataError(f"{path}: line {line} has a caption that is no text: give a text or a list of texts")
        for caption in captions or [""]:
            yield {"line": line, "image": record.get("image", ""), "caption": caption.strip()}
