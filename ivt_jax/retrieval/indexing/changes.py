"""Finds changes of the folder or list since the last build, and counts the files that it left out."""

import collections
import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from ivt_jax.gallery.archives import SUFFIX
from ivt_jax.gallery.walk import Passed, is_passed_folder
from ivt_jax.retrieval.stores.store import LANCE_FOLDER, About


def find_change(about: About) -> str:
    """Returns why the index may lack pictures, "" if no reason is found. It names no path above the folder.

    Compares modification times of the list, or of the folder, its direct subfolders and its archives, with that of the
    last build: a new or deleted file changes the time of its folder. Deeper folders may be too many.
    """
    if not about.updated:
        return ""
    root, listed = Path(about.root), about.source.get("list")
    try:
        places = [Path(listed)] if listed else [root, *_find_places(root)]
        newest, place = max((path.stat().st_mtime, path) for path in places)
    except OSError as error:
        return f"the {'list' if listed else 'folder'} of the pictures cannot be read any more: {error.strerror}"
    # Some file systems keep whole seconds.
    if newest <= datetime.datetime.fromisoformat(about.updated).timestamp() + 1:
        return ""
    named = "the list of the pictures" if listed else "the folder of the pictures" if place == root else place.name
    return f"{named} has changed since; update the index: python -m ivt_jax.index --index=INDEX"


def _find_places(root: Path) -> list[Path]:
    """Returns the folders and archives directly below where a build looks for pictures; an index may be there too."""
    with os.scandir(root) as found:
        entries = [*found]
    folders = [Path(entry) for entry in entries if entry.is_dir() and not is_passed_folder(entry.name)]
    archives = [Path(entry) for entry in entries if entry.name.lower().endswith(SUFFIX) and entry.is_file()]
    return [folder for folder in folders if not (folder / LANCE_FOLDER).exists()] + archives


def count_passed(unreadable: Sequence[tuple[str, str]], passed: Passed) -> dict[str, int]:
    """Counts the files that a build left out, by reason. unreadable: (path, reason) of each."""
    counts = collections.Counter(reason for _, reason in unreadable)
    names = {"suffix": "of no picture format: {}", "folder": "in folders named {}", "hidden": "hidden"}
    for (kind, name), count in passed.items():
        counts[names[kind].format(name or "without suffix")] += count
    return {reason: count for reason, count in counts.most_common() if count}


def now() -> str:
    """Returns the time in UTC, to the second."""
    return iso_time(datetime.datetime.now(datetime.UTC).timestamp())


def iso_time(seconds: float) -> str:
    """Returns a time in seconds since 1970 as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat()
