"""Maps a function over items in several processes; raises an error if one of them is killed."""

import functools
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.errors import UserError

R = TypeVar("R")


def map_in_processes(work: Callable[..., R], *items: Iterable[Any], workers: int, chunk: int = 1) -> Iterator[R]:
    """Yields what `work` returns for each item in order, as `map`; `workers` processes compute, or this one if 1.

    chunk: items that a process takes at once. Raises UserError if a process is killed.
    """
    if workers == 1:
        yield from map(work, *items)
        return
    # A multiprocessing.Pool waits for ever for the results of a worker that was killed.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    chunks = _chunks(zip(*items, strict=True), chunk)
    try:
        for _, done in done_ahead(functools.partial(_work_on, work), chunks, 2 * workers, pool):
            yield from done.result()
    except BrokenProcessPool as error:
        if error.__cause__:  # an answer that could not be read
            raise
        raise UserError(
            "a process has ended unexpectedly, as the system kills one if memory runs out: run the command again with "
            f"fewer --workers than {workers}"
        ) from None


def _chunks(items: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    remaining = iter(items)
    return iter(lambda: list(itertools.islice(remaining, size)), [])


def _work_on(work: Callable[..., R], chunk: list[tuple]) -> list[R]:
    return [work(*item) for item in chunk]


def _end_with_parent() -> None:
    """Ends this process when its parent has ended. After `kill -9` of the parent, it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
