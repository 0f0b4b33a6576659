"""Finds the rows of an older index whose pictures may have been embedded sideways.

ivt_jax once ignored EXIF orientation. An index from that time has no "orientation" in `About.images`. The next build
checks the pictures of its rows once: a row stays if its file is unchanged and has no orientation. Every other row is
stale: no other path takes its vector, and its picture is embedded again once it can be read.
"""

import sys
from pathlib import Path

from input_pipeline.decoding import is_turned
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.gallery.crops import done_ahead
from ivt_jax.retrieval.sources import Source
from ivt_jax.retrieval.store import Row, VectorStore

_AHEAD = 256  # files that threads open in advance


def find_stale(place: Path | str, source: Source, store: VectorStore, below: int) -> set[int]:
    """Returns the stale rows' ids, of those below `below`. Prints a line on stderr, and the progress."""
    rows = [row for row in store.scan() if row.id < below]
    print(
        f"{place} has rows from before pictures were turned upright by EXIF: checking {counted(len(rows), 'picture')}; "
        "those with an orientation are embedded again",
        file=sys.stderr,
    )
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
