"""Finds persons and images that splits share: a test on them measures memory of the training data."""

import collections
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.annotations import Record
from input_pipeline.decoding import as_rgb, open_picture
from input_pipeline.inspection import Inspected, near_duplicates
from input_pipeline.pictures import look_at
from input_pipeline.variants import SPLITS
from ivt_jax.common.likeness import likeness, read_colours

Pair = tuple[str, str]  # the paths of an image and of an earlier image

_ALIKE = 0.95  # least correlation of colours


def shared_persons(records: Iterable[Record]) -> dict[int, list[str]]:
    """Returns each person id that is in several splits, in order, with these splits."""
    splits = collections.defaultdict(set)
    for record in records:
        splits[record.person_id].add(record.split)
    return {person: sorted(splits[person], key=SPLITS.index) for person in sorted(splits) if len(splits[person]) > 1}


def digests_of_twins(folder: Path, images: Sequence[Inspected]) -> dict[str, str]:
    """Returns path -> digest of all images that have another image's size on disk and perceptual hash."""
    groups: dict[tuple[int, bytes], list[str]] = collections.defaultdict(list)
    for image in images:
        if image.file_bytes:
            groups[image.file_bytes, image.hash].append(image.path)
    twins = [path for paths in groups.values() if len(paths) > 1 for path in paths]
    return {path: picture.digest for path, picture in look_at(folder, twins, {}).items()}


def copies_between_splits(records: Iterable[Record], digests: Mapping[str, str]) -> list[Pair]:
    """Returns each image that is also in an earlier split (train, val, test), with its first copy there.

    digests: path -> digest of the content; images without one are left out.
    """
    ordered = sorted(records, key=lambda record: SPLITS.index(record.split))
    return _copies((r.image_path, digests[r.image_path], r.split) for r in ordered if digests.get(r.image_path))


def copies_between_persons(records: Iterable[Record], digests: Mapping[str, str]) -> list[Pair]:
    """Returns each image that another person of its split also has, with its first copy."""
    return _copies(
        (r.image_path, (r.split, digests[r.image_path]), r.person_id) for r in records if digests.get(r.image_path)
    )


def near_copies_between_splits(
    folder: Path, records: Iterable[Record], images: Sequence[Inspected], known: Collection[str]
) -> list[Pair]:
    """Returns each image that looks like one of an earlier split, with the most similar one. Skips paths in `known`."""
    split_of = {record.image_path: record.split for record in records}
    earlier: list[Inspected] = []
    pairs: list[Pair] = []
    for split in SPLITS:
        own = [image for image in images if split_of[image.path] == split]
        pairs += near_duplicates([image for image in own if image.path not in known], earlier)
        earlier += own
    return [(path, other) for path, other in pairs if look_alike(folder / path, folder / other)]


def look_alike(file: Path, other: Path) -> bool:
    """Whether two files show the same image, apart from size, compression, brightness and tint.

    Perceptual hashes alone also match different persons in front of one background. An image of a single tone matches
    no other.
    """
    return likeness(_colours(file), _colours(other)) >= _ALIKE


def _colours(file: Path) -> np.ndarray:
    with open_picture(file) as image:
        return read_colours(as_rgb(image))


def _copies(images: Iterable[tuple[str, Hashable, Hashable]]) -> list[Pair]:
    """images: (path, content, owner). Returns each image with the first of equal content, if the owners differ."""
    first: dict[Hashable, tuple[str, Hashable]] = {}
    pairs = []
    for path, content, owner in images:
        earlier, its_owner = first.setdefault(content, (path, owner))
        if owner != its_owner:
            pairs.append((path, earlier))
    return pairs
