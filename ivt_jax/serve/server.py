"""uvicorn with time-outs, a bounded number of connections per client, and without access logs."""

import asyncio
import ipaddress
import itertools
from collections.abc import Sequence

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ivt_jax.serve.settings import HEAD_SECONDS, MAX_CLIENT_CONNECTIONS, MAX_CONNECTIONS, WRITE_SECONDS

_ORDER = itertools.count()  # the order in which connections send; clocks may be too coarse


class Protocol(H11Protocol):
    """Gives a connection HEAD_SECONDS to send the head of a request, and WRITE_SECONDS to read some of an answer.

    uvicorn itself sets no such limits. If an address, or all together, have too many connections, closes the one that
    has sent nothing for longest, so that a new one is answered.
    """

    # no limit per address for these: a proxy has the connections of all its clients
    proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _last_sent = 0  # grows with each piece of data from the client; from _ORDER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_sent = next(_ORDER)
        self._expect_head()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        self._last_sent = next(_ORDER)
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # part of a head
            self._expect_head()
        else:
            self._stop_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._write_timer or self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_timer = self._head_timer or self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _make_room(self) -> None:
        """Closes a connection if its address, or all together, have too many: the one idle longest, or else this one.

        If all connections of all clients are being answered, uvicorn answers this one with 503.
        """
        everyone = [other for other in self.connections if isinstance(other, Protocol)]
        own = [other for other in everyone if other._address == self._address]
        if len(own) > MAX_CLIENT_CONNECTIONS and not self._is_proxy():
            counted = own
        elif len(everyone) >= MAX_CONNECTIONS:
            counted = everyone
        else:
            return
        idle = [other for other in counted if other is not self and other._is_idle()]
        oldest = min(idle, key=lambda other: other._last_sent, default=self if counted is own else None)
        if oldest is not None:
            # At once: uvicorn counts it until it is lost, and would refuse this one with 503.
            self.connections.discard(oldest)
            oldest.transport.abort()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _is_proxy(self) -> bool:
        if not self._address:  # the connection is already closed
            return False
        return any(ipaddress.ip_address(self._address) in network for network in self.proxies)

    def _is_idle(self) -> bool:
        """Whether the client is to send next: it has sent no request since the last answer, or only part of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body


def make_server(app: ASGIApp, proxies: Sequence[str] = ()) -> uvicorn.Server:
    """Returns a server that logs nothing of a request.

    proxies: addresses or networks whose X-Forwarded-For is trusted. The client is the last address in this header that
    is not a proxy's; a client cannot forge it.
    """
    networks = tuple(map(ipaddress.ip_network, proxies))
    config = uvicorn.Config(
        app,
        http=type("OwnProtocol", (Protocol,), {"proxies": networks}),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=[str(network) for network in networks],
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
