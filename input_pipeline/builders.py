"""TFDS builders: a raw dataset folder, prepared once into array_record files with random access.

    builder = CuhkPedes(root=Path("data/CUHK-PEDES"))
    builder.download_and_prepare()
    builder.as_data_source("train")[0]

Nothing is downloaded: the folder under `root` is what its users were sent. Images stay encoded as they are.
"""

import contextlib
import fcntl
import hashlib
import io
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from input_pipeline.annotations import Record, annotation_file, quarantined, read_annotations
from input_pipeline.errors import DataError
from input_pipeline.variants import SPLITS

_KEPT_FORMATS = ("JPEG", "PNG")  # what TensorFlow decodes; everything else becomes PNG


class PedesBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset of (image, person id, captions) records in the order of its annotations, one split for each of theirs.

    Prepared data lie in `<prepared>/<first digits of a SHA-256>`, of the annotation file, the quarantine and, where
    `prepared` is given, the dataset's folder: so they are made anew when the annotations change. Images that change
    alone are not seen; remove the prepared folder then. Features of a record: image (the encoded bytes: JPEG, PNG),
    path (relative to the folder of images), person_id (int64), captions (texts).
    """

    VERSION = tfds.core.Version("1.2.0")

    def __init__(self, *, root: Path, prepared: Path | None = None, max_damaged: float = 0.0):
        """root: the raw dataset. prepared: folder for the prepared data; `prepared` beside the annotations if None.

        max_damaged: share of the training images that may be missing or unreadable; `info.metadata["damaged"]` lists
        them, path by path, and their bytes are empty. In val and test none may.
        """
        self.root, self.max_damaged = root, max_damaged
        path = annotation_file(root, self.name)
        digest = hashlib.sha256(path.read_bytes())
        digest.update("\n".join(sorted(quarantined(path))).encode())
        if prepared:  # a folder that several datasets may share
            digest.update(str(path.parent.resolve()).encode())
        folder = (prepared or path.parent / "prepared") / digest.hexdigest()[:16]
        super().__init__(data_dir=folder, file_format="array_record")

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
        for number, record in enumerate(_progress(records, f"{self.name}: preparing {split}")):
            _refuse_link_out(images, record)
            try:
                encoded = _encoded_image(images, record)
            except DataError as error:
                if split != "train":
                    raise
                encoded = b""
                self.info.metadata["damaged"].append(record.image_path)
                if len(self.info.metadata["damaged"]) > self.max_damaged * len(records):
                    raise DataError(
                        f"{error}. More than {self.max_damaged:.2%} of the training images are like that "
                        "(data.max_damaged); `python -m input_pipeline.doctor` lists them all"
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


def prepare(root: Path, name: str, prepared: Path | None = None, max_damaged: float = 0.0) -> PedesBuilder:
    """The builder of the dataset `name`, prepared, which is done once; processes that share a disk wait for each other.

    Arguments as PedesBuilder's. Raises DataError, in one line.
    """
    path = annotation_file(root, name)  # refuses an unknown name or a missing folder
    tfds.disable_progress_bar()
    builder = BUILDERS[name](root=root, prepared=prepared, max_damaged=max_damaged)
    if builder.data_path.exists():
        return builder
    folder = prepared or path.parent / "prepared"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror}); name another folder by --config.runtime.prepared"
        ) from None
    with open(folder / "lock", "w") as lock, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints of downloads
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Made anew, for another process may have prepared it meanwhile.
        builder = BUILDERS[name](root=root, prepared=prepared, max_damaged=max_damaged)
        builder.download_and_prepare()
    return builder


def _refuse_link_out(images: Path, record: Record) -> None:
    path = images / record.image_path
    if not path.resolve().is_relative_to(images):
        raise DataError(f"{path} ({record.where}) is a link that leads out of {images}; put the image itself there")


def _encoded_image(images: Path, record: Record) -> bytes:
    """The image file's bytes, once it has been decoded; BMP and other formats are turned into PNG, losslessly."""
    path = images / record.image_path
    try:
        encoded = path.read_bytes()
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            image.load()  # a file cut short shows only here
            if image.format in _KEPT_FORMATS:
                return encoded
            png = io.BytesIO()
            image.convert("RGB").save(png, "PNG")
            return png.getvalue()
    except FileNotFoundError:
        raise DataError(f"{path} not found ({record.where}): the annotations name an image that is not there") from None
    except Exception as error:  # of many kinds: Pillow passes on whatever a damaged file makes it stumble over
        reason = "cannot be identified" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise DataError(f"{path} ({record.where}) is not a readable image: {reason}") from None


def _progress(records: list[Record], what: str) -> Iterator[Record]:
    """The records, with a line on stderr that says how far one is."""
    shown = start = time.monotonic()
    for number, record in enumerate(records):
        yield record
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"{what}: {number + 1} of {len(records)} images", file=sys.stderr)
    print(f"{what}: {len(records)} images in {time.monotonic() - start:.1f} s", file=sys.stderr)
