"""An index's contents, and the protocol of its stores. `ivt_jax.retrieval.stores.places` opens an index."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ivt_jax.common.errors import UserError, disk_fault
from ivt_jax.retrieval.stores.where import PATH, Condition, Metadata, Value

Found = tuple[np.ndarray, np.ndarray]  # scores (Q, K) float32 and ids (Q, K) int64 of Q queries
FORMAT = 1  # raise it when older versions of ivt_jax would misread a new index
LANCE_FOLDER = "pictures.lance"  # in the folder of an index


class NoIndexError(UserError):
    """There is no index in the place; a build can create one."""


class StoreError(UserError):
    """The store cannot read or write the index, whatever the request."""


@dataclasses.dataclass(frozen=True)
class About:
    """Describes an index: its model, the fields of its rows, and its last build."""

    model: str  # digest of parameters and `config.model`
    tokenizer: str  # digest
    dimension: int
    dtype: str  # of the vectors, "float32" or "float16"
    images: Mapping[str, Any]  # how pictures are prepared (`encoding.images.preprocessing`)
    fields: Mapping[str, str]  # name -> type (a key of `where.TYPES`) of each metadata column
    workdir: str  # absolute folder of the model
    root: str  # absolute folder of the pictures
    made: str = ""  # distinguishes the index from a later one in the same place
    format: int = FORMAT
    unfinished: int = -1  # first id that a running or stopped build has assigned; -1: none, or it does not matter
    planned: int = 0  # number of rows once such a build has added all new pictures; 0: no picture is waiting
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `build.remembered` of the last build
    updated: str = ""  # when the last complete build listed the pictures, ISO 8601 in UTC
    passed: Mapping[str, int] = dataclasses.field(default_factory=dict)  # files that it left out, by reason
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)  # rows that it left without pictures, by reason
    sideways: int = 0  # smaller ids may be from before pictures were turned upright (`plan.find_stale`); 0: none are

    def model_folder(self, workdir: Path | str | None) -> Path:
        """Returns `workdir`, or the index's own if that is None. Raises UserError if the latter has no model."""
        folder = Path(workdir or self.workdir)
        if workdir is None and not (folder / "config.json").is_file():
            raise UserError(f"the model of the index is not in {folder} any more: name its folder with --workdir")
        return folder

    def refuse_other_root(self, place: Path | str, root: Path) -> None:
        """Raises UserError if the pictures of the index at a place are not those in the folder `root`."""
        if str(root) != self.root:
            reason = f"{place} is an index of the pictures in {self.root}, not of those in {root}"
            raise UserError(f"{reason}: if they were moved there, add --moved; else name another --index")

    def to_json(self) -> str:
        """Returns the JSON that stores keep."""
        # Unset keys are left out: older versions lack them.
        unset = {"unfinished": -1, "planned": 0, "sideways": 0, "source": {}, "updated": "", "passed": {}, "kept": {}}
        return json.dumps({key: value for key, value in dataclasses.asdict(self).items() if unset.get(key) != value})

    @classmethod
    def from_json(cls, text: str | bytes, place: str) -> "About":
        """Reads what `to_json` wrote for the index at a place. Raises UserError for any other text.

        Keys that a later version has added are ignored; a later `format` is for the caller to refuse.
        """
        try:
            return cls(**{key: value for key, value in json.loads(text).items() if key in cls.__dataclass_fields__})
        except (AttributeError, TypeError, ValueError):
            raise UserError(f"{place} was not written by ivt_jax.index: name another --index") from None

    def describe_unfinished(self, rows: int) -> str:
        """Returns a message for an index of `rows` rows that still lacks new pictures, "" for a complete index."""
        if rows >= self.planned:
            return ""
        # If rows of deleted pictures are still counted, the number does not show the progress.
        progress = "" if self.unfinished >= 0 else f" ({rows:,} of {self.planned:,} pictures)"
        return f"the index is unfinished{progress}; wait for its build, or run python -m ivt_jax.index again"


class Row(NamedTuple):
    """A picture of the index. Vector and thumbnail are None unless they were requested."""

    id: int  # 0, 1, 2, ... in the order of adding
    path: str  # relative to the root, with "/" between folders
    digest: str  # SHA-256 of the file's content, in hexadecimal digits
    size: int  # of the file, in bytes
    changed: int  # modification time of the file, as in `sources.Picture`
    metadata: Metadata
    vector: np.ndarray | None = None  # (D,) of length 1, in the index's dtype
    thumbnail: bytes | None = None  # a small JPEG, without EXIF
    odd: str | None = None  # `encoding.images.odd_shape`; None: not known, in an index of an older version


class VectorStore(Protocol):
    """An open index. Additions and deletions are visible at once in every open store of the index."""

    about: About  # as of the last call

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows with vectors and thumbnails, all or none. Their ids must be above all ids of the index.

        Replaces no row: the caller deletes older rows of the same paths by their ids.
        """

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes the rows with these ids; ignores ids that do not exist."""

    def search(self, queries: np.ndarray, k: int, where: Condition | None = None, exact: bool | None = None) -> Found:
        """Finds the k rows under the condition with the largest dot products with queries (Q, D) float32.

        Returns scores (Q, K) float32 and ids (Q, K) int64, best first, ties by id; K is k or the number of such rows.
        exact: False uses the store's approximate index, True scores all rows, None lets the store choose.
        Raises UserError if the store does not support the condition.
        """

    def count(self, where: Condition | None = None) -> int:
        """Returns the number of rows that meet the condition."""

    def ids(self) -> np.ndarray:
        """Returns the ids of all rows, (N,) int64, ascending."""

    def value_counts(self, field: str, most: int) -> dict[Value, int] | None:
        """Counts the rows of each value of an integer, boolean or text field; None if it has more than `most` values.

        Values are in ascending order.
        """

    def scan(self, vectors: bool = False, thumbnails: bool = False) -> Iterator[Row]:
        """Yields all rows in the order of their ids, as of the first one."""

    def get(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        """Returns the rows with these ids, in this order, without ids that do not exist."""

    def set_about(self, about: About) -> None:
        """Replaces `about`. Drops columns of removed fields, and adds columns of new fields with None in each row."""

    def optimize(self) -> str:
        """Tidies the index after a build; returns a message for the user, or ""."""


@contextlib.contextmanager
def one_line(place: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turns the errors of a store's library into StoreErrors of one line. kind: the library's own class of errors."""
    try:
        yield
    except UserError:
        raise
    except (kind, RuntimeError, ValueError, OSError) as error:
        line = str(error).partition("\n")[0]
        # Lance names its class of errors before the reason, and places in its code after it.
        reason = re.sub(r"^.*LanceError\(\w+\): |,? (?:location: |/\S*\.rs:).*", "", line) or type(error).__name__
        raise StoreError(f"{place}: {disk_fault(error) or reason}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust, which has no public name for it
            raise
        raise StoreError(f"{place} is damaged: {error}; restore it, or build it again in another folder") from error


def column(field: str) -> str:
    """Returns the column of a field: m_NAME, or x_HEX if the name has other characters than a-z, 0-9 and _.

    That of PATH is `path`.
    """
    if field == PATH:
        return "path"
    return f"m_{field}" if re.fullmatch("[a-z0-9_]+", field) else f"x_{field.encode().hex()}"
