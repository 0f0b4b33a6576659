"""Limits that the clients share: places for uploads, and wrong tokens. Times are of one clock, in seconds."""

import asyncio
import contextlib
import hmac
import sys
import weakref
from collections.abc import AsyncIterator, Hashable

from starlette.exceptions import HTTPException

from input_pipeline.files import printable
from ivt_jax.serve.settings import MAX_CLIENTS, RETRY_SECONDS, WRONG_SECONDS, WRONG_TOKENS


class Refused(HTTPException):
    """Refuses a request and says why."""


class Busy(Refused):
    """Refuses a request that the client may send again in a moment."""

    def __init__(self, status: int, reason: str):
        super().__init__(status, f"{reason}: wait a moment", {"retry-after": str(RETRY_SECONDS)})


class Places:
    """Admits at most `most` holders at a time, and `each` of one client; the others wait for up to `seconds`.

    No client has more than `each` in the common queue, so clients take turns, however many requests one of them sends.
    """

    def __init__(self, most: int, each: int, seconds: float, crowded: str):
        """crowded: the reason given to a request that has waited in vain."""
        self._all, self._each, self._seconds, self._crowded = asyncio.Semaphore(most), each, seconds, crowded
        self._own = weakref.WeakValueDictionary[Hashable, asyncio.Semaphore]()  # of clients that hold one or wait

    @contextlib.asynccontextmanager
    async def taken(self, client: Hashable) -> AsyncIterator[None]:
        """Holds a place for as long as the block lasts. Raises Busy (503) if none becomes free in time."""
        own = self._own.setdefault(client, asyncio.Semaphore(self._each))
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._seconds):
                    await stack.enter_async_context(own)
                    await stack.enter_async_context(self._all)
            except TimeoutError:
                raise Busy(503, self._crowded) from None
            yield


class Tokens:
    """The token, and how often each client has sent a wrong one."""

    def __init__(self, token: str):
        self._token = token.encode()
        self._wrong: dict[Hashable, tuple[float, int]] = {}  # by client: since when, how many; the oldest first

    def is_right(self, text: str) -> bool:
        """Whether a text is the token, if there is one; the time does not depend on how much of it is right."""
        return bool(self._token) and hmac.compare_digest(text.encode(errors="replace"), self._token)

    def refuse(self, client: str, now: float) -> Refused:
        """Counts a wrong token, logs a client's first in each minute, and returns the refusal: 401; after many, 429."""
        since, count = self._wrong.get(client, (now, 0))
        if now - since >= WRONG_SECONDS:
            since, count = now, 0
        if not count:
            self._wrong.pop(client, None)  # inserted again below, at the end
            log(f"warning: {client} has sent a wrong token (one line a minute, however many follow)")
        self._wrong[client] = since, count + 1
        if len(self._wrong) > MAX_CLIENTS:
            del self._wrong[next(iter(self._wrong))]
        if count < WRONG_TOKENS:
            return Refused(401, "this is not the token", {"www-authenticate": "Bearer"})
        retry = {"retry-after": str(max(1, round(since + WRONG_SECONDS - now)))}
        return Refused(429, "too many wrong tokens: wait a minute, or send the right one", retry)


def log(line: str) -> None:
    """Writes one line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)
