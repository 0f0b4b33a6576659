"""TFDS builders: a raw dataset folder, prepared once into array_record files with random access.

    builder = CuhkPedes(root=Path("data/CUHK-PEDES"))
    builder.download_and_prepare()
    builder.as_data_source("train")[0]

Nothing is downloaded: the folder under `root` is what its users were sent. Images stay encoded as they are, where
training decodes that to the pixels that Pillow sees; else those pixels are stored as PNG.
"""

import contextlib
import fcntl
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import augment
from input_pipeline.annotations import Record, annotation_file, quarantined, read_annotations
from input_pipeline.errors import DataError
from input_pipeline.files import refuse_path
from input_pipeline.inspection import FORMATS, MAX_PIXELS, as_rgb, leads_out
from input_pipeline.progress import progress
from input_pipeline.statistics import say_deviation
from input_pipeline.variants import README, SPLITS

_KEPT_FORMATS = ("JPEG", "PNG")  # that training decodes; everything else becomes PNG
# Of Pillow's levels, 0 to 9: for 300 crops of 300 x 120 with a little noise, a third of the time of its default, 6
# (3 ms against 8), for a tenth more bytes (70 kB against 64).
_PNG_LEVEL = 1


class PedesBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset of (image, person id, captions) records in the order of its annotations, one split for each of theirs.

    Prepared data lie in `<prepared>/<first digits of a SHA-256>`, of the annotation file, the quarantine and, where
    `prepared` is given, the dataset's folder: so they are made anew when the annotations change. Images that change
    alone are not seen; remove the prepared folder then. Features of a record: image (the encoded bytes: JPEG, PNG),
    path (relative to the folder of images), person_id (int64), captions (texts).

    TFDS chooses the shards of a split by its size, each of 64 MiB to 1 GiB: CUHK-PEDES' 34,054 training images are 8
    shards at 30 kB each. VERSION rises whenever something else is stored for the same dataset: what another version
    prepared stays where it is and is not read.
    """

    VERSION = tfds.core.Version("1.4.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.4.0": "Images of 16 bits of grey keep their upper eight bits, and are no longer white."
    }

    def __init__(self, *, root: Path, prepared: Path | None = None, max_damaged: float = 0.0):
        """root: the raw dataset. prepared: folder for the prepared data; `prepared` beside the annotations if None.

        max_damaged: share of the training images that may be missing or unreadable; `info.metadata["damaged"]` lists
        them, path by path, and their bytes are empty. In val and test none may.
        """
        self.root, self.max_damaged = root, max_damaged
        path = annotation_file(root, self.name)
        shared = str(path.parent.resolve()) if prepared else ""  # several datasets may share the folder
        folder = (prepared or path.parent / "prepared") / annotations_digest(path, shared)
        refuse_path(folder)
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
        for number, record in enumerate(progress(records, len(records), f"{self.name}: preparing {split}: ")):
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


def annotations_digest(path: Path, folder: str = "") -> str:
    """First digits of the SHA-256 of an annotation file, its quarantine, and the dataset's folder where it is given."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update("\n".join(sorted(quarantined(path))).encode())
    digest.update(folder.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def make_builder(root: Path, name: str, prepared: Path | None = None, max_damaged: float = 0.0) -> PedesBuilder:
    """The builder of the dataset `name`, prepared or not; arguments as PedesBuilder's.

    A folder without images is a portable one, which has its prepared data with it: `prepared` is not asked then.
    Raises DataError, in one line, where the annotations are missing or at fault.
    """
    tfds.disable_progress_bar()
    elsewhere = prepared if read_annotations(root, name).images.is_dir() else None
    return BUILDERS[name](root=root, prepared=elsewhere, max_damaged=max_damaged)


def prepare(root: Path, name: str, prepared: Path | None = None, max_damaged: float = 0.0) -> PedesBuilder:
    """The builder of the dataset `name`, prepared, which is done once; processes that share a disk wait for each other.

    Arguments as PedesBuilder's. Where it is really prepared, a line on stderr tells how the dataset is not as
    published. Raises DataError, in one line.
    """
    builder = make_builder(root, name, prepared, max_damaged)
    if builder.data_path.exists():
        _refuse_damaged(builder)
        return builder
    annotations = read_annotations(root, name)
    if not annotations.images.is_dir():
        where = f"the images of {annotations.path.name} are expected in it, or prepared data in {builder.data_path}"
        raise DataError(f"{annotations.images} not found: {where}; {README}")
    folder = prepared or annotations.path.parent / "prepared"
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
        builder = make_builder(root, name, prepared, max_damaged)  # anew: another process may have prepared it by now
        if not builder.data_path.exists():
            say_deviation(annotations, name)
            builder.download_and_prepare()
    return builder


def _refuse_damaged(builder: PedesBuilder) -> None:
    """Data may have been prepared when more damaged images were allowed."""
    damaged, images = builder.info.metadata["damaged"], builder.info.splits["train"].num_examples
    if len(damaged) > builder.max_damaged * images:
        raise DataError(
            f"{builder.data_path}: {len(damaged)} of {images} training images are damaged, the first is {damaged[0]}; "
            f"more than {builder.max_damaged:.2%} are not allowed (data.max_damaged)"
        )


def _refuse_link_out(images: Path, record: Record) -> None:
    path = images / record.image_path
    if leads_out(images, path):
        raise DataError(f"{path} ({record.where}) is a link that leads out of {images}; put the image itself there")


def _encoded_image(images: Path, record: Record) -> bytes:
    """The image file's bytes where training decodes them to the pixels that Pillow sees; else these, as PNG."""
    path = images / record.image_path
    try:
        encoded = path.read_bytes()
        with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many for a picture of a person")
            rgb = as_rgb(image)  # decodes it: a file cut short shows only here
            if image.format in _KEPT_FORMATS and _decodes_to(encoded, rgb):
                return encoded
        png = io.BytesIO()
        rgb.save(png, "PNG", compress_level=_PNG_LEVEL)
        return png.getvalue()
    except FileNotFoundError:
        raise DataError(f"{path} not found ({record.where}): the annotations name an image that is not there") from None
    except Exception as error:  # of many kinds: Pillow passes on whatever a damaged file makes it stumble over
        reason = "cannot be identified" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise DataError(f"{path} ({record.where}) is not a readable image: {reason}") from None


def _decodes_to(encoded: bytes, rgb: PIL.Image.Image) -> bool:
    """Whether training would see these pixels. It would not in some PNGs that Pillow bears."""
    try:
        return np.array_equal(augment.decode(encoded).numpy(), np.asarray(rgb))
    except tf.errors.OpError:
        return False
