"""Chooses the pictures of a folder or an archive by their names, and counts the files that it passes over.

It passes over files of another suffix, hidden files, and all files in hidden folders and in folders where systems keep
thumbnails, deleted files and the like. The files of a list are all taken.
"""

import collections
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from input_pipeline.decoding import SUFFIXES
from ivt_jax.common.files import printable
from ivt_jax.common.messages import counted

FOLDERS = (
    "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found",
    "system volume information",
)  # fmt: skip
_SHOWN = 5  # suffixes and folders to name, those with most files

Passed = Mapping[tuple[str, str], int]  # ("suffix", ".mp4"), ("folder", "@eaDir") or ("hidden", "") -> count of files


def reason_to_pass(path: str, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[str, str] | None:
    """Returns why a file is passed over, as a key of `Passed`, or None for one to take, which has one of the suffixes.

    path: relative to the folder or archive, with "/" between folders.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if is_passed_folder(folder):
            return "folder", folder
    if name.startswith("."):
        return "hidden", ""
    return None if name.lower().endswith(suffixes) else ("suffix", os.path.splitext(name)[1].lower())


def is_passed_folder(name: str) -> bool:
    """Whether to pass over all files in a folder of this name."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in FOLDERS or name.lower().endswith(".lrdata")  # Lightroom's previews


def walk(
    root: Path,
    passed: collections.Counter[tuple[str, str]],
    onerror: Callable[[OSError], object],
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields `root` and each folder below, with the names of its folders and its pictures; counts the rest in `passed`.

    suffixes: of the files to take; onerror: called with the error if a folder cannot be listed.
    """
    for place, folders, files in os.walk(root, onerror=onerror):
        for name in filter(is_passed_folder, tuple(folders)):
            folders.remove(name)
            folder = os.path.join(place, name)
            passed["folder", name] += 0 if os.path.islink(folder) else sum(len(files) for *_, files in os.walk(folder))
        reasons = {name: reason_to_pass(name, suffixes) for name in files}
        passed.update(reason for reason in reasons.values() if reason)
        yield Path(place), folders, [name for name, reason in reasons.items() if not reason]


def describe_passed(passed: Passed) -> str:
    """Returns "12 of no picture format (.mp4 8, .dng 4), 160 in @eaDir/, 3 hidden", or "" if no file is passed over."""
    counts = sorted(((key, count) for key, count in passed.items() if count), key=lambda item: (-item[1], item[0]))
    suffixes = [(name or "without suffix", count) for (kind, name), count in counts if kind == "suffix"]
    folders = [(name, count) for (kind, name), count in counts if kind == "folder"]
    parts = []
    if suffixes:
        named = ", ".join(f"{name} {count:,}" for name, count in suffixes[:_SHOWN])
        more = ", ..." if len(suffixes) > _SHOWN else ""
        parts.append(f"{sum(count for _, count in suffixes):,} of no picture format ({named}{more})")
    parts += [f"{count:,} in {name}/" for name, count in folders[:_SHOWN]]
    if rest := folders[_SHOWN:]:
        parts.append(f"{sum(count for _, count in rest):,} in {counted(len(rest), 'other such folder')}")
    if hidden := passed.get(("hidden", "")):
        parts.append(f"{hidden:,} hidden")
    return printable(", ".join(parts))
