"""Indexes one shard, or one block of a list, into a part: a file that a later or resumed indexing uses again."""

import collections
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.pairs import store
from input_pipeline.pairs.rows import FORMAT, SetAside, path_of_image
from input_pipeline.pairs.tasks import Task
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import whole_file

_THREADS = 16


class Part(NamedTuple):
    """The outcome of a task: the file of its rows and of what is set aside, and their counts."""

    file: Path
    state: store.State
    pairs: int
    reasons: dict[str, int]


def state_of(task: Task) -> store.State | None:
    """Returns the state of a shard; of a block of a list, the digest of its lines and of the states of its images."""
    if not task.source:
        return store.state(task.path)
    content = Path(task.path).read_bytes()
    digest, folder = hashlib.sha256(content), os.path.dirname(task.source)
    images = [path_of_image(folder, json.loads(line)["image"]) for line in content.splitlines()]
    with ThreadPoolExecutor(_THREADS) as threads:  # a request for each image in a bucket
        digest.update(repr([*threads.map(_state_of_image, images)]).encode())
    return store.State(len(content), digest.hexdigest())


def _state_of_image(path: str) -> store.State | None:
    """Returns the state of an image of a list, None if it is missing or cannot be read: it is then set aside."""
    try:
        return store.state(path)
    except store.RefusedError:
        return None


def existing_part(folder: Path, longest: int, task: Task, state: store.State | None) -> Part | None:
    """Returns the part of a task, None if it is not in `folder` or was made of another state of the shard.

    longest: characters of a caption. Raises DataError if there is no such shard.
    """
    if state is None:
        raise DataError(f"{task.path} vanished while it was indexed: run the command again")
    file = _file(folder, task)
    found = read_part(file, _about(longest, state))
    return found and Part(file, state, len(found[0]), _reasons(found[1]))


def make_part(folder: Path, longest: int, task: Task, state: store.State) -> Part:
    """Reads a shard and writes its part. Raises DataError if the shard changes meanwhile, UserError if it is lost."""
    from input_pipeline.pairs.scan import scan_block, scan_tar  # imports TensorFlow, which takes seconds

    file = _file(folder, task)
    rows, aside = scan_block(Path(task.path), task.source, longest) if task.source else scan_tar(task.path, longest)
    if state_of(task) != state:
        raise DataError(f"{task.source or task.path} changed while it was indexed: run the command again")
    with whole_file(file) as partial, partial.open("wb") as opened:
        np.savez(opened, rows=rows, about=_encode(_about(longest, state)), aside=_encode(aside))
    return Part(file, state, len(rows), _reasons(aside))


def _file(folder: Path, task: Task) -> Path:
    name = hashlib.sha256(task.path.encode(errors="surrogateescape")).hexdigest()[:24]
    return folder / "parts" / f"{name}.npz"


def _about(longest: int, state: store.State) -> dict[str, Any]:
    return {"format": FORMAT, "longest": longest, "state": list(state)}


def _reasons(aside: Sequence[SetAside]) -> dict[str, int]:
    return dict(collections.Counter(reason for *_, reason in aside))


def _encode(document: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(document).encode(), np.uint8)


def read_part(file: Path, about: dict[str, Any] | None = None) -> tuple[np.ndarray, list[SetAside]] | None:
    """Returns rows and what is set aside of a part; None if there is none, a damaged one, or one of another `about`."""
    try:
        with np.load(file) as part:
            if about is not None and json.loads(part["about"].tobytes()) != about:
                return None
            return part["rows"], [SetAside(*entry) for entry in json.loads(part["aside"].tobytes())]
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile):
        return None


def all_rows(parts: Sequence[Part]) -> Iterator[np.ndarray]:
    """Yields the rows of each part, with its number as their shard."""
    for number, part in enumerate(parts):
        found = read_part(part.file)
        if found is None:
            raise DataError(f"{part.file} was lost while the index was made: run the command again")
        found[0]["shard"] = number
        yield found[0]


def all_set_aside(parts: Sequence[Part]) -> Iterator[SetAside]:
    """Yields what is set aside, in the order of the parts."""
    for part in parts:
        yield from (read_part(part.file) or ((), []))[1]
