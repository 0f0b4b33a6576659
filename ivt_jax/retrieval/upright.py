"""Finds the rows of an older index that may have been embedded sideways.

ivt_jax once ignored EXIF orientation. An index made then has no "orientation" in `About.images`. The next build looks
at the pictures of its rows, once: a row stays if its file is unchanged and has no orientation to be turned by. Every
other row is stale: its vector is not used for another path, and its picture is embedded again when it can be read.
"""

import sys
from pathlib import Path

from input_pipeline.decoding import is_turned
from ivt_jax.common.progress import progress
from ivt_jax.gallery.crops import done_ahead
from ivt_jax.retrieval.sources import Source
from ivt_jax.retrieval.store import Row, VectorStore

_AHEAD = 256  # files that threads open in advance


def next_id(store: VectorStore) -> int:
    """Returns the first id above those of all rows."""
    ids = store.ids()
    return int(ids[-1]) + 1 if len(ids) else 0


def find_stale(place: Path | str, source: Source, store: VectorStore, below: int) -> set[int]:
    """Returns the ids below `below` of rows whose vectors may be of sideways pictures. Says on stderr what it does."""
    rows = [row for row in store.scan() if row.id < below]
    print(
        f"{place} has rows from before pictures were turned upright by EXIF: looking at {len(rows):,} pictures; those "
        "with an orientation are embedded again",
        file=sys.stderr,
    )
    looked = done_ahead(lambda row: _is_stale(source, row), rows, _AHEAD)
    counted = progress(looked, len(rows), "looking for EXIF orientation: ", "pictures", brief=True)
    return {row.id for row, stale in counted if stale.result()}


def _is_stale(source: Source, row: Row) -> bool:
    picture = source.pictures.get(row.path)
    if picture is None or (row.size, row.changed) != (picture.size, picture.changed):
        return True
    try:
        return is_turned(source.root / row.path)
    except Exception:  # of many kinds; reading it again says what is wrong
        return True
