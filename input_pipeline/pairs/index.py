"""Makes the index of image-text pairs, which says where each pair is in its shard; copies no image.

    python -m input_pipeline.prepare --pairs 'SHARDS/*.tar'              # into SHARDS/pairs
    python -m input_pipeline.prepare --pairs 'gs://BUCKET/*.tar' --out=gs://BUCKET/pairs

An index is a folder:

    train.npy, val.npy   a row for each pair (rows.ROW), in the order of the shards
    set_aside.jsonl      what is not a pair: {"shard", "member", "reason"}
    shards.json          the shards with their sizes and times or ETags
    pairs.json           counts, digests of the rows, the version of the format
    lists/               the captions of lists, in blocks
    parts/               the rows of each shard, so that a later or resumed indexing need not read it again
    SHA256SUMS           the digests of all but parts/

pairs.json is written last but for SHA256SUMS. A local index without pairs.json, or one in a bucket without SHA256SUMS,
is incomplete.
"""

import collections
import functools
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.pairs import store
from input_pipeline.pairs.parts import Part, all_rows, all_set_aside, existing_part, make_part, state_of
from input_pipeline.pairs.rows import ABOUT, ASIDE, FORMAT, ROW, SHARDS, SPLITS
from input_pipeline.pairs.tasks import Task, find_tasks
from input_pipeline.portable import SUMS
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import digest, is_remote, refuse_path, whole_file, whole_name, write_text
from ivt_jax.common.messages import counted
from ivt_jax.common.processes import map_in_processes
from ivt_jax.common.progress import progress

_FILES = (*(f"{split}.npy" for split in SPLITS), ASIDE, SHARDS, ABOUT, SUMS)
# The names in its two folders, see tasks.py and parts.py.
_INSIDE = {"lists": r".*-[0-9a-f]{8}-\d{5,}\.jsonl", "parts": r"[0-9a-f]{24}\.npz"}
_OFTEN = 10  # an image in so many times more rows than others stays in train, such as the "not available" of a site


def refuse_other_files(folder: Path) -> None:
    """Raises UserError if a folder has files of another kind, which an indexing would replace or remove."""
    begun = (folder / "parts").exists() or (folder / SHARDS).exists()
    known = {"lock", *_INSIDE, *(_FILES if begun else ())}
    found = (path for path in folder.glob("*") if whole_name(path.name) not in known and path.name[0] != ".")
    inside = (
        path
        for name, pattern in _INSIDE.items()
        for path in (folder / name).glob("*")
        if not re.fullmatch(pattern, whole_name(path.name)) or path.is_dir()
    )
    if other := next(itertools.chain(found, inside), None):
        raise UserError(f"{folder} has files of another kind, such as {other}: name an empty folder with --out")


def index_pairs(patterns: Sequence[str], folder: Path, longest: int, val_pairs: int, workers: int) -> dict[str, Any]:
    """Writes the index of all shards and lists that the patterns match into a local folder; returns its pairs.json.

    longest: characters of a caption; val_pairs: pairs to hold out; workers: processes. Raises UserError.
    """
    refuse_path(folder)
    refuse_other_files(folder)
    for name in ("parts", "lists"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():  # what a killed indexing left; it may be large
        if path.name not in _FILES and whole_name(path.name) in _FILES:
            path.unlink()
    tasks = find_tasks(patterns, folder)
    parts = _make_parts(tasks, folder, longest, workers)
    for name in (SUMS, ABOUT):  # until the new one is complete
        (folder / name).unlink(missing_ok=True)
    about = _join(folder, tasks, parts, longest, val_pairs)
    used = {*(part.file for part in parts), *(Path(task.path) for task in tasks)}
    for stale in {*(folder / "parts").iterdir(), *(folder / "lists").iterdir()} - used:
        stale.unlink()  # of shards and lists that are not indexed any more
    _write_sums(folder)
    return about


def _make_parts(tasks: Sequence[Task], folder: Path, longest: int, workers: int) -> list[Part]:
    """Returns the parts of all tasks; makes those that are missing or of another state of their shard."""
    shards = [task.path for task in tasks if not task.source]
    state_of_shard = dict(zip(shards, store.states(shards), strict=True))
    states = [state_of(task) if task.source else state_of_shard[task.path] for task in tasks]
    parts = [existing_part(folder, longest, *pair) for pair in zip(tasks, states, strict=True)]
    missing = [number for number, part in enumerate(parts) if part is None]
    if missing:
        make = functools.partial(make_part, folder, longest)
        wanted = [tasks[number] for number in missing], [states[number] for number in missing]
        made = map_in_processes(make, *wanted, workers=min(workers, len(missing)))  # finished ones stay after an error
        for number, part in zip(missing, progress(made, len(missing), "indexing: ", "shards"), strict=True):
            parts[number] = part
    return [part for part in parts if part]


def _join(folder: Path, tasks: Sequence[Task], parts: Sequence[Part], longest: int, val_pairs: int) -> dict[str, Any]:
    """Joins the parts to the index; returns its pairs.json. Raises DataError if there is no pair."""
    reasons = sum((collections.Counter(part.reasons) for part in parts), collections.Counter[str]())
    if not any(part.pairs for part in parts):
        why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(3)) or "empty shards"
        found = f"no pair in {counted(len(parts), 'shard')} ({why})"
        raise DataError(f"{tasks[0].source or tasks[0].path}: {found}; --pairs expects images with captions")
    repeated, held_out = _held_out(np.concatenate([rows["image_key"] for rows in all_rows(parts)]), val_pairs)
    counts = _write_rows(folder, parts, held_out)
    with whole_file(folder / ASIDE) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry._asdict()) + "\n" for entry in all_set_aside(parts))
    shards = [_entry(folder, *pair) for pair in zip(tasks, parts, strict=True)]
    write_text(folder / SHARDS, json.dumps(shards, indent=1) + "\n")
    about = {
        "format": FORMAT, "longest": longest, **counts, "repeated_images": repeated,
        "set_aside": dict(reasons.most_common()), "shards": len(shards),
        "digests": {split: digest(folder / f"{split}.npy") for split in SPLITS},
    }  # fmt: skip
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    return about


def _held_out(keys: np.ndarray, val_pairs: int) -> tuple[int, np.ndarray]:
    """Returns how many rows repeat the image of another row, and the keys of the images of val. Sorts `keys`.

    val gets the images with the smallest hashes, in about min(val_pairs, 5%) rows, one image at least if there are more
    than 20 rows and several images. So an image is never in both splits, and the choice hardly changes when shards are
    added.
    """
    keys.sort()
    repeated = int((keys[1:] == keys[:-1]).sum())
    wanted = min(val_pairs, max(len(keys) // 20, len(keys) > 20)) if keys[0] != keys[-1] else 0
    looked_at, least, ends = 0, keys[:0], np.zeros(0, np.int64)
    while looked_at < len(keys) and wanted and (len(least) < 3 or ends[-1] < wanted):  # of two, neither is usual
        looked_at = min(len(keys), max(100 * wanted, 10 * looked_at))
        least, counts = np.unique(keys[:looked_at], return_counts=True)
        if looked_at < len(keys):
            least, counts = least[:-1], counts[:-1]  # the last one may have more rows
        seldom = counts <= _OFTEN * np.median(np.append(counts, 1))
        least, ends = least[seldom], np.cumsum(counts[seldom])
    return repeated, least[: max(1, int(np.searchsorted(ends, wanted, side="right")))]


def _write_rows(folder: Path, parts: Sequence[Part], held_out: np.ndarray) -> dict[str, int]:
    """Writes train.npy and val.npy, part by part; returns the number of rows of each."""

    def chosen(split: str) -> Iterator[np.ndarray]:
        for rows in all_rows(parts):
            yield rows[np.isin(rows["image_key"], held_out, invert=split == "train")]

    val = sum(len(rows) for rows in chosen("val"))
    counts = {"train": sum(part.pairs for part in parts) - val, "val": val}
    for split in SPLITS:
        with whole_file(folder / f"{split}.npy") as partial, partial.open("wb") as file:
            header = {"descr": ROW.descr, "fortran_order": False, "shape": (counts[split],)}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in chosen(split):
                file.write(rows.tobytes())
    return counts


def _entry(folder: Path, task: Task, part: Part) -> dict[str, Any]:
    """Returns the entry of a shard in shards.json, with a relative path if it is beside or in the index."""
    if not task.source:
        return {"path": _relative(folder, task.path), "size": part.state.size, "mark": part.state.mark}
    return {"path": _relative(folder, task.path), "size": part.state.size, "list": _relative(folder, task.source)}


def _relative(folder: Path, path: str) -> str:
    inside = not is_remote(path) and Path(path).is_relative_to(folder.absolute().parent)
    return os.path.relpath(path, folder.absolute()) if inside else path


def _write_sums(folder: Path) -> None:
    blocks = sorted(f"lists/{path.name}" for path in (folder / "lists").iterdir())
    names = [*(f"{split}.npy" for split in SPLITS), ASIDE, *blocks, SHARDS, ABOUT]
    write_text(folder / SUMS, "".join(f"{digest(folder / name)}  {name}\n" for name in names))
