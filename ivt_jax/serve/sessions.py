"""Who has shown the token: cookies bear random names in its place, which are forgotten when the server ends."""

import secrets

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from ivt_jax.serve.settings import MAX_SESSIONS, SESSION_SECONDS


class Sessions:
    """Times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}  # by name, the oldest first

    def open(self, now: float) -> str:
        """The name of a new session."""
        name = secrets.token_urlsafe()
        self._ends[name] = now + SESSION_SECONDS
        if len(self._ends) > MAX_SESSIONS:
            del self._ends[next(iter(self._ends))]
        return name

    def holds(self, name: str, now: float) -> bool:
        """Whether there is such a session, and it has not ended."""
        return self._ends.get(name, now) > now


def cookie_name(headers: Headers) -> str:
    """That of the cookie: with the port, for browsers send cookies to all servers of a host."""
    _, _, port = headers.get("host", "").rpartition(":")
    return f"ivt_serve_{port}" if port.isdecimal() else "ivt_serve"


def read_cookie(headers: Headers) -> str:
    """The name of the session that a request says to be of; "" for none."""
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(headers), "")
