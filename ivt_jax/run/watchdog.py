"""What ends a run that cannot go on: another process of it is gone, or nothing moves. The same command resumes."""

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

EXIT_CODE = 76
# What collectives, the coordination service and its transport say when they lose a process.
_LOST = re.compile(r"gloo|nccl|coordination ?service|heartbeat|unavailable|deadline_exceeded|connection|socket", re.I)

_ending = threading.Lock()


def end(code: int, line: str) -> NoReturn:
    """Says the line and ends the process now: Python's end would wait for the other processes. The first call wins."""
    _ending.acquire()  # for good
    print(line, file=sys.stderr, flush=True)
    os._exit(code)


def is_lost_process(error: BaseException) -> bool:
    """Whether this error of JAX means that another process cannot be reached any more."""
    return isinstance(error, (RuntimeError, ValueError)) and bool(_LOST.search(str(error)))


def lost_process(why: object) -> NoReturn:
    """Ends the run: `why` is what JAX says."""
    reason = str(why).strip().splitlines()[0]
    end(EXIT_CODE, f"error: another process of the run is gone ({reason}); the same command resumes")


def leave(code: int, seconds: int = 5) -> NoReturn:
    """Ends a process by its own fault. Others of the run may have met the same: they get `seconds` to say so."""
    from jax._src.distributed import global_state  # multihost_utils has no barrier with a limit

    _ending.acquire()
    if global_state.client:
        with contextlib.suppress(RuntimeError, ValueError):
            global_state.client.wait_at_barrier("ivt_jax: failed", seconds * 1000)
    sys.stdout.flush()
    os._exit(code)


def answer_abort() -> None:
    """Makes one line and an exit code of it where JAX aborts the process because its heartbeat lost another.

    JAX does so in a thread of C++, which is no Python thread; Python's own handlers would run too late. (The client's
    `missed_heartbeat_callback` would be the place, but its argument cannot be converted: std::bad_cast.) Any other
    abort of the main thread stays what it is.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def answer(number: int) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            libc.signal(number, None)  # the default, which follows
        else:
            lost_process("JAX's own words are above")

    answer_abort.kept = answer  # type: ignore[attr-defined]  # as long as the process may abort
    libc.signal(signal.SIGABRT, ctypes.cast(answer, ctypes.c_void_p))


class Watchdog:
    """Ends the run, with the stack of every thread, where `limit` seconds pass after a `feed` without another.

    limit: 0 for never. Time in which the process itself was stopped does not count.
    """

    def __init__(self, limit: float):
        self._limit, self._tick = limit, min(1.0, limit / 4)
        # Seconds since it was fed; None while it rests. Each feed has a list of its own: what the thread is just adding
        # to an old one then neither counts for the new one nor ends a rest.
        self._idle: list[float] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._limit:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()

    def feed(self) -> None:
        """There is progress; the first call starts the clock."""
        self._idle = [0.0]

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """For work that may take long, such as a validation."""
        self._idle = None
        yield
        self.feed()

    def _watch(self) -> None:
        then = time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            idle = self._idle
            if idle is not None:
                idle[0] += min(now - then, 2 * self._tick)
                if idle[0] > self._limit and idle is self._idle:
                    self._bite()
            then = now

    def _bite(self) -> None:
        _ending.acquire()
        print(
            f"error: no step in {self._limit:g} s (runtime.watchdog): the run hangs; the same command resumes. What "
            "every thread was doing:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        os._exit(EXIT_CODE)
