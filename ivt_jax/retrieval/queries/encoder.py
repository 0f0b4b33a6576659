"""Encodes a query with a model: the vector to search with, the embeddings of its phrases, and what is not read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.embedding import encode_texts
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import describe_odd, fit, odd_shape, open_image
from ivt_jax.gallery.crops import read_content
from ivt_jax.retrieval.queries.composition import TYPICAL, Part, compose, spread_ratio
from ivt_jax.retrieval.queries.query import Query, Term, phrases_of, read_terms
from ivt_jax.retrieval.queries.spelling import suggest

_BRIEF = 60  # characters of a sentence in a message


class EncodedQuery(NamedTuple):
    """A query as the model reads it."""

    terms: tuple[Term, ...]  # with a word that the model knows; a negation in a sentence is a term of its own
    vector: np.ndarray  # (D,) float32
    phrases: dict[str, bool]  # phrase -> whether it is wanted
    embeddings: np.ndarray  # of the phrases, (P, D) float32 of length 1
    unread: str  # names the words that the model does not read, "" if it reads all
    suggestions: dict[str, str]  # sentence with likely misspelt words -> with these corrected
    odd: str  # a warning if the query's image has an odd shape or size, otherwise ""


class QueryEncoder:
    """Encodes queries with an encoder and its tokenizer; threads may share it."""

    def __init__(self, encoder: Encoder, tokenizer: Any):
        self.encoder = encoder
        self.tokenizer = tokenizer

    def encode(
        self, query: Query, sample: np.ndarray, like: np.ndarray | None = None, rejected: np.ndarray | None = None
    ) -> EncodedQuery:
        """Encodes a query that `check` has accepted.

        sample: rows of the index (S, D), to compare spreads; like: the embedding (D,) of the row `query.like`, if any;
        rejected: those (n, D) of the rows `query.unlike`, if any.
        Raises UserError if the model knows no word of it, its image cannot be read, or its parts cancel each other out.
        """
        suggested = {term.text: suggest(term.text, self.tokenizer) for term in query.terms}
        terms, unread = self._known(read_terms(query.terms))
        if query.terms and not terms and query.image is None and like is None:
            raise UserError(f"the sentence has no word that the model knows: {_brief(query.terms[0].text)}")
        query = query._replace(terms=terms)
        picture, odd = (like, "") if query.image is None else self._embed_image(query.image)
        # All at once, because each shape is traced and loaded anew in every process.
        phrases, typical = phrases_of(terms), TYPICAL if terms and picture is not None else ()
        embedded = self.embed_texts([*(term.text for term in terms), *phrases, *typical])
        of_terms, of_phrases, of_typical = np.split(embedded, np.cumsum([len(terms), len(phrases)]))
        counts = [len(phrases_of([term])) for term in terms]
        texts = [Part(v, term.weight, n) for v, term, n in zip(of_terms, terms, counts, strict=True)]
        ratio = spread_ratio(sample, picture, of_typical) if picture is not None and len(of_typical) else 1.0
        vector = compose(texts, None if picture is None else Part(picture, query.image_weight), ratio, rejected)
        if vector is None:
            raise UserError("the parts of the query cancel each other out: remove one, or change its weight")
        suggestions = {text: corrected for text, corrected in suggested.items() if corrected}
        return EncodedQuery(terms, vector, phrases, of_phrases, unread, suggestions, odd)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns (n, D) float32 of length 1. Raises UserError if the tokenizer knows no word of a text.

        Pads rows and tokens to powers of two, to compile few shapes.
        """
        if not texts:
            return np.empty((0, self.encoder.about["dimension"]), np.float32)
        ids = self.tokenizer.encode(texts, self.encoder.config.text.length["sentence"])
        mask = self.tokenizer.mask(ids)
        if self.tokenizer.words(ids).max(1).min() == 0:
            raise UserError("the sentence has no word that can be read: describe a person")
        length, rows = _power_of_two(mask.sum(1).max()), [(0, _power_of_two(len(ids)) - len(ids)), (0, 0)]
        padded = np.pad(ids[:, :length], rows), np.pad(mask[:, :length], rows)
        return np.asarray(encode_texts(self.encoder.model, self.encoder.params, *padded))[: len(ids)]

    def _known(self, terms: Sequence[Term]) -> tuple[tuple[Term, ...], str]:
        """Returns the terms with a word that the model knows, and a line that names what it does not read, or ""."""
        length, read, notes = self.encoder.config.text.length["sentence"], [], []
        for term in terms:
            words, end, nothing = self.tokenizer.unread(term.text, length)
            read += [] if nothing else [term]
            if words:
                notes.append(f"{_brief(' '.join(dict.fromkeys(words)))} (unknown to the model)")
            if end:
                room = self.tokenizer.room(length)
                notes.append(f"{_brief(end)} (beyond the {room} tokens that the model reads; split the sentence)")
        return tuple(read), f"not read: {'; '.join(notes)}" if notes else ""

    def _embed_image(self, content: Path | bytes) -> tuple[np.ndarray, str]:
        """Returns the embedding of an image (D,), and a warning if its shape or size is odd, otherwise ""."""
        if isinstance(content, Path):
            image = open_image(content, read_content(content, content))
        else:
            image = open_image("the image", content)
        return self.encoder.embed(iter([fit(image, self.encoder.size)[None]]))[0], describe_odd(odd_shape(*image.size))


def _brief(text: str) -> str:
    """Quotes a text, shortened to _BRIEF characters."""
    return f'"{text if len(text) <= _BRIEF else text[: _BRIEF - 2].rstrip() + " …"}"'


def _power_of_two(count: int) -> int:
    """Returns the first power of two that is not below `count`."""
    return 1 << (int(count) - 1).bit_length()
