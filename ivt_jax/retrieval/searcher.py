"""An index, open for questions: what the command, the page and programs in Python search with.

    searcher = Searcher.open("INDEX")
    answer = searcher.search("a man in a red hoodie")
    answer = searcher.search(Query((Term("a man in a red hoodie"), Term("glasses", -0.5)), where="camera = 3"))

*The score of a picture* is the product of its vector with the query's. The model makes a vector e_i, of length 1, of
each term and of the image; with the weights w_i, the query's is

    q = sum_i (w_i / s_i) e_i  /  sum_i |w_i| / s_i

where s_i is the standard deviation of the products of e_i with a sample of the index. Images differ more in their
products with an image than in those with a sentence, and would else outvote it. Of one sentence alone q is its vector,
and the score the cosine similarity, of which validation says what it means.

*The score of a phrase* with a picture is the share of the same sample that fits the phrase less well, equals counting
half: 1 for the best of the index, 0.5 for one like any other. So the scores of two phrases compare, which their cosine
similarities do not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.inspection import leads_out
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.embedding import encode_texts
from ivt_jax.encoding.encoder import ImageEncoder
from ivt_jax.encoding.images import fit, load_image, open_image
from ivt_jax.evaluation.calibration import Calibration, probability
from ivt_jax.gallery.crops import read_content
from ivt_jax.gallery.vectors import short_digest
from ivt_jax.models.ivt import PAD_ID
from ivt_jax.retrieval import explain
from ivt_jax.retrieval.places import open_store
from ivt_jax.retrieval.query import Query, Term, check, phrases_of
from ivt_jax.retrieval.store import About, Row, StoreError, VectorStore
from ivt_jax.retrieval.where import All, Condition, Not, OneOf, Value
from ivt_jax.run.workdir import folder_tokenizer, load_record

SAMPLE = 10_000  # rows at most
_LOOKED_THROUGH = 10_000  # rows at most, before a search for distinct pictures is content with fewer
_GROWN = 0.1  # of the rows that the sample was of: with so many more or fewer it is read again
_EQUAL = 1e-6  # products that differ by less are equal, the rest is rounding
_LARGER = 10  # times validation's gallery: among more a good score comes by chance too often for its probability
_BRIEF = 60  # characters of a sentence in a message
_LEAST_SPREAD = 1e-6  # of an index whose pictures are all alike, where no term has more to say than another


class Phrase(NamedTuple):
    """A phrase of the query, and how well a picture fits it: the share of the sample that fits less well, 0 to 1.

    wanted: whether the picture should fit it, or should not.
    """

    text: str
    score: float
    wanted: bool = True


class Result(NamedTuple):
    """A picture found.

    path: relative to the index's root. probability: that it is of the person described, provided that the person is in
    the index; validation knows it of the first result alone, and for one sentence without a filter.
    """

    id: int
    path: str
    score: float
    probability: float | None
    phrases: tuple[Phrase, ...]
    metadata: Mapping[str, Value | None]


class Answer(NamedTuple):
    """Results from the best to the worst, of how many pictures, and what the best score means, in words.

    good: False where validation says that nobody here fits; None where it says nothing of such a query. unread: what of
    the sentences the model has not read, in words, "" for nothing. unfinished: says that pictures are still to be added
    to the index, "" if none is.
    """

    results: list[Result]
    searched: int
    verdict: str
    good: bool | None
    unread: str = ""
    unfinished: str = ""


class Searcher:
    """An index and the model that made it. Threads may share one.

    Attributes: store; encoder; tokenizer; calibration, what the model's validation says of scores, or None.
    """

    def __init__(self, store: VectorStore, workdir: Path | str | None = None, encoder: ImageEncoder | None = None):
        """workdir: of the model, where it is not the one that the index states; encoder: its, where it is open already.

        Raises UserError where the folder holds no model, or another one than the index was made with, or the index is
        empty.
        """
        self.store = store
        folder = self.about.model_folder(workdir)
        self.encoder = encoder or ImageEncoder(folder)
        self.tokenizer = folder_tokenizer(folder, self.encoder.config)
        found = {"model": self.encoder.about["model"], "tokenizer": self.tokenizer.digest}
        for name, digest in found.items():
            wanted = getattr(self.about, name)
            if digest != wanted:
                raise UserError(
                    f"the index was made with {name} {short_digest(wanted)}, {folder} has {short_digest(digest)}: name "
                    "the folder of the index's model with --workdir, or make the index anew"
                )
        self.calibration = read_calibration(folder)
        self._made, self._sample, self._sampled = self.about.made, *_read_sample(store)

    @property
    def about(self) -> About:
        """What the index states."""
        return self.store.about

    @classmethod
    def open(cls, place: Path | str, workdir: Path | str | None = None) -> "Searcher":
        """An index by its place, as `open_store`; UserError as there and in the constructor."""
        return cls(open_store(place), workdir)

    def search(
        self,
        query: Query | str,
        top: int = 10,
        group: str = "",
        distinct: float | None = None,
        exact: bool | None = None,
    ) -> Answer:
        """The `top` pictures that fit best; a text is a query of one sentence.

        group: a field, of each value of which the best picture alone is shown; one without a value stands for itself.
        distinct: leaves out a picture whose cosine similarity with a better one that is shown lies above it.
        exact: as `VectorStore.search`. Raises UserError where this cannot be asked.
        """
        count = self._keep_up()
        unfinished = self.about.describe_unfinished(count)  # as it is now: the build may end during this search
        query = Query((Term(query),)) if isinstance(query, str) else query
        if top < 1:
            raise UserError(f"top is how many pictures are wanted, 1 or more, not {top}")
        condition = check(query, self.about.fields, group, distinct)
        unread = self._unread(query.terms)
        vector, phrases = self._embed_query(query), phrases_of(query)
        found = self._find(vector, condition, top, group, distinct, exact, query.like)
        fits = self._fit([row for row, _ in found], list(phrases))
        results = [
            Result(row.id, row.path, score, None, tuple(map(Phrase, phrases, fit, phrases.values())), row.metadata)
            for (row, score), fit in zip(found, fits, strict=True)
        ]
        searched = count if condition is None else self.store.count(condition)
        answer = _refrain(results, searched, unfinished) if unfinished else self._judge(query, results, searched)
        return answer._replace(unread=unread)

    def phrases(self, text: str) -> list[str]:
        """The phrases of a sentence, which `heat_maps` takes."""
        return list(phrases_of(Query((Term(text),))))

    def heat_maps(self, id: int, phrases: Sequence[str]) -> tuple[Image.Image, np.ndarray]:
        """A picture, and where in it each phrase is seen: (P, rows, columns) float32 from 0 to 1, as `explain`.

        The picture is the file, or its thumbnail where the file is gone, or another one than was indexed.
        """
        row, vectors = self._row(id, thumbnails=True), self._embed_texts(phrases)
        image = open_image(row.path, self._content(row))
        return image, explain.heat_maps(self.encoder, fit(image, self.encoder.size), vectors)

    def thumbnail(self, id: int) -> bytes | None:
        """The small JPEG of a row; None where there is no such row."""
        return next((row.thumbnail for row in self.store.get([id], thumbnails=True)), None)

    def file(self, path: str) -> Path:
        """Where a result's picture lies, or lay."""
        return Path(self.about.root) / path

    def _keep_up(self) -> int:
        """Goes with an index that grows, and counts it. Raises StoreError where another one was made in its place."""
        count = self.store.count()
        if self.about.made != self._made:
            raise StoreError("another index has been made in the place of the one that is open: open it again")
        if abs(count - self._sampled) > _GROWN * self._sampled:
            self._sample, self._sampled = _read_sample(self.store)
        return count

    def _unread(self, terms: Sequence[Term]) -> str:
        """What of the sentences the model does not read, in words. Raises UserError where it reads nothing of one."""
        length, told = self.encoder.config.text.length["sentence"], []
        for term in terms:
            words, end, nothing = self.tokenizer.unread(term.text, length)
            if nothing:
                raise UserError(f"the sentence has no word that the model knows: {_brief(term.text)}")
            if words:
                told.append(f"{_brief(' '.join(dict.fromkeys(words)))} (unknown to the model)")
            if end:
                told.append(f"{_brief(end)} (it reads {length - 2} tokens of a sentence: ask in parts)")
        return f"not read: {'; '.join(told)}" if told else ""

    def _embed_query(self, query: Query) -> np.ndarray:
        """(D,) float32. Raises UserError where nothing is left of it."""
        parts, weights = self._embed_texts([term.text for term in query.terms]), [term.weight for term in query.terms]
        if query.image is not None:
            parts, weights = np.vstack([parts, self._embed_image(query.image)]), [*weights, query.image_weight]
        if query.like is not None:
            row = self._row(query.like, vectors=True)
            parts, weights = np.vstack([parts, _vectors([row])]), [*weights, query.image_weight]
        spread = np.maximum((self._sample @ parts.T).std(0), _LEAST_SPREAD)
        shares = np.array(weights) / spread
        vector = shares / np.abs(shares).sum() @ parts
        if np.abs(vector).max() < _EQUAL:
            raise UserError("the parts of the query cancel each other out: nothing is left to look for")
        return vector.astype(np.float32)

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 of length 1. Rows and tokens are padded to powers of two: so few programs are compiled."""
        if not texts:
            return np.empty((0, self.about.dimension), np.float32)
        ids = self.tokenizer.encode(texts, self.encoder.config.text.length["sentence"])
        lengths = (ids != PAD_ID).sum(1)
        if lengths.min() <= 2:  # [CLS] and [SEP]
            raise UserError("the sentence has no word that can be read: describe a person")
        ids = ids[:, : _power_of_two(lengths.max())]
        padded = np.pad(ids, [(0, _power_of_two(len(ids)) - len(ids)), (0, 0)])
        return np.asarray(encode_texts(self.encoder.model, self.encoder.params, padded))[: len(ids)]

    def _embed_image(self, image: Path | bytes) -> np.ndarray:
        """(1, D) float32 of length 1."""
        name = image if isinstance(image, Path) else "the image"
        pixels = load_image(name, self.encoder.size, image)
        return self.encoder.embed(iter([pixels[None]]))

    def _find(
        self,
        vector: np.ndarray,
        where: Condition | None,
        top: int,
        group: str,
        distinct: float | None,
        exact: bool | None,
        like: int | None,
    ) -> list[tuple[Row, float]]:
        """The rows to show, with vectors, and their scores; `like` is not among them.

        Where some have to be left out, more than `top` are asked for, and again, without the groups that are shown.
        """
        shown: list[tuple[Row, float]] = []
        kept: list[np.ndarray] = []  # their vectors
        values: list[Value] = []  # of the group's field, in those shown
        seen, condition = {like}, where
        # A path may come again with another id, while its row is replaced.
        paths = {row.path for row in self.store.get([] if like is None else [like])}
        k = top if not group and distinct is None and like is None else 2 * top
        while True:
            before = len(shown)
            scores, ids = (found[0].tolist() for found in self.store.search(vector[None], k, condition, exact))
            score, rows = dict(zip(ids, scores, strict=True)), self.store.get(ids, vectors=True)
            for row, own in zip(rows, _vectors(rows), strict=True):
                value = row.metadata.get(group)
                if len(shown) == top or row.id in seen or row.path in paths or value in values:
                    continue
                if distinct is not None and kept and np.max(kept @ own) > distinct:
                    continue
                shown.append((row, score[row.id]))
                kept.append(own)
                seen.add(row.id)
                paths.add(row.path)
                values += [] if value is None else [value]
            stuck = len(shown) == before and k >= _LOOKED_THROUGH
            if len(shown) == top or len(ids) < k or stuck:
                return sorted(shown, key=lambda found: -found[1])  # as they are, but where rows came meanwhile
            k *= 2
            if values:
                others = Not(OneOf(group, tuple(values)))
                condition = others if where is None else All((where, others))

    def _fit(self, rows: Sequence[Row], phrases: Sequence[str]) -> list[list[float]]:
        """For each row the score of each phrase."""
        if not rows or not phrases:
            return [[] for _ in rows]
        vectors, sample = self._embed_texts(phrases), self._sample  # another thread may read a new one meanwhile
        products, ordered = vectors @ _vectors(rows).T, np.sort(vectors @ sample.T)
        less = [np.searchsorted(all, own - _EQUAL, "left") for all, own in zip(ordered, products, strict=True)]
        up_to = [np.searchsorted(all, own + _EQUAL, "right") for all, own in zip(ordered, products, strict=True)]
        return (np.add(less, up_to).T / (2 * len(sample))).tolist()

    def _judge(self, query: Query, results: list[Result], searched: int) -> Answer:
        """The answer, with what validation says of it."""
        if not results:
            return Answer([], searched, "no good match: there is no such picture", False)
        if self.calibration is None:
            return Answer(results, searched, "", None)
        alone = len(query.terms) == 1 and query.terms[0].weight > 0 and query.image is None and query.like is None
        if not alone or query.where.strip():
            verdict = "No confidence estimate: calibration covers single sentences without filters"
            return Answer(results, searched, verdict, None)
        gallery = self.calibration.gallery
        learned = f"from validation, with {gallery:,} pictures"
        larger = searched > _LARGER * gallery
        right = float(probability(self.calibration, results[0].score))
        if not larger:
            results[0] = results[0]._replace(probability=right)
        if results[0].score < self.calibration.threshold:
            verdict = f"no good match: the best score lies below {self.calibration.threshold:.4f} ({learned})"
            return Answer(results, searched, verdict, False)
        if larger:
            verdict = f"No confidence estimate: calibration with {gallery:,} pictures does not cover {searched:,}"
            return Answer(results, searched, verdict, None)
        verdict = f"if the person is among them, the first is right with {right:.0%} ({learned})"
        return Answer(results, searched, verdict, True)

    def _content(self, row: Row) -> bytes | None:
        """The file of a row, where it lies in the folder of pictures and is what was indexed; else the thumbnail."""
        file = self.file(row.path)
        try:
            content = b"" if leads_out(Path(self.about.root), file) else read_content(row.path, file)
        except UserError:
            content = b""
        return content if hashlib.sha256(content).hexdigest() == row.digest else row.thumbnail

    def _row(self, id: int, vectors: bool = False, thumbnails: bool = False) -> Row:
        rows = self.store.get([id], vectors, thumbnails)
        if not rows:
            raise UserError(f"the index has no picture with the id {id}")
        return rows[0]


def _refrain(results: list[Result], searched: int, unfinished: str) -> Answer:
    """Returns the answer of an unfinished index, without a probability: the right picture may not be in yet."""
    said = "No confidence estimate" if results else "No such picture yet"
    return Answer(results, searched, f"{said}: {unfinished}", None, unfinished=unfinished)


def read_calibration(workdir: Path) -> Calibration | None:
    """What validation says of scores: in a file of a run, in config.json of an export; None where neither tells."""
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
    """(S, D) float32: SAMPLE of the rows or fewer, evenly spaced, and of how many. UserError where there is none."""
    ids = store.ids()
    if not len(ids):
        raise UserError("the index has no pictures: add some with python -m ivt_jax.index")
    return _vectors(store.get(ids[:: -(-len(ids) // SAMPLE)].tolist(), vectors=True)), len(ids)


def _vectors(rows: Sequence[Row]) -> np.ndarray:
    """(n, D) float32."""
    return np.array([row.vector for row in rows], np.float32)


def _brief(text: str) -> str:
    """In quotes, not longer than a line bears."""
    return f'"{text if len(text) <= _BRIEF else text[: _BRIEF - 2].rstrip() + " …"}"'


def _power_of_two(count: int) -> int:
    """The first that is not below the count."""
    return 1 << (int(count) - 1).bit_length()
