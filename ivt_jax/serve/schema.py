"""What the endpoints take and give, as /openapi.json describes it."""

import datetime
from typing import Annotated

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field

from ivt_jax.retrieval.query import MAX_PHRASES, MAX_TERMS
from ivt_jax.retrieval.where import LONGEST
from ivt_jax.serve.settings import MAX_TEXT, MAX_TOP


def _encodable(text: str) -> str:
    text.encode()  # JSON can name half a character, of which a ValueError tells
    return text


Id = Annotated[int, Field(ge=0, lt=2**63, description="of a row of the index")]
Filter = Annotated[
    str,
    Field(max_length=LONGEST, description="such as: camera = 3 and not (zone = 'B')"),
    AfterValidator(_encodable),
]
Known = bool | int | float | datetime.datetime | str
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]


class Asked(BaseModel):
    """Nothing is taken that is not named here."""

    model_config = ConfigDict(extra="forbid")


class AskedTerm(Asked):
    """A sentence or a phrase; a negative weight says what the person should not look like."""

    text: Text
    weight: float = 1.0


class AskedQuery(Asked):
    """Terms, and an image or a row, of which one at least."""

    terms: list[AskedTerm] = Field(default=[], max_length=MAX_TERMS)
    image: Base64Bytes | None = Field(default=None, description="a crop in Base64: JPEG, PNG, WEBP, ...")
    like: Id | None = Field(default=None, description="a row, for more like it")
    image_weight: float = Field(default=1.0, description="of the image, or of the row")
    where: Filter = ""
    top: int = Field(default=24, ge=1, le=MAX_TOP)
    group: Text = Field(default="", description="a field, of each value of which the best picture alone is given")
    distinct: float | None = Field(
        default=None, description="leaves out what is more similar than this to a better one"
    )


class AskedText(Asked):
    """A sentence."""

    text: Text


class AskedPhrases(Asked):
    """What to look for in a picture."""

    phrases: list[Text] = Field(min_length=1, max_length=MAX_PHRASES)


class AskedToken(Asked):
    """What the server printed when it started."""

    token: Text


class Given(BaseModel):
    """Answers are read from the objects that the searcher gives."""

    model_config = ConfigDict(from_attributes=True)


class GivenPhrase(Given):
    """A phrase, the share of the index's pictures that fit it less well, and whether it is wanted."""

    text: str
    score: float
    wanted: bool


class GivenResult(Given):
    """A picture found; `probability` is that of its being right, where validation knows."""

    id: int
    path: str
    score: float
    probability: float | None
    phrases: list[GivenPhrase]
    metadata: dict[str, Known | None]


class GivenAnswer(Given):
    """The pictures, the best first, of `searched` that meet the filter.

    `good` is false where none fits; `unread` says what of the sentences the model has not read; `unfinished` says that
    pictures are still to be added to the index, and is empty if none is.
    """

    results: list[GivenResult]
    searched: int
    verdict: str
    good: bool | None
    unread: str
    unfinished: str


class GivenPhrases(Given):
    """The phrases of a sentence."""

    phrases: list[str]


class GivenHeat(Given):
    """A picture for each phrase, in their order: JPEGs as data URIs."""

    images: list[str]


class GivenAbout(Given):
    """What is served, and with which model."""

    index: str
    pictures: int
    unfinished: str = Field(description="says that pictures are still to be added; empty if none is")
    model: str
    fields: dict[str, str] = Field(description="name and type of what is known of each picture")
    values: dict[str, list[Known]] = Field(description="what fields hold, of those that hold few values")
    calibrated: bool = Field(description="whether validation says what scores mean")
    max_body: int = Field(description="bytes of a request")


class Failure(BaseModel):
    """What is wrong, in one line."""

    error: str
