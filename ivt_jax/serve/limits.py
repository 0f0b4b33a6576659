"""Limits of requests, connections and clients. Those of a query are in `queries.query` and `stores.where`."""

MAX_BODY = 10_000_000  # bytes of a search request, which may carry an image
MAX_SMALL_BODY = 100_000  # bytes of any other request
MAX_MARKS = 20_000  # quotes, commas and opening brackets in a request; more take seconds to parse
MAX_UPLOAD_PIXELS = 16_000_000  # of an uploaded image; a crop of a person has far fewer
MAX_SCANS = 100  # of an uploaded JPEG; decoding each costs as much as decoding the whole image
DECODE_SECONDS = 5.0  # for one uploaded image; then the decoding process is killed
DECODE_BYTES = 512 << 20  # address space that the decoding process may add to that at its start
MAX_BODIES = 4  # requests above MAX_SMALL_BODY that are received or answered at a time
MAX_CLIENT_BODIES = 2  # the same, of one client
SLOT_SECONDS = 15.0  # that a request with a large body or an image waits for its turn before it is refused
MAX_TEXT = 500  # characters of a sentence or phrase
MAX_TOP = 1000  # results of a search; the page, which asks for more as its user scrolls, ends there
MAX_VALUES = 50  # distinct values of a field that the page lists; a field with more is typed
HEAD_SECONDS = 10.0  # for the head of a request to arrive
BODY_SECONDS = 30.0  # for the body of a request to arrive
WRITE_SECONDS = 30.0  # within which a client must read part of its answer
MAX_CONNECTIONS = 1000
MAX_CLIENT_CONNECTIONS = 250  # of one address that is not a proxy
MAX_UNDER_WAY = 500  # requests that are answered or wait for the model
MAX_CLIENT_UNDER_WAY = 300  # requests of one client that are received, wait or are answered
RETRY_SECONDS = 2  # after which a refused client may try again
# A client (an address with its session) may send BURST requests at once and RATE more each second. A page of MAX_TOP
# thumbnails is a burst.
RATE = 50.0
BURST = 1000.0
MAX_CLIENTS = 10_000  # whose rates and wrong tokens are remembered; the client seen longest ago is forgotten first
LEAST_TOKEN = 16  # characters
WRONG_TOKENS = 10  # of one address within WRONG_SECONDS; then 429, but the right token is still accepted
WRONG_SECONDS = 60.0
SESSION_SECONDS = 12 * 3600.0  # after which the page asks for the token again
MAX_SESSIONS = 10_000  # beyond which the oldest ends
