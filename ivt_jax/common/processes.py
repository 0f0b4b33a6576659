"""Work in several processes, which end when this one ends, and end it with a message when one of them is killed."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ivt_jax.common.errors import UserError

R = TypeVar("R")


def map_in_processes(work: Callable[..., R], *items: Sequence[Any], workers: int, chunk: int = 1) -> Iterator[R]:
    """Works as `map`, in `workers` processes; a single worker is this process.

    chunk: items that a process takes at once. Raises UserError if a process is killed; with multiprocessing.Pool, the
    command would wait for its results for ever.
    """
    if workers == 1:
        yield from map(work, *items)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(work, *items, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, as the system does if memory runs out: run the command again with fewer "
                f"--workers than {workers}"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the other items would be worked on first
            raise


def _end_with_parent() -> None:
    """Ends this process when its parent has ended. After `kill -9` of the parent, it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
