"""What a request passes before the application sees it: closed by default.

In this order: the name that the server was called by (a site that has its name point to this machine is refused), the
page that sends it, the client's rate, the token, the number of the client's requests under way, a slot for a large
body, the size of the body and its time to arrive, and the number of all requests under way.

A client is an address together with its session, so users behind one address count separately once they have logged in.
"""

import asyncio
import contextlib
import re
import time
import traceback
from collections.abc import Hashable, Iterator

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ivt_jax.serve.limits import Busy, Refused, Slots, Tokens, log
from ivt_jax.serve.public import NAME, Origin, read_origin
from ivt_jax.serve.sessions import Sessions, read_cookie
from ivt_jax.serve.settings import (
    BODY_SECONDS,
    BURST,
    MAX_BODIES,
    MAX_BODY,
    MAX_CLIENT_BODIES,
    MAX_CLIENT_UNDER_WAY,
    MAX_CLIENTS,
    MAX_CONNECTIONS,
    MAX_MARKS,
    MAX_SMALL_BODY,
    MAX_UNDER_WAY,
    RATE,
    RETRY_SECONDS,
    SLOT_SECONDS,
    Settings,
)

_HOST = re.compile(rf"({NAME})(?::(\d{{1,5}}))?")
_POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
_HEADERS = {
    "content-security-policy": _POLICY + "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # what people look for, and who is found, is kept on no disk
}


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

    def __init__(self, app: ASGIApp, settings: Settings, sessions: Sessions, tokens: Tokens, open: frozenset[str]):
        self._app, self._settings, self._sessions, self._tokens, self._open = app, settings, sessions, tokens, open
        self._path = settings.public.path if settings.public else ""
        self._rates, self._under_way = Rates(), 0
        self._bodies = Slots(MAX_BODIES, MAX_CLIENT_BODIES, SLOT_SECONDS, "too many large requests at once")
        # A client's requests, also those whose body has yet to arrive. A request may wait for RETRY_SECONDS, because
        # closed connections give their slots back with a delay.
        reason = "too many of your requests are under way"
        self._requests = Slots(MAX_CONNECTIONS, MAX_CLIENT_UNDER_WAY, RETRY_SECONDS, reason)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request or refuses it. Logs errors without the content of the request."""
        head = scope["method"] == "HEAD"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                guards = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *guards]
            elif head:
                message["body"] = b""
            await send(message)

        try:
            client = self._check(scope)
            if self._path and scope["path"] == self._path:  # without the slash, relative links would lead elsewhere
                await RedirectResponse(f"{self._path}/")(scope, receive, send_guarded)
                return
            await self._answer(self._as_get(scope, client), receive, send_guarded, client)
        except Refused as refused:
            response = JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)
            await response(scope, receive, send_guarded)
        except Exception as error:  # whatever it is: the application has answered 500, and uvicorn would log all of it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log(f"error: {scope['path']}: {type(error).__name__} in {frame.filename}, line {frame.lineno}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send, client: Hashable) -> None:
        length = _body_length(scope)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._requests.taken(client))
            if length > MAX_SMALL_BODY:
                await stack.enter_async_context(self._bodies.taken(client))
            receive_again = await _receive_whole(scope, receive)
            stack.enter_context(self._count())
            await self._app(scope, receive_again, send)

    @contextlib.contextmanager
    def _count(self) -> Iterator[None]:
        if self._under_way >= MAX_UNDER_WAY:
            raise Busy(503, "too many requests are under way")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _as_get(self, scope: Scope, client: Hashable) -> Scope:
        """Returns the request for the application: HEAD as GET, without the path of the public URL, with its client."""
        path = self._local_path(scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return {**scope, "method": method, "path": path, "state": {**scope.get("state", {}), "client": client}}

    def _local_path(self, scope: Scope) -> str:
        """Returns the path without that of the public URL, which some proxies remove and others keep."""
        path = scope["path"]
        if path == self._path:
            return "/"
        return path.removeprefix(self._path) if path.startswith(f"{self._path}/") else path

    def _check(self, scope: Scope) -> Hashable:
        """Returns the client, an address with its session. Raises Refused."""
        headers = Headers(scope=scope)
        self._check_site(headers, scope["method"])
        now, address = time.monotonic(), scope["client"][0]
        session, token = self._session(headers, now), _bearer(headers)
        admitted = session or ("token" if self._tokens.is_right(token) else "")
        # Clients without the token, perhaps behind the same proxy, do not use up the rate of those with it.
        if not self._rates.admits((address, admitted), now):
            raise Busy(429, "too many requests")
        if self._settings.token and not admitted and self._local_path(scope) not in self._open:
            if token:
                raise self._tokens.count_wrong(address, now)
            raise Refused(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        return address, admitted

    def _check_site(self, headers: Headers, method: str) -> None:
        """Raises Refused for another host name, and for a page of another site that sends more than GET or HEAD."""
        name = _HOST.fullmatch(headers.get("host", "").lower())
        if not name or name[1] not in self._settings.hosts:
            reason = "the server does not answer to this host name"
            raise Refused(421, f"{reason}: name it with --allow_host, or with --public_url behind a proxy")
        origin = headers.get("origin", "")
        if method not in ("GET", "HEAD") and origin and not self._is_own(read_origin(origin), *name.groups()):
            reason = "the request comes from the page of another site"
            raise Refused(403, f"{reason}; if it is the server's own page behind a proxy, set --public_url")

    def _is_own(self, origin: Origin | None, host: str, port: str | None) -> bool:
        """Whether a page of this origin is the server's own, for a request with this Host header."""
        if origin is None:
            return False
        public = self._settings.public and self._settings.public.origin
        if origin == public:
            return True
        if public and host == public.host:  # such as http:// where the public URL has https://
            return False
        return origin == read_origin(f"{origin.scheme}://{host}" + (f":{port}" if port else ""))

    def _session(self, headers: Headers, now: float) -> str:
        """Returns the name of the session that a request belongs to, "" for none."""
        session = read_cookie(headers)
        return session if self._sessions.holds(session, now) else ""


def _bearer(headers: Headers) -> str:
    """Returns the token that a request carries, "" for none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _body_length(scope: Scope) -> int:
    """Returns the length of a body in bytes, the largest allowed if it is unknown. Raises Refused if it is larger."""
    headers, most = Headers(scope=scope), _largest_body(scope)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise Refused(413, f"the request is larger than {most:,} bytes")
    return most if "transfer-encoding" in headers else int(length)


def _largest_body(scope: Scope) -> int:
    """Returns the largest body that the path accepts, in bytes."""
    return MAX_BODY if scope["path"] == "/api/search" else MAX_SMALL_BODY


async def _receive_whole(scope: Scope, receive: Receive) -> Receive:
    """Reads the body, and gives it as one message; Refused where it is too large, or does not come."""
    most = _largest_body(scope)
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
