"""One shard of crops to one shard of vectors: what every way of running it has in common."""

import os
import time
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.encoding.encoder import ImageEncoder
from ivt_jax.gallery.crops import UnreachableError, fingerprint, load_batches, name_of, read_content, read_crops
from ivt_jax.gallery.vectors import DTYPES, Vectors, claim_folder, is_done, place, read_vectors, write_vectors
from ivt_jax.gallery.walk import describe_passed, reason_to_pass

BATCH = 64  # crops that a device takes at once


class Embedded(NamedTuple):
    """What became of a shard; nothing was done to one that was done before."""

    shard: Path
    crops: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    before: bool = False
    passed: str = ""  # counts of what was passed over, in words

    def __str__(self) -> str:
        if self.before:
            return f"{self.shard}: done before"
        unreadable = f", {self.unreadable:,} more cannot be read" if self.unreadable else ""
        passed = f"; passed over: {self.passed}" if self.passed else ""
        crops = counted(self.crops, "crop")
        return f"{self.shard}: {crops} at {self.crops / self.seconds:,.0f} a second{unreadable}{passed}"


def embed_shard(encoder: ImageEncoder, shard: Path, out: Path, dtype: str = "float32", batch: int = BATCH) -> Embedded:
    """Embeds the crops of a shard into OUT/NAME.safetensors, unless that is done and the crops have not changed.

    dtype: a key of DTYPES; batch: crops that a device takes at once. The file appears whole or not at all, and two
    processes that do the same shard write equal files. Raises DataError if the shard cannot be read, changes while it
    is read, or has crops with vectors that are out of reach now, and UserError if the folder is another model's or
    cannot be written. In these cases an earlier file is kept.
    """
    start, path, made_of = time.monotonic(), place(out, shard), fingerprint(shard)
    claim_folder(out, {**encoder.about, "dtype": dtype})
    if is_done(path, encoder.about["model"], made_of):
        return Embedded(shard, before=True)
    names, contents, unreadable, passed = read_crops(shard)
    told = progress(zip(names, contents, strict=True), len(names), f"{shard.name}: ", "crops", brief=True)
    readable: list[tuple[str, bytes]] = []
    batch_size = batch * encoder.devices
    vectors = encoder.embed(load_batches(told, encoder.size, batch_size, readable, unreadable), batch_size)
    if unreadable and fingerprint(shard) != made_of:  # such as a dropped share: the shard would count as done
        raise DataError(f"{shard} changed while it was read: run the command again when its crops can be reached")
    _refuse_loss(path, shard, encoder.about["model"], readable, unreadable)
    metadata = {"model": encoder.about["model"], "source": name_of(shard), "fingerprint": made_of}
    metadata |= {"orientation": encoder.about["images"]["orientation"], "passed_over": describe_passed(passed)}
    write_vectors(path, vectors.astype(DTYPES[dtype]), readable, unreadable, metadata)
    return Embedded(shard, len(readable), len(unreadable), time.monotonic() - start, passed=describe_passed(passed))


def _refuse_loss(
    path: Path,
    shard: Path,
    model: str,
    readable: Sequence[tuple[str, bytes]],
    unreadable: Sequence[tuple[str, str]],
) -> None:
    """Raises DataError if `path` has vectors of crops that cannot be reached now, or if no crop can be read."""
    try:
        before = read_vectors(path)
    except (UserError, OSError):  # damaged, or none yet
        return
    if before.metadata.get("model") != model or not before.names:
        return
    lost = _lost_crops(shard, set(before.names), unreadable)
    if shard.is_dir() and readable:
        lost += _lost_folders(before, readable, unreadable)
    if readable and not lost:
        return
    reason = "no crop can be read"
    if lost:
        reason = f"{counted(len(lost), 'embedded crop')} cannot be reached, the first is {lost[0]}"
    raise DataError(f"{shard}: {reason}; {path} stays as it is: remove it if these crops were deleted")


def _lost_crops(shard: Path, embedded: Set[str], unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the embedded crops that are unreadable because they cannot be reached now; none of an archive."""
    if shard.suffix == ".tar" and not shard.is_dir():
        return []
    folder = shard if shard.is_dir() else Path()
    return [name for name, _ in unreadable if name in embedded and _is_unreachable(folder / name)]


def _lost_folders(
    before: Vectors, readable: Sequence[tuple[str, bytes]], unreadable: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns the embedded crops whose folder is missing or empty, which looks like a dropped share.

    Crops whose content has another name now were moved, and are not among them. Neither are those that a walk passes
    over, which an older ivt_jax embedded.
    """
    names, contents = {name for name, _ in (*readable, *unreadable)}, {digest for _, digest in readable}
    folders = _folders_above(names)
    return [
        name
        for name, digest in zip(before.names, before.digests, strict=True)
        if name not in names
        and os.path.dirname(name) not in folders
        and digest.tobytes() not in contents
        and not reason_to_pass(name)
    ]


def _folders_above(names: Iterable[str]) -> set[str]:
    """Returns the folders that hold one of the files, at whatever depth; "" is the folder of the shard."""
    folders = set[str]()
    for name in names:
        while name and (name := os.path.dirname(name)) not in folders:
            folders.add(name)
    return folders


def _is_unreachable(crop: Path) -> bool:
    """Whether the system cannot read the file, whatever its content."""
    try:
        read_content(crop, crop)
    except UnreachableError:
        return True
    except UserError:
        pass
    return False
