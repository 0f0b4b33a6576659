"""The picture of a row in full size. It is decoded and encoded again, so that no byte of the file leaves the server."""

import io
from typing import TYPE_CHECKING

from ivt_jax.encoding.images import open_image

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Searcher

SIDE, QUALITY = 4096, 90  # largest width and height; JPEG quality


def encode_original(searcher: "Searcher", id: int) -> bytes | None:
    """Returns the picture of a row as a JPEG without metadata, at most SIDE x SIDE pixels.

    None if there is no such row, or if its file is gone, has changed, or is outside of the index's folder.
    """
    for row in searcher.rows([id]):
        content = searcher.read(row)
        if content is None:
            return None
        image, buffer = open_image(row.path, content), io.BytesIO()
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()
    return None
