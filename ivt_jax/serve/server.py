"""uvicorn with time-outs, a limit of connections per address and security headers, and without access logs."""

import asyncio
import ipaddress
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ivt_jax.serve import limits
from ivt_jax.serve.clients import log

_POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
_HEADERS = {
    "content-security-policy": _POLICY + "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # queries and results stay off every disk
}
_ORDER = itertools.count()  # the order in which connections send; clocks may be too coarse


class _Log(logging.Handler):
    """Writes uvicorn's warnings as the server's other lines."""

    def emit(self, record: logging.LogRecord) -> None:
        log(f"{record.levelname.lower()}: {record.getMessage()}")


class Protocol(H11Protocol):
    """Gives a client HEAD_SECONDS to send the head of a request, and WRITE_SECONDS to read part of an answer.

    If one address or all together have too many connections, closes the one that has sent nothing for longest, so that
    a new one is answered. uvicorn has none of these limits: its keep-alive time-out starts after the first answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._last_sent = next(_ORDER)  # of data from the client
        self._start_timer("head", limits.HEAD_SECONDS, self.transport.close)
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._last_sent = next(_ORDER)
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # part of a head
            self._start_timer("head", limits.HEAD_SECONDS, self.transport.close)
        else:
            self._stop_timer("head")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer("write", limits.WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_timer("write")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer("head")
        self._stop_timer("write")
        super().connection_lost(exc)

    def _start_timer(self, name: str, seconds: float, end: Callable[[], None]) -> None:
        """Calls `end` after `seconds`, unless `_stop_timer` comes first. Does nothing if this timer runs already."""
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, end)

    def _stop_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _make_room(self) -> None:
        """Closes the connection idle longest if its address, or all together, have too many.

        If an address has no idle one, closes this one. If all together have none, uvicorn answers this one with 503.
        """
        everyone = [other for other in self.connections if isinstance(other, Protocol)]
        own = [other for other in everyone if other._address == self._address]
        if len(own) > limits.MAX_CLIENT_CONNECTIONS and not self._is_proxy():
            counted = own
        elif len(everyone) >= limits.MAX_CONNECTIONS:
            counted = everyone
        else:
            return
        idle = [other for other in counted if other is not self and other._is_idle()]
        oldest = min(idle, key=lambda other: other._last_sent, default=self if counted is own else None)
        if oldest is not None:
            # Now, not when it is lost: until then uvicorn counts it, and would refuse this one with 503.
            self.connections.discard(oldest)
            oldest.transport.abort()

    def _is_proxy(self) -> bool:
        networks = map(ipaddress.ip_network, self.config.forwarded_allow_ips)
        return self._address != "" and any(ipaddress.ip_address(self._address) in network for network in networks)

    def _is_idle(self) -> bool:
        """Whether the server waits for the client: for a request, or for the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body


def make_server(app: ASGIApp, proxies: Sequence[str] = ()) -> uvicorn.Server:
    """Returns a server that logs nothing of a request; its warnings have a time.

    proxies: addresses or networks whose X-Forwarded-For is trusted. The client is the last address in this header that
    is not a proxy's; a client cannot forge it.
    """
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [_Log()], False
    logs: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False}
    bounds: dict[str, Any] = {"limit_concurrency": limits.MAX_CONNECTIONS, "timeout_graceful_shutdown": 5}
    heads: dict[str, Any] = {"headers": list(_HEADERS.items()), "server_header": False}
    parts = {"http": Protocol, "ws": "none", "lifespan": "off", **logs, **bounds, **heads}
    return uvicorn.Server(uvicorn.Config(app, forwarded_allow_ips=list(proxies), **parts))
