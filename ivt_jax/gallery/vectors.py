"""Shards of vectors: a safetensors file for each shard of crops, and what all of a folder have in common.

    gallery.json            the model by digest, the dimension, the type of number, what is done to a picture
    SHARD.safetensors       vectors     (n, D) float32 or float16, of length 1, a row for each crop that could be read
                            names       UTF-8 JSON, as bytes: a list of n names, in the order of the rows
                            digests     (n, 32) uint8, SHA-256 of each crop's content
                            unreadable  as names: [[name, reason], ...] of the others
                            and in the metadata "ivt_jax": a JSON object of format, model, source, fingerprint, counts
                            of what was passed over, and orientation if the crops were turned upright (one object, for
                            safetensors writes several in any order, and equal shards shall be equal files)

safetensors, for it is one file, so rows and names are written together or not at all; its header tells shapes and model
without a row being read; the vectors lie in it as in memory, so they can be mapped; and readers exist in many
languages. (Of .npz NumPy maps nothing, and a matrix in Parquet must be decoded.)
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_bytes
from ivt_jax.common.messages import say_once
from ivt_jax.conversion.files import read_header
from ivt_jax.encoding.images import is_as_before
from ivt_jax.gallery.crops import name_of

FORMAT = 2  # another one where what is written now is no longer what an older ivt_jax wrote
ABOUT = "gallery.json"
_KEY = "ivt_jax"
DTYPES = {"float32": np.float32, "float16": np.float16}


class Vectors(NamedTuple):
    """A shard of vectors: (n, D), mapped from the file; n names; (n, 32) uint8, SHA-256 of each content; (name, reason)
    of the unreadable; its metadata."""

    vectors: np.ndarray
    names: list[str]
    digests: np.ndarray
    unreadable: list[tuple[str, str]]
    metadata: dict[str, Any]


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Makes `folder` a gallery of this model, where it is not one yet.

    Raises UserError where it is another's, or cannot be written.
    """
    wanted, path = {"format": FORMAT, **about}, folder / ABOUT
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from None
        write_bytes(path, json.dumps(wanted, indent=2).encode() + b"\n")
    found = read_about(folder)
    if is_as_before(found.get("images", {}), wanted.get("images", {})):
        found["images"] = wanted["images"]
        say_once(
            f"{folder} has shards from before pictures were turned upright by EXIF, which stay as they are; to embed a "
            "shard again, remove its .safetensors"
        )
    differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if differing:
        key = differing[0]
        differ = f"{key} {short_digest(found.get(key))}, not {short_digest(wanted.get(key))}"
        raise UserError(f"{folder} holds vectors of {differ}, which do not compare: name another folder with --out")


def read_about(folder: Path) -> dict[str, Any]:
    """What gallery.json tells. Raises UserError where it is missing, damaged, or of another format."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = int(about["format"]), about["model"], int(about["dimension"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is missing or damaged: {folder} is not what ivt_jax.embed wrote") from None
    if version != FORMAT:
        reason = f"{path} has format {version}, this ivt_jax reads format {FORMAT}"
        raise UserError(f"{reason}: {'update ivt_jax' if version > FORMAT else 'embed into another folder'}")
    return about


def place(folder: Path, shard: Path) -> Path:
    """Where the vectors of a shard of crops go."""
    return folder / f"{name_of(shard)}.safetensors"


def is_done(path: Path, model: str, fingerprint: str) -> bool:
    """Whether the file holds, whole, this model's vectors of crops that have not changed since."""
    if not path.exists():
        return False
    try:
        metadata = _metadata(path)
    except UserError:  # damaged
        return False
    return (metadata.get("model"), metadata.get("fingerprint")) == (model, fingerprint)


def write_vectors(
    path: Path,
    vectors: np.ndarray,
    readable: list[tuple[str, bytes]],
    unreadable: list[tuple[str, str]],
    metadata: dict[str, str],
) -> None:
    """Writes a shard whole or not at all, whoever else writes it; readable: name and digest of each row.

    Raises UserError where it cannot be written.
    """
    from safetensors.numpy import save

    lists = {"names": [name for name, _ in readable], "unreadable": unreadable}
    # ASCII: JSON has an escape for what is no UTF-8 in the name of a file.
    encoded = {key: np.frombuffer(json.dumps(value).encode(), np.uint8) for key, value in lists.items()}
    digests = np.frombuffer(b"".join(digest for _, digest in readable), np.uint8).reshape(-1, 32)
    tensors = {"vectors": np.ascontiguousarray(vectors), "digests": digests, **encoded}
    write_bytes(path, save(tensors, {_KEY: json.dumps({"format": FORMAT, **metadata})}))


def read_vectors(path: Path) -> Vectors:
    """One shard; its vectors are mapped, and read where they are used. Raises UserError where it is damaged."""
    metadata = _metadata(path)
    try:
        found = _read(path, metadata)
        if not len(found.vectors) == len(found.names) == len(found.digests):
            raise ValueError("the tensors differ in length")
    except (KeyError, TypeError, ValueError, AttributeError, struct.error):
        raise UserError(f"{path} is damaged: remove it, and embed its shard again") from None
    return found


def _read(path: Path, metadata: dict[str, Any]) -> Vectors:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        contents = {}
        for name in ("names", "digests", "unreadable"):
            start, end = header[name]["data_offsets"]
            file.seek(8 + length + start)
            contents[name] = file.read(end - start)
    dtype = {"F32": np.float32, "F16": np.float16}[header["vectors"]["dtype"]]
    shape, offset = tuple(header["vectors"]["shape"]), 8 + length + header["vectors"]["data_offsets"][0]
    vectors = np.memmap(path, dtype, "r", offset, shape) if shape[0] else np.empty(shape, dtype)
    digests = np.frombuffer(contents["digests"], np.uint8).reshape(-1, 32)
    unreadable = [(name, reason) for name, reason in json.loads(contents["unreadable"])]
    return Vectors(vectors, json.loads(contents["names"]), digests, unreadable, metadata)


def read_gallery(folder: Path) -> Iterator[Vectors]:
    """All shards of a folder, by name. Raises UserError where one is damaged, or another model's."""
    about = read_about(folder)
    model = about["model"]
    for path in sorted(folder.glob("*.safetensors")):
        shard = read_vectors(path)
        if shard.metadata.get("model") != model:
            raise UserError(
                f"{path} is of model {short_digest(shard.metadata.get('model'))}, not {short_digest(model)}: remove it"
            )
        if shard.vectors.shape[1] != about["dimension"]:
            raise UserError(f"{path} has vectors of {shard.vectors.shape[1]}, not of {about['dimension']}: remove it")
        yield shard


class ByDigest:
    """The vectors of a folder, by the content of their crops.

    Attributes: about, what gallery.json tells.
    """

    def __init__(self, folder: Path):
        """Raises UserError as `read_gallery`, and where there is no vector."""
        self.about = read_about(folder)
        found = [shard for shard in read_gallery(folder) if len(shard.vectors)]
        if not found:
            raise UserError(f"{folder} holds no vectors: make them with python -m ivt_jax.embed")
        self._shards = [shard.vectors for shard in found]
        self._upright = ["orientation" in shard.metadata for shard in found]
        digests = np.concatenate([shard.digests for shard in found]).view("S32").ravel()
        self._order = np.argsort(digests)
        self._digests = digests[self._order]
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def get(self, digest: bytes) -> tuple[np.ndarray | None, bool]:
        """Returns the vector (D,) of the crop whose content has this SHA-256, None if there is no such crop.

        Also returns whether crops were turned upright by EXIF before they were embedded.
        """
        found = np.frombuffer(digest, "S32")
        place = int(np.searchsorted(self._digests, found)[0])
        if place == len(self._digests) or self._digests[place] != found[0]:
            return None, True
        row = self._order[place]
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return np.array(self._shards[shard][row - self._starts[shard]]), self._upright[shard]


def _metadata(path: Path) -> dict[str, Any]:
    """Raises UserError where the file is damaged, or no shard of ours."""
    try:
        metadata = json.loads(read_header(path).metadata.get(_KEY, "{}"))
        version = metadata.get("format")
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: remove it, and embed its shard again") from None
    if version != FORMAT:
        raise UserError(f"{path} is no shard of vectors that this ivt_jax can read: remove it, or update ivt_jax")
    return metadata


def short_digest(value: Any) -> str:
    """Returns the first digits of a digest; any other value as text."""
    return value[:12] if isinstance(value, str) else str(value)
