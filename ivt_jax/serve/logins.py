"""The token, and the sessions of browsers that have sent it."""

import hmac
import secrets
from collections.abc import Hashable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from ivt_jax.serve import limits
from ivt_jax.serve.clients import log


class Logins:
    """Checks tokens and sessions; sessions end with the server. Times are seconds of one clock."""

    def __init__(self, token: str):
        """token: "" if none is required."""
        self._token = token.encode()
        self._wrong: dict[Hashable, tuple[float, int]] = {}  # by address: since when, how many; the oldest first
        self._ends: dict[str, float] = {}  # by session, the oldest first

    def is_right(self, token: str) -> bool:
        """Whether this is the token, compared in constant time; False if none is required."""
        return bool(self._token) and hmac.compare_digest(token.encode(errors="replace"), self._token)

    def count_wrong(self, address: str, now: float) -> HTTPException:
        """Counts a wrong token; logs one a minute for each address. Returns the refusal: 401, or 429 after many."""
        since, count = self._wrong.get(address, (now, 0))
        if now - since >= limits.WRONG_SECONDS:
            since, count = now, 0
        if not count:
            self._wrong.pop(address, None)  # inserted again below, at the end
            log(f"warning: {address} has sent a wrong token (logged once a minute)")
        self._wrong[address] = since, count + 1
        if len(self._wrong) > limits.MAX_CLIENTS:
            del self._wrong[next(iter(self._wrong))]
        if count < limits.WRONG_TOKENS:
            return HTTPException(401, "the token is wrong", {"www-authenticate": "Bearer"})
        retry = {"retry-after": str(max(1, round(since + limits.WRONG_SECONDS - now)))}
        return HTTPException(429, "too many wrong tokens: wait a minute, or send the right one", retry)

    def open(self, now: float) -> str:
        """Opens a session and returns its random name; beyond MAX_SESSIONS the oldest ends."""
        session = secrets.token_urlsafe()
        self._ends[session] = now + limits.SESSION_SECONDS
        if len(self._ends) > limits.MAX_SESSIONS:
            del self._ends[next(iter(self._ends))]
        return session

    def holds(self, session: str, now: float) -> bool:
        """Whether a session of this name is open."""
        return self._ends.get(session, now) > now


def cookie_name(headers: Headers) -> str:
    """Returns the name of a session's cookie. It has the port: browsers send a cookie to every server of a host."""
    _, _, port = headers.get("host", "").rpartition(":")
    return f"ivt_serve_{port}" if port.isdecimal() else "ivt_serve"
