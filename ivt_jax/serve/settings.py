"""What the server allows: all of its limits, and what the command has chosen."""

import dataclasses

MAX_BODY = 10_000_000  # bytes of a request
MAX_UPLOAD_PIXELS = 16_000_000  # of an image that is sent; a crop of a person has far fewer
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_TEXT = 500  # characters of a sentence or phrase
MAX_TOP = 200  # pictures in an answer
MAX_VALUES = 50  # of a field, to be chosen from; of more none is offered
BODY_SECONDS = 30.0  # in which a body must have come
MAX_CONNECTIONS = 1000
MAX_UNDER_WAY = 500  # requests that are answered or wait for the model; more are sent away for RETRY_SECONDS
RETRY_SECONDS = 2
# A client, told by its address, may send BURST requests at once and RATE more each second. A page of MAX_TOP
# thumbnails is a burst.
RATE = 50.0
BURST = 1000.0
MAX_CLIENTS = 10_000  # whose rates are remembered; those not seen for longest are forgotten
LEAST_TOKEN = 16  # characters


@dataclasses.dataclass(frozen=True)
class Settings:
    """index: its place, as the page shows it; hosts: the names that the server answers to, in small letters, an IPv6
    address in brackets; token: "" where none is demanded; log_queries: tell on stderr what is asked.
    """

    index: str
    hosts: frozenset[str]
    token: str = ""
    log_queries: bool = False
