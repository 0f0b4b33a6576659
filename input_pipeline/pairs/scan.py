"""Reads a shard or a block of a list once, decodes its images, and returns a row for each pair."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from input_pipeline import augment
from input_pipeline.decoding import KEPT_FORMATS, SUFFIXES, as_rgb, open_picture
from input_pipeline.inspection import MISSING, fault_of, leads_out
from input_pipeline.pairs import store
from input_pipeline.pairs.rows import (
    DIRECT,
    FILE,
    JSON,
    MAX_BYTES,
    ROW,
    Row,
    SetAside,
    caption_fault,
    path_of_image,
    read_caption,
)
from input_pipeline.source import key_of_bytes, key_of_caption
from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.files import is_remote, is_utf8
from ivt_jax.common.messages import counted

FARTHEST = 1 << 20  # bytes between an image and its caption, which are read at once

Found = tuple[np.ndarray, list[SetAside]]  # rows (n,) of ROW with shard 0, and what is set aside


class _Piece(NamedTuple):
    """An image or a caption of a shard: its member, its place, its hash, its flag, and what is wrong with it."""

    member: str = ""
    start: int = 0
    size: int = 0
    key: int = 0
    flag: int = 0
    fault: str = ""


def scan_tar(path: str, longest: int) -> Found:
    """Reads a shard of webdataset's form: the members of a pair differ in their suffix (a.jpg, a.json, a.txt).

    The caption is that of `.txt` or, if that has none, "caption" of `.json`. A shard that is cut short gives its whole
    pairs. longest: characters of a caption. Raises UserError if the file cannot be read.
    """
    kinds: dict[str, dict[str, _Piece]] = {"image": {}, ".txt": {}, ".json": {}}
    aside: list[SetAside] = []
    with store.readable(path) as file:
        for name, start, size, fault in _members(file):
            stem, suffix = os.path.splitext(name)
            kind = "image" if suffix.lower() in SUFFIXES else suffix.lower()
            if not name or (fault and kind in kinds):
                aside.append(SetAside(path, name, fault or "no name"))
            elif kind in kinds and stem in kinds[kind]:
                aside.append(SetAside(path, name, "named twice in its shard" if kind != "image" else "a second image"))
            elif kind in kinds:
                content = _read(file, start, size)
                piece = _look_at_image(content, size) if kind == "image" else _look_at_text(content, kind, longest)
                kinds[kind][stem] = piece._replace(member=name, start=start, size=size)
    rows = [row for stem, image in kinds["image"].items() if (row := _row(path, image, _text(kinds, stem), aside))]
    captioned = {**kinds[".json"], **kinds[".txt"]}
    aside += [SetAside(path, text.member, "no image") for key, text in captioned.items() if key not in kinds["image"]]
    return np.array(rows, ROW), aside


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int, str]]:
    """Yields name, offset and size of the data, and fault of each member; last, if it is cut, one without a name.

    tarfile takes a damaged header for the end of the archive, and so would lose all members after it.
    """
    count, archive = 0, None
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
        while (member := archive.next()) and member.size >= 0:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all
            count += 1
            if not member.isdir():
                plain = member.isreg() and not member.issparse()
                yield member.name, member.offset_data, member.size, "" if plain else "a link, a device or a sparse file"
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
            return
    except (tarfile.TarError, ValueError, OverflowError):  # the last two: numbers that tarfile does not check
        pass
    yield "", 0, 0, f"cut short or damaged after {counted(count, 'member')}" if archive else "not a tar archive"


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    if size > MAX_BYTES:
        return b""
    file.seek(start)
    return file.read(size)


def _look_at_image(content: bytes, size: int) -> _Piece:
    """Decodes an image; returns its hash, flag and fault."""
    if size > MAX_BYTES:
        return _Piece(fault=f"over {MAX_BYTES // 1_000_000} MB")
    if len(content) < size or not content:
        return _Piece(fault="cut short or damaged" if size else "an empty file")
    try:
        with open_picture(io.BytesIO(content)) as image:
            pixels = np.asarray(as_rgb(image))
            direct = image.format in KEPT_FORMATS and augment.decodes_to(content, pixels)
    except Exception as error:  # Pillow raises many kinds for damaged files
        return _Piece(fault=fault_of(error))
    return _Piece(key=key_of_bytes(content), flag=DIRECT if direct else 0)


def _look_at_text(content: bytes, kind: str, longest: int) -> _Piece:
    flag = JSON if kind == ".json" else 0
    try:
        caption = read_caption(content, bool(flag))
    except ValueError:
        return _Piece(flag=flag, fault="caption is not valid JSON" if flag else "caption is not UTF-8")
    if not is_utf8(caption):  # JSON can have half of a character
        return _Piece(flag=flag, fault="caption is not UTF-8")
    return _Piece(key=key_of_caption(caption), flag=flag, fault=caption_fault(caption, longest))


def _text(kinds: dict[str, dict[str, _Piece]], stem: str) -> _Piece | None:
    plain, embedded = kinds[".txt"].get(stem), kinds[".json"].get(stem)
    return embedded if plain is None or (plain.fault == "no caption" and embedded is not None) else plain


def _row(path: str, image: _Piece, text: _Piece | None, aside: list[SetAside]) -> Row | None:
    """Returns the row of a pair, or adds its image to `aside`."""
    fault = image.fault or (text.fault if text else "no caption")
    if text and not fault:
        begin, end = min(image.start, text.start), max(image.start + image.size, text.start + text.size)
        if end - begin - image.size - text.size > FARTHEST:
            fault = f"image and caption are over {FARTHEST >> 20} MiB apart"
    if text is None or fault:
        aside.append(SetAside(path, image.member, fault))
        return None
    flags = image.flag | text.flag
    return Row(image.start, text.start, image.key, text.key, 0, image.size, text.size, flags)


def scan_block(path: Path, source: str, longest: int) -> Found:
    """Reads a block of the list `source`, see tasks.py, and the images that it names."""
    folder, lines, start = os.path.dirname(source), [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        lines.append((start, line, json.loads(line)))
        start += len(line)
    rows: list[Row] = []
    aside: list[SetAside] = []
    for (start, line, record), read in done_ahead(lambda item: _read_file(folder, item[2]), lines, 64):
        caption, (content, lost) = record["caption"], read.result()
        text = _Piece("", start, len(line), key_of_caption(caption), JSON | FILE, caption_fault(caption, longest))
        image = _look_at_image(content, len(content)) if not lost else _Piece(fault=lost)
        image = image._replace(member=f"line {record['line']}: {record['image']}", start=start)
        if row := _row(source, image, text, aside):
            rows.append(row._replace(image_size=len(content)))
    return np.array(rows, ROW), aside


def _read_file(folder: str, record: dict[str, Any]) -> tuple[bytes, str]:
    """Returns the content of the image of a list's record, and its fault."""
    name = record["image"]
    if not name:
        return b"", "no image"
    path = path_of_image(folder, name)
    try:
        if not is_remote(path) and leads_out(Path(folder), Path(path)):
            return b"", "outside of the list's folder"
        state = store.state(path)
        if state is None or (not is_remote(path) and not os.path.isfile(path)):
            return b"", MISSING
        if state.size > MAX_BYTES:
            return b"", f"over {MAX_BYTES // 1_000_000} MB"
        return store.Files().read([store.Range(path, 0, state.size)])[0], ""
    except ValueError:  # a UserError, or no valid file name
        return b"", "cannot be read"
