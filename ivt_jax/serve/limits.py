"""Limits on clients: slots for requests, bodies and images, and a count of wrong tokens. Times are in seconds."""

import asyncio
import contextlib
import hmac
import sys
import weakref
from collections.abc import AsyncIterator, Hashable

from starlette.exceptions import HTTPException

from ivt_jax.common.files import printable
from ivt_jax.serve.settings import MAX_CLIENTS, RETRY_SECONDS, WRONG_SECONDS, WRONG_TOKENS


class Refused(HTTPException):
    """Refuses a request and says why."""


class Busy(Refused):
    """Refuses a request that the client may send again in a moment."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, f"{reason}: wait a moment", {"retry-after": str(RETRY_SECONDS)})


class Slots:
    """Admits at most `limit` requests at a time, `client_limit` of one client; others wait for up to `seconds`.

    At most `client_limit` requests of one client wait in the common queue, so clients take turns, however many requests
    one of them sends.
    """

    def __init__(self, limit: int, client_limit: int, seconds: float, reason: str):
        """reason: for the refusal of a request that got no slot in time."""
        self._slots, self._client_limit = asyncio.Semaphore(limit), client_limit
        self._seconds, self._reason = seconds, reason
        # The slots of each client that holds one or waits.
        self._client_slots = weakref.WeakValueDictionary[Hashable, asyncio.Semaphore]()

    @contextlib.asynccontextmanager
    async def taken(self, client: Hashable) -> AsyncIterator[None]:
        """Holds a slot for as long as the block lasts. Raises Busy (503) if none becomes free in time."""
        client_slots = self._client_slots.setdefault(client, asyncio.Semaphore(self._client_limit))
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._seconds):
                    await stack.enter_async_context(client_slots)
                    await stack.enter_async_context(self._slots)
            except TimeoutError:
                raise Busy(503, self._reason) from None
            yield


class Tokens:
    """The token, and how often each address has sent a wrong one."""

    def __init__(self, token: str):
        self._token = token.encode()
        self._wrong: dict[Hashable, tuple[float, int]] = {}  # by address: since when, how many; the oldest first

    def is_right(self, text: str) -> bool:
        """Whether a text is the token, if there is one; the time does not depend on how much of it is right."""
        return bool(self._token) and hmac.compare_digest(text.encode(errors="replace"), self._token)

    def count_wrong(self, address: str, now: float) -> Refused:
        """Counts a wrong token, logs an address's first in each minute, returns the refusal: 401, or 429 after many."""
        since, count = self._wrong.get(address, (now, 0))
        if now - since >= WRONG_SECONDS:
            since, count = now, 0
        if not count:
            self._wrong.pop(address, None)  # inserted again below, at the end
            log(f"warning: {address} has sent a wrong token (one line a minute, however many follow)")
        self._wrong[address] = since, count + 1
        if len(self._wrong) > MAX_CLIENTS:
            del self._wrong[next(iter(self._wrong))]
        if count < WRONG_TOKENS:
            return Refused(401, "this is not the token", {"www-authenticate": "Bearer"})
        retry = {"retry-after": str(max(1, round(since + WRONG_SECONDS - now)))}
        return Refused(429, "too many wrong tokens: wait a minute, or send the right one", retry)


def log(line: str) -> None:
    """Writes one line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)
