"""Reads and checks the annotation file of a dataset. Returns a record for each image."""

import collections
import dataclasses
import functools
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from input_pipeline import own
from input_pipeline.records import Annotations, Record, joined, without_empty_captions
from input_pipeline.variants import PATH_KEYS, SEE_DOCS, Entry, check_object, read_entries
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, is_remote, is_utf8, lines_of
from ivt_jax.common.messages import counted, first_few
from ivt_jax.common.tables import SUFFIXES

QUARANTINE = "quarantine.txt"  # beside the annotations; lists images to leave out, a path on each line


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The usual names of a dataset's folder and JSON files (the first that exists is read)."""

    folder: str
    files: tuple[str, ...]
    remedy: str = SEE_DOCS  # what to do if the files are missing


LAYOUTS = {
    "cuhk_pedes": _Layout("CUHK-PEDES", ("reid_raw.json", "cuhk_pedes_att.json")),
    "icfg_pedes": _Layout("ICFG-PEDES", ("ICFG-PEDES.json", "ICFG_PEDES.json", "ICFG_PEDES_VISTXT.json")),
    "rstp_reid": _Layout("RSTPReid", ("data_captions.json", "rstpreid_vistxt.json")),
    "pedes_synth": _Layout("PEDES-Synth", ("reid_raw.json",), "`make data` generates it"),
    "own": _Layout("own data", ()),  # any table: input_pipeline/own.py finds and reads it
    "pairs": _Layout("image-text pairs", ()),  # an index: input_pipeline/pairs/source.py reads it
}
# Names in commands -> names in configs.
DATASETS = {"cuhk": "cuhk_pedes", "icfg": "icfg_pedes", "rstp": "rstp_reid", "synth": "pedes_synth", "own": "own"}


def title_of(name: str) -> str:
    """Returns a dataset's published name, such as "CUHK-PEDES" for "cuhk_pedes"; an unknown name unchanged."""
    return LAYOUTS[name].folder if name in LAYOUTS else name


def dataset_name(data: Mapping[str, Any]) -> str:
    """Returns what reports and records call the dataset of a config's `data`; `title_of` makes a title of it.

    It is data.title if there is one, the name of the table or of its folder for own data, and data.name otherwise.
    """
    if data.get("title") or data["name"] != "own":
        return data.get("title") or data["name"]
    place = PurePosixPath(data["root"])
    return (place.stem if place.suffix.lower() in SUFFIXES else place.name) or "own"


def read_annotations(root: Path, name: str) -> Annotations:
    """Reads the dataset `name` (a key of LAYOUTS). root: its folder, its annotation file or its table.

    Records of one image are joined. Empty captions are dropped from train, and so are training records without other
    captions; in val and test they stay, because dropping them would change the scores. Images in quarantine are left
    out. A line on stderr counts each of these. Images may be missing, as in a portable folder, which has prepared data
    only. Raises DataError, in one line, at the first fault.
    """
    path = annotation_file(root, name)
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size, quarantined(path))


def local_root(root: str) -> Path:
    """Returns the path of a command's --root. Raises UserError if it is remote, because its images are opened."""
    if is_remote(root):
        raise UserError(f"{root}: expected a local folder with the images of the dataset; {SEE_DOCS}")
    return Path(root)


def annotation_file(root: Path, name: str) -> Path:
    """Returns the dataset's JSON file: `root`, or a file in it with a usual name, or else one with known records.

    For own data it returns the table. Raises DataError if there is none; the message says why the first other JSON file
    is refused.
    """
    if name not in LAYOUTS:
        raise DataError(f'data.name is "{name}"; expected one of {", ".join(LAYOUTS)}')
    if name == "own":
        return own.find_table(root)
    if name == "pairs":
        raise DataError(f"{root}: image-text pairs have no annotations; {SEE_DOCS}")
    if _is_table(root) and root.is_file():
        raise DataError(f"{root} is a table of own data: use --config=configs/own.py or --dataset=own")
    layout = LAYOUTS[name]
    usual = [path for path in (root, *(root / file for file in layout.files)) if path.is_file()]
    if usual:
        return usual[0]
    found = ""
    for path in sorted(root.glob("*.json")):
        try:
            read_entries(path)
            return path
        except DataError as error:
            found = found or f"; another JSON file: {error}"
    raise DataError(
        f"{root / layout.files[0]} not found: --config.data.root expects the {layout.folder} folder "
        f"with {' or '.join(layout.files)} and imgs/; {layout.remedy}{found}"
    )


def quarantined(path: Path) -> frozenset[str]:
    """Returns the images that the quarantine file beside the annotations `path` lists.

    Paths may have any form that the annotations may use. A path that leads out of the folder of images is returned
    unchanged; it matches no image. Raises DataError if the file is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    listed = path.with_name(QUARANTINE)
    if not listed.exists():
        return frozenset()
    try:
        lines = lines_of(decode_list(listed.read_bytes()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed} cannot be read ({error}); save it as UTF-8 text, or remove it") from None
    relative = own.relative_to(path.parent) if _is_table(path) else _Place.of(path.parent).relative
    return frozenset(relative(line) or line for line in lines if line)


def held_out(persons: int, share: float) -> int:
    """Returns how many of the training persons are held out for val: at least 1 if the share is above 0."""
    return max(round(share * persons), int(share > 0))


def hold_out_persons(records: Sequence[Record], share: float, seed: int = 0) -> list[Record]:
    """Returns the records with a `share` of the training persons moved to val, for datasets without a val split.

    A hash of (seed, person id) orders the persons; the first ones are held out, at least one if the share is above 0.
    """
    persons = {record.person_id for record in records if record.split == "train"}
    order = sorted(persons, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).digest())
    chosen = set(order[: held_out(len(order), share)])
    return [
        dataclasses.replace(record, split="val") if record.split == "train" and record.person_id in chosen else record
        for record in records
    ]


@functools.lru_cache(maxsize=4)  # every split of a run needs the whole file
def _read(path: Path, modified: int, size: int, left_out: frozenset[str]) -> Annotations:
    """modified, size: of the file, so that the cache misses a changed file. left_out: images in quarantine."""
    merged = joined(own.read_records(path) if _is_table(path) else _read_json_records(path), path)
    records = without_empty_captions([record for record in merged if record.image_path not in left_out], path)
    counts = collections.Counter(record.split for record in merged if record.image_path in left_out)
    if counts:
        by_split = ", ".join(f"{count} of {split}" for split, count in counts.items())
        print(f"{path.with_name(QUARANTINE)} leaves out images: {by_split}", file=sys.stderr)
    if unknown := sorted(left_out - {record.image_path for record in merged}):
        lines = f"{counted(len(unknown), 'path')} that {path.name} does not name"
        print(f"{path.with_name(QUARANTINE)}: {lines}: {first_few([*map(repr, unknown)])}", file=sys.stderr)
    if not any(record.split == "train" for record in records):
        raise DataError(f"{path} holds no training record")
    # Own images lie in the table's folder. UFine6926 keeps images/ beside its JSON file and writes images/1.jpg; all
    # others omit imgs/.
    beside = _is_table(path) or all(record.image_path.startswith("images/") for record in records)
    return Annotations(path, path.parent if beside else path.parent / "imgs", records)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _read_json_records(path: Path) -> list[Record]:
    place = _Place.of(path.parent)
    return [_record(entry, f"{path}: {entry.where}", place) for entry in read_entries(path)]


@dataclasses.dataclass(frozen=True)
class _Place:
    """roots, images: the dataset's folder and its folder of images, as given and with links resolved.

    portable: whether there are no images. nested: whether imgs/ contains another folder imgs/.
    """

    roots: tuple[PurePosixPath, ...]
    images: tuple[PurePosixPath, ...]
    portable: bool
    nested: bool

    @classmethod
    def of(cls, root: Path) -> "_Place":
        images = root / "imgs"
        roots = tuple(PurePosixPath(path.as_posix()) for path in (root.absolute(), root.resolve()))
        inside = PurePosixPath(images.resolve().as_posix())
        portable = not (images.is_dir() or (root / "images").is_dir())
        return cls(roots, (*(base / "imgs" for base in roots), inside), portable, (images / "imgs").is_dir())

    def relative(self, path: str) -> str | None:
        """Returns a record's path relative to the folder of images, or None if it leads out of it.

        "imgs/a.jpg" and the absolute path of the same image become "a.jpg"; "images/a.jpg" stays. In a portable folder,
        absolute paths may begin with any folder; the part after the last imgs/ counts.
        """
        pure = PurePosixPath(path.replace("\\", "/"))
        if pure.is_absolute():
            pure = self._from_absolute(pure) or pure
        elif pure.parts[:1] == ("imgs",) and not self.nested:
            pure = PurePosixPath(*pure.parts[1:])
        whole = str(pure)
        outside = pure.is_absolute() or whole[1:2] == ":" or ".." in pure.parts or "\0" in whole or not pure.parts
        return None if outside else whole

    def _from_absolute(self, path: PurePosixPath) -> PurePosixPath | None:
        for base in self.images:
            if path.is_relative_to(base):
                return path.relative_to(base)
        for base in self.roots:
            if path.is_relative_to(base / "images"):
                return path.relative_to(base)
        if self.portable and "imgs" in path.parts:
            return PurePosixPath(*path.parts[len(path.parts) - path.parts[::-1].index("imgs") :])
        return None


def _record(entry: Entry, where: str, place: _Place) -> Record:
    check_object(entry.value, where)
    value = entry.value
    path_key = next((key for key in PATH_KEYS if key in value), PATH_KEYS[0])
    for key in ("captions", path_key, "id"):
        if key not in value:
            raise DataError(f'{where} has no "{key}"; {SEE_DOCS}')
    captions, path, person = value["captions"], value[path_key], value["id"]
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
        raise DataError(f'{where} has "captions" that are neither a text nor a list of at least one text; {SEE_DOCS}')
    attributes = _attributes(value.get("att", {}), where)
    if not all(map(is_utf8, [*captions, str(path), *attributes])):
        raise DataError(
            f"{where} has a lone surrogate (\\ud800 to \\udfff in the JSON), half of a character; correct its text"
        )
    number = _person_id(person)
    if number is None:
        raise DataError(f'{where} has "id" {json.dumps(person)}; expected a whole number from 0 to 2^31 - 1')
    if not isinstance(path, str) or not path.strip():
        raise DataError(f'{where} has "{path_key}" {json.dumps(path)}; expected the path of an image')
    relative = place.relative(path)
    if relative is None:
        raise DataError(f'{where} has "{path_key}" {json.dumps(path)}; expected a path inside the folder of images')
    return Record(
        image_path=relative,
        person_id=number,
        captions=tuple(captions),
        split=entry.split,
        attributes=(attributes,) * len(captions),
        copies=int(entry.is_image),
        where=entry.where,
    )


def _person_id(value: Any) -> int | None:
    """Returns the id of a JSON value: a whole number or ASCII digits ("0042"). None if it is not one below 2^31."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # pandas writes whole numbers so if a value is missing
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**31 else None


def _attributes(att: Any, where: str) -> tuple[str, ...]:
    """Returns the phrases of `att`, an object {kind of phrase: phrase}; the kinds are not used."""
    check_object(att, f'{where}: "att"')
    if not all(isinstance(phrase, str) for phrase in att.values()):
        raise DataError(f'{where}: "att" has a phrase that is not a text; {SEE_DOCS}')
    return tuple(phrase.strip() for phrase in att.values() if phrase.strip())
