"""SIGTERM and Ctrl-C: the step under way is saved before the run ends; where nothing would be lost, it ends at once."""

import os
import signal
import socket
import threading
from typing import NoReturn

from ivt_jax.run import watchdog

EXIT_CODE = 75  # the same command resumes

_asked = threading.Event()  # to end after the step under way
_training = threading.Event()  # there is a step to lose
_shared = threading.Event()  # with other processes: SIGTERM is JAX's


def listen() -> None:
    """Answers the signals from now on, in a thread of its own: the main one may be compiling for minutes.

    What ignores Ctrl-C from its start, such as a job in the background, goes on ignoring it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=_answer, args=(reader, writer), daemon=True).start()


def share() -> None:
    """After jax.distributed.initialize, which takes SIGTERM: JAX tells the other processes, and all agree on a step."""
    _shared.set()


def reached(step: int) -> bool:
    """Whether the run is to save this step and to end. All processes ask after every step; it costs microseconds.

    From the first call on signals wait for the next one.
    """
    _training.set()
    if _shared.is_set():
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return _asked.is_set()


def over() -> None:
    """After the last step: signals end the run at once again."""
    _training.clear()
    if _asked.is_set():
        _end()


def _answer(reader: socket.socket, _writer: socket.socket) -> None:
    """`_writer` is kept open; the signal handler writes to it."""
    interrupts = 0
    while True:
        number = reader.recv(1)[0]
        interrupts += number == signal.SIGINT
        if interrupts == 2:
            os._exit(128 + signal.SIGINT)
        if number == signal.SIGINT and _shared.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # tells all processes
        else:
            _asked.set()  # and then the look at `_training`; `over` does it the other way round, so one sees the other
            if not _training.is_set():
                _end()


def _end() -> NoReturn:
    watchdog.end(EXIT_CODE, "preempted: nothing is lost; the same command goes on")
