"""The pairs of an index as sources of training and validation.

source = IndexedPairs("SHARDS/pairs")
_, _, batch = KeyedPlans([source.num_pairs], batch_size=64).rows(step)
source.encoded(batch), source.texts(batch)
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.annotations import Annotations, Record
from input_pipeline.pairs import store
from input_pipeline.pairs.reader import AGAIN, Reader
from input_pipeline.pairs.rows import ABOUT, FILE, FORMAT, SHARDS, Row, RowFile
from input_pipeline.portable import local_copy
from input_pipeline.source import Source, connected
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import is_remote
from ivt_jax.common.messages import counted, say_once
from ivt_jax.common.tables import SUFFIXES

_READ = 256  # pairs of val that are read at a time


class IndexedPairs:
    """Pairs of an index, a `PairSource` without identities.

    Attributes: name, "pairs"; split, "train" or "val"; num_pairs; root, the folder of the index; annotations, its
    pairs.json; images_digest, of all its rows. Rows stay on disk. Images are read when they are asked for, and compared
    with their hashes.
    """

    name, identities, num_persons = "pairs", False, 0

    def __init__(self, root: str, split: str = "train"):
        """root: the folder of the index; one in a bucket is fetched once. Prints a line if a shard was written since.

        Raises DataError if the index is incomplete or a shard is missing or has another size, UserError if a bucket
        cannot be reached.
        """
        self.split, self.root = split, local_copy(root)
        self.annotations = self.root / ABOUT
        about, entries = _read_about(self.root)
        self.images_digest = "-".join(digest[:16] for digest in about["digests"].values())
        shards = [self._place(entry["path"]) for entry in entries]
        _compare(shards, entries)
        self._sizes = np.array([entry["size"] for entry in entries], np.uint64)
        self._reader = Reader(shards, [os.path.dirname(self._place(entry.get("list", ""))) for entry in entries])
        try:
            self._rows = RowFile(self.root / f"{split}.npy")
        except (OSError, ValueError):
            raise _damaged(self.root / f"{split}.npy") from None
        self.num_pairs = len(self._rows)
        self._last: dict[int, bytes] = {}  # the texts that came with the images read last

    def _place(self, path: str) -> str:
        return path if is_remote(path) or not path else os.path.normpath(self.root.absolute() / path)

    def _chosen(self, pairs: Sequence[int]) -> list[Row]:
        """Returns the rows of pairs. Raises DataError if one leads out of its shard."""
        rows = self._rows[pairs]
        inside = rows["shard"] < len(self._sizes)
        if inside.all():
            image_ends = np.where(rows["flags"] & FILE, 0, rows["image"] + rows["image_size"])
            inside = np.maximum(image_ends, rows["text"] + rows["text_size"]) <= self._sizes[rows["shard"]]
        if not inside.all():
            raise _damaged(self.root / f"{self.split}.npy")
        return [Row(*row) for row in rows.tolist()]

    def intact(self, pairs: np.ndarray) -> np.ndarray:
        """Returns (n,) True: damaged images are not in the index."""
        return np.ones(len(pairs), bool)

    def stand_in(self, pair: int, rng: np.random.Generator) -> int:
        """Returns the pair."""
        return pair

    def keys(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the hashes (2, n) uint64 of the image and of the caption of each pair."""
        rows = self._rows[pairs]
        return np.stack([rows["image_key"], rows["text_key"]])

    def encoded(self, pairs: np.ndarray) -> list[bytes]:
        """Returns the images of pairs (n,) as JPEG or PNG. Raises DataError if a shard is not as it was."""
        images, texts = self._reader.pairs(self._chosen(pairs.tolist()))
        self._last = dict(zip(pairs.tolist(), texts, strict=True))
        return images

    def texts(self, pairs: np.ndarray) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the captions of pairs (n,), without attribute phrases. Raises DataError as `encoded`.

        Texts that came with the images read last are not read again.
        """
        known = self._last
        missing = [pair for pair in dict.fromkeys(pairs.tolist()) if pair not in known]
        found = {**known, **dict(zip(missing, self._reader.texts(self._chosen(missing)), strict=True))}
        rows = self._chosen(pairs.tolist())
        return [(self._reader.caption(row, found[pair]), ()) for row, pair in zip(rows, pairs.tolist(), strict=True)]

    def in_memory(self) -> Source:
        """Reads all pairs, some thousands of val, into a source for evaluation: an entry for each different image.

        Its persons are the images that the same image or caption connects. Raises DataError as `encoded`.
        """
        pairs, contents, captions = np.arange(self.num_pairs), list[bytes](), list[str]()
        for start in range(0, len(pairs), _READ):
            some = pairs[start : start + _READ]
            contents += self.encoded(some)
            captions += [caption for caption, _ in self.texts(some)]
        ids = connected(*self.keys(pairs)).tolist() if captions else []
        pairs_of: dict[int, list[int]] = {}
        for pair, key in enumerate(self._rows[pairs]["image_key"].tolist()):
            pairs_of.setdefault(key, []).append(pair)
        records = []
        for first, *others in pairs_of.values():
            own = tuple(dict.fromkeys(captions[pair] for pair in (first, *others)))
            records.append(Record(f"pair {first}", ids[first], own, self.split, ((),) * len(own)))
        annotations = Annotations(self.root / ABOUT, self.root, tuple(records))
        rows = [own[0] for own in pairs_of.values()]
        return Source(self.name, self.split, annotations, records, _Held(contents), rows)


class _Held:
    """Images in memory, with the method of array_record's data sources."""

    def __init__(self, images: list[bytes]):
        self._images = images

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, bytes]]:
        return [{"image": self._images[index]} for index in indices]


def _read_about(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the contents of pairs.json and shards.json. Raises DataError if they are missing, damaged or newer."""
    if root.suffix.lower() in SUFFIXES:
        raise DataError(
            f"{root} is a table, and data.name pairs expects an index of pairs: make one with "
            f"python -m input_pipeline.prepare --pairs {root}, or set --config.data.name=own"
        )
    if not (root / ABOUT).exists():
        raise DataError(f"{root} is no complete index of pairs: {AGAIN}")
    about, entries = _read_json(root / ABOUT), _read_json(root / SHARDS)
    if not isinstance(about, dict) or "format" not in about:
        raise _damaged(root / ABOUT)
    if about["format"] != FORMAT:
        raise DataError(f"{root / ABOUT} has format {about['format']}, expected {FORMAT}: {AGAIN}")
    if not isinstance(about.get("digests"), dict):
        raise _damaged(root / ABOUT)
    whole = isinstance(entries, list) and len(entries) == about.get("shards")
    if not whole or not all(isinstance(entry, dict) and {"path", "size"} <= entry.keys() for entry in entries):
        raise _damaged(root / SHARDS)
    return about, entries


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _damaged(path) from None


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is missing or damaged: {AGAIN}")


def _compare(shards: Sequence[str], entries: Sequence[dict[str, Any]]) -> None:
    """Compares shards with their states when indexed. Raises DataError; prints a line if only times differ."""
    touched = []
    for path, entry, state in zip(shards, entries, store.states(shards), strict=True):
        if state is None:
            raise DataError(f"{path} is missing: restore it, or {AGAIN}")
        if state.size != entry["size"]:
            raise DataError(f"{path} has {state.size:,} bytes, {entry['size']:,} when it was indexed: {AGAIN}")
        if state.mark != entry.get("mark", state.mark):
            touched.append(path)
    if touched:
        written = f"{counted(len(touched), 'shard')} written since the index was made, such as {touched[0]}"
        say_once(f"{written}, with the same size: each image is compared with its hash when it is read")
