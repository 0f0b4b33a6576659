"""Embeds one shard of crops into one shard of vectors."""

import time
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.messages import counted
from ivt_jax.common.progress import progress
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.gallery.crops import Readable, Unreadable, fingerprint, is_unreachable, load_batches, name_of, read_crops
from ivt_jax.gallery.vectors import DTYPES, Vectors, claim_folder, is_done, read_vectors, write_vectors
from ivt_jax.gallery.walk import describe_passed, reason_to_pass


class Embedded(NamedTuple):
    """The outcome of a shard; line: for the log; before: it was embedded earlier, and nothing was done."""

    line: str
    crops: int = 0
    unreadable: int = 0
    before: bool = False

    def counts(self) -> dict[str, int]:
        """Returns what to add to the counts of a run; `shards` counts those embedded now."""
        return {"before" if self.before else "shards": 1, "crops": self.crops, "unreadable": self.unreadable}


def embed_shard(encoder: Encoder, shard: Path, out: Path, dtype: str = "float32", batch: int = 64) -> Embedded:
    """Embeds the crops of a shard into OUT/NAME.safetensors, unless that is done and the crops have not changed.

    dtype: a key of DTYPES; batch: crops per device. The file appears whole or not at all, and two processes that embed
    the same shard write equal files. Raises DataError if the shard cannot be read, changes while it is read, or has
    embedded crops that cannot be reached now, and UserError if the folder is another model's or cannot be written. An
    earlier file is then kept.
    """
    start, made_of = time.monotonic(), fingerprint(shard)
    path = out / f"{name_of(shard)}.safetensors"
    claim_folder(out, {**encoder.about, "dtype": dtype})
    if is_done(path, encoder.about["model"], made_of):
        return Embedded(f"{shard}: done before", before=True)
    names, contents, unreadable, passed = read_crops(shard)
    crops = progress(zip(names, contents, strict=True), len(names), f"{shard.name}: ", "crops", brief=True)
    readable, batch_size = Readable(), batch * encoder.devices
    vectors = encoder.embed(load_batches(crops, encoder.size, batch_size, readable, unreadable), batch_size)
    if unreadable and fingerprint(shard) != made_of:  # such as a dropped share: the shard would count as done
        raise DataError(f"{shard} changed while it was read: run the command again when its crops can be reached")
    _refuse_loss(path, shard, encoder.about["model"], readable, unreadable)
    metadata = {"model": encoder.about["model"], "source": name_of(shard), "fingerprint": made_of}
    metadata |= {"orientation": encoder.about["images"]["orientation"], "passed_over": describe_passed(passed)}
    write_vectors(path, vectors.astype(DTYPES[dtype]), readable, unreadable, metadata)
    line = f"{counted(len(readable), 'crop')} at {len(readable) / (time.monotonic() - start):,.0f} a second"
    line += f", {len(unreadable):,} more cannot be read" if unreadable else ""
    line += f"; passed over: {metadata['passed_over']}" if metadata["passed_over"] else ""
    return Embedded(f"{shard}: {line}", len(readable), len(unreadable))


def _refuse_loss(path: Path, shard: Path, model: str, readable: Readable, unreadable: Unreadable) -> None:
    """Raises DataError if `path` has vectors of crops that cannot be reached now, or if no crop can be read."""
    try:
        before = read_vectors(path)
    except UserError:  # damaged, or none yet
        return
    if before.metadata.get("model") != model or not before.names:
        return
    lost = []
    if shard.is_dir() or shard.suffix != ".tar":
        folder, embedded = shard if shard.is_dir() else Path(), set(before.names)
        lost = [name for name, _ in unreadable if name in embedded and is_unreachable(folder / name)]
    if shard.is_dir() and readable:
        lost += _lost_folders(before, readable, unreadable)
    if lost or not readable:
        reason = f"{counted(len(lost), 'embedded crop')} cannot be reached, the first is {lost[0]}" if lost else ""
        remedy = f"{path} stays as it is: remove it if these crops were deleted"
        raise DataError(f"{shard}: {reason or 'no crop can be read'}; {remedy}")


def _lost_folders(before: Vectors, readable: Readable, unreadable: Unreadable) -> list[str]:
    """Returns the embedded crops whose folder is missing or empty, as after a dropped share.

    Leaves out crops whose content now has another name, because they were moved, and crops of folders that are passed
    over, which older versions of ivt_jax embedded.
    """
    folders = {folder for name, _ in (*readable, *unreadable) for folder in PurePosixPath(name).parents}
    rows, contents = zip(before.names, before.digests, strict=True), {digest for _, digest in readable}
    lost = [(name, digest.tobytes()) for name, digest in rows if PurePosixPath(name).parent not in folders]
    return [name for name, digest in lost if digest not in contents and not reason_to_pass(name)]
