"""Searches an index by sentences, images and filters, for the command, the server and programs in Python.

    searcher = Searcher.open("INDEX")
    answer = searcher.search("a man in a red hoodie")
    answer = searcher.search(Query((Term("a man in a red hoodie"), Term("glasses", -0.5)), where="camera = 3"))

`queries.composition` says how a query's parts become one vector; the score of a picture is its cosine similarity to
this, so for one sentence it is their cosine similarity. Calibration covers no other score. A negation becomes an
unwanted term of its own: "no hat".

Each phrase has a fit of its own: the share of a sample of the index that fits it less well than the picture; equals
count half. It is near 1 for the best picture and 0.5 for a typical one. So the fits of two phrases compare;
similarities do not. A phrase whose thing the model cannot tell, by `evaluation.things`, has none.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import fit, open_image
from ivt_jax.evaluation.calibration import Calibration, probability
from ivt_jax.evaluation.things import can_tell
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.retrieval import explain
from ivt_jax.retrieval.basis import Basis, make_basis
from ivt_jax.retrieval.indexing.sources import read_unchanged
from ivt_jax.retrieval.queries.query import Query, Term, check
from ivt_jax.retrieval.queries.reader import QueryReader
from ivt_jax.retrieval.stores.places import open_store
from ivt_jax.retrieval.stores.store import About, Row, StoreError, VectorStore
from ivt_jax.retrieval.stores.where import Condition, Joined, Metadata, Not, OneOf, Value
from ivt_jax.run.workdir import folder_tokenizer, load_record

SAMPLE = 10_000  # rows at most
_LOOKED_THROUGH = 10_000  # rows; after that many a search for distinct pictures ends as soon as it finds no new one
_GROWN = 0.1  # share of the rows; after a larger change the sample is read again
_EQUAL = 1e-6  # similarities that differ by less are equal; the rest is rounding
_LARGER = 10  # times the gallery of validation; in a larger index a good score comes too often by chance
_Ask = Callable[[int, Condition | None], tuple[np.ndarray, np.ndarray]]


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
    odd: str | None = None  # why it is unlike the crops that models learn from, "" if it is like them, None: not known


class Answer(NamedTuple):
    """The results of a search."""

    results: list[Result]  # best first
    searched: int  # number of pictures searched
    verdict: str  # a sentence on the best score
    good: bool | None  # False: no good match; None: validation does not cover the query
    unread: str = ""  # the parts of the sentences that the model does not read
    unfinished: str = ""  # states that a build still adds pictures
    terms: tuple[Term, ...] = ()  # the sentences as they were searched: what a sentence negates is a term of its own
    untold: str = ""  # names the phrases without a fit, and why
    basis: Basis | None = None  # what it rests on
    odd: str = ""  # says how the query's picture is unlike a crop
    suggestions: dict[str, str] = {}  # noqa: RUF012 - a sentence with likely misspelt words -> with these mended


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
        self.reader = QueryReader(self.encoder, self.tokenizer)
        self.calibration = read_calibration(folder)
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
    ) -> Answer:
        """Returns the `top` pictures with the best scores; a text is a query of one sentence.

        group: a field; only the best picture of each value is returned, and every picture without a value. distinct:
        drops a picture whose cosine similarity to a better result exceeds this. exact: as in `VectorStore.search`.
        Raises UserError if the query is not valid for this index.
        """
        count = self._keep_up()
        unfinished = self.about.describe_unfinished(count)  # now, because the build may end during this search
        query = Query((Term(query),)) if isinstance(query, str) else query
        if top < 1:
            raise UserError(f"top is the number of results, 1 or more, not {top}")
        condition = check(query, self.about.fields, group, distinct)
        like = [] if query.like is None else [self._row(query.like, vectors=True)]
        unlike = [self._row(id, vectors=True) for id in query.unlike]
        pictures = _vectors(like)[0] if like else None, _vectors(unlike) if unlike else None
        read = self.reader.read(query, self._sample, *pictures)
        vector, phrases = read.vector[None], read.phrases
        found = self._find(
            lambda k, where: self.store.search(vector, k, where, exact), condition, top, group, distinct, like + unlike
        )
        fits = self._fit([row for row, _ in found], list(phrases), read.embeddings)
        results = [
            Result(
                row.id, row.path, score, None, tuple(map(Phrase, phrases, fit, phrases.values())), row.metadata, row.odd
            )
            for (row, score), fit in zip(found, fits, strict=True)
        ]
        searched = count if condition is None else self.store.count(condition)
        basis = make_basis(self.about, self._workdir, [row.odd for row, _ in found])
        answer = Answer(
            results, searched, "", None, read.unread, unfinished, read.terms, self._untold(phrases), basis, read.odd,
            read.suggestions,
        )  # fmt: skip
        return self._judge(query._replace(terms=read.terms), answer)

    def heat_maps(self, id: int, phrases: Sequence[str]) -> tuple[Image.Image, np.ndarray]:
        """Returns a picture and, as `explain.heat_maps`, a map of each phrase: (P, rows, columns) float32, 0 to 1.

        The picture is the thumbnail of the index if the file is gone or has changed.
        """
        row, vectors = self._row(id, thumbnails=True), self.reader.embed_texts(phrases)
        image = open_image(row.path, read_unchanged(Path(self.about.root), row) or row.thumbnail)
        return image, explain.heat_maps(self.encoder, fit(image, self.encoder.size), vectors)

    def thumbnail(self, id: int) -> bytes | None:
        """Returns the small JPEG of a row, None if the index has no such row."""
        return next((row.thumbnail for row in self.store.get([id], thumbnails=True)), None)

    def file(self, path: str) -> Path:
        """Returns the file of a result; it may be gone."""
        return Path(self.about.root) / path

    def _keep_up(self) -> int:
        """Counts the rows; after many changes reads a new sample. Raises StoreError if the index was replaced."""
        count = self.store.count()
        if self.about.made != self._made:
            raise StoreError("another index has replaced the one that is open: open it again")
        if abs(count - self._sampled) > _GROWN * self._sampled:
            self._sample, self._sampled = _read_sample(self.store)
        return count

    def _find(
        self, ask: _Ask, where: Condition | None, top: int, group: str, distinct: float | None, known: Sequence[Row]
    ) -> list[tuple[Row, float]]:
        """Returns the rows to show, with vectors, and their scores; ask(k, condition) returns scores and ids.

        known: rows that are not shown.
        """
        shown: list[tuple[Row, float]] = []
        kept: list[np.ndarray] = []  # their vectors
        values: list[Value] = []  # their values of the field `group`
        paths = {row.path for row in known}  # a row that is being replaced has two ids and one path
        condition, k = where, 2 * top if group or distinct is not None or known else top
        while True:
            before = len(shown)
            scores, ids = (found[0].tolist() for found in ask(k, condition))
            score, rows = dict(zip(ids, scores, strict=True)), self.store.get(ids, vectors=True)
            for row, vector in zip(rows, _vectors(rows), strict=True):
                value = row.metadata.get(group)
                if len(shown) == top or row.path in paths or value in values:
                    continue
                if distinct is not None and kept and np.max(kept @ vector) > distinct:
                    continue
                shown.append((row, score[row.id]))
                kept.append(vector)
                paths.add(row.path)
                values += [] if value is None else [value]
            stuck = len(shown) == before and k >= _LOOKED_THROUGH
            if len(shown) == top or len(ids) < k or stuck:
                return sorted(shown, key=lambda found: -found[1])  # a row added meanwhile may score better
            k *= 2
            if values:  # ask without the groups that are shown
                others = Not(OneOf(group, tuple(values)))
                condition = others if where is None else Joined("and", (where, others))

    def _fit(self, rows: Sequence[Row], phrases: Sequence[str], vectors: np.ndarray) -> list[list[float | None]]:
        """Returns how well each row fits each phrase; vectors (P, D) are those of the phrases."""
        if not rows or not phrases:
            return [[] for _ in rows]
        sample = self._sample  # another thread may replace it
        products, ordered = vectors @ _vectors(rows).T, np.sort(vectors @ sample.T)
        pairs = list(zip(ordered, products, strict=True))
        less = [np.searchsorted(line, own - _EQUAL, "left") for line, own in pairs]
        less_or_equal = [np.searchsorted(line, own + _EQUAL, "right") for line, own in pairs]
        shares = np.add(less, less_or_equal).T / (2 * len(sample))
        known = [self._can_tell(phrase) for phrase in phrases]
        return [[share if can else None for share, can in zip(row, known, strict=True)] for row in shares.tolist()]

    def _can_tell(self, phrase: str) -> bool:
        return self.calibration is not None and can_tell(self.calibration.things, phrase)

    def _untold(self, phrases: Iterable[str]) -> str:
        """Says which phrases have no fit, and why; "" if all have one."""
        untold = [phrase for phrase in phrases if not self._can_tell(phrase)]
        if not untold:
            return ""
        if self.calibration is None or not self.calibration.things:
            return "no fit of phrases: no validation shows what this model can tell"
        return f"this model cannot tell: {', '.join(untold)}"

    def _judge(self, query: Query, answer: Answer) -> Answer:
        """Adds the verdict, `good` and, for one sentence without a filter, the probability of the first result."""
        results, searched, none = answer.results, answer.searched, "No confidence estimate"
        if answer.unfinished:  # the right picture may not be in yet
            return answer._replace(verdict=f"{none if results else 'No such picture yet'}: {answer.unfinished}")
        if not results:
            return answer._replace(verdict="no good match: there is no such picture", good=False)
        if self.calibration is None:
            return answer
        pictures = query.image is not None or query.like is not None or query.unlike
        alone = len(query.terms) == 1 and query.terms[0].weight > 0 and not pictures
        if not alone or query.where.strip():
            return answer._replace(verdict=f"{none}: calibration covers single sentences without filters")
        if answer.unread:
            return answer._replace(verdict=f"{none}: the model does not read the whole sentence")
        gallery, threshold = self.calibration.gallery, self.calibration.threshold
        source = f"(from validation, with {gallery:,} pictures)"
        best, right = results[0].score, float(probability(self.calibration, results[0].score))
        covered = searched <= _LARGER * gallery
        if covered:
            results[0] = results[0]._replace(probability=right)
        if best < threshold:
            verdict = f"no good match: the best score lies below {threshold:.4f} {source}"
            return answer._replace(verdict=verdict, good=False)
        if not covered:
            return answer._replace(verdict=f"{none}: calibration with {gallery:,} pictures does not cover {searched:,}")
        verdict = f"if the person is among them, the first is right with {right:.0%} {source}"
        return answer._replace(verdict=verdict, good=True)

    def _row(self, id: int, vectors: bool = False, thumbnails: bool = False) -> Row:
        rows = self.store.get([id], vectors, thumbnails)
        if not rows:
            raise UserError(f"the index has no picture with the id {id}")
        return rows[0]


def read_calibration(workdir: Path) -> Calibration | None:
    """Reads the calibration from the validation results of a run, or from config.json of an export; None if absent."""
    path = workdir / "val/summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        summary = summary or load_record(workdir).get("scores", {}).get("val", {})
        return Calibration(**summary["calibration"]) if "calibration" in summary else None
    except UserError:
        raise
    except (TypeError, ValueError):
        raise UserError(f"{path} is damaged: evaluate the run again, --mode=evaluate") from None


def _read_sample(store: VectorStore) -> tuple[np.ndarray, int]:
    """Reads up to SAMPLE evenly spaced rows -> (S, D) float32, and the number of all rows. UserError if it is 0."""
    ids = store.ids()
    if not len(ids):
        raise UserError("the index has no pictures: add some with python -m ivt_jax.index")
    return _vectors(store.get(ids[:: -(-len(ids) // SAMPLE)].tolist(), vectors=True)), len(ids)


def _vectors(rows: Sequence[Row]) -> np.ndarray:
    """(n, D) float32."""
    return np.array([row.vector for row in rows], np.float32)
