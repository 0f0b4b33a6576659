"""Reads images and texts of rows of an index, each pair by one range, and compares them with their hashes."""

import io
import json
from collections.abc import Sequence

from input_pipeline.decoding import as_png, as_rgb, open_picture
from input_pipeline.pairs import store
from input_pipeline.pairs.rows import DIRECT, FILE, JSON, Row, path_of_image, read_caption
from input_pipeline.source import key_of_bytes, key_of_caption
from ivt_jax.common.errors import DataError

AGAIN = "make the index again: python -m input_pipeline.prepare --pairs ..."


class Reader:
    """Reads pairs of shards and lists. shards: their paths; folders: for the blocks of a list, its folder."""

    def __init__(self, shards: Sequence[str], folders: Sequence[str]):
        self._shards, self._folders, self._files = shards, folders, store.Files()

    def texts(self, rows: Sequence[Row]) -> list[bytes]:
        """Returns the bytes of texts: of a `.txt`, of a `.json`, of the line of a list. Raises DataError."""
        return self._files.read(
            [store.Range(self._shards[row.shard], row.text, row.text + row.text_size) for row in rows]
        )

    def caption(self, row: Row, text: bytes) -> str:
        """Returns the caption in the bytes of a text. Raises DataError if it is not the one that was indexed."""
        try:
            caption = read_caption(text, bool(row.flags & JSON))
        except ValueError:
            raise self._changed(row) from None
        if key_of_caption(caption) != row.text_key:
            raise self._changed(row)
        return caption

    def pairs(self, rows: Sequence[Row]) -> tuple[list[bytes], list[bytes]]:
        """Returns images, as JPEG or PNG that `augment.decode` decodes to Pillow's pixels, and the bytes of texts.

        Raises DataError if a file is missing or an image is not the one that was indexed.
        """
        pieces = self._files.read([self._span(row) for row in rows])
        texts = [_cut(row, piece, row.text, row.text_size) for row, piece in zip(rows, pieces, strict=True)]
        listed = [number for number, row in enumerate(rows) if row.flags & FILE]
        files = {number: self._file(rows[number], texts[number]) for number in listed}
        contents = dict(zip(listed, self._files.read([*files.values()]), strict=True))

        def image(number: int) -> bytes:
            row = rows[number]
            content = contents[number] if row.flags & FILE else _cut(row, pieces[number], row.image, row.image_size)
            if key_of_bytes(content) != row.image_key:
                raise self._changed(row, files[number].path if row.flags & FILE else "")
            return content if row.flags & DIRECT else _to_png(content)

        return list(store.threads().map(image, range(len(rows)))), texts

    def _span(self, row: Row) -> store.Range:
        """Returns the range that has image and caption; of a list, the line alone."""
        begin, end = _span(row)
        return store.Range(self._shards[row.shard], begin, end)

    def _file(self, row: Row, line: bytes) -> store.Range:
        """Returns the file of the image that the line of a list names, and a byte more, in case it has grown."""
        try:
            name = json.loads(line)["image"]
        except (ValueError, KeyError, TypeError):
            raise self._changed(row) from None
        return store.Range(path_of_image(self._folders[row.shard], name), 0, row.image_size + 1)

    def _changed(self, row: Row, path: str = "") -> DataError:
        return DataError(f"{path or self._shards[row.shard]} is not as it was when it was indexed: {AGAIN}")


def _span(row: Row) -> tuple[int, int]:
    if row.flags & FILE:
        return row.text, row.text + row.text_size
    return min(row.image, row.text), max(row.image + row.image_size, row.text + row.text_size)


def _cut(row: Row, piece: bytes, start: int, size: int) -> bytes:
    begin = start - _span(row)[0]
    return piece[begin : begin + size]


def _to_png(content: bytes) -> bytes:
    with open_picture(io.BytesIO(content)) as image:
        return as_png(as_rgb(image))
