"""What a request passes before the application sees it: closed by default.

In this order: the name that the server was called by (a site that has its name point to this machine is refused), the
page that sends it, the client's rate, the token, the body, which has a largest size and a time to come in, and how much
is under way already.
"""

import asyncio
import hmac
import re
import sys
import time
import traceback
from collections.abc import Hashable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from input_pipeline.files import printable
from ivt_jax.serve.sessions import Sessions, read_cookie
from ivt_jax.serve.settings import (
    BODY_SECONDS,
    BURST,
    MAX_BODY,
    MAX_CLIENTS,
    MAX_MARKS,
    MAX_SMALL_BODY,
    MAX_UNDER_WAY,
    RATE,
    RETRY_SECONDS,
    Settings,
)

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d+)?")
_POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
_HEADERS = {
    "content-security-policy": _POLICY + "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # what people look for, and who is found, is kept on no disk
}


class Refused(Exception):  # noqa: N818 (no error of ours)
    """A request that is not answered; `response` says why."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None):
        self.response = JSONResponse({"error": reason}, status, headers)


class Rates:
    """A token bucket for each client: it holds BURST, loses 1 with each request and gains RATE each second."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # what was left and when, those seen last at the end

    def admits(self, client: Hashable, now: float) -> bool:
        """Whether there is one left, which is taken."""
        left, then = self._buckets.pop(client, (BURST, now))
        left = min(BURST, left + (now - then) * RATE)
        self._buckets[client] = (max(left - 1, 0), now)
        if len(self._buckets) > MAX_CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        return left >= 1


class Guard:
    """The middleware. Paths other than those of `open` demand the token, where there is one."""

    def __init__(self, app: ASGIApp, settings: Settings, sessions: Sessions, open: frozenset[str]):
        self._app, self._settings, self._sessions, self._open = app, settings, sessions, open
        self._rates = Rates()
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it; what goes wrong is told without what was asked."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                guards = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *guards]
            await send(message)

        try:
            self._check(scope)
            receive_again = await _receive_whole(scope, receive)
            if self._under_way >= MAX_UNDER_WAY:
                told = "too many requests are under way: wait a moment"
                raise Refused(503, told, {"retry-after": str(RETRY_SECONDS)})
            self._under_way += 1
            try:
                await self._app(scope, receive_again, send_guarded)
            finally:
                self._under_way -= 1
        except Refused as refused:
            await refused.response(scope, receive, send_guarded)
        except Exception as error:  # whatever it is: the application has answered 500, and uvicorn would tell all of it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log(f"error: {scope['path']}: {type(error).__name__} in {frame.filename}, line {frame.lineno}")

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = _HOST.fullmatch(host)
        if not name or name[1] not in self._settings.hosts:
            raise Refused(421, "the server does not answer to this host name: name it with --allow_host")
        origin = headers.get("origin", "").lower()
        if scope["method"] not in ("GET", "HEAD") and origin and origin.partition("://")[2] != host:
            raise Refused(403, "the request comes from the page of another site")
        now = time.monotonic()
        admitted = self._admitted(headers, now)
        # Who is not admitted, behind the same proxy perhaps, takes nothing from who is.
        if not self._rates.admits((scope["client"][0], admitted), now):
            raise Refused(429, "too many requests: wait a moment", {"retry-after": str(RETRY_SECONDS)})
        if self._settings.token and scope["path"] not in self._open and not admitted:
            raise Refused(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})

    def _admitted(self, headers: Headers, now: float) -> str:
        """By what a request is admitted: the name of its session, or "token"; "" where it is not."""
        session = read_cookie(headers)
        if self._sessions.holds(session, now):
            return session
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return "token" if scheme.lower() == "bearer" and is_token(token, self._settings) else ""


def is_token(text: str, settings: Settings) -> bool:
    """Whether it is the token, where there is one; the time that this takes does not tell how much of it is right."""
    return bool(settings.token) and hmac.compare_digest(text.encode(errors="replace"), settings.token.encode())


async def _receive_whole(scope: Scope, receive: Receive) -> Receive:
    """Reads the body, and gives it as one message; Refused where it is too large, or does not come."""
    most = MAX_BODY if scope["path"] == "/api/search" else MAX_SMALL_BODY
    told = Headers(scope=scope).get("content-length", "0")
    if not told.isdecimal() or int(told) > most:
        raise Refused(413, f"the request is larger than {most:,} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request has been cut short")
                body += message.get("body", b"")
                if len(body) > most:
                    raise Refused(413, f"the request is larger than {most:,} bytes")
                if not message.get("more_body"):
                    break
    except TimeoutError:
        raise Refused(408, f"the request has not come in {BODY_SECONDS:.0f} s") from None
    if sum(map(body.count, (b'"', b",", b"[", b"{"))) > MAX_MARKS:  # to be parsed would take seconds
        raise Refused(413, "the request has too many parts")
    whole = [{"type": "http.request", "body": bytes(body)}]

    async def receive_again() -> Message:
        return whole.pop() if whole else await receive()

    return receive_again


def log(line: str) -> None:
    """One line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)
