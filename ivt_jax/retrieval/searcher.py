"""Searches an index by sentences, images and filters, for the command, the server and programs in Python.

    searcher = Searcher.open("INDEX")
    answer = searcher.search("a man in a red hoodie")
    answer = searcher.search(Query((Term("a man in a red hoodie"), Term("glasses", -0.5)), where="camera = 3"))

`queries.composition` makes one vector from the parts of a query. The score of a picture is its dot product with this
vector: a weighted mean of cosine similarities, less a share for rejected pictures; for one sentence the cosine
similarity. Calibration covers only the scores of one sentence. A negation becomes an unwanted term: "no hat".

Each phrase has a fit of its own: the share of a sample of the index that fits it less well than the picture; equals
count half. It is near 1 for the best picture and 0.5 for a typical one. So the fits of two phrases compare;
similarities do not. A phrase whose noun the model cannot tell, by `evaluation.nouns`, has none.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import fit, open_image
from ivt_jax.evaluation.nouns import can_tell
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.retrieval import explain
from ivt_jax.retrieval.basis import Basis, BasisReader
from ivt_jax.retrieval.indexing.sources import read_unchanged
from ivt_jax.retrieval.queries.encoder import QueryEncoder
from ivt_jax.retrieval.queries.query import Query, Term, check
from ivt_jax.retrieval.repeats import Repeats
from ivt_jax.retrieval.stores.places import open_store
from ivt_jax.retrieval.stores.store import About, Row, StoreError, VectorStore
from ivt_jax.retrieval.stores.where import Condition, Joined, Metadata, Not, OneOf, Value
from ivt_jax.retrieval.verdict import judge, read_calibration
from ivt_jax.run.workdir import folder_tokenizer

_SAMPLE_ROWS = 10_000
_DISTINCT_ROWS = 10_000  # after that many a search for distinct pictures ends as soon as it finds no new one
_RESAMPLE_SHARE = 0.1  # share of the rows; after a larger change the sample is read again
_ROUNDING = 1e-6  # similarities that differ by less are equal
_Ask = Callable[[int, Condition | None], tuple[np.ndarray, np.ndarray]]
_Found = tuple[Row, float, int | None]  # with its score, and the id of the better row that it repeats


class Phrase(NamedTuple):
    """A phrase of the query and how well a picture fits it, 0 to 1, None if the model cannot tell.

    wanted: False if the picture should not fit it.
    """

    text: str
    score: float | None
    wanted: bool = True


class Result(NamedTuple):
    """A picture."""

    id: int
    path: str  # relative to the root of the index
    score: float
    probability: float | None  # that the person, if indexed, is this one; for the first result of one sentence
    phrases: tuple[Phrase, ...]
    metadata: Metadata
    odd: str | None = None  # what is odd about its shape or size, "" for nothing, None if that is not known
    folded_under: int | None = None  # with `fold`, the id of the better result that it repeats


class Answer(NamedTuple):
    """The results of a search."""

    results: list[Result]  # best first
    searched: int  # number of pictures searched
    basis: Basis  # the state of index and model
    verdict: str  # a sentence on the best score, "" if the model has no calibration
    good: bool | None  # False: no good match; None: no estimate
    unread: str = ""  # the parts of the sentences that the model does not read
    unfinished: str = ""  # states that a build still adds pictures
    terms: tuple[Term, ...] = ()  # the sentences as they were searched; a negation is a term of its own
    without_fit: str = ""  # names the phrases without a fit, and why
    odd: str = ""  # a warning if the query's picture has an odd shape or size
    suggestions: dict[str, str] = {}  # noqa: RUF012 - a sentence with likely misspelt words -> with these corrected


class Searcher:
    """An open index, which threads may share. Attributes: store, encoder, tokenizer, calibration (or None)."""

    def __init__(self, store: VectorStore, workdir: Path | str | None = None, encoder: Encoder | None = None):
        """Loads the model, from `workdir` or by default from the folder that the index names; encoder: a loaded one.

        Raises UserError if the folder has no model or another one than the index, or if the index is empty.
        """
        self.store = store
        self._workdir = folder = self.about.model_folder(workdir)
        self.encoder = encoder or Encoder(folder)
        self.tokenizer = folder_tokenizer(folder, self.encoder.config)
        digests = {"model": self.encoder.about["model"], "tokenizer": self.tokenizer.digest}
        for name, digest in digests.items():
            wanted = getattr(self.about, name)
            if digest != wanted:
                reason = f"the index was made with {name} {short_digest(wanted)}, {folder} has {short_digest(digest)}"
                remedy = "name the folder of the index's model with --workdir, or build the index again"
                raise UserError(f"{reason}: {remedy}")
        self.queries = QueryEncoder(self.encoder, self.tokenizer)
        self.calibration, self._basis = read_calibration(folder), BasisReader(folder)
        self._made, self._sample, self._sampled = self.about.made, *_read_sample(store)

    @property
    def about(self) -> About:
        """The description of the index."""
        return self.store.about

    @classmethod
    def open(cls, place: Path | str, workdir: Path | str | None = None) -> "Searcher":
        """Opens the index at a place, such as a folder. Raises UserError as `open_store` and the constructor."""
        return cls(open_store(place), workdir)

    def search(
        self,
        query: Query | str,
        top: int = 10,
        group: str = "",
        distinct: float | None = None,
        exact: bool | None = None,
        fold: bool = False,
    ) -> Answer:
        """Returns the `top` pictures with the best scores; a text is a query of one sentence.

        group: a field; only the best picture of each value is returned, and every picture without a value. distinct:
        drops a picture whose cosine similarity to a better result exceeds this. exact: as in `VectorStore.search`.
        fold: keeps the results that `group` and `distinct` would drop; `Result.folded_under` is the id of the better
        one. By `distinct` it is set only if the thumbnails look the same, too: a model may not tell two persons apart.
        Raises UserError if the query is not valid for this index.
        """
        count = self._keep_up()
        unfinished = self.about.describe_unfinished(count)  # now, because the build may end during this search
        query = Query((Term(query),)) if isinstance(query, str) else query
        if top < 1:
            raise UserError(f"top is the number of results, 1 or more, not {top}")
        condition = check(query, self.about.fields, group, distinct)
        like = [] if query.like is None else [self._row(query.like, vectors=True)]
        unlike = self.rows(query.unlike, vectors=True)  # an update may have deleted some
        pictures = _vectors(like)[0] if like else None, _vectors(unlike) if unlike else None
        read = self.queries.encode(query, self._sample, *pictures)
        vector, phrases = read.vector[None], read.phrases
        repeats = Repeats(group, distinct, fold, top)
        found = self._find(
            lambda k, where: self.store.search(vector, k, where, exact), condition, top, repeats, like + unlike
        )
        rows = [row for row, _, _ in found]
        fits = self._fit(rows, list(phrases), read.embeddings)
        results = [
            Result(
                row.id, row.path, score, None, tuple(map(Phrase, phrases, fit, phrases.values())), row.metadata,
                row.odd, better,
            )
            for (row, score, better), fit in zip(found, fits, strict=True)
        ]  # fmt: skip
        searched = count if condition is None else self.count(condition)
        best = results[0].score if results else None
        judged = judge(self.calibration, query._replace(terms=read.terms), best, searched, read.unread, unfinished)
        if results:
            results[0] = results[0]._replace(probability=judged.probability)
        return Answer(
            results,
            searched,
            basis=self._basis.read(self.about, [row.odd for row in rows]),
            verdict=judged.verdict,
            good=judged.good,
            unread=read.unread,
            unfinished=unfinished,
            terms=read.terms,
            without_fit=self._without_fit(phrases),
            odd=read.odd,
            suggestions=read.suggestions,
        )

    def heat_maps(self, id: int, phrases: Sequence[str]) -> tuple[Image.Image, np.ndarray]:
        """Returns a picture and, as `explain.heat_maps`, a map of each phrase: (P, rows, columns) float32, 0 to 1.

        The picture is the thumbnail of the index if the file is gone or has changed.
        """
        row, vectors = self._row(id, thumbnails=True), self.queries.embed_texts(phrases)
        image = open_image(row.path, self.read(row) or row.thumbnail)
        return image, explain.heat_maps(self.encoder, fit(image, self.encoder.size), vectors)

    def rows(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        """Returns rows as `VectorStore.get`. Raises StoreError if another index has replaced the one that is open."""
        rows = self.store.get(ids, vectors, thumbnails)
        self._refuse_replaced()
        return rows

    def count(self, where: Condition | None = None) -> int:
        """Counts rows as `VectorStore.count`. Raises StoreError if another index has replaced the one that is open."""
        count = self.store.count(where)
        self._refuse_replaced()
        return count

    def value_counts(self, most: int) -> dict[str, dict[Value, int]]:
        """Counts the pictures of each value of each integer, boolean or text field with at most `most` values."""
        kinds = [name for name, kind in self.about.fields.items() if kind in ("integer", "boolean", "text")]
        counts = {name: self.store.value_counts(name, most) for name in kinds}
        self._refuse_replaced()
        return {name: known for name, known in counts.items() if known}

    def thumbnail(self, id: int) -> bytes | None:
        """Returns the small JPEG of a row, None if the index has no such row."""
        return next((row.thumbnail for row in self.rows([id], thumbnails=True)), None)

    def file(self, path: str) -> Path:
        """Returns the file of a result; it may be gone."""
        return Path(self.about.root) / path

    def read(self, row: Row) -> bytes | None:
        """Returns the content of a row's file, None if that is gone, has changed, or is outside of the root."""
        return read_unchanged(Path(self.about.root), row)

    def _keep_up(self) -> int:
        """Counts the rows; after many changes reads a new sample."""
        count = self.count()
        if abs(count - self._sampled) > _RESAMPLE_SHARE * self._sampled:
            self._sample, self._sampled = _read_sample(self.store)
        return count

    def _refuse_replaced(self) -> None:
        if self.about.made != self._made:
            raise StoreError("another index has replaced the one that is open: open it again, or restart the server")

    def _find(
        self, ask: _Ask, where: Condition | None, top: int, repeats: Repeats, excluded: Sequence[Row]
    ) -> list[_Found]:
        """Returns the rows to show, with vectors, scores, and the better rows that they repeat.

        ask(k, condition) returns scores and ids. excluded: rows that are not shown.
        """
        shown: list[_Found] = []
        paths = {row.path for row in excluded}  # a row that is being replaced has two ids and one path
        condition, k = where, 2 * top if repeats.drop or excluded else top
        while True:
            before = len(shown)
            scores, ids = (found[0].tolist() for found in ask(k, condition))
            score = dict(zip(ids, scores, strict=True))
            for row in self.rows(ids, vectors=True, thumbnails=repeats.by_look):
                if len(shown) == top or row.path in paths:
                    continue
                better = repeats.find(row)
                if better is None or not repeats.drop:
                    shown.append((row, score[row.id], better))
                    paths.add(row.path)
            stuck = len(shown) == before and k >= _DISTINCT_ROWS
            if len(shown) == top or len(ids) < k or stuck:
                return sorted(shown, key=lambda found: -found[1])  # a row added meanwhile may score better
            k *= 2
            if repeats.drop and repeats.values:  # ask without the groups that are shown
                others = Not(OneOf(repeats.group, tuple(repeats.values)))
                condition = others if where is None else Joined("and", (where, others))

    def _fit(self, rows: Sequence[Row], phrases: Sequence[str], vectors: np.ndarray) -> list[list[float | None]]:
        """Returns how well each row fits each phrase; vectors (P, D) are those of the phrases."""
        if not rows or not phrases:
            return [[] for _ in rows]
        sample = self._sample  # another thread may replace it
        products, ordered = vectors @ _vectors(rows).T, np.sort(vectors @ sample.T)
        pairs = list(zip(ordered, products, strict=True))
        less = [np.searchsorted(line, own - _ROUNDING, "left") for line, own in pairs]
        less_or_equal = [np.searchsorted(line, own + _ROUNDING, "right") for line, own in pairs]
        shares = np.add(less, less_or_equal).T / (2 * len(sample))
        fits = shares.astype(object)
        fits[:, [not self._can_tell(phrase) for phrase in phrases]] = None
        return fits.tolist()

    def _can_tell(self, phrase: str) -> bool:
        return self.calibration is not None and can_tell(self.calibration.nouns, phrase)

    def _without_fit(self, phrases: Iterable[str]) -> str:
        """Says which phrases have no fit, and why; "" if all have one."""
        without_fit = [phrase for phrase in phrases if not self._can_tell(phrase)]
        if not without_fit:
            return ""
        if self.calibration is None or not self.calibration.nouns:
            return "no fit of phrases: no validation shows what this model can tell"
        return f"this model cannot tell: {', '.join(without_fit)}"

    def _row(self, id: int, vectors: bool = False, thumbnails: bool = False) -> Row:
        rows = self.rows([id], vectors, thumbnails)
        if not rows:
            raise UserError(f"the index has no picture with the id {id}")
        return rows[0]


def _read_sample(store: VectorStore) -> tuple[np.ndarray, int]:
    """Reads evenly spaced rows -> (S, D) float32, and the number of all rows. Raises UserError if there are none."""
    ids = store.ids()
    if not len(ids):
        raise UserError("the index has no pictures: add some with python -m ivt_jax.index")
    return _vectors(store.get(ids[:: -(-len(ids) // _SAMPLE_ROWS)].tolist(), vectors=True)), len(ids)


def _vectors(rows: Sequence[Row]) -> np.ndarray:
    """(n, D) float32."""
    return np.array([row.vector for row in rows], np.float32)
