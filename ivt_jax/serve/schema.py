"""Requests and responses of the endpoints, as /openapi.json describes them."""

import datetime
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Base64Bytes, BaseModel, Field

from ivt_jax.retrieval.queries.query import MAX_PHRASES, MAX_TERMS, MAX_UNLIKE
from ivt_jax.retrieval.stores.where import LONGEST
from ivt_jax.serve import limits

Id = Annotated[int, Field(ge=0, lt=2**63, description="row of the index")]
Text = Annotated[str, Field(max_length=limits.MAX_TEXT)]
Known = bool | int | float | datetime.datetime | str


class _Request(BaseModel, extra="forbid"):
    """Refuses fields that it does not name."""


class TermRequest(_Request):
    """A sentence or a phrase; a negative weight means that it should not fit."""

    text: Text
    weight: float = 1.0


class SearchRequest(_Request):
    """A query: terms, an image or a row, at least one of them."""

    terms: list[TermRequest] = Field(default=[], max_length=MAX_TERMS)
    image: Base64Bytes | None = Field(default=None, description="a crop in Base64: JPEG, PNG, WEBP, ...")
    like: Id | None = Field(default=None, description="row whose picture the results should resemble")
    image_weight: float = Field(default=1.0, description="weight of the image or the row")
    where: str = Field(default="", max_length=LONGEST, description="such as: camera = 3 and not (zone = 'B')")
    top: int = Field(default=24, ge=1, le=limits.MAX_TOP, description="number of results")
    group: Text = Field(default="", description="keep only the best picture of each value of this field")
    distinct: float | None = Field(default=None, description="drop a result more similar to a better one than this")
    unlike: list[Id] = Field(
        default=[], max_length=MAX_UNLIKE, description="rows that are not meant; they are left out"
    )
    fold: bool = Field(default=False, description="keep what `group` and `distinct` would drop, with `folded_under`")


class PhrasesRequest(_Request):
    """A sentence to be split into phrases."""

    text: Text


class HeatRequest(_Request):
    """Phrases to locate in a picture."""

    phrases: list[Text] = Field(min_length=1, max_length=MAX_PHRASES)


class LoginRequest(_Request):
    """The token that the server printed when it started."""

    token: Text


class _Response(BaseModel, from_attributes=True):
    """Reads its fields from the attributes of the searcher's objects."""


class TermResponse(_Response):
    """A sentence or a phrase; a negative weight means that it should not fit."""

    text: str
    weight: float


class PhraseResponse(_Response):
    """A phrase, the share of the index's pictures that fit it less well, and whether its weight is positive.

    `score` is null if validation does not show that the model can tell the phrase.
    """

    text: str
    score: float | None
    wanted: bool


class ResultResponse(_Response):
    """A picture found; `probability` that it shows the person, or null without an estimate from validation.

    `odd` says how it is unlike the crops that models learn from; null if that is not known. `folded_under`: with
    `fold`, the id of the better result that this one repeats, else null.
    """

    id: int
    path: str
    score: float
    probability: float | None
    phrases: list[PhraseResponse]
    metadata: dict[str, Known | None]
    odd: str | None
    folded_under: int | None = None


class BasisResponse(_Response):
    """What an answer rests on. Times are ISO 8601 in UTC, empty if unknown.

    `made` is the index's own number, `updated` the end of its last build, `outdated` why it may lack pictures, `passed`
    the files that this build left out, by reason, `odd` the number of results that are no crops, null if not known;
    `model` the digest of the model, `trained` when its weights were written.
    """

    made: str
    updated: str
    outdated: str
    passed: dict[str, int]
    odd: int | None
    model: str
    trained: str


class SearchResponse(_Response):
    """The results, best first, of the `searched` pictures that meet the filter.

    `good` is false if no picture fits, null without an estimate; `unread` lists what the model cannot read of the
    sentences; `unfinished` is a line if a build still adds pictures, else empty. `terms` are the sentences as they were
    searched, `untold` names the phrases without a score, `odd` says how the query's image is unlike a crop, and
    `suggestions` has sentences with likely misspelt words, and these mended.
    """

    results: list[ResultResponse]
    searched: int
    verdict: str
    good: bool | None
    unread: str
    unfinished: str
    terms: list[TermResponse]
    untold: str
    odd: str
    suggestions: dict[str, str]
    basis: BasisResponse | None


class PhrasesResponse(_Response):
    """The phrases of a sentence as terms, and the words that belong to none."""

    terms: list[TermResponse]
    rest: str


class HeatResponse(_Response):
    """The picture with a heat map for each phrase, in their order: JPEGs as data URIs."""

    images: list[str]


class AboutResponse(_Response):
    """The index and its model."""

    index: str
    pictures: int
    unfinished: str = Field(description="a line if a build still adds pictures, else empty")
    model: str
    fields: dict[str, str] = Field(description="name and type of each field")
    calibrated: bool = Field(description="whether scores come with probabilities, from validation")
    max_body: int = Field(description="largest request, in bytes")
    max_top: int = Field(description="largest number of results")


class ValueResponse(_Response):
    """A value of a field, and the number of pictures that have it."""

    value: Known
    pictures: int


class ValuesResponse(_Response):
    """All values of each field that has few, ascending."""

    values: dict[str, list[ValueResponse]]


class ErrorResponse(BaseModel):
    """What is wrong, in one line."""

    error: str


def explain(fault: Mapping[str, Any]) -> str:
    """Returns one line for a fault that pydantic found in a request, without the value, which may be private."""
    where = () if fault["type"] == "json_invalid" else fault["loc"][1:]
    place, known = ".".join(map(str, where)) or "the request", fault.get("ctx", {})
    reason = _REASONS.get(fault["type"], "is not valid; /openapi.json describes it")
    return f"{place} {reason.format(**known)}"


_REASONS = {  # type of pydantic's errors -> what is wrong, with the values of its context
    "missing": "is missing",
    "extra_forbidden": "is not a part of this request",
    "json_invalid": "is not JSON",
    "model_attributes_type": "is not a JSON object",
    "string_type": "is not a text",
    "string_too_long": "has more than {max_length} characters",
    "string_unicode": "is not valid Unicode",
    "list_type": "is not a list",
    "too_long": "has more than {max_length} entries",
    "too_short": "is empty",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "is not a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "is not a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "is neither true nor false"),
    "greater_than_equal": "is below {ge}",
    "less_than_equal": "is above {le}",
    "less_than": "is not below {lt}",
    "base64_decode": "is not Base64",
}
