"""Ends a run that cannot continue: another of its processes is lost, or no step ends. The same command resumes it."""

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
# Words in the errors of collectives, the coordination service and its transport after they lose a process.
_LOST = re.compile(r"gloo|nccl|coordination ?service|heartbeat|unavailable|deadline_exceeded|connection|socket", re.I)

_ending = threading.Lock()  # acquired once, by the thread that ends the process


def end(code: int, line: str, stacks: bool = False) -> NoReturn:
    """Prints the line and exits at once; Python's own exit would wait for other processes. The first call wins.

    stacks: prints the stack of every thread too.
    """
    _ending.acquire()
    print(line, file=sys.stderr, flush=True)
    if stacks:
        faulthandler.dump_traceback(sys.stderr)
    os._exit(code)


def is_lost_process(error: BaseException) -> bool:
    """Returns whether JAX raised this error because it cannot reach another process."""
    return isinstance(error, (RuntimeError, ValueError)) and bool(_LOST.search(str(error)))


def lost_process(error: object) -> NoReturn:
    """Ends the run because of this error of JAX."""
    reason = str(error).strip().splitlines()[0]
    end(EXIT_CODE, f"error: another process of the run is gone ({reason}); the same command resumes")


def coordination_client() -> Any:
    """Returns JAX's client of the coordination service, None in a run of one process.

    It is not public. jax.experimental.multihost_utils communicates through devices only, and without a time limit.
    """
    from jax._src.distributed import global_state

    return global_state.client


def leave(code: int, seconds: int = 5) -> NoReturn:
    """Exits after an error; waits up to `seconds` for other processes with the same error, so that they print it."""
    _ending.acquire()
    if client := coordination_client():
        with contextlib.suppress(RuntimeError, ValueError):
            client.wait_at_barrier("ivt_jax: failed", seconds * 1000)
    sys.stdout.flush()
    os._exit(code)


def answer_abort() -> None:
    """Prints one line and exits with 76 when JAX aborts this process because the heartbeat of another stopped.

    JAX aborts in a C++ thread, where handlers of Python would run too late. The client's `missed_heartbeat_callback`
    cannot be used: its argument has no conversion (std::bad_cast). Aborts of the main thread are not changed.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def answer(number: int) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            libc.signal(number, None)  # the default action follows
        else:
            lost_process("JAX's own words are above")

    answer_abort.kept = answer  # type: ignore[attr-defined]  # or Python would free it
    libc.signal(signal.SIGABRT, ctypes.cast(answer, ctypes.c_void_p))


class Watchdog:
    """Ends the run, printing the stack of every thread, if `limit` seconds pass after a `feed` without another.

    limit: 0 for no limit. Time in which the process was stopped does not count.
    """

    def __init__(self, limit: float):
        self._limit, self._tick = limit, min(1.0, limit / 4)
        # Seconds since the last feed, None while resting. Every feed makes a new list: if the thread adds to an old
        # list at the same moment, that neither counts for the new feed nor ends a rest.
        self._idle: list[float] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._limit:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()

    def feed(self) -> None:
        """Restarts the clock; the first call starts it."""
        self._idle = [0.0]

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Stops the clock during long work such as a validation."""
        self._idle = None
        yield
        self.feed()

    def _watch(self) -> None:
        then = time.monotonic()
        while not self._closed.wait(self._tick):
            now, idle = time.monotonic(), self._idle
            if idle is not None:
                idle[0] += min(now - then, 2 * self._tick)
                if idle[0] > self._limit and idle is self._idle:
                    cause = f"no step in {self._limit:g} s (runtime.watchdog): the run hangs"
                    end(EXIT_CODE, f"error: {cause}; the same command resumes. Stacks of all threads:", stacks=True)
            then = now
