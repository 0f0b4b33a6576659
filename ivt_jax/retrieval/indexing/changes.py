"""Finds changes of the folder or list since the last build, and counts the files that it left out."""

import collections
import contextlib
import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from ivt_jax.gallery.archives import SUFFIX
from ivt_jax.gallery.walk import Passed, is_passed_folder, reason_to_pass
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
        whole = Path(listed) if listed else root
        places = {whole: whole.stat().st_mtime} | ({} if listed else _find_places(root))
    except OSError as error:
        return f"the {'list' if listed else 'folder'} of the pictures cannot be read any more: {error.strerror}"
    place = max(places, key=places.__getitem__)
    # Some file systems keep whole seconds.
    if places[place] <= datetime.datetime.fromisoformat(about.updated).timestamp() + 1:
        return ""
    named = "the list of the pictures" if listed else "the folder of the pictures" if place == root else place.name
    return f"{named} has changed since; update the index: python -m ivt_jax.index --index=INDEX"


def _find_places(root: Path) -> dict[Path, float]:
    """Returns the modification times of the folders and archives directly below that a build looks into.

    An index may be there, too. Raises OSError if the root cannot be listed.
    """
    places = {}
    with os.scandir(root) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it was deleted, or is a circular link
                is_folder = entry.is_dir(follow_symlinks=False) and not is_passed_folder(entry.name)
                is_archive = reason_to_pass(entry.name, (SUFFIX,)) is None and entry.is_file()
                if is_archive or (is_folder and not Path(entry, LANCE_FOLDER).exists()):
                    places[Path(entry)] = entry.stat().st_mtime
    return places


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
