"""What an answer rests on: which pictures were searched, with which model, and how old both are."""

import collections
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.messages import counted
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.gallery.walk import Passed
from ivt_jax.retrieval.store import About
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
    trained = _time(max(path.stat().st_mtime for path in weights)) if weights else ""
    return Basis(about.made, about.updated, find_change(about), dict(about.passed), count, about.model, trained)


def find_change(about: About) -> str:
    """Returns what has changed since the last build, "" if nothing is seen.

    Looks at the folder of pictures, at the folders directly below, and at the list: a new or deleted file changes the
    time of its folder. Deeper folders are not looked at, because there may be very many.
    """
    if not about.updated:
        return ""
    root, listed = Path(about.root), about.source.get("list")
    try:
        if listed:
            places = [Path(listed)]
        else:
            places = [root, *(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
        newest, place = max((path.stat().st_mtime, path) for path in places)
    except OSError as error:
        return f"{error.filename} cannot be read any more: {error.strerror}"
    # Some file systems keep whole seconds.
    if newest <= datetime.datetime.fromisoformat(about.updated).timestamp() + 1:
        return ""
    return f"{place} has changed since; update the index: python -m ivt_jax.index --index=INDEX"


def count_passed(unreadable: Sequence[tuple[str, str]], passed: Passed) -> dict[str, int]:
    """Counts the files that a build left out, by reason. unreadable: (path, reason) of each."""
    counts = collections.Counter(reason for _, reason in unreadable)
    names = {"suffix": "of no picture format: {}", "folder": "in folders named {}", "hidden": "hidden"}
    for (kind, name), count in passed.items():
        counts[names[kind].format(name or "without suffix")] += count
    return dict(counts.most_common())


def now() -> str:
    """Returns the time in UTC, to the second."""
    return _time(datetime.datetime.now(datetime.UTC).timestamp())


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat()
