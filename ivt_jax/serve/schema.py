"""Requests and responses of the endpoints, as /openapi.json describes them."""

import datetime
from typing import Annotated

from pydantic import Base64Bytes, BaseModel, Field

from ivt_jax.retrieval.query import MAX_PHRASES, MAX_TERMS
from ivt_jax.retrieval.where import LONGEST
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


class PhraseResponse(_Response):
    """A phrase, the share of the index's pictures that fit it less well, and whether its weight is positive."""

    text: str
    score: float
    wanted: bool


class ResultResponse(_Response):
    """A picture found; `probability` that it shows the person, or null without an estimate from validation."""

    id: int
    path: str
    score: float
    probability: float | None
    phrases: list[PhraseResponse]
    metadata: dict[str, Known | None]


class SearchResponse(_Response):
    """The results, best first, of the `searched` pictures that meet the filter.

    `good` is false if no picture fits, null without an estimate; `unread` lists what the model cannot read of the
    sentences; `unfinished` is a line if a build still adds pictures, else empty.
    """

    results: list[ResultResponse]
    searched: int
    verdict: str
    good: bool | None
    unread: str
    unfinished: str


class PhrasesResponse(_Response):
    """The phrases of a sentence."""

    phrases: list[str]


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
    values: dict[str, list[Known]] = Field(description="all values of each field that has few")
    calibrated: bool = Field(description="whether scores come with probabilities, from validation")
    max_body: int = Field(description="largest request, in bytes")


class ErrorResponse(BaseModel):
    """What is wrong, in one line."""

    error: str
