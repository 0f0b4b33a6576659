"""Decodes uploaded images in a separate process, which has limits of time and memory.

A file of 100 kB can keep a decoder busy for a minute or make it allocate gigabytes, in more ways than a check of its
header can foresee. The process is killed and started again if an image takes more than DECODE_SECONDS. Its memory is
limited to DECODE_BYTES. It imports neither JAX nor the model.
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

from input_pipeline.decoding import NotTakenError, open_picture
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import fit, odd_shape, open_image
from ivt_jax.serve import limits

_START_SECONDS = 60.0  # for the process to start, on a busy machine
_DECODED, _REFUSED = b"+", b"-"  # the first byte of an answer; after it "ODD\0" and a PNG, or the reason


class Decoder:
    """Decodes images for one thread at a time, at `size` (height, width)."""

    def __init__(self, size: tuple[int, int]):
        self._size, self._ready = size, False
        self._start()

    def decode(self, content: bytes) -> tuple[bytes, str]:
        """Returns an uploaded image as a PNG, resized as by `ivt_jax.encoding.images.fit`, and its `odd_shape`.

        Raises UserError if its format is not allowed, it is damaged or too large, or exceeds a limit of time or memory.
        """
        if not self._process.is_alive():
            self._restart()
        try:
            if not self._ready:
                self._receive(_START_SECONDS)
                self._ready = True
            self._pipe.send_bytes(content)
            answer = self._receive(limits.DECODE_SECONDS)
        except TimeoutError:
            self._restart()
            reason = f"the image takes more than {limits.DECODE_SECONDS:g} s to decode"
            raise UserError(f"{reason}: save it again, smaller or as a baseline JPEG") from None
        except (EOFError, OSError):  # the process has died of its memory limit, in a library, or was killed
            self._restart()
            raise UserError("the image cannot be decoded: save it again") from None
        if answer[:1] == _REFUSED:
            raise UserError(answer[1:].decode())
        odd, _, png = answer[1:].partition(b"\0")
        return png, odd.decode()

    def _receive(self, seconds: float) -> bytes:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return self._pipe.recv_bytes()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the server's memory
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._size, limits.DECODE_BYTES), daemon=True)
        # Ctrl-C reaches the whole group; the process inherits the mask, and ends when the server closes the pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._ready = False

    def _restart(self) -> None:
        if self._process.pid:  # None if the system could not start it
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
        png, odd = decode(content, size)
        return _DECODED + odd.encode() + b"\0" + png
    except (UserError, MemoryError) as error:
        memory = isinstance(error.__cause__ or error, MemoryError)
        reason = "the image takes too much memory to decode: save it again, smaller" if memory else str(error)
        return _REFUSED + reason.encode()


def decode(content: bytes, size: tuple[int, int]) -> tuple[bytes, str]:
    """Decodes as `Decoder.decode`, without limits of time and memory."""
    check_upload(content)
    image, file = open_image("the image", content), io.BytesIO()
    Image.fromarray(fit(image, size)).save(file, "PNG")
    return file.getvalue(), odd_shape(*image.size)


def check_upload(content: bytes) -> None:
    """Raises UserError if the format is not allowed, or decoding would take too long. Decodes nothing."""
    try:
        with open_picture(io.BytesIO(content)) as image:
            width, height = image.size
    except NotTakenError as error:
        raise UserError(f"the image cannot be read ({error}): send a JPEG, PNG or WEBP") from None
    except Image.DecompressionBombError:
        raise UserError(f"the image has too many pixels: at most {limits.MAX_UPLOAD_PIXELS:,} are allowed") from None
    except Image.UnidentifiedImageError:
        raise UserError("the image cannot be read: send a JPEG, PNG or WEBP") from None  # formats that all can write
    except Exception:  # Pillow raises errors of many types for a damaged file
        raise UserError("the image is cut short or damaged: save it again") from None
    # By content: Pillow has other names for kinds of JPEG, such as MPO. This marker starts each scan.
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > limits.MAX_SCANS:
        raise UserError(f"the image has more than {limits.MAX_SCANS} scans: save it again")
    if width * height > limits.MAX_UPLOAD_PIXELS:
        raise UserError(f"the image has {width} x {height} pixels: at most {limits.MAX_UPLOAD_PIXELS:,} are allowed")
