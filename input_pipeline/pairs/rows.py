"""The rows of an index of pairs: where image and caption of a pair are, and what they hold."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ivt_jax.common.files import is_remote

ABOUT, SHARDS, ASIDE = "pairs.json", "shards.json", "set_aside.jsonl"  # files of an index
SPLITS = ("train", "val")
# shard: number of the file that holds both; image and text: offsets in it, with sizes in bytes.
# image_key, text_key: hashes of the image's bytes and of the caption, by source.key_of_bytes and source.key_of_caption.
ROW = np.dtype([
    ("image", "<u8"), ("text", "<u8"), ("image_key", "<u8"), ("text_key", "<u8"),
    ("shard", "<u4"), ("image_size", "<u4"), ("text_size", "<u4"), ("flags", "<u4"),
])  # fmt: skip
DIRECT = 1  # flag: training decodes the image to Pillow's pixels; otherwise it gets a PNG of them
JSON = 2  # flag: the text is a JSON object with "caption"; otherwise it is the caption
FILE = 4  # flag: "image" of this object names the file of the image

FORMAT = 1  # raise it when rows of the same shard change
MAX_BYTES = 200_000_000  # of an image: more than decoding.MAX_PIXELS take as a bitmap


class Row(NamedTuple):
    """A row in Python's numbers; the fields are those of ROW."""

    image: int
    text: int
    image_key: int
    text_key: int
    shard: int
    image_size: int
    text_size: int
    flags: int


class SetAside(NamedTuple):
    """A member of a shard, or a line of a list, that is not a pair, and the reason."""

    shard: str
    member: str
    reason: str


class RowFile:
    """The rows of a .npy file. Reads only those that are asked for: a memory map would fill the memory.

    Raises ValueError if the file has other rows, or is cut short.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb", buffering=0)
        np.lib.format.read_magic(self._file)
        (self._count,), _, dtype = np.lib.format.read_array_header_1_0(self._file)
        self._start = self._file.tell()
        if dtype != ROW or os.fstat(self._file.fileno()).st_size != self._start + self._count * ROW.itemsize:
            raise ValueError("other rows, or cut short")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns the rows (n,) of ROW with these numbers."""
        starts = (self._start + number * ROW.itemsize for number in np.asarray(numbers).tolist())
        return np.frombuffer(b"".join(os.pread(self._file.fileno(), ROW.itemsize, start) for start in starts), ROW)


def read_caption(content: bytes, is_json: bool) -> str:
    """Returns the caption that a member or line has, "" if there is none. Raises ValueError if it is malformed."""
    text = content.decode("utf-8-sig")
    if not is_json:
        return text.strip()
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    caption = found.get("caption") if isinstance(found, dict) else None
    return caption.strip() if isinstance(caption, str) else ""


def caption_fault(caption: str, longest: int) -> str:
    """Returns why a caption is set aside, "" if it is not. longest: characters that it may have."""
    if not any(map(str.isalnum, caption)):
        return "empty caption" if caption else "no caption"
    return f"caption of over {longest:,} characters" if len(caption) > longest else ""


def path_of_image(folder: str, name: str) -> str:
    """Returns the path or URL of an image that a list in `folder` names."""
    return name if is_remote(name) else os.path.normpath(os.path.join(folder, name))
