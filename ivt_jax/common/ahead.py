"""Work on later items, in threads or processes, while earlier ones are used."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = min(os.cpu_count() or 1, 16)  # decode pictures; Pillow releases Python's lock


def done_ahead(
    work: Callable[[T], R], items: Iterable[T], ahead: int, pool: Executor | None = None
) -> Iterator[tuple[T, Future[R]]]:
    """Yields items and the futures of work(item), in order; `pool` works on up to `ahead` items in advance.

    pool: shut down at the end; by default threads.
    """
    waiting, pool = collections.deque[tuple[T, Future[R]]](), pool or ThreadPoolExecutor(_THREADS)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting
    finally:  # after Ctrl-C, queued items are not worth waiting for
        pool.shutdown(cancel_futures=True)
