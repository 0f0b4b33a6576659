"""What an answer rests on: which pictures were searched, with which model, and how old both are."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.messages import counted
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.retrieval.indexing.changes import find_change, iso_time
from ivt_jax.retrieval.stores.store import About
from ivt_jax.run.parameter_file import NAME as PARAMETER_FILE

_WEIGHTS = ("checkpoints", "params", PARAMETER_FILE)  # one of them is in the folder of a model


class Basis(NamedTuple):
    """The state of an index and its model. Times are ISO 8601 in UTC, "" if unknown."""

    made: str  # distinguishes the index from others in the same place
    updated: str  # when its last build ended
    outdated: str  # why the index may lack pictures, "" if no reason is seen
    passed: dict[str, int]  # reason -> number of files that the last build left out
    odd: int | None  # of the results, those that are unlike the crops that models learn from; None: not known
    model: str  # digest
    trained: str  # when its weights were written

    def lines(self, searched: int) -> list[str]:
        """Says it in sentences. searched: number of pictures searched."""
        updated = f" of {self.updated}" if self.updated else ""
        trained = f" of {self.trained}" if self.trained else ""
        index, model = short_digest(self.made), short_digest(self.model)
        lines = [f"{counted(searched, 'picture')} searched; index {index}{updated}, model {model}{trained}"]
        if self.passed:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.passed.items())
            lines.append(f"not in the index: {reasons}")
        if self.outdated:
            lines.append(self.outdated)
        if self.odd:
            lines.append(f"{counted(self.odd, 'result')} unlike the crops that models learn from: scores may mislead")
        return lines


def make_basis(about: About, workdir: Path, odd: Sequence[str | None]) -> Basis:
    """Returns the basis of an answer. odd: `Row.odd` of its results."""
    known = [mark for mark in odd if mark is not None]
    count = sum(map(bool, known)) if len(known) == len(odd) else None
    weights = [workdir / name for name in _WEIGHTS if (workdir / name).exists()]
    trained = iso_time(max(path.stat().st_mtime for path in weights)) if weights else ""
    return Basis(about.made, about.updated, find_change(about), dict(about.passed), count, about.model, trained)
