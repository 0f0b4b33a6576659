"""Opens the splits of the datasets that a config names."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.annotations import Annotations, Record, hold_out_persons, read_annotations
from input_pipeline.builders import PedesBuilder
from input_pipeline.datasets import Dataset, datasets_of
from input_pipeline.pairs.rows import SPLITS
from input_pipeline.pairs.source import IndexedPairs
from input_pipeline.portable import local_copy
from input_pipeline.prepared import prepare
from input_pipeline.source import Source
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.messages import counted

UNKNOWN: Mapping[str, str] = MappingProxyType({})  # digests of images, by label; none is known


def open_parts(config: ConfigDict, split: str, images_digests: Mapping[str, str] = UNKNOWN) -> dict[str, Any]:
    """Opens a split of each dataset of the config; returns by label what `open_split` returns for one.

    images_digests: by label, as for `open_split`.
    """
    return {
        dataset.label: open_split(config_of(config, dataset), split, images_digests.get(dataset.label, ""))
        for dataset in datasets_of(config.data)
    }


def config_of(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """Returns a copy of the config for one dataset alone."""
    config = ConfigDict(config.to_dict())
    config.data.update({"name": dataset.name, "root": dataset.root, "title": "", "sources": (), "weights": ()})
    return config


def open_split(config: ConfigDict, split: str, images_digest: str = "") -> Any:
    """Opens the split ("train", "val", "test") of `data.name` in `data.root`; prepares the dataset first if necessary.

    Returns a Source, or for the training pairs of an index an IndexedPairs.

    A dataset without a val split holds out `data.val_persons` of its training persons for val; if that is 0, val is
    empty. So is test, if the dataset has none. data.root may be a portable folder, also a remote one (gs://...), which
    is fetched once. images_digest: of the images that a run began with; "" opens the current images. Raises UserError,
    in one line.
    """
    if config.data.name == "pairs":
        return _open_pairs(config, split)
    root, name = local_copy(config.data.root), config.data.name
    annotations = read_annotations(root, name)
    original, records = annotations.records, divided_records(annotations, config)
    without_val = records is not original
    chosen = [number for number, record in enumerate(records) if record.split == split]
    if without_val and split == "val":
        _print_held_out(annotations.path, {records[number].person_id for number in chosen})
    if not chosen and split != "train":
        return Source(name, split, annotations, ())
    if not chosen:
        persons = counted(len({record.person_id for record in original if record.split == "train"}), "person")
        remedy = "give more persons or a val split, or set --config.data.val_persons=0"
        raise DataError(f"{annotations.path} has {persons} to train, held out for validation: {remedy}")
    stored = original[chosen[0]].split
    elsewhere = Path(config.runtime.prepared) if config.runtime.prepared else None
    builder = prepare(root, name, elsewhere, config.data.max_damaged, images_digest)
    data, damaged = builder.as_data_source(stored), builder.info.metadata["damaged"]
    # Rows are found by number, not by path: a portable folder may write its paths differently.
    row_of = {number: row for row, number in enumerate(n for n, r in enumerate(original) if r.split == stored)}
    if len(data) != len(row_of):
        raise _other_annotations(builder, annotations, f"{len(data)} images of {stored} instead of {len(row_of)}")
    if unknown := {*damaged} - {record.image_path for record in original}:
        raise _other_annotations(builder, annotations, f"the annotations do not name its image {min(unknown)}")
    rows = np.array([row_of[number] for number in chosen])
    source = Source(name, split, annotations, [records[number] for number in chosen], data, rows)
    if not config.data.identities:
        source.forget_persons()
    source.images_digest = builder.images_digest
    source.set_damaged(damaged)
    return source


def divided_records(annotations: Annotations, config: ConfigDict) -> Sequence[Record]:
    """Returns the records as a run divides them: without a val split, `data.val_persons` are held out for val."""
    if any(record.split == "val" for record in annotations.records):
        return annotations.records
    return hold_out_persons(annotations.records, config.data.val_persons)


def _open_pairs(config: ConfigDict, split: str) -> IndexedPairs | Source:
    """Opens an index of image-text pairs: train to read pairs where they are, val with its images in memory."""
    if config.data.identities:
        raise UserError("data.name pairs has no person ids: set --config.data.identities=False")
    if split not in SPLITS:
        raise DataError(f"{config.data.root}: image-text pairs have no {split} split: set --config.train.select_on=val")
    source = IndexedPairs(config.data.root, split)
    return source if split == "train" else source.in_memory()


def _print_held_out(path: Path, persons: set[int]) -> None:
    held_out = f"held out in its place: {counted(len(persons), 'training person')} (data.val_persons)"
    nobody = "data.val_persons is 0: all persons train"
    print(f"{path} has no val split; {held_out if persons else nobody}", file=sys.stderr)


def _other_annotations(builder: PedesBuilder, annotations: Annotations, differ: str) -> DataError:
    return DataError(
        f"{builder.data_path} was not prepared from {annotations.path} and its quarantine.txt ({differ}): "
        "prepare it again where its images are; if these lie in imgs/imgs/, move them into imgs/ first"
    )
