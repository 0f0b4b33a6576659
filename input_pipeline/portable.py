"""Portable folders: prepared data in a folder or a bucket, for machines without the images.

A portable folder has

    reid_raw.json, quarantine.txt     the annotations under their own name, and the quarantine if there is one
    prepared/DIGEST/...               the records with their images, in shards
    SHA256SUMS                        the digests of all other files, for `sha256sum --check SHA256SUMS`

SHA256SUMS is written last, the annotations just before. A remote folder without SHA256SUMS, or a local one without
annotations, is incomplete. A finished folder is never overwritten. A remote folder is fetched once, as a whole, to
`$XDG_CACHE_HOME/ivt_jax/datasets` (~/.cache/...), because array_record reads shards from a local disk; this cache may
be deleted. An index of pairs in a bucket is fetched in the same way.
"""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from input_pipeline.annotations import QUARANTINE
from input_pipeline.pairs import store
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import cache_folder, digest, is_remote, lines_of, lock_file

SUMS = "SHA256SUMS"
_PREPARED = "prepared"
_BY_FSSPEC = ("s3://", "memory://")  # TensorFlow reads gs:// without a further library, and not these


@functools.cache  # all splits of a run are read from one copy
def local_copy(root: str) -> Path:
    """Returns `root`, or the local copy of a remote portable folder, which is fetched first if necessary.

    The copy's name contains a digest of its contents: a changed folder is fetched beside the old copy. Processes on one
    machine wait for each other. Raises UserError, in one line.
    """
    if not is_remote(root):
        return Path(root)
    url = root.rstrip("/")
    sums = _read(f"{url}/{SUMS}")
    if sums is None:
        cause = "the bucket or folder does not exist, or the upload did not finish"
        raise UserError(f"{url}/{SUMS} not found: {cause}; `python -m input_pipeline.prepare ... --out={url}` makes it")
    cache = cache_folder("datasets")
    folder = cache / f"{PurePosixPath(url).name}-{hashlib.sha256(sums).hexdigest()[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock_file(Path(f"{folder}.lock"), wait=True):
            if not folder.exists():
                _fetch(url, sums, Path(f"{folder}.partial"))
                Path(f"{folder}.partial").rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {cache} ({error.strerror}); set XDG_CACHE_HOME to another folder") from None
    return folder


def make_portable(annotations: Path, data: Path, out: str) -> None:
    """Writes the portable folder `out`, local or remote, from an annotation file and its prepared data.

    data: the folder of TFDS, which ends in DATASET/VERSION. Does nothing if `out` has the same contents already. Raises
    UserError if `out` has other contents or cannot be written.
    """
    from tensorflow.io import gfile

    from input_pipeline.builders import annotations_digest

    place = PurePosixPath(_PREPARED, annotations_digest(annotations), *data.parts[-2:])
    files = {str(place / path.name): path for path in sorted(data.iterdir())}
    if (quarantine := annotations.with_name(QUARANTINE)).exists():
        files[QUARANTINE] = quarantine
    files[annotations.name] = annotations  # last: without it the folder counts as incomplete
    sums = "".join(f"{digest(path)}  {name}\n" for name, path in files.items()).encode()
    url = out.rstrip("/")
    existing = _read(f"{url}/{SUMS}")
    if existing == sums:
        print(f"{out} is already complete")
        return
    if existing is not None or _read(f"{url}/{annotations.name}") not in (None, annotations.read_bytes()):
        raise UserError(f"--out={out} holds another dataset: choose another folder, or remove this one first")
    with _explained(url, "written"):
        if gfile.exists(f"{url}/{place}"):
            gfile.rmtree(f"{url}/{place}")  # left by an interrupted upload
        for number, (name, path) in enumerate(files.items(), 1):
            print(f"writing {url}/{name} ({number} of {len(files)})", file=sys.stderr)
            gfile.makedirs(f"{url}/{name}".rpartition("/")[0])
            gfile.copy(str(path), f"{url}/{name}", overwrite=True)
        with gfile.GFile(f"{url}/{SUMS}", "wb") as file:
            file.write(sums)


def _fetch(url: str, sums: bytes, partial: Path) -> None:
    """Fetches the files listed in SHA256SUMS to `partial`, which may have some from an interrupted fetch."""
    entries = [line.partition("  ") for line in lines_of(sums.decode("utf-8", "replace"))]
    for number, (listed, _, name) in enumerate(entries, 1):
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{url}/{SUMS} names {name!r}; expected the path of a file in its folder: prepare it again")
        target = partial / path
        if target.exists() and digest(target) == listed:
            continue
        print(f"fetching {url}/{name} ({number} of {len(entries)})", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(f"{url}/{name}", target)
        if digest(target) != listed:
            raise UserError(
                f"{url}/{name} does not match its digest in {SUMS}, so it is damaged: remove {url} and prepare it again"
            )


def _copy(url: str, target: Path) -> None:
    if url.startswith(_BY_FSSPEC):
        store.fetch(url, str(target))
        return

    from tensorflow.io import gfile

    with _explained(url, "read"):
        gfile.copy(url, str(target), overwrite=True)


def _read(url: str) -> bytes | None:
    """Returns the content of a small file, None if it does not exist."""
    if url.startswith(_BY_FSSPEC):
        return store.read(url)

    import tensorflow as tf

    with _explained(url, "read"):
        try:
            with tf.io.gfile.GFile(url, "rb") as file:
                return file.read()
        except tf.errors.NotFoundError:
            return None


@contextlib.contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    """Turns TensorFlow's access errors, which may have several lines, into a UserError of one line with a remedy."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())[:300] or type(error).__name__
        account = ", the network, and the permissions of your account (`gcloud auth application-default login`)"
        remedy = f"check the name{account if is_remote(url) else ' and your permissions'}"
        raise UserError(f"{url} cannot be {what} ({reason}); {remedy}") from None
