"""Distinguishes deleted pictures from pictures that are only out of reach.

A dropped share looks like a folder that was deleted or emptied. So the row of a picture may be deleted if its folder
can be listed, still holds pictures and does not have the file, or if a list no longer names the picture. For a picture
in an archive the file is the archive; if that was read to its end without the picture, the row may go too. Every other
row stays until the user confirms that the pictures are gone (`--prune`). Folders are checked when rows are about to be
deleted, not during the walk: a share can be dropped while a build is running.
"""

import collections
import functools
import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

from input_pipeline.decoding import SUFFIXES
from ivt_jax.common.messages import counted
from ivt_jax.gallery.archives import SUFFIX
from ivt_jax.gallery.walk import is_passed_folder, reason_to_pass
from ivt_jax.retrieval.indexing.sources import Source

GONE = "the folder is missing"
EMPTY = "the folder holds no pictures"
UNSEEN = "the file exists, but the walk did not find it"
PASSED = "hidden files and system folders are passed over now"


class Missing(NamedTuple):
    """A row whose picture was not found, or could not be read."""

    id: int
    path: str  # relative to the root, with "/" between folders
    digest: str
    reason: str = ""  # why the picture could not be read; "" if it was not found


Reasons = dict[int, tuple[str, str]]  # id of a row -> (absolute folder, or "" for all folders, and why it stays)


def describe_kept(reasons: Reasons) -> list[str]:
    """Returns lines such as "3 rows in FOLDER: the folder is missing", sorted by folder."""
    counts = sorted(collections.Counter(reasons.values()).items())
    return [f"{counted(n, 'row')}{folder and f' in {folder}'}: {reason}" for (folder, reason), n in counts]


class Reach:
    """Decides which rows of a source may be deleted. Folders are relative to its root, and listed once, when needed."""

    def __init__(self, source: Source):
        self._root, self._listed = source.root, source.listed
        self._unread, self._closed = dict(source.unreadable), frozenset(source.closed)
        self._names = functools.cache(self._list)
        self._holds = functools.cache(self._has_pictures)

    def reasons_to_keep(self, rows: Iterable[Missing]) -> Reasons:
        """Returns, by id, the folder and the reason of each row that must stay; the others may be deleted."""
        reasons = Reasons()
        for row in rows:
            if found := self._reason_to_keep(row):
                reasons[row.id] = str(self._root / found[0]), found[1]
        return reasons

    def was_moved(self, row: Missing) -> bool:
        """Whether the row's own file is gone, so that the row may be deleted once another path has its content.

        A missing or empty folder does not matter, because the picture was found elsewhere; an unreadable folder does.
        """
        if self._is_unlisted(row):
            return True
        if self._closed_above(row.path):
            return False
        try:
            os.lstat(self._root / row.path)
        except OSError as error:
            return isinstance(error, FileNotFoundError | NotADirectoryError)  # the latter: an archive without it
        return False

    def _reason_to_keep(self, row: Missing) -> tuple[str, str] | None:
        """Returns (folder, reason) if the row must stay, None if its picture no longer exists."""
        if self._is_unlisted(row):
            return None
        if closed := self._closed_above(row.path):  # it may hold new pictures that need the row's vector
            return closed, self._unread[closed]
        file = self._file_of(row.path)
        folder, name = os.path.split(file)
        suffix = os.path.splitext(name)[1].lower()
        names, fault = self._names(folder)
        if fault or not self._holds(folder, suffix):
            folder = self._topmost(folder, suffix)
            return folder, self._names(folder)[1] or EMPTY
        if name not in names:
            return None
        if file != row.path:  # an archive without the picture, or the picture could not be read
            return (file, row.reason) if row.reason else None
        reason = row.reason or self._unread.get(row.path, "")
        try:
            status = os.stat(self._root / row.path)
        except OSError as error:
            return folder, reason or error.strerror or str(error)
        unseen = PASSED if reason_to_pass(row.path) else UNSEEN
        return (folder, reason or unseen) if stat.S_ISREG(status.st_mode) else None

    def _is_unlisted(self, row: Missing) -> bool:
        """Whether there is a list that does not name the path; a picture on the list was found or is unreadable."""
        return self._listed and not row.reason and row.path not in self._unread

    def _closed_above(self, path: str) -> str:
        """Returns the folder above the path that the walk could not list, or ""."""
        while self._closed and (path := os.path.dirname(path)):
            if path in self._closed:
                return path
        return ""

    def _file_of(self, path: str) -> str:
        """Returns the archive above the path, also if it is gone; the path itself if there is none."""
        for end in (match.end() - 1 for match in re.finditer(rf"{re.escape(SUFFIX)}/", path, re.IGNORECASE)):
            if not os.path.isdir(self._root / path[:end]):
                return path[:end]
        return path

    def _list(self, folder: str) -> tuple[frozenset[str], str]:
        """Returns the names in a folder, and "" or the reason why it cannot be listed."""
        try:
            with os.scandir(self._root / folder) as entries:
                return frozenset(entry.name for entry in entries), ""
        except FileNotFoundError:
            return frozenset(), GONE
        except OSError as error:
            return frozenset(), error.strerror or str(error)

    def _has_pictures(self, folder: str, suffix: str) -> bool:
        """Whether the folder or a subfolder holds a file with the suffix of a picture, or with this suffix."""
        for _, folders, files in os.walk(self._root / folder):
            folders[:] = [name for name in folders if not is_passed_folder(name)]
            if any(name.lower().endswith((*SUFFIXES, SUFFIX, suffix)) for name in files if not name.startswith(".")):
                return True
        return False

    def _topmost(self, folder: str, suffix: str) -> str:
        """Returns the highest folder, from this one up, that is missing or has no pictures: a share is one line."""
        parent = os.path.dirname(folder)
        if not folder or self._names(folder)[1] not in ("", GONE) or self._holds(parent, suffix):
            return folder
        return self._topmost(parent, suffix)
