"""Every door takes the same files and sees the same upright pixels."""

import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from input_pipeline import decoding
from input_pipeline.decoding import FORMATS, MAX_PIXELS, NotTakenError, as_rgb, open_picture
from input_pipeline.inspection import inspect_image
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import load_image, open_image
from ivt_jax.gallery.crops import load_batches
from ivt_jax.serve import decoder
from ivt_jax.serve.limits import MAX_SCANS, MAX_UPLOAD_PIXELS

needs_heif = pytest.mark.skipif("HEIF" not in FORMATS, reason="pillow-heif is not installed")
QUARTERS = np.zeros((16, 32, 3), np.uint8)  # four colours, and no two of its turns are alike
QUARTERS[:8, :16], QUARTERS[:8, 16:], QUARTERS[8:, :16], QUARTERS[8:, 16:] = (
    (250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10),
)  # fmt: skip
# What a camera stores of an upright picture for each orientation, by the table of EXIF 2.3 (row 0 and column 0 of the
# file are which sides of the picture?).
STORED = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a.swapaxes(0, 1)[:, ::-1][::-1, ::-1],  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
LOSSLESS = {
    "JPEG": {"quality": 100, "subsampling": 0}, "MPO": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"}, "HEIF": {"quality": -1, "chroma": 444},
}  # fmt: skip


def encoded(pixels, format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    options = LOSSLESS.get(format, {}) | options
    if format == "MPO":
        options |= {"save_all": True, "append_images": [image.rotate(180)]}
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def decoded(content):
    with open_picture(io.BytesIO(content)) as image:
        return np.asarray(as_rgb(image))


def test_the_table_of_orientations():
    """A quarter to the right makes orientation 6 upright, a quarter to the left 8."""
    np.testing.assert_array_equal(np.rot90(STORED[6](QUARTERS), -1), QUARTERS)
    np.testing.assert_array_equal(np.rot90(STORED[8](QUARTERS)), QUARTERS)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    "format", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", pytest.param("HEIF", marks=needs_heif)]
)
def test_pictures_are_turned_upright(format, orientation):
    content = encoded(STORED[orientation](QUARTERS), format, exif=exif_of(orientation))
    assert Image.open(io.BytesIO(content)).format == format
    np.testing.assert_allclose(decoded(content).astype(int), QUARTERS, atol=6)


def test_a_tall_picture_stored_sideways_has_its_upright_size(tmp_path):
    tall = QUARTERS.swapaxes(0, 1)
    (tmp_path / "a.jpg").write_bytes(encoded(STORED[6](tall), "JPEG", exif=exif_of(6)))
    assert Image.open(tmp_path / "a.jpg").size == (32, 16)
    assert inspect_image(tmp_path, "a.jpg").size == (32, 16)  # height, width


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_leaves_a_picture_readable(format):
    whole, rng = exif_of(6), np.random.default_rng(0)
    turned = [decoded(encoded(QUARTERS, format, exif=exif_of(orientation))) for orientation in STORED]
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[rng.integers(6, len(whole))] = rng.integers(256)
        pixels = decoded(encoded(QUARTERS, format, exif=bytes(damaged[: rng.integers(6, len(whole) + 1)])))
        assert any(np.array_equal(pixels, other) for other in turned)


def test_damaged_exif_leaves_an_avif_readable():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    whole = encoded(QUARTERS, "AVIF", exif=exif)
    damaged = whole.replace(b"MM\0*", b"XX\0*")
    assert damaged != whole
    np.testing.assert_array_equal(decoded(damaged), decoded(whole))


@pytest.mark.parametrize("text", ["\nexif\n 4\nno digits", "\nexif\n", ""])
def test_a_damaged_raw_profile_leaves_a_png_readable(text):
    info = PngInfo()
    info.add_text("Raw profile type exif", text, zip=True)
    np.testing.assert_array_equal(decoded(encoded(QUARTERS, "PNG", pnginfo=info)), QUARTERS)


def texts(**chunks):
    info = PngInfo()
    for kind, (text, zipped) in chunks.items():
        (info.add_itxt if kind == "itxt" else info.add_text)("note", text, zip=zipped)
    return {"pnginfo": info}


@pytest.mark.parametrize(
    "options",
    [
        {"icc_profile": np.random.default_rng(0).bytes(1_500_000)}, {"icc_profile": bytes(5_000_000)},
        texts(text=("x" * 3_000_000, False)), texts(text=("x" * 3_000_000, True)), texts(itxt=("x" * 3_000_000, True)),
    ],
    ids=["profile", "profile of zeros", "tEXt", "zTXt", "iTXt"],
)  # fmt: skip
def test_what_a_png_says_beside_its_pixels_may_be_long(tmp_path, options):
    content = encoded(QUARTERS, "PNG", **options)
    (tmp_path / "a.png").write_bytes(content)
    assert inspect_image(tmp_path, "a.png").fault == ""
    np.testing.assert_array_equal(load_image("a", (16, 32), content), QUARTERS)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(decoder.decode(content, (16, 32))[0]))), QUARTERS)


@pytest.mark.parametrize("options", [{"icc_profile": bytes(9 << 20)}, texts(text=("x" * (9 << 20), True))])
@pytest.mark.parametrize("at_end", [False, True])
def test_what_a_png_says_beside_its_pixels_has_a_bound(tmp_path, options, at_end):
    content = encoded(QUARTERS, "PNG", **options)
    if at_end:  # the chunks before the pixels follow them
        pixels, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
        content = content[:33] + content[pixels:end] + content[33:pixels] + content[end:]
    told = "its text or colour profile inflates beyond 8 MiB: save it without metadata"
    with pytest.raises(UserError, match=f"^a: {told}$"):
        load_image("a", (16, 32), content)
    (tmp_path / "a.png").write_bytes(content)
    assert inspect_image(tmp_path, "a.png").fault == f"not taken ({told})"
    with pytest.raises(UserError, match=told):
        decoder.decode(content, (16, 32))


GREY16 = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    {
        "raw": (encoded(QUARTERS, "TIFF"), QUARTERS),
        "lzw": (encoded(QUARTERS, "TIFF", compression="tiff_lzw"), QUARTERS),
        "deflate": (encoded(QUARTERS, "TIFF", compression="tiff_adobe_deflate"), QUARTERS),
        "pages": (encoded(QUARTERS, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]), QUARTERS),
        "cmyk": (encoded(Image.fromarray(QUARTERS).convert("CMYK"), "TIFF"), QUARTERS),
        "16 bits": (encoded(GREY16, "TIFF"), (GREY16 // 256)[..., None].repeat(3, -1)),
        "16 bits lzw": (encoded(GREY16, "TIFF", compression="tiff_lzw"), (GREY16 // 256)[..., None].repeat(3, -1)),
        "16 bits, white is 0": (
            encoded(GREY16, "TIFF", tiffinfo={262: 0}), (255 - GREY16 // 256)[..., None].repeat(3, -1),
        ),
    }.values(),
)  # fmt: skip
def test_kinds_of_tiff(content, expected):
    np.testing.assert_array_equal(decoded(content), expected)


def lab():
    profiles = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
    return encoded(ImageCms.profileToProfile(Image.fromarray(QUARTERS), *profiles, outputMode="LAB"), "TIFF")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encoded(Image.fromarray(QUARTERS).convert("F"), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(QUARTERS).convert("I"), "TIFF"), "signed or 32-bit"),
        (lab(), r"L\*a\*b\*"),
    ],
)
def test_pixels_without_a_range_are_refused_in_one_line(tmp_path, content, kind):
    (tmp_path / "a.tif").write_bytes(content)
    message = f"{kind} pixels have no agreed range: save them with 8 bits a channel"
    with pytest.raises(UserError, match=f"^a.tif: {message}$"):
        open_image("a.tif", content)
    with pytest.raises(UserError, match=f"^the image: {message}$"):
        decoder.decode(content, (16, 32))


def test_a_damaged_tiff_is_refused_in_words(capfd):
    cut = encoded(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8), "TIFF", compression="tiff_lzw")
    start = 60  # within the strip, which comes first
    with pytest.raises(UserError, match=r"^a.tif: cut short or damaged$"):
        open_image("a.tif", cut[:start] + bytes(900) + cut[start + 900 :])


def test_metadata_that_pillow_warns_of_print_nothing(capfd):
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        decoding.warnings.filterwarnings("ignore", module=r"PIL\.")
        decoded(encoded(QUARTERS, "JPEG", exif=exif_of(6)[:-8]))
    assert not raised


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_without_its_library_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "FORMATS", tuple(name for name in FORMATS if name != "HEIF"))
    (tmp_path / "a.heic").write_bytes(HEIC)
    reason = "HEIC needs another library: pip install -e '.[heif]' in the clone of this project"
    remedy = re.escape(reason)
    with pytest.raises(NotTakenError, match=f"^{remedy}$"):
        open_picture(tmp_path / "a.heic")
    with pytest.raises(UserError, match=rf"a.heic: {remedy}$"):
        open_image(tmp_path / "a.heic")
    with pytest.raises(UserError, match=rf"^the image cannot be read \({remedy}\): send a JPEG, PNG or WEBP$"):
        decoder.decode(HEIC, (8, 4))
    assert inspect_image(tmp_path, "a.heic").fault == f"not taken ({reason})"


def test_the_documented_formats_are_those_that_are_taken():
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    rows = re.findall(r"^\| ([A-Z]+) \(`([^`]+)`\) \|", text, re.MULTILINE)
    assert {name: tuple(suffixes.split()) for name, suffixes in rows} == decoding.SUFFIXES_OF
    assert f"{MAX_PIXELS // 10**6} megapixels" in text and f"{MAX_UPLOAD_PIXELS // 10**6} megapixels" in text
    assert f"{PngImagePlugin.MAX_TEXT_CHUNK >> 20} MiB" in text and f"{MAX_SCANS} scans" in text


# ---- one folder through all doors

NOISE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
FILES = {
    "plain.jpg": encoded(QUARTERS, "JPEG"),
    "sideways.jpg": encoded(STORED[6](QUARTERS), "JPEG", exif=exif_of(6)),
    "unusual.jfif": encoded(QUARTERS, "JPEG"),
    "two.mpo": encoded(QUARTERS, "MPO"),
    "mirrored.png": encoded(STORED[4](QUARTERS), "PNG", exif=exif_of(4)),
    "profile.png": encoded(QUARTERS, "PNG", icc_profile=bytes(1_500_000)),
    "sixteen.png": encoded(GREY16, "PNG"),
    "transparent.png": encoded(Image.fromarray(QUARTERS).convert("RGBA"), "PNG"),
    "a.bmp": encoded(QUARTERS, "BMP"),
    "a.webp": encoded(STORED[8](QUARTERS), "WEBP", exif=exif_of(8)),
    "animated.gif": encoded(
        Image.fromarray(QUARTERS).quantize(8), "GIF", save_all=True, append_images=[Image.new("P", (32, 16))]
    ),
    "a.tif": encoded(QUARTERS, "TIFF", compression="tiff_lzw"),
    "cmyk.tiff": encoded(Image.fromarray(QUARTERS).convert("CMYK"), "TIFF"),
    "a.avif": encoded(QUARTERS, "AVIF"),
}
if "HEIF" in FORMATS:
    FILES["a.heic"] = encoded(STORED[6](QUARTERS), "HEIF", exif=exif_of(6))
REFUSED = {
    "cut.jpg": encoded(NOISE, "JPEG")[:-700],
    "float.tif": encoded(Image.fromarray(QUARTERS).convert("F"), "TIFF"),
    "huge.png": encoded(Image.new("1", (8000, 7000)), "PNG"),
    "a.jp2": encoded(QUARTERS, "JPEG2000"),
    "empty.jpg": b"",
    "text.png": b"a man in a red coat",
}


def write_dataset(root):
    """FILES and REFUSED as the training images of a dataset."""
    (root / "imgs").mkdir()
    for name, content in (FILES | REFUSED).items():
        (root / "imgs" / name).write_bytes(content)
    records = [{"id": i, "file_path": n, "captions": [n], "split": "train"} for i, n in enumerate(FILES | REFUSED)]
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("doors"))


def of_the_doctor(folder, name):
    found = inspect_image(folder / "imgs", name)
    return None if found.fault else found.size


def of_the_index(folder, name):
    return load_image(folder / "imgs" / name, (16, 32))


def of_embed(folder, name):
    (batch,) = load_batches([(name, folder / "imgs" / name)], (16, 32), 1, [], [])
    return batch[0]


def of_an_upload(folder, name):
    content = (folder / "imgs" / name).read_bytes()
    return np.asarray(Image.open(io.BytesIO(decoder.decode(content, (16, 32))[0])))


@pytest.mark.parametrize("name", FILES)
def test_the_doors_see_the_same_pixels(folder, name):
    expected = of_the_index(folder, name)
    reference = (GREY16 // 256)[..., None].repeat(3, -1) if name == "sixteen.png" else QUARTERS
    assert np.abs(expected.astype(int) - reference).mean() < 8  # what a lossy format makes of the edges
    for door in (of_embed, of_an_upload):
        np.testing.assert_array_equal(door(folder, name), expected)
    assert of_the_doctor(folder, name) == (16, 32)


@pytest.mark.parametrize("name", REFUSED)
def test_the_doors_refuse_the_same_files(folder, name):
    assert of_the_doctor(folder, name) is None
    for door in (of_the_index, of_an_upload):
        with pytest.raises(UserError) as refused:
            door(folder, name)
        assert "\n" not in str(refused.value)
    unreadable = []
    assert list(load_batches([(name, folder / "imgs" / name)], (16, 32), 1, [], unreadable)) == []
    assert len(unreadable) == 1
