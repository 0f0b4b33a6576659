"""Shards of vectors: a safetensors file for each shard of crops, and one description of the folder.

    gallery.json            digest of the model, dimension, dtype, preprocessing of the pictures
    SHARD.safetensors       vectors     (n, D) float32 or float16, of length 1, a row per readable crop
                            names       UTF-8 JSON, as bytes: a list of n names, in the order of the rows
                            digests     (n, 32) uint8, SHA-256 of the content of each crop
                            unreadable  as names: [[name, reason], ...] of the other crops
                            metadata    "ivt_jax": a JSON object of format, model, source, fingerprint, passed_over,
                                        and orientation if the crops were turned upright (one object, because
                                        safetensors writes several in any order, and equal shards must be equal files)

A safetensors file holds rows and names together; many languages read it, and can map its vectors into memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_bytes
from ivt_jax.common.messages import say_once
from ivt_jax.conversion.files import read_header
from ivt_jax.encoding.images import is_as_before
from ivt_jax.gallery.crops import Readable, Unreadable

FORMAT = 2  # raise it if older versions of ivt_jax would misread what is written now
ABOUT = "gallery.json"
_KEY = "ivt_jax"
_DAMAGED = "is damaged: remove it, and embed its shard again"
DTYPES = {"float32": np.float32, "float16": np.float16}
_STORED = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}  # the names in safetensors


class Vectors(NamedTuple):
    """A shard of vectors; the arrays are mapped from the file."""

    vectors: np.ndarray  # (n, D)
    names: list[str]
    digests: np.ndarray  # (n, 32) uint8, SHA-256 of each content
    unreadable: Unreadable
    metadata: dict[str, Any]


def claim_folder(folder: Path, about: dict[str, Any]) -> None:
    """Makes `folder` a gallery of this model if it is none yet.

    Raises UserError if it is the gallery of another model or dtype, or cannot be written.
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
        advice = "which stay as they are; to embed a shard again, remove its .safetensors"
        say_once(f"{folder} has shards from before pictures were turned upright by EXIF, {advice}")
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            differ = f"{key} {short_digest(found.get(key))}, not {short_digest(wanted.get(key))}"
            raise UserError(f"{folder} holds vectors of {differ}; name another folder with --out")


def read_about(folder: Path) -> dict[str, Any]:
    """Reads gallery.json. Raises UserError if it is missing, damaged, or of another format."""
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


def is_done(path: Path, model: str, fingerprint: str) -> bool:
    """Whether the file is complete and holds this model's vectors of crops with this fingerprint."""
    try:
        metadata = _metadata(path)
    except UserError:  # missing or damaged
        return False
    return (metadata.get("model"), metadata.get("fingerprint")) == (model, fingerprint)


def write_vectors(
    path: Path, vectors: np.ndarray, readable: Readable, unreadable: Unreadable, metadata: dict[str, str]
) -> None:
    """Writes a shard whole or not at all; readable: its rows. Raises UserError if it cannot."""
    from safetensors.numpy import save

    lists = {"names": [name for name, _ in readable], "unreadable": unreadable}
    # json.dumps writes ASCII, with escapes for the bytes of file names that are not UTF-8.
    encoded = {key: np.frombuffer(json.dumps(value).encode(), np.uint8) for key, value in lists.items()}
    digests = np.frombuffer(b"".join(digest for _, digest in readable), np.uint8).reshape(-1, 32)
    tensors = {"vectors": np.ascontiguousarray(vectors), "digests": digests, **encoded}
    write_bytes(path, save(tensors, {_KEY: json.dumps({"format": FORMAT, **metadata})}))


def read_vectors(path: Path) -> Vectors:
    """Opens a shard; its vectors are read only where they are used. Raises UserError if it is damaged."""
    metadata, content = _metadata(path), np.memmap(path, np.uint8, "r")
    try:
        start = 8 + int(content[:8].view("<u8")[0])
        header, tensors = json.loads(content[8:start].tobytes()), {}
        for name in ("vectors", "names", "digests", "unreadable"):
            begin, end = header[name]["data_offsets"]
            stored = content[start + begin : start + end].view(_STORED[header[name]["dtype"]])
            tensors[name] = stored.reshape(header[name]["shape"])
        names, unreadable = (json.loads(tensors[name].tobytes()) for name in ("names", "unreadable"))
        vectors, digests, rows = tensors["vectors"], tensors["digests"], len(names)
        if vectors.dtype == np.uint8 or vectors.ndim != 2 or len(vectors) != rows or digests.shape != (rows, 32):
            raise ValueError("dtypes or shapes do not fit")
        return Vectors(vectors, names, digests, [(name, reason) for name, reason in unreadable], metadata)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} {_DAMAGED}") from None


def read_gallery(folder: Path) -> Iterator[Vectors]:
    """Opens all shards of a folder, sorted by name. Raises UserError if one is damaged or of another model."""
    about = read_about(folder)
    model, dimension = about["model"], about["dimension"]
    for path in sorted(folder.glob("*.safetensors")):
        shard = read_vectors(path)
        found = shard.metadata.get("model")
        if found != model:
            raise UserError(f"{path} is of model {short_digest(found)}, not {short_digest(model)}: remove it")
        if shard.vectors.shape[1] != dimension:
            raise UserError(f"{path} has vectors of dimension {shard.vectors.shape[1]}, not {dimension}: remove it")
        yield shard


class ByDigest:
    """Finds the vectors of a folder by the content of their crops. Attributes: about, the content of gallery.json."""

    def __init__(self, folder: Path):
        """Raises UserError as `read_gallery`, and if there is no vector."""
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

        Also returns whether the crop was turned upright by EXIF before it was embedded.
        """
        found = np.frombuffer(digest, "S32")
        place = int(np.searchsorted(self._digests, found)[0])
        if place == len(self._digests) or self._digests[place] != found[0]:
            return None, True
        row = self._order[place]
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return np.array(self._shards[shard][row - self._starts[shard]]), self._upright[shard]


def _metadata(path: Path) -> dict[str, Any]:
    """Reads our metadata. Raises UserError if the file is missing or damaged, or no shard of this format."""
    try:
        metadata = json.loads(read_header(path).metadata.get(_KEY, "{}"))
        version = metadata.get("format")
    except (ValueError, AttributeError):
        raise UserError(f"{path} {_DAMAGED}") from None
    if version != FORMAT:
        raise UserError(f"{path} is no shard of vectors that this ivt_jax can read: remove it, or update ivt_jax")
    return metadata


def short_digest(value: Any) -> str:
    """Returns the first 12 digits of a digest; any other value as text."""
    return value[:12] if isinstance(value, str) else str(value)
