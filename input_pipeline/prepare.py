"""A dataset prepared ahead of training, and carried to machines that have none of its images.

    python -m input_pipeline.prepare --dataset=cuhk --root=data/CUHK-PEDES
    python -m input_pipeline.prepare --dataset=cuhk --root=data/CUHK-PEDES --out=gs://bucket/cuhk

Training prepares by itself what is not prepared yet; this does it beforehand, offline. It prints the splits beside the
published ones, a warning where they differ, and where the prepared data lie. Exit code: 0, or 2 for a user's mistake.

With --out it also makes a portable folder, here or in a bucket, and `--config.data.root=gs://bucket/cuhk` trains on it:

    reid_raw.json, quarantine.txt     the annotations under their own name; the quarantine, where there is one
    prepared/DIGEST/...               the records with their images, in shards
    SHA256SUMS                        the digest of every other file; `sha256sum --check SHA256SUMS` looks them through

SHA256SUMS is written last: without it a remote folder counts as half-written, and without the annotations, which come
just before, a local one. Nothing at the place is ever replaced by something else, so nobody reads a mixture of two.
array_record reads shards from a local disk (some of its releases read gs:// too, at a request for every image), so a
remote folder is fetched once, whole, to `$XDG_CACHE_HOME/ivt_jax/datasets` (~/.cache/...), which may be emptied.
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from input_pipeline.annotations import DATASETS, QUARANTINE, is_remote, local_root, read_annotations
from input_pipeline.statistics import PUBLISHED, say_deviation, split_counts, split_table
from ivt_jax.common.command import exit_code, share
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import lines_of, refuse_path
from ivt_jax.common.messages import counted

SUMS = "SHA256SUMS"
_PREPARED = "prepared"


@functools.cache  # all splits of a run are read from one copy, and a remote place is asked once
def local_copy(root: str) -> Path:
    """`root`, or where it is remote the local copy of that portable folder, fetched first where there is none yet.

    A copy is named after the digest of its contents: one that changed is fetched anew, and who reads the old one is not
    disturbed. Processes of one machine wait for each other. Raises UserError, in one line.
    """
    if not is_remote(root):
        return Path(root)
    url = root.rstrip("/")
    sums = _read(f"{url}/{SUMS}")
    if sums is None:
        cause = "there is no such bucket or folder, or the upload did not end"
        raise UserError(f"{url}/{SUMS} not found: {cause}; `python -m input_pipeline.prepare ... --out={url}` makes it")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivt_jax" / "datasets"
    folder = cache / f"{PurePosixPath(url).name}-{hashlib.sha256(sums).hexdigest()[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                _fetch(url, sums, Path(f"{folder}.partial"))
                Path(f"{folder}.partial").rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {cache} ({error.strerror}); name another folder by XDG_CACHE_HOME") from None
    return folder


def make_portable(annotations: Path, data: Path, out: str) -> None:
    """Makes `out`, local or remote, the portable folder of these annotations and their prepared data.

    annotations: the file; data: the folder of TFDS, DATASET/VERSION in the last two places. Does nothing where the same
    folder is there already. Raises UserError where something else is, or it cannot be written.
    """
    from tensorflow.io import gfile

    from input_pipeline.builders import annotations_digest

    place = PurePosixPath(_PREPARED, annotations_digest(annotations), *data.parts[-2:])
    files = {str(place / path.name): path for path in sorted(data.iterdir())}
    if (quarantine := annotations.with_name(QUARANTINE)).exists():
        files[QUARANTINE] = quarantine
    files[annotations.name] = annotations  # last: nothing counts as a dataset without it
    sums = "".join(f"{_digest(path)}  {name}\n" for name, path in files.items()).encode()
    url = out.rstrip("/")
    there = _read(f"{url}/{SUMS}")
    if there == sums:
        print(f"{out} has it already")
        return
    if there is not None or _read(f"{url}/{annotations.name}") not in (None, annotations.read_bytes()):
        raise UserError(f"--out={out} holds another dataset: name another folder, or remove this one first")
    with _explained(url, "written"):
        if gfile.exists(f"{url}/{place}"):
            gfile.rmtree(f"{url}/{place}")  # what is left of an upload that broke off
        for number, (name, path) in enumerate(files.items(), 1):
            print(f"writing {url}/{name} ({number} of {len(files)})", file=sys.stderr)
            gfile.makedirs(f"{url}/{name}".rpartition("/")[0])
            gfile.copy(str(path), f"{url}/{name}", overwrite=True)
        with gfile.GFile(f"{url}/{SUMS}", "wb") as file:
            file.write(sums)


def _fetch(url: str, sums: bytes, partial: Path) -> None:
    """Fetches the files that SHA256SUMS names, but those already in `partial`, of a fetch that was cut off."""
    from tensorflow.io import gfile

    entries = [line.partition("  ") for line in lines_of(sums.decode("utf-8", "replace"))]
    for number, (digest, _, name) in enumerate(entries, 1):
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise UserError(f"{url}/{SUMS} names {name!r}; expected the path of a file in its folder: prepare it anew")
        target = partial / path
        if target.exists() and _digest(target) == digest:
            continue
        print(f"fetching {url}/{name} ({number} of {len(entries)})", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _explained(f"{url}/{name}", "read"):
            gfile.copy(f"{url}/{name}", str(target), overwrite=True)
        if _digest(target) != digest:
            raise UserError(f"{url}/{name} is not what {SUMS} says, so it is damaged: remove {url} and prepare it anew")


def _read(url: str) -> bytes | None:
    """A small file's content; None where there is no such file."""
    import tensorflow as tf

    with _explained(url, "read"):
        try:
            with tf.io.gfile.GFile(url, "rb") as file:
                return file.read()
        except tf.errors.NotFoundError:
            return None


@contextlib.contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    """Makes TensorFlow's errors of access, which may have several lines, one line with the remedy."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())[:300] or type(error).__name__
        account = ", the network, and that your account may (`gcloud auth application-default login`)"
        remedy = f"check the name{account if is_remote(url) else ', and that you may'}"
        raise UserError(f"{url} cannot be {what} ({reason}); {remedy}") from None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(args: argparse.Namespace) -> int:
    """Prepares the dataset and says what it is; returns the exit code."""
    root, name = local_root(args.root), DATASETS[args.dataset]
    annotations = read_annotations(root, name)
    out = args.out and (args.out if is_remote(args.out) else str(Path(args.out).resolve()))
    if out and not is_remote(out):
        refuse_path(out)
    if out == str(annotations.path.parent.resolve()):
        raise UserError(f"--out={args.out} is the dataset's own folder: name another")
    print(f"{annotations.path}\n{split_table(split_counts(annotations.records), PUBLISHED[name])}", flush=True)

    from input_pipeline import prepared  # TensorFlow: seconds, for which nobody waits who asks for --help

    start = time.monotonic()
    builder = prepared.prepare(root, name, args.prepared, args.max_damaged, renew=True)
    if not builder.fresh:
        say_deviation(annotations, name)  # else `prepare` did
    if damaged := list(builder.info.metadata["damaged"]):
        count = counted(len(damaged), "damaged training image")
        print(f"warning: {count}, the first is {damaged[0]}", file=sys.stderr)
    took = f"prepared in {time.monotonic() - start:.1f} s" if builder.fresh else "already prepared"
    data = Path(builder.data_path)  # TFDS's own kind of path
    shards = list(data.glob("*.array_record*"))
    size = sum(shard.stat().st_size for shard in shards)
    print(f"{data}: {took}, {len(shards)} shards, {size / 1e6:,.1f} MB", flush=True)
    if out:
        make_portable(annotations.path, data, out)
        print(f"train on it anywhere with --config.data.root={args.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare", description="Prepare a dataset for training, and make it portable."
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--root", required=True, help="the dataset's folder, or its annotation file")
    parser.add_argument("--out", default="", help="make a portable folder too: DIR or gs://BUCKET/DIR")
    parser.add_argument("--prepared", type=Path, help="where the prepared data go, if not to `prepared` under --root")
    parser.add_argument(
        "--max_damaged", type=share, default=0.005, help="share of training images that may be damaged (0.005)"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
