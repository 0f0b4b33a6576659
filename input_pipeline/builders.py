"""TFDS builders: write a dataset folder as array_record files with random access.

`prepared.py` decides when and where. Nothing is downloaded. An image file is stored as it is if training decodes it to
the same pixels as Pillow; otherwise its pixels are stored as PNG.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import Version

from input_pipeline import augment
from input_pipeline.annotations import Record, annotation_file, dataset_name, quarantined, read_annotations
from input_pipeline.decoding import KEPT_FORMATS, as_png, as_rgb, open_picture, orientation
from input_pipeline.inspection import Inspected, difference_hash, leads_out
from input_pipeline.leaks import copies_between_splits, near_copies_between_splits
from input_pipeline.pictures import Picture, contents_digest, read_picture
from input_pipeline.variants import SPLITS
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import refuse_path
from ivt_jax.common.progress import progress

BEFORE = Version("1.4.0")  # ignored EXIF orientation; its data are still read, for the runs that began with them
# Suffix of the images' digest if version BEFORE stores an image with other pixels, or refuses it. A run that began with
# data of one version then refuses data of the other. Without such images both versions store the same.
OTHER_PIXELS = "-upright"
LEAVE_OUT = (
    "leave them out with `python -m input_pipeline.doctor --dataset=NAME --root=DIR --fix_list`, which lists all in "
    "quarantine.txt"
)
_FORMATS_BEFORE = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF")
_TEXT_BEFORE = 1 << 20  # bytes; BEFORE refused a PNG with a longer ICC profile or text


class PedesBuilder(tfds.core.GeneratorBasedBuilder):
    """Stores (image, person id, captions) records in the order of the annotations, in their splits.

    Features of a record: image (bytes of a JPEG or PNG), path (relative to the folder of images), person_id (int64),
    captions (texts). TFDS chooses the number of shards: the 34,054 training images of CUHK-PEDES are 8 shards.

    Raise VERSION whenever the stored data of the same dataset change. Data of other versions stay on disk; only VERSION
    and BEFORE are read.
    """

    VERSION = Version("1.5.0")
    SUPPORTED_VERSIONS: ClassVar[list[Version]] = [BEFORE]
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
        version: Version | None = None,
    ):
        """root: the dataset folder. prepared: folder of prepared data; None is `prepared` beside the annotations.

        max_damaged: share of the training images that may be missing or unreadable. They are stored as empty bytes and
        listed in `info.metadata["damaged"]`. Images of val and test must all be readable.
        data_dir: folder for these annotations and images; None is the folder for these annotations alone, as in older
        versions and in portable folders. version: VERSION or BEFORE; None is VERSION.
        """
        self.root, self.max_damaged = root, max_damaged
        self.fresh = False  # whether this process has just prepared the data
        self.seen: dict[str, Picture] = {}  # the images it was prepared from, by path
        self.inspected: list[Inspected] = []  # those that could be read
        self.other_pixels = False  # whether BEFORE would have stored other pixels
        if data_dir is None:
            path = annotation_file(root, self.name)
            shared = str(path.parent.resolve()) if prepared else ""  # several datasets may share the folder
            data_dir = prepared_folder(path, prepared) / annotations_digest(path, shared)
        refuse_path(data_dir)
        super().__init__(data_dir=data_dir, file_format="array_record", version=version and str(version))

    @property
    def images_digest(self) -> str:
        """The digest of the contents of all images of the dataset; "" if it is not recorded.

        Ends with OTHER_PIXELS if version BEFORE stores some of these images with other pixels, or refuses them.
        """
        return self.info.metadata.get("pictures", "")

    def write(self) -> str:
        """Prepares the data. Returns the images' digest.

        The digest and the copies of images between splits, exact ones ("shared") and those to the eye ("alike"), are
        metadata.
        """
        tfds.disable_progress_bar()
        self.download_and_prepare()
        digest = contents_digest(self.seen)
        digests = {path: picture.digest for path, picture in self.seen.items()}
        annotations = read_annotations(self.root, self.name)
        copies = copies_between_splits(annotations.records, digests)
        exact = {path for path, _ in copies}
        alike = near_copies_between_splits(annotations.images, annotations.records, self.inspected, exact)
        self.info.metadata["pictures"] = digest + (OTHER_PIXELS if self.other_pixels else "")
        self.info.metadata["shared"] = [list(pair) for pair in copies]
        self.info.metadata["alike"] = [list(pair) for pair in alike]
        self.info.metadata.save_metadata(self.data_path)
        return digest

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(), dtype=np.object_),
            "path": tfds.features.Text(),
            "person_id": tfds.features.Scalar(np.int64),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        # The pipeline reads records by number; without disable_shuffling TFDS orders them by the hash of their key.
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(damaged=[]),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterable[Any]]:
        annotations = read_annotations(self.root, self.name)
        splits = {split: [r for r in annotations.records if r.split == split] for split in SPLITS}
        images = annotations.images.resolve()  # this folder may be a link; links inside must not lead out of it
        return {split: self._generate_examples(split, chosen, images) for split, chosen in splits.items() if chosen}

    def _generate_examples(
        self, split: str, records: list[Record], images: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        said = f"{dataset_name({'name': self.name, 'root': str(self.root)})}: preparing {split}: "
        for number, record in enumerate(progress(records, len(records), said)):
            _refuse_link_out(images, record)
            self.seen[record.image_path], content = read_picture(images, record.image_path)
            try:
                encoded, other_pixels, inspected = _encoded_image(images, record, content)
                self.other_pixels |= other_pixels
                self.inspected.append(inspected)
            except DataError as error:
                if split != "train":
                    raise
                encoded = b""
                self.info.metadata["damaged"].append(record.image_path)
                if len(self.info.metadata["damaged"]) > self.max_damaged * len(records):
                    raise DataError(
                        f"{error}. More than {self.max_damaged:.2%} of the training images are damaged "
                        f"(data.max_damaged); restore them and start again, or {LEAVE_OUT}, or allow more"
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


class Own(PedesBuilder):
    """Own pictures and captions in a table (input_pipeline/own.py)."""


BUILDERS = {builder.name: builder for builder in (CuhkPedes, IcfgPedes, RstpReid, PedesSynth, Own)}


def annotations_digest(path: Path, folder: str = "") -> str:
    """Returns 16 hex digits of the SHA-256 of an annotation file, its quarantine and, if given, a folder."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update("\n".join(sorted(quarantined(path))).encode())
    digest.update(folder.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def prepared_folder(path: Path, prepared: Path | None) -> Path:
    """Returns the folder of all data prepared from the annotation file `path`."""
    return prepared or path.parent / "prepared"


def _refuse_link_out(images: Path, record: Record) -> None:
    path = images / record.image_path
    if leads_out(images, path):
        raise DataError(f"{path} ({record.where}) is a link that leads out of {images}; put the image itself there")


def _encoded_image(images: Path, record: Record, content: bytes | None = None) -> tuple[bytes, bool, Inspected]:
    """Returns the image's bytes to store, whether BEFORE would have stored other pixels, and its size and hash.

    The bytes are the file's bytes if training decodes them to the same pixels as Pillow, else a PNG of Pillow's pixels.
    content: of the file, if it has been read already. Raises DataError if it is missing or cannot be read.
    """
    path = images / record.image_path
    try:
        encoded = path.read_bytes() if content is None else content
        with open_picture(io.BytesIO(encoded)) as image:
            rgb = as_rgb(image)  # decodes it: a file cut short shows only here
            other_pixels = _had_other_pixels(image)
            size = rgb.height, rgb.width
            inspected = Inspected(record.image_path, "", size, len(encoded), difference_hash(rgb))
            if image.format in KEPT_FORMATS and augment.decodes_to(encoded, np.asarray(rgb)):
                return encoded, other_pixels, inspected
        return as_png(rgb), other_pixels, inspected
    except FileNotFoundError:
        raise DataError(f"{path} not found ({record.where}): the annotations name a missing image") from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = "cannot be identified" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise DataError(f"{path} ({record.where}) is not a readable image: {reason}") from None


def _had_other_pixels(image: PIL.Image.Image) -> bool:
    """Whether BEFORE stored other pixels of a decoded image, or refused it."""
    if image.format not in _FORMATS_BEFORE or orientation(image) != 1:
        return True
    texts = [image.info.get("icc_profile") or b"", *getattr(image, "text", {}).values()]  # `text`: of a PNG
    return image.format == "PNG" and max(map(len, texts)) > _TEXT_BEFORE
