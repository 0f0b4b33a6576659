"""Images decoded in a process with limits; the requests around it are in test_guard.py."""

import io
import os
import signal
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import load_image
from ivt_jax.serve import decoder, limits
from tests.serve.conftest import jpeg

SIZE = (48, 24)


@pytest.fixture
def decode():
    """decode(content) -> uint8 pixels; `decode.process()` is the current process."""
    own = decoder.Decoder(SIZE)

    def call(content):
        return np.asarray(Image.open(io.BytesIO(own.decode(content)[0])))

    call.process = lambda: own._process
    yield call
    own._process.kill()


def noise(*size, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image, format, **more):
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


def chunk(kind, content):
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def png_of_chunks(count):
    """Returns an 8 x 8 image that begins with `count` texts of one character, which Pillow reads one by one."""
    header = (8).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    texts = chunk(b"tEXt", b"a\0b") * count
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + texts + pixels + chunk(b"IEND", b"")


SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 8


@pytest.mark.parametrize(
    "content",
    [jpeg(noise(60, 130)), jpeg(noise(60, 130, mode="L"), progressive=True), encoded(noise(24, 48), "PNG"),
     encoded(noise(30, 50, mode="RGBA"), "PNG"), encoded(noise(30, 50, mode="P"), "PNG"),
     encoded(noise(60, 130), "WEBP", save_all=True, append_images=[noise(60, 130)]),
     encoded(noise(60, 130), "TIFF", compression="tiff_lzw"), encoded(noise(60, 130), "AVIF"),
     encoded(noise(60, 130, mode="P"), "GIF"), encoded(noise(60, 130), "BMP"), jpeg(noise(130, 60), exif=SIDEWAYS)],
    ids=["jpeg", "progressive grey", "same size", "transparent", "palette", "animation", "tiff", "avif", "gif", "bmp",
         "sideways"],
)  # fmt: skip
def test_the_pixels_are_those_of_an_index(decode, content):
    found = decode(content)
    np.testing.assert_array_equal(found, load_image("x", SIZE, content))
    np.testing.assert_array_equal(load_image("x", SIZE, encoded(Image.fromarray(found), "PNG")), found)  # when embedded


def test_one_process_decodes_many(decode):
    decode(jpeg(noise(8, 16)))
    first = decode.process().pid
    for _ in range(3):
        decode(jpeg(noise(8, 16)))
    assert decode.process().pid == first


def test_what_takes_too_long_is_given_up_and_the_next_is_decoded(decode, monkeypatch):
    decode(jpeg(noise(8, 16)))  # now the process runs
    monkeypatch.setattr(limits, "DECODE_SECONDS", 0.5)
    bomb = png_of_chunks(480_000)  # 7 MB, for which Pillow needs 5 s or more
    start = time.monotonic()
    with pytest.raises(UserError, match=r"the image takes more than 0\.5 s to decode: save it again"):
        decode(bomb)
    assert time.monotonic() - start < 4  # 0.5 s, and time for other work of the machine
    monkeypatch.undo()
    assert decode(jpeg(noise(8, 16))).shape == (*SIZE, 3)


def test_what_takes_too_much_memory_is_refused_and_the_next_is_decoded(monkeypatch):
    monkeypatch.setattr(limits, "DECODE_BYTES", 40 << 20)
    own = decoder.Decoder(SIZE)
    with pytest.raises(UserError, match=r"too much memory|cannot be decoded"):
        own.decode(encoded(Image.new("RGB", (4000, 4000)), "PNG"))  # 64 MB in Pillow
    assert own.decode(jpeg(noise(8, 16)))
    own._process.kill()


@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_every_format_has_the_limit_of_memory(monkeypatch, format):
    options = {"TIFF": {"compression": "tiff_adobe_deflate"}, "AVIF": {"speed": 10}}[format]
    monkeypatch.setattr(limits, "DECODE_BYTES", 30 << 20)
    own = decoder.Decoder(SIZE)
    with pytest.raises(UserError, match=r"too much memory|cannot be decoded|Out of memory"):
        own.decode(encoded(Image.new("RGB", (3000, 3000)), format, **options))  # 36 MB in Pillow
    assert own.decode(jpeg(noise(8, 16)))
    own._process.kill()


def tiff_of(width, height, strip):
    """A grey TIFF of one deflated strip, whose header may say anything."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 8 + 2 + 9 * 12 + 4),
               (277, 3, 1), (278, 4, height), (279, 4, len(strip))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + strip


def test_a_tiff_larger_than_its_limit_or_its_file_is_refused(decode, capfd):
    strip = zlib.compress(bytes(1000))
    assert decode(tiff_of(25, 40, strip)).shape == (*SIZE, 3)
    for content, message in (
        (tiff_of(30_000, 30_000, strip), "at most 16,000,000 are allowed"),
        (tiff_of(4000, 4000, strip), "the image: cut short or damaged"),
        (tiff_of(25, 40, b"garbage"), "the image: cut short or damaged"),
    ):
        with pytest.raises(UserError, match=message):
            decode(content)
    assert capfd.readouterr().err == ""  # libtiff would print


def test_a_process_that_was_killed_is_replaced(decode):
    decode(jpeg(noise(8, 16)))
    os.kill(decode.process().pid, signal.SIGKILL)
    decode.process().join()
    assert decode(jpeg(noise(8, 16))).shape == (*SIZE, 3)


def test_a_process_that_dies_over_an_image_is_one_line(decode):
    decode(jpeg(noise(8, 16)))
    os.kill(decode.process().pid, signal.SIGSTOP)
    process = decode.process()
    alive, process.is_alive = process.is_alive, lambda: bool(os.kill(process.pid, signal.SIGKILL)) or True
    with pytest.raises(UserError, match="the image cannot be decoded: save it again"):
        decode(jpeg(noise(8, 16)))
    process.is_alive = alive
    assert decode(jpeg(noise(8, 16))).shape == (*SIZE, 3)


def test_the_process_ends_with_the_decoder():
    own = decoder.Decoder(SIZE)
    own.decode(jpeg(noise(8, 16)))
    process = own._process
    del own
    process.join(10)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the image cannot be read: send a JPEG, PNG or WEBP"), (b"GIF89a", "send a JPEG, PNG or WEBP"),
     (jpeg(noise(200, 200))[:5000], "truncated"),
     (jpeg(noise(200, 200))[:300], "^the image is cut short or damaged: save it again$")],
)  # fmt: skip
def test_what_is_damaged_is_one_line(decode, content, message):
    with pytest.raises(UserError, match=message) as refused:
        decode(content)
    assert "\n" not in str(refused.value)
