"""Cuts lists of pairs, CSV or JSONL, into blocks, which many processes read and which the index keeps.

A list has the columns `image` (or `path`), a file relative to the list's folder or a URL, and `caption`. In a JSONL,
`caption` (or `captions`) may be a list: each caption is a pair. A block has a line for each pair:

    {"line": 2, "image": "imgs/a.jpg", "caption": "A red car."}
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import DataError
from ivt_jax.common.files import write_bytes
from ivt_jax.common.tables import read_table

BLOCK = 10_000  # pairs


def cut(source: str, folder: Path) -> list[Path]:
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
            raise DataError(f"{path}: line {line} has a caption that is no text")
        for caption in captions or [""]:
            yield {"line": line, "image": record.get("image", ""), "caption": caption.strip()}
