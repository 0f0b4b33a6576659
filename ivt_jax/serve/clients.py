"""Limits per client: rates, and slots for requests. Times are in seconds."""

import asyncio
import contextlib
import sys
import time
import weakref
from collections.abc import AsyncIterator, Hashable

from starlette.exceptions import HTTPException

from ivt_jax.common.files import printable
from ivt_jax.serve import limits


def busy(status: int, reason: str) -> HTTPException:
    """Returns the refusal of a request that the client may send again after RETRY_SECONDS."""
    return HTTPException(status, f"{reason}: wait a moment", {"retry-after": str(limits.RETRY_SECONDS)})


class Rates:
    """A token bucket per client: it holds BURST, loses 1 with each request and gains RATE each second."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # level and time; the client seen longest ago first

    def admits(self, client: Hashable, now: float) -> bool:
        """Counts a request; returns False if the client's bucket is empty."""
        level, then = self._buckets.pop(client, (limits.BURST, now))
        level = min(limits.BURST, level + (now - then) * limits.RATE)
        self._buckets[client] = (max(level - 1, 0), now)
        if len(self._buckets) > limits.MAX_CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        return level >= 1


class Slots:
    """Admits at most `limit` requests at a time, `client_limit` of one client; others wait for up to `seconds`.

    At most `client_limit` requests of one client wait in the common queue, so clients take turns.
    """

    def __init__(self, limit: int, client_limit: int, seconds: float, reason: str):
        """reason: for the refusal of a request that got no slot in time."""
        self._slots, self._client_limit = asyncio.Semaphore(limit), client_limit
        self._seconds, self._reason = seconds, reason
        # One semaphore per client, for as long as the client holds a slot or waits.
        self._client_slots = weakref.WeakValueDictionary[Hashable, asyncio.Semaphore]()

    @contextlib.asynccontextmanager
    async def taken(self, client: Hashable) -> AsyncIterator[None]:
        """Holds a slot for as long as the block lasts. Raises HTTPException (503) if none becomes free in time."""
        client_slots = self._client_slots.setdefault(client, asyncio.Semaphore(self._client_limit))
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._seconds):
                    await stack.enter_async_context(client_slots)
                    await stack.enter_async_context(self._slots)
            except TimeoutError:
                raise busy(503, self._reason) from None
            yield


def log(line: str) -> None:
    """Writes the time (UTC) and one line on stderr, with unprintable characters escaped."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(now, printable(line), file=sys.stderr, flush=True)
