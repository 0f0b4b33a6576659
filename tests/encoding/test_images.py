import numpy as np
import pytest
from PIL import Image

from input_pipeline import decoding
from ivt_jax.common.errors import UserError
from ivt_jax.encoding import images


def test_load_image_is_bilinear_with_antialiasing(tmp_path):
    # Halving the width with a triangle filter: at the first output pixel the weights are 3/7, 3/7, 1/7 for the first
    # three input pixels, so (0 * 3 + 80 * 3 + 160) / 7 = 57.1; at the second (80 + 160 * 3 + 240 * 3) / 7 = 182.9.
    Image.fromarray(np.array([[0, 80, 160, 240]], np.uint8)).save(tmp_path / "grey.png")
    loaded = images.load_image(tmp_path / "grey.png", (1, 2))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, [[[57, 57, 57], [183, 183, 183]]])


def test_load_image_keeps_the_pixels_of_an_image_of_the_right_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "crop.bmp")
    np.testing.assert_array_equal(images.load_image(tmp_path / "crop.bmp", (6, 3)), pixels)


def noisy_jpeg(path, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_truncated_file_is_named(tmp_path):
    path = noisy_jpeg(tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"cut\.jpg: .*truncated"):
        images.load_image(path, (8, 4))


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "note.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"note\.jpg: not a readable image"):
        images.load_image(tmp_path / "note.jpg", (8, 4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg"):
        images.load_image(tmp_path / "gone.jpg", (8, 4))


def test_the_size_is_checked_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40 * 30 - 1)
    path = noisy_jpeg(tmp_path / "big.jpg")
    path.write_bytes(path.read_bytes()[:-700])  # decoding would complain of this
    with pytest.raises(UserError, match=r"big\.jpg: 30 x 40 pixels are too many"):
        images.load_image(path, (8, 4))


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (128, 384, ""),
        (64, 128, ""),  # Market-1501
        (48, 96, ""),  # PEDES-Synth
        (8, 25, ""),
        (100, 100, ""),  # a person who sits
        (100, 600, ""),
        (608, 1080, ""),  # of 16:9, from a frame of 1080 lines
        (607, 1081, ""),  # 1081 / 607 = 1.781 is slimmer than 16:9
        (1920, 1080, "wider than high, as a full frame is"),
        (101, 100, "wider than high, as a full frame is"),
        (1, 1, "smaller than 8 x 25 pixels"),
        (1, 3000, "smaller than 8 x 25 pixels"),
        (7, 25, "smaller than 8 x 25 pixels"),
        (8, 24, "smaller than 8 x 25 pixels"),
        (100, 601, "more than 6 times as high as wide"),
        (1080, 1920, "of the size and shape of a whole photo"),
        (3024, 4032, "of the size and shape of a whole photo"),
        (1081, 1081, "of the size and shape of a whole photo"),
    ],
)
def test_a_picture_is_odd_if_no_crop_in_training_is_like_it(width, height, reason):
    assert images.odd_shape(width, height) == reason
