"""What an index is asked: sentences with weights and signs, an image, a row of the index, a filter.

No model is needed to tell whether a query can be asked, so a mistake is told before one is read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from input_pipeline.noun_phrases import attribute_phrases
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_utf8
from ivt_jax.retrieval.where import Condition, parse

MAX_TERMS = 16
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
MAX_PHRASES = 32
_READ = 2000  # characters of a sentence in which phrases are looked for; the model reads no more of it
_WEIGHTED = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*:(?!\d)(.*)", re.DOTALL | re.ASCII)  # "12:30" is no weight


class Term(NamedTuple):
    """A sentence or a phrase, and how much it counts; a negative weight says what it should not look like."""

    text: str
    weight: float = 1.0


class Query(NamedTuple):
    """Terms, and an image or a row, of which one at least; `ivt_jax.retrieval.searcher` says how they are scored.

    image: a file, or the bytes of one; like: the id of a row, for more like it; image_weight: of either; where: a
    filter as `ivt_jax.retrieval.where` reads it, "" for none.
    """

    terms: tuple[Term, ...] = ()
    image: Path | bytes | None = None
    like: int | None = None
    image_weight: float = 1.0
    where: str = ""


def parse_term(text: str) -> Term:
    """A term as it is typed: "blue backpack", or with its weight before a colon, "2: blue backpack"."""
    match = _WEIGHTED.fullmatch(text)
    return Term(match[2].strip(), float(match[1])) if match else Term(text.strip())


def check(query: Query, fields: Mapping[str, str], group: str = "", distinct: float | None = None) -> Condition | None:
    """What the query's filter means to an index with these fields; None where it has none.

    group, distinct: as `Searcher.search` takes them. Raises UserError where any of it cannot be asked.
    """
    image_weight = () if query.image is None and query.like is None else (query.image_weight,)
    weights = (*(term.weight for term in query.terms), *image_weight)
    if not weights:
        raise UserError("the query is empty: describe a person, or name an image")
    if query.image is not None and query.like is not None:
        raise UserError("a query has an image or a row that the rest should be like, not both")
    if len(query.terms) > MAX_TERMS:
        raise UserError(f"the query has {len(query.terms)} sentences, at most {MAX_TERMS} can be asked at once")
    for weight in weights:
        if not LEAST_WEIGHT <= abs(weight) <= MOST_WEIGHT:
            raise UserError(f"a weight of {weight:g} is out of bounds: from {LEAST_WEIGHT} to {MOST_WEIGHT:g}")
    for term in query.terms:
        _check_text(term.text)
    if isinstance(query.image, Path) and not query.image.is_file():
        raise UserError(f"{query.image} is not a file; name a picture")
    if group and group not in fields:
        raise UserError(f'the index has no field "{group}" to group by; it has: {", ".join(fields) or "none"}')
    if distinct is not None and not 0 < distinct <= 1:
        raise UserError(
            f"distinct is the cosine similarity of near-duplicates, above 0 and at most 1, not {distinct:g}"
        )
    return parse(query.where, fields) if query.where.strip() else None


def phrases_of(query: Query) -> dict[str, bool]:
    """The attribute phrases of all terms, in their order and spelling, none twice, and whether the first term that has
    one wants it; the first MAX_PHRASES. Includes scenery, so that "next to a white car" has its score."""
    phrases: dict[str, tuple[str, bool]] = {}
    for term in query.terms:
        for phrase in attribute_phrases(term.text[:_READ], scenery=True):
            phrases.setdefault(phrase.lower(), (phrase, term.weight > 0))
    return dict(list(phrases.values())[:MAX_PHRASES])


def _check_text(text: str) -> None:
    if not text.strip():
        raise UserError("the sentence is empty: describe a person")
    if not any(map(str.isalnum, text)):
        raise UserError("the sentence has no word: describe a person")
    if not is_utf8(text):  # bytes of the command line
        raise UserError("the sentence is not UTF-8 text: set the terminal to UTF-8")
