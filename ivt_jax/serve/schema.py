"""Requests and responses of the endpoints, as /openapi.json describes them."""

import base64
import datetime
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Base64Encoder, BaseModel, EncodedBytes, Field
from pydantic_core import PydanticCustomError

from ivt_jax.retrieval.queries.query import MAX_PHRASES, MAX_TERMS, MAX_UNLIKE
from ivt_jax.retrieval.stores.where import LONGEST
from ivt_jax.serve import limits


class StrictBase64(Base64Encoder):
    """Base64 that refuses other characters than its own and white space; pydantic's ignores them."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(b"".join(data.split()), validate=True)
        except ValueError as error:
            raise PydanticCustomError("base64_decode", "{error}", {"error": str(error)}) from None


Encoded = Annotated[bytes, EncodedBytes(encoder=StrictBase64)]
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
    image: Encoded | None = Field(default=None, description="a crop in Base64: JPEG, PNG, WEBP, ...")
    like: Id | None = Field(default=None, description="row whose picture the results should resemble")
    image_weight: float = Field(default=1.0, description="weight of the image or the row")
    where: str = Field(default="", max_length=LONGEST, description="such as: camera = 3 and not (zone = 'B')")
    top: int = Field(default=24, ge=1, le=limits.MAX_TOP, description="number of results")
    group: Text = Field(default="", description="keep only the best picture of each value of this field")
    distinct: float | None = Field(
        default=None, description="drop a result whose cosine similarity to a better result exceeds this"
    )
    unlike: list[Id] = Field(
        default=[], max_length=MAX_UNLIKE, description="rejected rows: left out, and similar rows score lower"
    )
    fold: bool = Field(default=False, description="keep what `group` and `distinct` would drop")


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
    """A phrase of the query, and how well a picture fits it."""

    text: str
    score: float | None = Field(
        description="share of the index's pictures that fit it less well, null if the model cannot tell the phrase"
    )
    wanted: bool = Field(description="whether its weight is positive")


class ResultResponse(_Response):
    """A picture found."""

    id: int
    path: str
    score: float
    probability: float | None = Field(description="that it shows the person; null without an estimate from validation")
    phrases: list[PhraseResponse]
    metadata: dict[str, Known | None]
    odd: str | None = Field(description="what is odd about its shape or size, empty for nothing, null if not known")
    folded_under: int | None = Field(description="with `fold`, a better result; by `distinct` only if they look alike")


class BasisResponse(_Response):
    """The state of the index and its model. Times are ISO 8601 in UTC, empty if unknown."""

    made: str = Field(description="id of the index")
    updated: str = Field(description="when its last build listed the pictures")
    outdated: str = Field(description="why the index may lack pictures, empty if no reason is found")
    passed: dict[str, int] = Field(description="reason -> number of files that the last build left out")
    kept: dict[str, int] = Field(description="reason -> number of pictures in the index without a readable file")
    odd: int | None = Field(description="number of results of an odd shape or size, null if not known")
    model: str = Field(description="digest of the model")
    trained: str = Field(description="when the model's weights were written")


class SearchResponse(_Response):
    """The answer to a query."""

    results: list[ResultResponse] = Field(description="best first")
    searched: int = Field(description="number of pictures that meet the filter")
    verdict: str = Field(description="a sentence on the best score")
    good: bool | None = Field(description="false if no picture fits, null without an estimate")
    unread: str = Field(description="names the words that the model does not read")
    unfinished: str = Field(description="a line if a build still adds pictures, otherwise empty")
    terms: list[TermResponse] = Field(description="the sentences as they were searched; a negation is a term")
    without_fit: str = Field(description="names the phrases without a score, and why")
    odd: str = Field(description="a warning if the query's image has an odd shape or size")
    suggestions: dict[str, str] = Field(description="sentence with likely misspelt words -> with these corrected")
    basis: BasisResponse


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
    fits: bool = Field(description="whether phrases have scores, from validation")
    max_body: int = Field(description="largest request, in bytes")
    max_top: int = Field(description="largest number of results")
    max_terms: int = Field(description="largest number of sentences and phrases")
    max_unlike: int = Field(description="largest number of rejected rows")


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


def describe_fault(fault: Mapping[str, Any]) -> str:
    """Returns one line for a fault that pydantic found in a request, without the value, which may be private."""
    where = () if fault["type"] == "json_invalid" else fault["loc"][1:]
    place, known = ".".join(map(str, where)) or "the request", fault.get("ctx", {})
    if fault["type"] == "string_too_long" and place.startswith("terms."):
        place = "a sentence"
    reason = _REASONS.get(fault["type"], "is not valid; /openapi.json describes it")
    return f"{place} {reason.format(**known)}"


_REASONS = {  # type of pydantic's errors -> what is wrong, with the values of its context
    "missing": "is missing",
    "extra_forbidden": "is not a part of this request",
    "json_invalid": "is not JSON",
    "model_attributes_type": "is not a JSON object; send it with Content-Type: application/json",
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
