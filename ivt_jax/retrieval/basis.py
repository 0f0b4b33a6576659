"""The basis of an answer: the index and the model, their times, and pictures that may be missing."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.messages import counted, list_counts
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.retrieval.indexing.changes import find_change, iso_time
from ivt_jax.retrieval.stores.store import About
from ivt_jax.run.parameter_file import NAME as PARAMETER_FILE

LOOK_SECONDS = 60.0
_WEIGHTS = ("checkpoints", "params", PARAMETER_FILE)  # one of them is in the folder of a model


class Basis(NamedTuple):
    """The state of an index and its model. Times are ISO 8601 in UTC, "" if unknown."""

    made: str  # distinguishes the index from others in the same place
    updated: str  # when its last build listed the pictures
    outdated: str  # why the index may lack pictures, "" if no reason is found
    passed: dict[str, int]  # reason -> number of files that the last build left out
    kept: dict[str, int]  # reason -> number of pictures in the index without a readable file, as of the last build
    odd: int | None  # number of results of an odd shape or size; None: not known
    model: str  # digest
    trained: str  # when its weights were written

    def lines(self, searched: int) -> list[str]:
        """Returns a line for each fact. searched: number of pictures searched."""
        updated = f" of {self.updated}" if self.updated else ""
        trained = f" of {self.trained}" if self.trained else ""
        index, model = short_digest(self.made), short_digest(self.model)
        lines = [f"{counted(searched, 'picture')} searched; index {index}{updated}, model {model}{trained}"]
        if self.passed:
            lines.append(f"not in the index: {list_counts(self.passed)}")
        if self.kept:
            lines.append(f"in the index, but without a readable file: {list_counts(self.kept)}")
        if self.outdated:
            lines.append(self.outdated)
        if self.odd:
            lines.append(f"{counted(self.odd, 'result')} of an odd shape or size: their scores may be wrong")
        return lines


class BasisReader:
    """Reads the basis of answers; threads may share it."""

    def __init__(self, workdir: Path):
        """workdir: folder of the model, which has been loaded: weights that replace it later are not those in use."""
        weights = [workdir / name for name in _WEIGHTS if (workdir / name).exists()]
        self._trained = iso_time(max(path.stat().st_mtime for path in weights)) if weights else ""
        self._change = ("", 0.0, "")  # `About.updated`, time.monotonic() and the result of the last `find_change`

    def read(self, about: About, odd: Sequence[str | None]) -> Basis:
        """Returns the basis of an answer. odd: `Row.odd` of its results."""
        known = [mark for mark in odd if mark is not None]
        count = sum(map(bool, known)) if len(known) == len(odd) else None
        outdated, passed, kept = self._find_change(about), dict(about.passed), dict(about.kept)
        return Basis(about.made, about.updated, outdated, passed, kept, count, about.model, self._trained)

    def _find_change(self, about: About) -> str:
        """Looks at most once in LOOK_SECONDS, because a folder on a network may be slow or large."""
        updated, looked, change = self._change
        if updated != about.updated or time.monotonic() - looked > LOOK_SECONDS:
            change = find_change(about)
            self._change = about.updated, time.monotonic(), change
        return change
