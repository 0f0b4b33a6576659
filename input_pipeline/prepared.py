"""Finds the prepared data of a dataset folder and prepares them if there are none.

    prepare(Path("data/CUHK-PEDES"), "cuhk_pedes").as_data_source("train")[0]

The data of one state of a dataset lie in `prepared/ANNOTATIONS-IMAGES/NAME/VERSION`. ANNOTATIONS are the first digits
of a digest of the annotation file and its quarantine, IMAGES those of a digest of the contents of all images. Each
change is therefore prepared in a new folder, and files that a running program reads are never replaced.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from input_pipeline.annotations import Annotations, annotation_file, read_annotations
from input_pipeline.builders import (
    BEFORE,
    BUILDERS,
    LEAVE_OUT,
    OTHER_PIXELS,
    PedesBuilder,
    Version,
    annotations_digest,
    prepared_folder,
)
from input_pipeline.leaks import shared_persons
from input_pipeline.pictures import contents_digest, describe_changes, look_at, read_record, write_record
from input_pipeline.statistics import say_deviation
from input_pipeline.variants import SEE_DOCS
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import lock_file, printable
from ivt_jax.common.messages import counted, say_once


def prepare(
    root: Path,
    name: str,
    prepared: Path | None = None,
    max_damaged: float = 0.0,
    images_digest: str = "",
    renew: bool = False,
) -> PedesBuilder:
    """Returns the builder of the dataset `name` for its current images; prepares the data if there are none.

    Processes that share a disk wait for each other. root, prepared, max_damaged: as for PedesBuilder.
    images_digest: that of the images that a run began with. Opens their data while they exist, even if images changed
    since; without those data, changed images are an error. "": the current images.
    renew: prepares the data anew if only those of version BEFORE exist, which stay for the runs that began with them.
    Warns on stderr of changed images, data of version BEFORE, persons and images that splits share and, when it
    prepares the data, deviations from the published counts. Raises DataError.
    """
    dataset = _Dataset(root, name, prepared, max_damaged, images_digest, renew)
    builder, _ = _find(dataset)
    if builder is None:
        builder = _prepare_locked(dataset)
    if images_digest and builder.images_digest not in ("", images_digest):
        raise _other_images(builder.data_path, images_digest, builder.images_digest)
    _refuse_damaged(builder)
    _warn_of_shared(builder)
    return builder


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """The arguments of `prepare`, and the places that follow from them as the files are now."""

    root: Path
    name: str
    prepared: Path | None
    max_damaged: float
    images_digest: str
    renew: bool

    @property
    def annotations(self) -> Annotations:
        return read_annotations(self.root, self.name)

    @property
    def has_images(self) -> bool:
        """Whether there are images; portable datasets have none."""
        return self.annotations.has_images

    @property
    def folder(self) -> Path:
        """The folder of all prepared data of this dataset."""
        return prepared_folder(self.annotations.path, self.prepared if self.has_images else None)

    @property
    def record_name(self) -> str:
        """The name of the file that records the images; several datasets may share the folder `prepared`."""
        parent = self.annotations.path.parent.resolve()
        owner = f"-{hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]}" if self.prepared else ""
        return f"pictures{owner}.json"

    @property
    def versions(self) -> list[Version]:
        """The versions that may be read, the preferred one first."""
        newest = BUILDERS[self.name].VERSION
        if (self.renew and self.has_images) or self.images_digest.endswith(OTHER_PIXELS):
            return [newest]
        return [BEFORE, newest] if self.images_digest else [newest, BEFORE]  # a run keeps the pixels that it began with

    def place(self, digest: str) -> Path:
        """Returns the folder of the data of these annotations and of the images with this digest."""
        return self.folder / f"{annotations_digest(self.annotations.path)}-{digest[:16]}"

    def builder(self, place: Path | None, version: Version | None = None) -> PedesBuilder:
        """Returns the builder of the data in `place`."""
        return BUILDERS[self.name](root=self.root, max_damaged=self.max_damaged, data_dir=place, version=version)


def _find(dataset: _Dataset) -> tuple[PedesBuilder | None, str]:
    """Returns the builder of existing data, or None and how the images differ from those prepared last."""
    folder, pattern = dataset.folder, f"{dataset.place('').name}*/{dataset.name}"
    places = [path.parent.parent for version in dataset.versions for path in folder.glob(f"{pattern}/{version}")]
    changes = ""
    place: Path | None
    if not places:
        place = _unrecorded_data(dataset)
    else:
        own = dataset.place(dataset.images_digest)
        latest = max(places, key=lambda place: _modified(place / dataset.record_name))
        place = own if own in places else latest
        if dataset.has_images:
            place, changes = _place_of_images(dataset, places, place)
    return (_open(dataset, place) if place else None), changes


def _unrecorded_data(dataset: _Dataset) -> Path | None:
    """Returns the folder of data that do not record their images, None if there is none."""
    prepared = dataset.prepared if dataset.has_images else None
    place = Path(BUILDERS[dataset.name](root=dataset.root, prepared=prepared).data_path).parent.parent
    if not any((place / dataset.name / str(version)).exists() for version in dataset.versions):
        return None
    if dataset.has_images:
        say_once(f"{place} does not record its images, so changed images go unnoticed; remove it to prepare it again")
    return place


def _place_of_images(dataset: _Dataset, places: Sequence[Path], last: Path) -> tuple[Path | None, str]:
    """Returns which of `places` has the data of the current images, or None and how the images differ from `last`'s.

    last: the data that the run began with, if they exist, else the data used last. A run continues with the data it
    began with even if the images differ. If a file was touched, the images are recorded again. Raises DataError if the
    run began with other images and their data do not exist.
    """
    images, began_with = dataset.annotations.images, dataset.images_digest
    known = read_record(last / dataset.record_name)
    now = look_at(images, [record.image_path for record in dataset.annotations.records], known)
    digest = contents_digest(now)
    changes = describe_changes(known, now) if known else ""
    if began_with and digest != began_with.removesuffix(OTHER_PIXELS):
        if last.name != dataset.place(began_with).name:
            raise _other_images(images, began_with)
        say_once(f"{images}: images differ{changes}; this run continues with those it began with, in {last}")
        return last, ""
    place = dataset.place(digest)
    if place not in places:
        return None, changes
    if place != last or known != now:
        with contextlib.suppress(OSError):  # another user's folder: the images are read again the next time
            write_record(place / dataset.record_name, now)
    return place, ""


def _open(dataset: _Dataset, place: Path) -> PedesBuilder:
    """Opens the data in `place`, in the preferred version that exists; prints a line if that is BEFORE."""
    data = place / dataset.name
    version = next(version for version in dataset.versions if (data / str(version)).exists())
    if version == BEFORE:
        again = "`python -m input_pipeline.prepare`" if dataset.has_images else "preparing it where its images are"
        say_once(
            f"{data / str(version)} was prepared before images were turned upright by EXIF: their pixels are "
            f"used as stored in the files; {again} makes it anew"
        )
    return dataset.builder(place, version)


def _prepare_locked(dataset: _Dataset) -> PedesBuilder:
    """Prepares the data, unless another process has done so meanwhile. Raises DataError if there are no images."""
    annotations = dataset.annotations
    if not dataset.has_images:
        place = dataset.builder(None).data_path
        missing = "has none of the images" if annotations.images.is_dir() else "not found"
        where = f"the images of {annotations.path.name} are expected in it, or prepared data in {place}"
        raise DataError(f"{annotations.images} {missing}: {where}; {SEE_DOCS}")
    with _locked(dataset.folder):
        builder, changes = _find(dataset)
        if builder is None:
            if changes:
                kept = f"earlier data stay in {dataset.folder} for the runs that began with them"
                print(f"{annotations.images}: images differ{changes}; preparing anew; {kept}", file=sys.stderr)
            say_deviation(annotations, dataset.name)
            builder = _prepare_anew(dataset)
    return builder


def _prepare_anew(dataset: _Dataset) -> PedesBuilder:
    """Prepares the data in a hidden folder and moves them to their place when they are complete."""
    folder = dataset.folder
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    # Before reading the annotations: a change while they are read is noticed the next time.
    digest = annotations_digest(annotation_file(dataset.root, dataset.name))
    try:
        maker = dataset.builder(partial)
        place = folder / f"{digest}-{maker.write()[:16]}"
        (place / dataset.name).mkdir(parents=True, exist_ok=True)
        write_record(place / dataset.record_name, maker.seen)
        whole = place / dataset.name / str(maker.version)
        if not whole.exists():  # it does if images were restored, or could be read again, in the meantime
            Path(maker.data_path).rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    builder = dataset.builder(place)
    builder.fresh = True
    return builder


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates the folder and holds its lock. Raises DataError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror}); choose another folder with --config.runtime.prepared, or "
            "--prepared of input_pipeline.prepare"
        ) from None
    with lock_file(folder / "lock", wait=True), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints of downloads
        yield


def _other_images(place: Path, began_with: str, found: str = "") -> DataError:
    """Returns the error for prepared data of other images than the run's.

    began_with, found: the digests of the run's images and of the data's ("" if unknown).
    """
    if found.removesuffix(OTHER_PIXELS) == began_with.removesuffix(OTHER_PIXELS):
        differ = "some are turned upright by EXIF only in one of them, or could not be read then"
        remedy = "restore the prepared data that it began with, or choose another --workdir"
        return DataError(f"{place}: the run began with other pixels of these images ({differ}); {remedy}")
    remedy = "restore those (and the former quarantine.txt), or choose another --workdir"
    return DataError(f"{place}: the images are not those that the run began with; {remedy}")


def _warn_of_shared(builder: PedesBuilder) -> None:
    """Warns of persons, and of copies of images, in several splits. Data of older versions do not list all copies."""
    annotations = read_annotations(builder.root, builder.name)
    persons, metadata = shared_persons(annotations.records), builder.info.metadata
    advice = "figures of val and test may be too good; input_pipeline.doctor lists them"
    if persons:
        numbered = "unless each split numbers its own persons, "
        count = counted(len(persons), "person id")
        say_once(f"warning: {annotations.path}: {count} in several splits: {numbered}{advice}")
    for kind, fault in (("shared", "with a copy in another split"), ("alike", "like an image of another split")):
        if pairs := metadata.get(kind, []):
            first = " = ".join(printable(path) for path in pairs[0])
            say_once(f"warning: {annotations.images}: {counted(len(pairs), 'image')} {fault} ({first}): {advice}")


def _refuse_damaged(builder: PedesBuilder) -> None:
    """Raises DataError if the data have more damaged images than now allowed; more may have been when prepared."""
    damaged, images = builder.info.metadata["damaged"], builder.info.splits["train"].num_examples
    if len(damaged) <= builder.max_damaged * images:
        return
    if not read_annotations(builder.root, builder.name).has_images:
        remedy = "prepare it again where its images are"
    elif builder.images_digest:
        remedy = f"restore them and start again, or {LEAVE_OUT}"
    else:
        remedy = f"restore them, remove {builder.data_path.parent.parent} and start again, or {LEAVE_OUT}"
    raise DataError(
        f"{builder.data_path}: {len(damaged)} of {images} training images are damaged, the first is {damaged[0]}; "
        f"more than {builder.max_damaged:.2%} are not allowed (data.max_damaged): {remedy}, or allow more; "
        "metadata.json lists the damaged images"
    )
