"""What the server allows: all of its limits, and what the command has chosen."""

import dataclasses

from ivt_jax.serve.public import PublicUrl

MAX_BODY = 10_000_000  # bytes of a search, which may have a picture
MAX_SMALL_BODY = 100_000  # bytes of any other request
MAX_MARKS = 20_000  # quotes, commas and opening brackets in a request
MAX_UPLOAD_PIXELS = 16_000_000  # of an image that is sent; a crop of a person has far fewer
MAX_SCANS = 100  # of a JPEG that is sent: each costs as much as the whole picture
DECODE_SECONDS = 5.0  # to decode one uploaded image; then the process that decodes it is killed
DECODE_BYTES = 512 << 20  # of address space that the process may add to what it has at its start
MAX_BODIES = 4  # requests above MAX_SMALL_BODY that are received or answered at a time
MAX_CLIENT_BODIES = 2  # of one client
SLOT_SECONDS = 15.0  # a request with such a body, or an image, waits this long for its turn; then it is refused
MAX_TEXT = 500  # characters of a sentence or phrase
MAX_TOP = 200  # pictures in an answer
MAX_VALUES = 50  # of a field, to be chosen from; of more none is offered
HEAD_SECONDS = 10.0  # in which the head of a request must have come
BODY_SECONDS = 30.0  # and its body
WRITE_SECONDS = 30.0  # within which a client must read some of its answer
MAX_CONNECTIONS = 1000
MAX_CLIENT_CONNECTIONS = 250  # of one address, other than a proxy's
MAX_UNDER_WAY = 500  # requests that are answered or wait for the model; more are sent away for RETRY_SECONDS
MAX_CLIENT_UNDER_WAY = 300  # requests of one client that are received, wait or are answered
RETRY_SECONDS = 2
# A client (an address with its session) may send BURST requests at once and RATE more each second. A page of MAX_TOP
# thumbnails is a burst.
RATE = 50.0
BURST = 1000.0
MAX_CLIENTS = 10_000  # whose rates are remembered; those not seen for longest are forgotten
LEAST_TOKEN = 16  # characters
WRONG_TOKENS = 10  # of one address within WRONG_SECONDS; then 429; the right token is still accepted
WRONG_SECONDS = 60.0
SESSION_SECONDS = 12 * 3600.0  # for which the page need not ask for the token again
MAX_SESSIONS = 10_000  # of which the oldest end first


@dataclasses.dataclass(frozen=True)
class Settings:
    """index: its place, as the page shows it; hosts: the names that the server answers to, in small letters, an IPv6
    address in brackets; token: "" if none is required; log_queries: log queries on stderr; public: the URL that
    browsers open, if a proxy is in front of the server; proxies: addresses and networks (10.0.0.0/8) of the proxies
    whose X-Forwarded-For is trusted.
    """

    index: str
    hosts: frozenset[str]
    token: str = ""
    log_queries: bool = False
    public: PublicUrl | None = None
    proxies: tuple[str, ...] = ()
