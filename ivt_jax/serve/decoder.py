"""Decodes uploaded images in a separate process, which has limits of time and memory.

A file of 100 kB can keep a decoder busy for a minute or make it allocate gigabytes, in more ways than a check of its
header can foresee. If an image takes more than DECODE_SECONDS, the process is killed and started again. It cannot have
more than DECODE_BYTES of memory. Between images it keeps running. It imports neither JAX nor the model.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import load_image
from ivt_jax.serve.pictures import check_upload
from ivt_jax.serve.settings import DECODE_BYTES, DECODE_SECONDS

_START_SECONDS = 60.0  # for the process to start, on a busy machine
_DECODED, _REFUSED = b"+", b"-"  # the first byte of an answer; after it, a PNG or the reason


class Decoder:
    """Decodes images for one thread at a time, at `size` (height, width)."""

    def __init__(self, size: tuple[int, int]):
        self._size, self._ready = size, False
        self._start()

    def decode(self, content: bytes) -> bytes:
        """Returns an uploaded image as a PNG, resized as by `ivt_jax.encoding.images.fit`.

        Raises UserError if its format is not taken, it is damaged or too large, or exceeds a limit of time or memory.
        """
        if not self._process.is_alive():
            self._restart()
        try:
            if not self._ready:
                self._receive(_START_SECONDS)
                self._ready = True
            self._pipe.send_bytes(content)
            answer = self._receive(DECODE_SECONDS)
        except TimeoutError:
            self._restart()
            reason = f"the image takes more than {DECODE_SECONDS:g} s to decode"
            raise UserError(f"{reason}: save it anew, smaller or as a baseline JPEG") from None
        except (EOFError, OSError):  # it has died: of its memory limit, within a library, or the system killed it
            self._restart()
            raise UserError("the image cannot be decoded: save it anew") from None
        if answer[:1] == _REFUSED:
            raise UserError(answer[1:].decode())
        return answer[1:]

    def _receive(self, seconds: float) -> bytes:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return self._pipe.recv_bytes()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the server's memory
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._size, DECODE_BYTES), daemon=True)
        # Ctrl-C reaches the whole group; the process inherits the mask, and ends when the server closes the pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._ready = False

    def _restart(self) -> None:
        if self._process.pid:  # it has none if the system could not start it
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._start()


def _work(pipe: Connection, size: tuple[int, int], memory: int) -> None:
    """Runs in the decoding process: decodes an image per message until the pipe closes. memory: its limit, in bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # uploads are not stored, not even by a crash
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints each damaged upload
    with contextlib.suppress(OSError):  # a system without /proc limits only the time
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(b"")
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes(), size))


def _answer(content: bytes, size: tuple[int, int]) -> bytes:
    try:
        return _DECODED + decode(content, size)
    except UserError as error:
        return _REFUSED + str(error).encode()
    except MemoryError:
        return _REFUSED + b"the image takes too much memory to decode: save it anew, smaller"


def decode(content: bytes, size: tuple[int, int]) -> bytes:
    """Returns what `Decoder.decode` returns, without limits of time and memory."""
    check_upload(content)
    try:
        pixels = load_image("the image", size, content)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError from None
        raise
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
