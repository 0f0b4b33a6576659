"""TFDS builders: a raw dataset folder, prepared once into array_record files with random access.

    prepare(Path("data/CUHK-PEDES"), "cuhk_pedes").as_data_source("train")[0]

Nothing is downloaded: the folder under `root` is what its users were sent. Images stay encoded as they are, where
training decodes that to the pixels that Pillow sees; else those pixels are stored as PNG.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import augment
from input_pipeline.annotations import Annotations, Record, annotation_file, quarantined, read_annotations
from input_pipeline.decoding import as_rgb, open_picture, orientation
from input_pipeline.inspection import leads_out
from input_pipeline.leaks import copies_between_splits, shared_persons
from input_pipeline.pictures import (
    Picture,
    contents_digest,
    describe_changes,
    look_at,
    read_picture,
    read_record,
    write_record,
)
from input_pipeline.statistics import say_deviation
from input_pipeline.variants import README, SPLITS
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import printable, refuse_path
from ivt_jax.common.messages import counted, say_once
from ivt_jax.common.progress import progress

_KEPT_FORMATS = ("JPEG", "PNG")  # that training decodes; everything else becomes PNG
# Data of this version, which ignores EXIF orientation, are still read for the runs that began with them.
BEFORE = tfds.core.Version("1.4.0")
_FORMATS_BEFORE = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF")
_TEXT_BEFORE = 1 << 20  # bytes of a PNG's ICC profile, or of one of its texts, above which BEFORE refused it
# Suffix of the digest if BEFORE stored other pixels of some image, or refused it: a run that began with data of one
# version then does not go on with the other. Without such images both versions store the same.
_OTHER_PIXELS = "-upright"
# Of Pillow's levels, 0 to 9: for 300 crops of 300 x 120 with a little noise, a third of the time of its default, 6
# (3 ms against 8), for a tenth more bytes (70 kB against 64).
_PNG_LEVEL = 1
_LEAVE_OUT = (
    "leave them out with `python -m input_pipeline.doctor --dataset=NAME --root=DIR --fix_list`, which lists all in "
    "quarantine.txt"
)


class PedesBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset of (image, person id, captions) records in the order of its annotations, one split for each of theirs.

    `prepare` writes it to `<prepared>/<annotations>-<pictures>`, named by the first digits of two digests: of the
    annotation file with the quarantine, and of the contents of all images. So a change of either is prepared in a new
    folder, and the files that a running program reads are never replaced. Features of a record: image (the encoded
    bytes: JPEG, PNG), path (relative to the folder of images), person_id (int64), captions (texts).

    TFDS chooses the shards of a split by its size, each of 64 MiB to 1 GiB: CUHK-PEDES' 34,054 training images are 8
    shards at 30 kB each. VERSION rises whenever something else is stored for the same dataset. Data of another version
    stay where they are; only those of VERSION and BEFORE are read.
    """

    VERSION = tfds.core.Version("1.5.0")
    SUPPORTED_VERSIONS: ClassVar[list[tfds.core.Version]] = [BEFORE]
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.5.0": "Images are turned upright by their EXIF orientation; TIFF, AVIF and HEIC are read.",
        "1.4.0": "Images of 16 bits of grey keep their upper eight bits, and are no longer white.",
    }

    def __init__(
        self,
        *,
        root: Path,
        prepared: Path | None = None,
        max_damaged: float = 0.0,
        data_dir: Path | None = None,
        version: tfds.core.Version | None = None,
    ):
        """root: the raw dataset. prepared: folder for the prepared data; `prepared` beside the annotations if None.

        max_damaged: share of the training images that may be missing or unreadable; `info.metadata["damaged"]` lists
        them, path by path, and their bytes are empty. In val and test none may. data_dir: the folder within `prepared`;
        if None, the folder of data without a record of their images (a portable folder's, or an older version's).
        version: VERSION or BEFORE; VERSION if None.
        """
        self.root, self.max_damaged = root, max_damaged
        self.fresh = False  # whether this process has just prepared it
        self.seen: dict[str, Picture] = {}  # the images that it was prepared from
        self.other_pixels = False  # whether BEFORE would have stored other pixels
        if data_dir is None:
            path = annotation_file(root, self.name)
            shared = str(path.parent.resolve()) if prepared else ""  # several datasets may share the folder
            data_dir = _prepared_folder(path, prepared) / annotations_digest(path, shared)
        refuse_path(data_dir)
        super().__init__(data_dir=data_dir, file_format="array_record", version=version and str(version))

    @property
    def pictures(self) -> str:
        """The digest of the contents of all images that the data were prepared from; "" if it is not recorded.

        Ends with _OTHER_PIXELS if BEFORE would have stored other pixels of the same images.
        """
        return self.info.metadata.get("pictures", "")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(), dtype=np.object_),
            "path": tfds.features.Text(),
            "person_id": tfds.features.Scalar(np.int64),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        # Without disable_shuffling TFDS orders records by the hash of their key; the pipeline reads them by number.
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(damaged=[]),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable[Any]]:
        annotations = read_annotations(self.root, self.name)
        splits = {split: [r for r in annotations.records if r.split == split] for split in SPLITS}
        images = annotations.images.resolve()  # the folder itself may be a link, what it holds may not lead out of it
        return {split: self._generate_examples(split, chosen, images) for split, chosen in splits.items() if chosen}

    def _generate_examples(
        self, split: str, records: list[Record], images: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(progress(records, len(records), f"{self.name}: preparing {split}: ")):
            _refuse_link_out(images, record)
            self.seen[record.image_path], content = read_picture(images, record.image_path)
            try:
                encoded, other_pixels = _encoded_image(images, record, content)
                self.other_pixels |= other_pixels
            except DataError as error:
                if split != "train":
                    raise
                encoded = b""
                self.info.metadata["damaged"].append(record.image_path)
                if len(self.info.metadata["damaged"]) > self.max_damaged * len(records):
                    raise DataError(
                        f"{error}. More than {self.max_damaged:.2%} of the training images are like that "
                        f"(data.max_damaged); restore them and start again, or {_LEAVE_OUT}, or allow more"
                    ) from None
            example = {
                "image": encoded,
                "path": record.image_path,
                "person_id": record.person_id,
                "captions": record.captions,
            }
            yield number, example


class CuhkPedes(PedesBuilder):
    """CUHK-PEDES (Li et al., CVPR 2017)."""


class IcfgPedes(PedesBuilder):
    """ICFG-PEDES (Ding et al., 2021)."""


class RstpReid(PedesBuilder):
    """RSTPReid (Zhu et al., ACM MM 2021)."""


class PedesSynth(PedesBuilder):
    """PEDES-Synth, the generated benchmark of this project."""


BUILDERS = {builder.name: builder for builder in (CuhkPedes, IcfgPedes, RstpReid, PedesSynth)}


def annotations_digest(path: Path, folder: str = "") -> str:
    """First digits of the SHA-256 of an annotation file, its quarantine, and the dataset's folder where it is given."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update("\n".join(sorted(quarantined(path))).encode())
    digest.update(folder.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def prepare(
    root: Path,
    name: str,
    prepared: Path | None = None,
    max_damaged: float = 0.0,
    pictures: str = "",
    renew: bool = False,
) -> PedesBuilder:
    """Returns the builder of the dataset `name` for its images as they are now; prepares the data if there are none.

    Processes that share a disk wait for each other. root, prepared, max_damaged: as PedesBuilder's. pictures: the
    digest of the images that a run began with; their data are opened if they still exist, otherwise other images are
    refused. renew: prepares the data anew if only those of version BEFORE exist, which stay for the runs that began
    with them. Prints on stderr which images changed, that data are of version BEFORE, what several splits share and,
    when it prepares the data, how the dataset deviates from the published one. Raises DataError, in one line.
    """
    builder, _ = _find(root, name, prepared, max_damaged, pictures, renew)
    if builder is None:
        annotations = read_annotations(root, name)
        if not annotations.images.is_dir():
            place = BUILDERS[name](root=root).data_path
            where = f"the images of {annotations.path.name} are expected in it, or prepared data in {place}"
            raise DataError(f"{annotations.images} not found: {where}; {README}")
        with _locked(_prepared_folder(annotations.path, prepared)) as folder:
            # Another process may have done it.
            builder, changes = _find(root, name, prepared, max_damaged, pictures, renew)
            if builder is None:
                if changes:
                    kept = f"earlier data stay in {folder} for the runs that began with them"
                    print(f"{annotations.images}: images differ{changes}; preparing anew; {kept}", file=sys.stderr)
                say_deviation(annotations, name)
                builder = _prepare_anew(root, name, folder, max_damaged, _record_name(annotations.path, prepared))
    if pictures and builder.pictures not in ("", pictures):
        raise _other_pictures(builder.data_path, pictures, builder.pictures)
    _refuse_damaged(builder)
    _say_shared(builder)
    return builder


def _find(
    root: Path, name: str, prepared: Path | None, max_damaged: float, pictures: str, renew: bool
) -> tuple[PedesBuilder | None, str]:
    """Returns the builder of the data of the current images, or None and how these differ from those prepared last."""
    annotations = read_annotations(root, name)
    has_images = annotations.images.is_dir()  # a portable folder has none
    versions = _versions(BUILDERS[name].VERSION, pictures, renew and has_images)
    folder = _prepared_folder(annotations.path, prepared if has_images else None)
    digest = annotations_digest(annotations.path)
    found = [path.parent.parent for version in versions for path in folder.glob(f"{digest}-*/{name}/{version}")]
    places = list(dict.fromkeys(found))
    place: Path | None
    if places:
        record = _record_name(annotations.path, prepared)
        own = folder / f"{digest}-{pictures[:16]}"
        last = own if own in places else max(places, key=lambda place: _modified(place / record))
        place, changes = last, ""
        if has_images:
            place, changes = _place_of_images(annotations, places, last, record, pictures)
    else:
        place, changes = _unrecorded_data(root, name, prepared, versions), ""
    return (_open(root, name, place, max_damaged, versions) if place else None), changes


def _unrecorded_data(
    root: Path, name: str, prepared: Path | None, versions: Sequence[tfds.core.Version]
) -> Path | None:
    """Returns the folder of data that do not record their images, None if there is none."""
    has_images = read_annotations(root, name).images.is_dir()
    place = Path(BUILDERS[name](root=root, prepared=prepared if has_images else None).data_path).parent.parent
    if not any((place / name / str(version)).exists() for version in versions):
        return None
    if has_images:
        say_once(f"{place} does not record its images, so changed images go unnoticed; remove it to prepare it again")
    return place


def _place_of_images(
    annotations: Annotations, places: Sequence[Path], last: Path, record: str, pictures: str
) -> tuple[Path | None, str]:
    """Returns which of `places` has the data of the current images, or None and how these differ from those of `last`.

    last: the data used last, or those that the run began with, while they exist; such a run continues with them even
    if the images differ. record: the name of the file that records the images; it is written again if any was touched.
    pictures: as `prepare`'s. Raises DataError if the run began with other images whose data no longer exist.
    """
    known = read_record(last / record)
    now = look_at(annotations.images, [image.image_path for image in annotations.records], known)
    digest, contents = annotations_digest(annotations.path), contents_digest(now)
    changes = describe_changes(known, now) if known else ""
    if pictures and contents != pictures.removesuffix(_OTHER_PIXELS):
        if last.name != f"{digest}-{pictures[:16]}":
            raise _other_pictures(annotations.images, pictures)
        say_once(
            f"{annotations.images}: images differ{changes}; this run continues with those it began with, in {last}"
        )
        return last, ""
    place = last.with_name(f"{digest}-{contents[:16]}")
    if place not in places:
        return None, changes
    if place != last or known != now:
        with contextlib.suppress(OSError):  # another user's folder: the images are read again the next time
            write_record(place / record, now)
    return place, ""


def _open(
    root: Path, name: str, place: Path, max_damaged: float, versions: Sequence[tfds.core.Version]
) -> PedesBuilder:
    """Opens the data in `place`, in the first of the versions that exists; prints a line if that is BEFORE."""
    version = next(version for version in versions if (place / name / str(version)).exists())
    if version == BEFORE:
        has_images = read_annotations(root, name).images.is_dir()
        remedy = "`python -m input_pipeline.prepare`" if has_images else "preparing it where its images are"
        say_once(
            f"{place / name / str(version)} was prepared before images were turned upright by EXIF: their pixels are "
            f"used as stored in the files; {remedy} makes it anew"
        )
    return BUILDERS[name](root=root, max_damaged=max_damaged, data_dir=place, version=version)


def _versions(newest: tfds.core.Version, pictures: str, renew: bool) -> list[tfds.core.Version]:
    """Returns the versions that may be read, the preferred one first."""
    if renew or pictures.endswith(_OTHER_PIXELS):
        return [newest]
    return [BEFORE, newest] if pictures else [newest, BEFORE]  # a run goes on with the pixels that it began with


def _prepare_anew(root: Path, name: str, folder: Path, max_damaged: float, record: str) -> PedesBuilder:
    """Prepares the data in a hidden folder and moves them to their place when complete, beside the file `record`."""
    tfds.disable_progress_bar()
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    digest = annotations_digest(annotation_file(root, name))  # before reading: a later change is noticed the next time
    try:
        maker = BUILDERS[name](root=root, max_damaged=max_damaged, data_dir=partial)
        maker.download_and_prepare()
        contents = contents_digest(maker.seen)
        maker.info.metadata["pictures"] = contents + (_OTHER_PIXELS if maker.other_pixels else "")
        digests = {path: picture.digest for path, picture in maker.seen.items()}
        records = read_annotations(root, name).records
        maker.info.metadata["shared"] = [list(pair) for pair in copies_between_splits(records, digests)]
        maker.info.metadata.save_metadata(maker.data_path)
        place = folder / f"{digest}-{contents[:16]}"
        (place / name).mkdir(parents=True, exist_ok=True)
        write_record(place / record, maker.seen)
        whole = place / name / str(maker.version)
        if not whole.exists():  # it does if images were restored, or could be read again, while this was prepared
            Path(maker.data_path).rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    builder = BUILDERS[name](root=root, max_damaged=max_damaged, data_dir=place)
    builder.fresh = True
    return builder


def _record_name(path: Path, prepared: Path | None) -> str:
    """Returns the name of the file that records the images of a dataset; several may share the folder `prepared`."""
    owner = f"-{hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:16]}" if prepared else ""
    return f"pictures{owner}.json"


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _prepared_folder(path: Path, prepared: Path | None) -> Path:
    """Returns the folder of all data prepared from the annotation file `path`."""
    return prepared or path.parent / "prepared"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Creates the folder and holds its lock. Raises DataError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror}); name another folder by --config.runtime.prepared, or by "
            "--prepared of input_pipeline.prepare"
        ) from None
    with open(folder / "lock", "w") as lock, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints of downloads
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _other_pictures(place: Path, pictures: str, found: str = "") -> DataError:
    """pictures: the digest of the images that the run began with; found: of those in their place, if it is known."""
    if found.removesuffix(_OTHER_PIXELS) == pictures.removesuffix(_OTHER_PIXELS):
        differ = "some are turned upright by EXIF only in one of them, or could not be read then"
        remedy = "restore the prepared data that it began with, or choose another --workdir"
        return DataError(f"{place}: the run began with other pixels of these images ({differ}); {remedy}")
    remedy = "restore those (and the former quarantine.txt), or choose another --workdir"
    return DataError(f"{place}: the images are not those that the run began with; {remedy}")


def _say_shared(builder: PedesBuilder) -> None:
    """Warns of persons and of exact copies of images in several splits. Data prepared before have no list of copies."""
    annotations = read_annotations(builder.root, builder.name)
    persons, images = shared_persons(annotations.records), builder.info.metadata.get("shared", [])
    advice = "figures of val and test may be too good; input_pipeline.doctor lists them"
    if persons:
        numbered = "unless each split numbers its own persons, "
        count = counted(len(persons), "person id")
        say_once(f"warning: {annotations.path}: {count} in several splits: {numbered}{advice}")
    if images:
        first = " = ".join(printable(path) for path in images[0])
        count = counted(len(images), "image")
        say_once(f"warning: {annotations.images}: {count} with a copy in another split ({first}): {advice}")


def _refuse_damaged(builder: PedesBuilder) -> None:
    """Data may have been prepared when more damaged images were allowed."""
    damaged, images = builder.info.metadata["damaged"], builder.info.splits["train"].num_examples
    if len(damaged) <= builder.max_damaged * images:
        return
    if not read_annotations(builder.root, builder.name).images.is_dir():
        remedy = "prepare it again where its images are"
    elif builder.pictures:
        remedy = f"restore them and start again, or {_LEAVE_OUT}"
    else:
        remedy = f"restore them, remove {builder.data_path.parent.parent} and start again, or {_LEAVE_OUT}"
    raise DataError(
        f"{builder.data_path}: {len(damaged)} of {images} training images are damaged, the first is {damaged[0]}; "
        f"more than {builder.max_damaged:.2%} are not allowed (data.max_damaged): {remedy}, or allow more; "
        "metadata.json lists the damaged images"
    )


def _refuse_link_out(images: Path, record: Record) -> None:
    path = images / record.image_path
    if leads_out(images, path):
        raise DataError(f"{path} ({record.where}) is a link that leads out of {images}; put the image itself there")


def _encoded_image(images: Path, record: Record, content: bytes | None = None) -> tuple[bytes, bool]:
    """Returns the image file's bytes if training decodes them to the pixels that Pillow sees; else these pixels as PNG.

    Also returns whether BEFORE would have stored other pixels. content: the file's, if it has been read already.
    """
    path = images / record.image_path
    try:
        encoded = path.read_bytes() if content is None else content
        with open_picture(io.BytesIO(encoded)) as image:
            rgb = as_rgb(image)  # decodes it: a file cut short shows only here
            other_pixels = _had_other_pixels(image)
            if image.format in _KEPT_FORMATS and _decodes_to(encoded, rgb):
                return encoded, other_pixels
        png = io.BytesIO()
        rgb.save(png, "PNG", compress_level=_PNG_LEVEL)
        return png.getvalue(), other_pixels
    except FileNotFoundError:
        raise DataError(f"{path} not found ({record.where}): the annotations name an image that is not there") from None
    except Exception as error:  # of many kinds: Pillow passes on whatever a damaged file makes it stumble over
        reason = "cannot be identified" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise DataError(f"{path} ({record.where}) is not a readable image: {reason}") from None


def _had_other_pixels(image: PIL.Image.Image) -> bool:
    """Whether BEFORE stored other pixels of a decoded picture, or none."""
    if image.format not in _FORMATS_BEFORE or orientation(image) != 1:
        return True
    texts = [image.info.get("icc_profile") or b"", *getattr(image, "text", {}).values()]  # `text`: of a PNG
    return image.format == "PNG" and max(map(len, texts)) > _TEXT_BEFORE


def _decodes_to(encoded: bytes, rgb: PIL.Image.Image) -> bool:
    """Whether training would see these pixels. It would not in some PNGs that Pillow bears."""
    try:
        return np.array_equal(augment.decode(encoded).numpy(), np.asarray(rgb))
    except tf.errors.OpError:
        return False
