"""Where the pairs of a dataset come from: what training reads of any of them, and the split of a prepared one."""

import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipeline.annotations import Annotations, Record
from ivt_jax.common.errors import DataError
from ivt_jax.common.messages import counted


class PairSource(Protocol):
    """The (image, caption) pairs of one dataset, which training reads by number, 0 to num_pairs - 1.

    identities: whether it is known who is in an image; without, `num_persons` and `person_of_pair` are not used.
    annotations: the file that decides what the pairs are. images_digest: of the contents of all images, "" if unknown.
    """

    num_pairs: int
    identities: bool
    annotations: Path
    images_digest: str

    @property
    def num_persons(self) -> int:
        """Returns the number of persons."""
        ...

    @property
    def person_of_pair(self) -> np.ndarray:
        """Returns the person of each pair, (num_pairs,) int32, from 0 to num_persons - 1."""
        ...

    def intact(self, pairs: np.ndarray) -> np.ndarray:
        """Returns which pairs (n,) have an image that can be read, (n,) bool."""
        ...

    def stand_in(self, pair: int, rng: np.random.Generator) -> int:
        """Returns the pair that replaces one whose image is damaged."""
        ...

    def encoded(self, pairs: np.ndarray) -> list[bytes]:
        """Returns the images of pairs (n,), as JPEG or PNG."""
        ...

    def texts(self, pairs: np.ndarray) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the caption of each pair (n,), and the attribute phrases that the annotations give for it."""
        ...

    def keys(self, pairs: np.ndarray) -> np.ndarray:
        """Returns hashes (2, n) uint64 of the image and of the caption of each pair.

        An image's is that of its contents in an index, of its path in a table or dataset: one that is in both has two.
        """
        ...


def key_of_bytes(content: bytes) -> int:
    """Returns the hash of bytes, 64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def key_of_caption(caption: str) -> int:
    """Returns the hash of a caption, equal for captions that differ in case and blanks alone."""
    return key_of_bytes(" ".join(caption.lower().split()).encode("utf-8", "surrogatepass"))


def connected(*keys: np.ndarray) -> np.ndarray:
    """Returns the component of each row, (n,) int32, numbered in the order of the first rows.

    keys: arrays (n,). Rows with an equal value in one of them are connected.
    """
    least = np.arange(len(keys[0]))  # the first row that is known to be in the component of each row
    while True:
        before = least
        for key in keys:
            _, group = np.unique(key, return_inverse=True)
            first = np.full(len(least), len(least))
            np.minimum.at(first, group, least)
            least = first[group]
        if np.array_equal(least, before):
            return np.unique(least, return_inverse=True)[1].astype(np.int32)


class Source:
    """One split of a prepared dataset, a PairSource: persons, captions and access to the encoded images.

    Attributes: name, split, num_pairs, identities; annotations, the file; root, its folder; images, the folder of
    images; paths, relative to it; persons (persons,) int32, the sorted ids of the annotations; person_ids (images,)
    int32, index into `persons`; captions and attributes, a tuple for each image with an entry for each caption; copies
    (images,) int64, number of image records that name the image; damaged (images,) bool; pairs, image index and caption
    index of every pair in record order, two int32 arrays; images_digest, of the contents of all images of the dataset,
    "" if it is not known.
    """

    def __init__(
        self,
        name: str,
        split: str,
        annotations: Annotations,
        records: Sequence[Record],
        data: Any = (),
        rows: Any = (),
    ):
        """data: random access to examples with an "image"; rows (images,): index into `data` of each record."""
        self.name, self.split = name, split
        self.annotations, self.root, self.images = annotations.path, annotations.path.parent, annotations.images
        self.identities = True
        self.persons, inverse = np.unique(np.array([r.person_id for r in records], np.int32), return_inverse=True)
        self.person_ids = inverse.astype(np.int32)
        self.captions = [record.captions for record in records]
        self.attributes = [record.attributes for record in records]
        self.copies = np.array([record.copies for record in records], np.int64)
        self.paths = [record.image_path for record in records]
        pairs = [(image, i) for image, captions in enumerate(self.captions) for i in range(len(captions))]
        images, captions = np.array(pairs, np.int32).reshape(-1, 2).T
        self.pairs = images, captions
        self.num_pairs = len(pairs)
        self.damaged = np.zeros(len(records), bool)
        self.images_digest = ""
        self._data, self._rows = data, np.asarray(rows, np.int64)

    @property
    def num_persons(self) -> int:
        """Returns the number of persons."""
        return len(self.persons)

    @property
    def person_of_pair(self) -> np.ndarray:
        """Returns the person of each pair, (num_pairs,) int32, an index into `persons`."""
        return self.person_ids[self.pairs[0]]

    def set_damaged(self, paths: Sequence[str]) -> None:
        """Replaces damaged training images by others of the same person, see `stand_in`; prints how many.

        Raises DataError if images of another split are damaged.
        """
        self.damaged = np.isin(np.array(self.paths), np.array(paths, str))
        count = int(self.damaged.sum())
        if count and self.split != "train":
            first = self.paths[int(self.damaged.argmax())]
            raise DataError(
                f"{self.images}: {counted(count, 'damaged image')} in {self.split}, the first is {first}; restore "
                "them, or leave them out with `python -m input_pipeline.doctor --dataset=NAME --root=DIR --fix_list`"
            )
        if count:
            images = counted(count, "damaged training image")
            print(f"{images}: other images of the same person are used instead", file=sys.stderr)

    def forget_persons(self) -> None:
        """Makes each image a person of its own, as pairs from the web are read; `identities` is then False."""
        self.identities = False
        self.persons = self.person_ids = np.arange(len(self.paths), dtype=np.int32)

    def intact(self, pairs: np.ndarray) -> np.ndarray:
        """Returns which pairs (n,) have an image that is not damaged, (n,) bool."""
        return ~self.damaged[self.pairs[0][pairs]]

    def stand_in(self, pair: int, rng: np.random.Generator) -> int:
        """Returns `pair`, or if its image is damaged a random intact pair: of its person, or of anybody if none is."""
        images = self.pairs[0]
        if not self.damaged[images[pair]]:
            return pair
        whole = np.flatnonzero(~self.damaged[images])
        own = whole[self.person_ids[images[whole]] == self.person_ids[images[pair]]]
        candidates = own if len(own) else whole
        return int(candidates[rng.integers(len(candidates))])

    def encoded(self, pairs: np.ndarray) -> list[bytes]:
        """Returns the encoded images (JPEG, PNG) of pairs (n,)."""
        return self.read(self.pairs[0][pairs])

    def texts(self, pairs: np.ndarray) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the caption of each pair (n,) and its attribute phrases."""
        places = zip(*(index[pairs].tolist() for index in self.pairs), strict=True)
        return [(self.captions[image][i], self.attributes[image][i]) for image, i in places]

    def keys(self, pairs: np.ndarray) -> np.ndarray:
        """Returns hashes (2, n) uint64 of the path of the image and of the caption of each pair."""
        return self._keys[:, pairs]

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """The keys of all pairs, (2, pairs) uint64."""
        names = (str(self.images.absolute() / path) for path in self.paths)
        images = np.array([key_of_bytes(name.encode("utf-8", "surrogatepass")) for name in names], np.uint64)
        captions = np.array([key_of_caption(caption) for own in self.captions for caption in own], np.uint64)
        return np.stack([images[self.pairs[0]], captions])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the encoded images (JPEG, PNG) of the images at `indices`."""
        return [example["image"] for example in self._data.__getitems__(self._rows[np.asarray(indices)].tolist())]
