"""Queries: weighted sentences, an image or a row of the index, and a filter; checks them before a model is loaded."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.noun_phrases import attribute_phrases
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_utf8
from ivt_jax.gallery.archives import find_slice
from ivt_jax.retrieval.queries.wording import read_negations, rest_of
from ivt_jax.retrieval.stores.where import Condition, parse

MAX_TERMS = 16
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
MAX_PHRASES = 32
MAX_UNLIKE = 100
_READ = 2000  # characters of a sentence that are searched for phrases; the model reads fewer
# What precedes a colon is a weight, or looks like a number and is refused, such as "2,5". Neither pattern can match a
# text in two ways, so both take linear time.
_WEIGHT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
_NUMBER = re.compile(r"[-+\u2212\u2013\u2014]*\s*[.,]*\d[\d.,/]*(?:[eE][-+]?\d+)?")


class Term(NamedTuple):
    """A sentence or phrase with its weight; a negative weight describes what the person should not look like."""

    text: str
    weight: float = 1.0


class Query(NamedTuple):
    """What to search for: terms, an image or a row of the index, or terms and one of the other two."""

    terms: tuple[Term, ...] = ()
    image: Path | bytes | None = None  # a file or its bytes
    like: int | None = None  # the id of a row, to find similar ones
    image_weight: float = 1.0  # of the image or the row
    where: str = ""  # a filter in the language of `ivt_jax.retrieval.stores.where`, "" for none
    unlike: tuple[int, ...] = ()  # ids of rejected rows; they are left out, and similar rows score lower


def parse_term(text: str) -> Term:
    """Parses "blue backpack", or "2: blue backpack" with a weight before the colon.

    Raises UserError if what is before the colon looks like a number and is none, such as "2,5".
    """
    before, colon, after = text.partition(":")
    before = before.strip()
    if not colon or "0" <= after[:1] <= "9":  # "12:30" has no weight
        return Term(text.strip())
    if _WEIGHT.fullmatch(before):
        return Term(after.strip(), float(before))
    if _NUMBER.fullmatch(before):
        raise UserError(f'{before[:60]} before ":" is no weight: write a number such as 2.5')
    return Term(text.strip())


def read_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Makes each thing that a sentence negates a term of its own, with the opposite sign."""
    read = []
    for term in terms:
        wanted, unwanted = read_negations(term.text[:_READ])
        if not unwanted:
            read.append(term)
            continue
        read += [term._replace(text=wanted)] if wanted else []
        read += [Term(thing, -term.weight) for thing in unwanted]
    return tuple(read)


class Split(NamedTuple):
    """A sentence as terms, one for each phrase, and the words that belong to none."""

    terms: tuple[Term, ...]
    rest: str


def split_sentence(text: str) -> Split:
    """Splits a sentence into its phrases; those that it negates are unwanted."""
    read = read_terms([Term(text)])
    phrases = [Term(phrase, 1.0 if wanted else -1.0) for phrase, wanted in phrases_of(read).items()]
    terms, more = phrases[:MAX_TERMS], phrases[MAX_TERMS:]
    rest = [rest_of(term.text) for term in read if term.weight > 0]
    rest += [phrase if weight > 0 else f"no {phrase}" for phrase, weight in more]
    return Split(tuple(terms), ", ".join(filter(None, rest)))


def check(query: Query, fields: Mapping[str, str], group: str = "", distinct: float | None = None) -> Condition | None:
    """Checks a query against the fields of an index and returns its parsed filter, None if it has no filter.

    group, distinct: as in `Searcher.search`. Raises UserError if one of the arguments is not valid.
    """
    has_image, has_row = query.image is not None, query.like is not None
    weights = [*(term.weight for term in query.terms), *([query.image_weight] if has_image or has_row else [])]
    if not weights:
        raise UserError("the query is empty: describe a person, or name an image")
    if query.image_weight != 1 and not has_image and not has_row:
        raise UserError("image_weight is the weight of a picture, and the query has none: leave it out")
    if has_image and has_row:
        raise UserError("the query has an image and a row of the index; choose one of them")
    if len(query.terms) > MAX_TERMS:
        raise UserError(f"the query has {len(query.terms)} sentences; the limit is {MAX_TERMS}")
    if len(query.unlike) > MAX_UNLIKE:
        raise UserError(f"the query rejects {len(query.unlike)} pictures; the limit is {MAX_UNLIKE}")
    for weight in weights:
        if not LEAST_WEIGHT <= abs(weight) <= MOST_WEIGHT:
            raise UserError(f"a weight of {weight:g} is out of bounds: from {LEAST_WEIGHT} to {MOST_WEIGHT:g}")
    for term in query.terms:
        if not term.text.strip():
            raise UserError("the sentence is empty: describe a person")
        if not any(map(str.isalnum, term.text)):
            raise UserError("the sentence has no word: describe a person")
        if not is_utf8(term.text):  # bytes from the command line
            raise UserError("the sentence is not UTF-8 text: set the terminal to UTF-8")
    read = read_terms(query.terms)  # also what a sentence negates
    wanted = {_bare(term.text) for term in read if term.weight > 0}
    for term in read:
        if term.weight < 0 and _bare(term.text) in wanted:
            raise UserError(f"{term.text!r} is both wanted and unwanted: remove one of them")
    if isinstance(query.image, Path) and not _is_file(query.image):
        raise UserError(f"{query.image} is not a file; name a picture")
    if group and group not in fields:
        raise UserError(f'the index has no field "{group}" to group by; it has: {", ".join(fields) or "none"}')
    if distinct is not None and not 0 < distinct <= 1:
        raise UserError(f"distinct is {distinct:g}; choose a cosine similarity above 0 and at most 1")
    return parse(query.where, fields) if query.where.strip() else None


def _bare(text: str) -> str:
    """Returns a text in lower case, without an article before it."""
    return re.sub(r"^(?:an?|the)\s+", "", text.strip().lower())


def _is_file(path: Path) -> bool:
    """Whether a path is that of a file, or of a picture in an archive."""
    try:
        return path.is_file() or find_slice(path) is not None
    except OSError:
        return False


def phrases_of(terms: Sequence[Term]) -> dict[str, bool]:
    """Returns the attribute phrases of terms, and whether each is wanted; at most MAX_PHRASES, without duplicates.

    Phrases keep their order and spelling. One that occurs in several terms has the sign of the first. They include
    scenery, so "next to a white car" has a score.
    """
    phrases: dict[str, tuple[str, bool]] = {}
    for term in terms:
        for phrase in attribute_phrases(term.text[:_READ], scenery=True):
            phrases.setdefault(phrase.lower(), (phrase, term.weight > 0))
    return dict(list(phrases.values())[:MAX_PHRASES])
