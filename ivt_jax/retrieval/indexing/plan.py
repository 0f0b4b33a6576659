"""Compares the pictures of a source with the rows of an index."""

import itertools
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from input_pipeline.decoding import is_turned
from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.retrieval.indexing.missing import Missing
from ivt_jax.retrieval.indexing.sources import Picture, Source
from ivt_jax.retrieval.stores.store import Row, VectorStore

_AHEAD = 256  # files that threads open in advance


class Plan(NamedTuple):
    """The differences between a source and an index."""

    todo: list[tuple[Picture, Row | None]]  # pictures that need a new row, each with the old row of its path
    current: int  # rows that agree with their pictures and stay
    missing: list[Missing]  # rows whose pictures the source does not have
    surplus: list[int]  # second rows of a picture, left by a stopped build or by two builds at once
    shared: list[Missing]  # rows with the same id, left by two builds at once; they can only be deleted together
    recent: list[str]  # digests of rows that a stopped build has added and that agree with their pictures
    known: dict[str, int]  # digest -> a row with the vector of that content
    rows: int  # in the index
    next_id: int


def plan_build(source: Source, rows: Iterable[Row], unfinished: int, stale: Collection[int]) -> Plan:
    """Compares the pictures with the rows of the index, which come in the order of their ids.

    unfinished: as in `About`; stale: ids of rows whose pictures must be embedded again.
    """
    found: dict[str, Row | None] = {}  # path -> its row, None if that agrees with the picture
    known, surplus, shared, recent = dict[str, int](), list[int](), list[Missing](), list[str]()
    count, next_id = 0, 0
    for id, of_one_id in itertools.groupby(rows, lambda row: row.id):
        row, *others = of_one_id
        count, next_id = count + 1 + len(others), id + 1
        if others:  # their pictures count as new
            surplus.append(id)
            shared += [Missing(id, each.path, each.digest) for each in (row, *others)]
            continue
        if id not in stale:
            known[row.digest] = id
        picture = source.pictures.get(row.path)
        agrees = picture is not None and id not in stale and _is_of(row, picture)
        if row.path in found:
            before = found.pop(row.path)  # inserted again below, to keep the order of ids
            surplus.append(id if before is None else before.id)  # a later row has a later state of the file
            agrees = agrees or before is None
        elif agrees and 0 <= unfinished <= id:
            recent.append(row.digest)
        found[row.path] = None if agrees else row
    # New pictures come first, while the old rows of changed ones still have vectors that they may need. Changed ones
    # follow in the order of ids: `known` has the last row of each content, so it is replaced last.
    new = [(picture, None) for path, picture in source.pictures.items() if path not in found]
    changed = [(source.pictures[path], row) for path, row in found.items() if row and path in source.pictures]
    missing = [Missing(row.id, path, row.digest) for path, row in found.items() if row and path not in source.pictures]
    current = sum(row is None for row in found.values())
    return Plan([*new, *changed], current, missing, surplus, shared, recent, known, count, next_id)


def _is_of(row: Row, picture: Picture) -> bool:
    return (row.size, row.changed, row.metadata) == (picture.size, picture.changed, picture.metadata)


def find_stale(place: Path | str, source: Source, store: VectorStore, below: int) -> set[int]:
    """Finds the rows with ids below `below` whose pictures may have been embedded sideways; prints a line on stderr.

    ivt_jax once ignored EXIF orientation, and an index from that time has no "orientation" in `About.images`. A row is
    stale unless its file is unchanged and has no orientation. No other path takes the vector of a stale row, and its
    picture is embedded again once it can be read.
    """
    rows = [row for row in store.scan() if row.id < below]
    work = f"checking {counted(len(rows), 'picture')}; those with an orientation are embedded again"
    print(f"{place} has rows from before pictures were turned upright by EXIF: {work}", file=sys.stderr)
    checked = done_ahead(lambda row: _is_stale(source, row), rows, _AHEAD)
    checked = progress(checked, len(rows), "looking for EXIF orientation: ", "pictures", brief=True)
    return {row.id for row, stale in checked if stale.result()}


def _is_stale(source: Source, row: Row) -> bool:
    picture = source.pictures.get(row.path)
    if picture is None or (row.size, row.changed) != (picture.size, picture.changed):
        return True
    try:
        return is_turned(source.root / row.path)
    except Exception:  # of many types; the build reads the picture again and reports the reason
        return True
