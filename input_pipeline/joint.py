"""The training pairs of one or several datasets as one source."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.source import PairSource, connected


class JointSource:
    """The pairs of several sources, read as those of one; pairs and persons of a source follow those of the one before.

    A person belongs to one source: equal ids in two datasets are two persons. Without identities, pairs of one image or
    one caption belong together across sources, too.

    parts: source by label, of one dataset or more.
    """

    def __init__(self, parts: Mapping[str, PairSource]):
        self.parts = dict(parts)
        self._sources = list(self.parts.values())
        self.identities = all(source.identities for source in self._sources)
        self.counts = [source.num_pairs for source in self._sources]
        self.num_pairs = sum(self.counts)
        self._ends = np.cumsum(self.counts)

    @property
    def annotations(self) -> dict[str, Path]:
        """Returns the file of annotations by label."""
        return {label: source.annotations for label, source in self.parts.items()}

    @property
    def images_digests(self) -> dict[str, str]:
        """Returns the digest of all images of a dataset by label, "" if it is not known."""
        return {label: source.images_digest for label, source in self.parts.items()}

    @property
    def num_persons(self) -> int:
        """Returns the number of persons of all sources."""
        return sum(source.num_persons for source in self._sources)

    @functools.cached_property
    def person_of_pair(self) -> np.ndarray:
        """The person of each pair, (num_pairs,) int32, numbered through all sources."""
        firsts = np.cumsum([0] + [source.num_persons for source in self._sources[:-1]])
        return np.concatenate(
            [source.person_of_pair + first for source, first in zip(self._sources, firsts, strict=True)]
        ).astype(np.int32)

    def intact(self, pairs: np.ndarray) -> np.ndarray:
        """Returns which pairs (n,) have an image that can be read, (n,) bool."""
        return np.array(self._gather(pairs, lambda source, own: source.intact(own)), bool)

    def stand_in(self, pair: int, rng: np.random.Generator) -> int:
        """Returns the pair of the same source that replaces one whose image is damaged."""
        number = int(np.searchsorted(self._ends, pair, "right"))
        first = int(self._ends[number]) - self.counts[number]
        return first + self._sources[number].stand_in(pair - first, rng)

    def encoded(self, pairs: np.ndarray) -> list[bytes]:
        """Returns the images of pairs (n,), as JPEG or PNG."""
        return self._gather(pairs, lambda source, own: source.encoded(own))

    def texts(self, pairs: np.ndarray) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the caption of each pair (n,), and the attribute phrases that the annotations give for it."""
        return self._gather(pairs, lambda source, own: source.texts(own))

    def keys(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the image's key and the caption's key of each pair, (2, n) uint64."""
        return np.array(self._gather(pairs, lambda source, own: source.keys(own).T), np.uint64).reshape(-1, 2).T

    def ids(self, pairs: np.ndarray) -> np.ndarray:
        """Returns (n,) int32: equal for pairs (n,) of one person. `pairs` is a whole batch.

        Without identities the pairs of one image, or of one caption, have equal ids, and so have those that such pairs
        connect: none of them is another's negative.
        """
        return self.person_of_pair[pairs] if self.identities else connected(*self.keys(pairs))

    def _gather(self, pairs: np.ndarray, read: Callable[[PairSource, np.ndarray], Any]) -> list[Any]:
        """Returns read(source, its pairs), asked of each source that has some of `pairs`, in the order of `pairs`."""
        numbers = np.searchsorted(self._ends, pairs, "right")
        gathered: list[Any] = [None] * len(pairs)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            own = pairs[rows] - (self._ends[number] - self.counts[number])
            for row, value in zip(rows.tolist(), read(self._sources[number], own), strict=True):
                gathered[row] = value
        return gathered
