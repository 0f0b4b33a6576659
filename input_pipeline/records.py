"""The records of a dataset: what every reader of annotations returns, and how records of one image are joined."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ivt_jax.common.errors import DataError
from ivt_jax.common.messages import counted, first_few


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its captions.

    image_path: relative to the folder of images, with forward slashes. person_id: as in the file ("0042" equals 42);
    ids may start at any number and have gaps. attributes: for each caption the attribute phrases of the file, often
    none. copies: number of image records that name the image. where: place in the file, for messages. person: as a
    table of own data names the person, for messages; "" if the annotations have numbers alone.
    """

    image_path: str
    person_id: int
    captions: tuple[str, ...]
    split: str
    attributes: tuple[tuple[str, ...], ...]
    copies: int = 1
    where: str = dataclasses.field(default="", compare=False)
    person: str = dataclasses.field(default="", compare=False)

    @property
    def person_name(self) -> str:
        """The person for messages: as the annotations name it."""
        return self.person or str(self.person_id)


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The annotation file, the folder of images, and the records in the order of the file."""

    path: Path
    images: Path
    records: tuple[Record, ...]

    @property
    def has_images(self) -> bool:
        """Whether the folder of images exists. A portable folder has none; own images may lie beside the table."""
        if self.images != self.path.parent:
            return self.images.is_dir()
        return any((self.images / top).exists() for top in {PurePosixPath(r.image_path).parts[0] for r in self.records})


def joined(records: Sequence[Record], path: Path) -> list[Record]:
    """Joins the records of each image at the place of the first one. Raises DataError if split or person differ."""
    by_image: dict[str, Record] = {}
    for record in records:
        first = by_image.setdefault(record.image_path, record)
        if first is record:
            continue
        who = "person" if record.person else "id"
        for what, one, other in (
            ("split", first.split, record.split),
            (who, first.person_name, record.person_name),
        ):
            if one != other:
                where = f"{path}: {first.where} and {record.where} ({record.image_path})"
                raise DataError(f'{where} are one image with "{what}" {one} and {other}; remove the wrong record')
        by_image[record.image_path] = dataclasses.replace(
            first,
            captions=first.captions + record.captions,
            attributes=first.attributes + record.attributes,
            copies=first.copies + record.copies,
            where=f"{first.where}, {record.where}",
        )
    if repeated := sum(max(0, record.copies - 1) for record in by_image.values()):
        print(
            f"{path}: {len(records)} records of {len(by_image)} images; joined {repeated} to another record",
            file=sys.stderr,
        )
    return [dataclasses.replace(record, copies=max(1, record.copies)) for record in by_image.values()]


def without_empty_captions(records: Sequence[Record], path: Path) -> tuple[Record, ...]:
    """Drops empty captions from train, and training records without others; prints how many, and those of val, test."""
    dropped, kept_empty, result = 0, [], []
    for record in records:
        filled = [i for i, caption in enumerate(record.captions) if caption.strip()]
        empty = len(record.captions) - len(filled)
        if empty and record.split != "train":
            kept_empty.append(record.where)
        elif empty:
            dropped += empty
            record = dataclasses.replace(
                record,
                captions=tuple(record.captions[i] for i in filled),
                attributes=tuple(record.attributes[i] for i in filled),
            )
        if record.captions:
            result.append(record)
    if dropped:
        print(f"{path}: {counted(dropped, 'empty caption')} dropped from train", file=sys.stderr)
    if kept_empty:
        print(f"{path}: empty captions in val or test are kept as queries: {first_few(kept_empty)}", file=sys.stderr)
    return tuple(result)
