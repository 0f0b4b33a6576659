"""SIGTERM and Ctrl-C: during training the current step is saved before the run ends; otherwise it ends at once."""

import os
import signal
import socket
import threading
from typing import NoReturn

from ivt_jax.run import watchdog

EXIT_CODE = 75  # the same command resumes

_asked = threading.Event()  # a signal has arrived
_training = threading.Event()  # steps would be lost
_shared = threading.Event()  # several processes: JAX handles SIGTERM


def listen() -> None:
    """Handles the signals in a thread of its own from now on, since the main thread may compile for minutes.

    A process that ignores Ctrl-C from its start, such as a job in the background, still ignores it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_answer, args=(reader, writer), daemon=True).start()


def share() -> None:
    """Leaves SIGTERM to JAX, so that all processes agree on a step. Call after jax.distributed.initialize."""
    _shared.set()


def reached(step: int) -> bool:
    """Returns whether the run must save this step and end. Every process calls it after every step (microseconds).

    From the first call on, a signal takes effect at the next call.
    """
    _training.set()
    if _shared.is_set():
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return _asked.is_set()


def over() -> None:
    """Ends the training: from now on, a signal ends the run at once again."""
    _training.clear()
    if _asked.is_set():
        _end()


def _answer(reader: socket.socket, _writer: socket.socket) -> None:
    """Waits for signals. `_writer` is passed to stay open: Python's signal handler writes to it."""
    interrupts = 0
    while True:
        number = reader.recv(1)[0]
        interrupts += number == signal.SIGINT
        if interrupts == 2:
            os._exit(128 + signal.SIGINT)
        if number == signal.SIGINT and _shared.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes it on to all processes
        else:
            _asked.set()
            if not _training.is_set():  # read after setting _asked; `over` does the opposite, so neither is missed
                _end()


def _end() -> NoReturn:
    watchdog.end(EXIT_CODE, "preempted: nothing is lost; the same command continues")
