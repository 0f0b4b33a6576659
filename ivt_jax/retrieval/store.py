"""What an index holds, and what it can be asked: the small protocol behind which LanceDB and Qdrant stand.

An index has a row for each picture. `ivt_jax.retrieval.places` opens one.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.where import Condition, Value

FORMAT = 1  # raise it where an older ivt_jax would misread what is written now


class NoIndexError(UserError):
    """There is no index in the place; one can be made there."""


class StoreError(UserError):
    """The index cannot be read, or written, whatever is asked of it."""


@dataclasses.dataclass(frozen=True)
class About:
    """What all rows have in common, and what a query must have in common with them.

    model: digest of parameters and `config.model`; tokenizer: its digest; images: what is done to a picture
    (`encoding.images.preprocessing`); dtype: of the vectors, "float32" or "float16"; fields: name and type (a key of
    `where.TYPES`) of each column of metadata; workdir: folder of the model, root: of the pictures, absolute; made:
    distinguishes the index from another made in its place; unfinished: the first id that a running or stopped build has
    assigned, -1 if there is none or it does not matter; planned: the number of rows that the index holds once such a
    build has added all its new pictures, 0 if no picture is waiting to be added; sideways: rows of smaller ids may have
    been embedded before pictures were turned upright (`ivt_jax.retrieval.upright`), 0 if there are none.
    """

    model: str
    tokenizer: str
    dimension: int
    dtype: str
    images: Mapping[str, Any]
    fields: Mapping[str, str]
    workdir: str
    root: str
    made: str = ""
    format: int = FORMAT
    unfinished: int = -1
    planned: int = 0
    sideways: int = 0

    def model_folder(self, workdir: Path | str | None) -> Path:
        """Where the model is: in `workdir`, or else where the index says. UserError where it is not there any more."""
        folder = Path(workdir or self.workdir)
        if workdir is None and not (folder / "config.json").is_file():
            raise UserError(f"the model of the index is not in {folder} any more: name its folder with --workdir")
        return folder

    def to_json(self) -> str:
        """As the stores keep it; `About(**json.loads(...))` reads it."""
        stated = dataclasses.asdict(self)
        for key, unset in (("unfinished", -1), ("planned", 0), ("sideways", 0)):
            if stated[key] == unset:
                del stated[key]  # older versions of ivt_jax do not know these keys
        return json.dumps(stated)

    def describe_unfinished(self, rows: int) -> str:
        """Says that pictures are still to be added, and what to do; "" if none is. rows: how many the index holds."""
        if rows >= self.planned:
            return ""
        # While rows of pictures that are gone are counted as well, the number does not show how far the build is.
        progress = "" if self.unfinished >= 0 else f" ({rows:,} of {self.planned:,} pictures)"
        return f"the index is unfinished{progress}; wait for its build, or run python -m ivt_jax.index again"


class Row(NamedTuple):
    """A picture. Those who read rows without vectors or thumbnails find None there."""

    id: int  # 0, 1, 2, ... in the order of adding
    path: str  # relative to the root, with "/" between folders
    digest: str  # SHA-256 of the file's content, in hexadecimal digits
    size: int  # of the file, in bytes
    changed: int  # the file's time of change, in ns, as `sources.Picture` has it
    metadata: Mapping[str, Value | None]  # a value for each of the index's fields, None where none is known
    vector: np.ndarray | None = None  # (D,) of length 1, in the index's dtype
    thumbnail: bytes | None = None  # a small JPEG, without EXIF


class VectorStore(Protocol):
    """An index, open. What is added or deleted is there at once, for this store and for all that are open elsewhere."""

    about: About  # as it was when the store was last asked

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows, all or none, with vectors and thumbnails, of ids above all that the index has.

        Replaces no row: the index may have older rows of the same paths, which the caller then deletes by their ids.
        """

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes the rows of these ids; those that are not there are passed over."""

    def search(
        self, queries: np.ndarray, k: int, where: Condition | None = None, exact: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k rows that meet the condition with the largest products with queries (Q, D) float32.

        Returns scores (Q, K) float32 and ids (Q, K) int64, best first, ties by id; K is k or the number of such rows.
        exact: False for the store's approximate index, True for all rows one by one, None for what suits their number.
        Raises UserError where the condition cannot be asked of this store.
        """

    def count(self, where: Condition | None = None) -> int:
        """How many rows meet the condition."""

    def ids(self) -> np.ndarray:
        """Those of all rows, (N,) int64, ascending."""

    def values(self, field: str, most: int) -> list[Value] | None:
        """What a field of type integer, boolean or text holds, ascending; None for more than `most` values."""

    def scan(self, vectors: bool = False, thumbnails: bool = False) -> Iterator[Row]:
        """All rows in the order of their ids, as they are at the first one."""

    def get(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        """The rows of these ids, in this order; those that are not there are left out."""

    def set_about(self, about: About) -> None:
        """States another `about`; where its fields differ, columns are dropped, or added with None in each row."""

    def optimize(self) -> str:
        """Puts in order what many additions and deletions left, once a build is done; returns what there is to tell."""


def column(field: str) -> str:
    """What a store calls a field: m_NAME, or x_HEX where the name has more than small letters, digits and _."""
    return f"m_{field}" if re.fullmatch("[a-z0-9_]+", field) else f"x_{field.encode().hex()}"
