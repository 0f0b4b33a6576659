"""Middleware that refuses requests before the application sees them.

It checks in this order: the Host header (DNS rebinding), the Origin header (pages of other sites), the client's rate,
the token, the number of the client's requests under way, a slot for a large body, the body's size and time to arrive,
and the number of all requests under way.

A client is an address together with its session, so users behind one address count separately once they have logged in.
"""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Hashable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ivt_jax.serve import limits
from ivt_jax.serve.clients import Rates, Slots, busy, log
from ivt_jax.serve.logins import Logins, cookie_name
from ivt_jax.serve.metrics import Metrics
from ivt_jax.serve.settings import Origin, Settings, read_origin


class Guard:
    """The middleware. open: paths that need no token."""

    def __init__(self, app: ASGIApp, settings: Settings, logins: Logins, metrics: Metrics, open: frozenset[str]):
        self._app, self._settings, self._logins, self._metrics, self._open = app, settings, logins, metrics, open
        self._prefix = settings.public.path if settings.public else ""
        self._rates = Rates()
        # A request waits for RETRY_SECONDS, because closed connections give their slots back with a delay.
        reason = "too many of your requests are under way"
        self._requests = Slots(limits.MAX_CONNECTIONS, limits.MAX_CLIENT_UNDER_WAY, limits.RETRY_SECONDS, reason)
        seconds, reason = limits.SLOT_SECONDS, "too many large requests at once"
        self._bodies = Slots(limits.MAX_BODIES, limits.MAX_CLIENT_BODIES, seconds, reason)
        self._answers = Slots(limits.MAX_UNDER_WAY, limits.MAX_UNDER_WAY, 0, "too many requests are under way")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or refuses a request. Handles HEAD as GET: uvicorn drops the body. Logs errors without content."""
        path = self._local_path(scope["path"])
        send = self._metrics.watched(path, send)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        try:
            client = self._admit(scope, path)
            if self._prefix and scope["path"] == self._prefix:  # without the slash, the page's relative links fail
                await RedirectResponse(f"{self._prefix}/")(scope, receive, send)
                return
            state = {**scope.get("state", {}), "client": client}
            await self._answer({**scope, "method": method, "path": path, "state": state}, receive, send)
        except HTTPException as refused:
            response = JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)
            await response(scope, receive, send)
        except Exception as error:  # the application has answered 500; uvicorn would log the whole traceback
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log(f"error: {scope['path']}: {type(error).__name__} in {frame.filename}, line {frame.lineno}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        length, client = _body_length(scope), scope["state"]["client"]
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._requests.taken(client))
            if length > limits.MAX_SMALL_BODY:
                await stack.enter_async_context(self._bodies.taken(client))
            receive_again = await _receive_whole(scope, receive)
            await stack.enter_async_context(self._answers.taken(client))
            await self._app(scope, receive_again, send)

    def _local_path(self, path: str) -> str:
        """Removes the public URL's path from the beginning of a path, unless the proxy has done so."""
        inside = f"{path}/".startswith(f"{self._prefix}/")
        return path.removeprefix(self._prefix) or "/" if inside else path

    def _admit(self, scope: Scope, path: str) -> Hashable:
        """Returns the client. Raises HTTPException if the host, origin, rate or token is refused."""
        connection = HTTPConnection(scope)
        headers = connection.headers
        self._check_site(headers, scope["method"])
        now, address = time.monotonic(), scope["client"][0]
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        token = sent if scheme.lower() == "bearer" else ""
        login = connection.cookies.get(cookie_name(headers), "")  # the session's name
        if not self._logins.holds(login, now):
            login = "token" if self._logins.is_right(token) else ""
        # Clients that are not logged in, perhaps behind the same proxy, do not use up the rate of those that are.
        if not self._rates.admits((address, login), now):
            raise busy(429, "too many requests")
        if self._settings.token and not login and path not in self._open:
            if token:
                raise self._logins.count_wrong(address, now)
            raise HTTPException(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        return address, login

    def _check_site(self, headers: Headers, method: str) -> None:
        """Raises HTTPException for a host name that is not the server's, and for a POST from a page of another site."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        called = read_origin(f"http://{host}")
        if called is None or called.host not in self._settings.hosts:
            reason = "the server does not answer to this host name"
            raise HTTPException(421, f"{reason}: name it with --allow_host, or with --public_url behind a proxy")
        page = read_origin(origin)
        if method not in ("GET", "HEAD") and origin and not (page and self._is_own(page, host)):
            reason = "the request comes from the page of another site"
            raise HTTPException(403, f"{reason}; if it is the server's own page behind a proxy, set --public_url")

    def _is_own(self, page: Origin, host: str) -> bool:
        """Whether a page of this origin is the server's own, for a request with this Host header."""
        public = self._settings.public and self._settings.public.origin
        if public and page.host == public.host:  # http:// is another site if the public URL has https://
            return page == public
        return page == read_origin(f"{page.scheme}://{host}")


def _body_length(scope: Scope) -> int:
    """Returns the length of a body in bytes, the largest allowed if unknown. Raises HTTPException if it is larger."""
    headers, most = Headers(scope=scope), _largest_body(scope)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise HTTPException(413, f"the request is larger than {most:,} bytes")
    return most if "transfer-encoding" in headers else int(length)


def _largest_body(scope: Scope) -> int:
    return limits.MAX_BODY if scope["path"] == "/api/search" else limits.MAX_SMALL_BODY


async def _receive_whole(scope: Scope, receive: Receive) -> Receive:
    """Reads the body; returns a `receive` with it as one message. Raises HTTPException if it is too large or late."""
    most, body = _largest_body(scope), bytearray()
    try:
        async with asyncio.timeout(limits.BODY_SECONDS):
            async for part in Request(scope, receive).stream():
                body += part
                if len(body) > most:
                    raise HTTPException(413, f"the request is larger than {most:,} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the request is cut short") from None
    except TimeoutError:
        raise HTTPException(408, f"the request has not arrived within {limits.BODY_SECONDS:.0f} s") from None
    if sum(map(body.count, (b'"', b",", b"[", b"{"))) > limits.MAX_MARKS:
        marks = f"more than {limits.MAX_MARKS:,} quotes, commas and opening brackets"
        raise HTTPException(413, f"the request has too many parts: {marks}")
    whole = [{"type": "http.request", "body": bytes(body)}]

    async def receive_again() -> Message:
        return whole.pop() if whole else await receive()

    return receive_again
