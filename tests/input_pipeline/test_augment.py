import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import augment

SIZE = (16, 8)


def photo(height, width, low=40, high=215):
    """A smooth random image away from black and white, as a photograph is: Pillow clips between its two passes."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(low, high, (height // 6, width // 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def views(image, count, **options):
    """(count, H, W, 3) views and (count, 4) boxes of one image."""
    options = {"pad": 0, "flip": 0.0, "erase": 0.0} | options
    uniform = np.random.default_rng(0).random((count, augment.UNIFORMS))
    drawn = augment.draw_views(uniform, image.shape[:2], **options)
    seen = augment.crop_and_flip(
        tf.constant(image), tf.constant(drawn.offset), tf.constant(drawn.flipped), options["pad"]
    )
    return seen.numpy(), drawn.box


@pytest.mark.parametrize(("method", "pillow"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("crop", [(163, 61), (520, 214), (96, 300)])
def test_resizing_is_pillows_within_a_level(method, pillow, crop):
    image = photo(*crop)
    ours = augment.resize(tf.constant(np.array(image)), (384, 128), method).numpy().astype(int)
    theirs = np.array(image.resize((128, 384), pillow)).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - theirs).mean() < 0.3


def test_overshoot_is_clipped_and_not_wrapped():
    edge = np.zeros((12, 6, 3), np.uint8)
    edge[6:] = 255
    resized = augment.resize(tf.constant(edge), (48, 24), "bicubic").numpy()
    assert (resized[:20] < 30).all() and (resized[28:] > 225).all()


def test_an_image_of_the_right_size_is_left_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(augment.resize(tf.constant(pixels), (48, 24), "bicubic"), pixels)


@pytest.mark.parametrize("coding", ["JPEG RGB", "JPEG L", "JPEG CMYK", "PNG RGB", "PNG RGBA", "PNG P"])
def test_decoding_gives_pillows_pixels(coding):
    kind, mode = coding.split()
    file = io.BytesIO()
    photo(60, 30).convert(mode).save(file, kind)
    np.testing.assert_array_equal(augment.decode(tf.constant(file.getvalue())), Image.open(file).convert("RGB"))


def test_without_augmentation_the_view_is_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    seen, boxes = views(pixels, 3)
    np.testing.assert_array_equal(seen, np.stack([pixels] * 3))
    assert not boxes.any()


def test_crops_are_windows_of_the_padded_image_at_every_offset():
    pixels = np.arange(1, 4 * 2 * 3 + 1, dtype=np.uint8).reshape(4, 2, 3)
    padded = np.zeros((6, 4, 3), np.uint8)
    padded[1:5, 1:3] = pixels
    windows = {padded[y : y + 4, x : x + 2].tobytes() for y in range(3) for x in range(3)}
    seen, _ = views(pixels, 200, pad=1)
    assert {view.tobytes() for view in seen} == windows


def test_flips_mirror_the_columns_half_of_the_time():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    seen, _ = views(pixels, 400, flip=0.5)
    flipped = np.array([np.array_equal(view, pixels[:, ::-1]) for view in seen])
    assert all(np.array_equal(view, pixels) for view in seen[~flipped])
    assert 150 < flipped.sum() < 250  # 200 +- 10; five standard deviations


def test_views_differ_and_each_depends_on_its_own_numbers():
    pixels = np.array(photo(48, 24))
    one, boxes = views(pixels, 20, pad=5, flip=0.5, erase=0.5)
    fewer, boxes_of_fewer = views(pixels, 10, pad=5, flip=0.5, erase=0.5)
    np.testing.assert_array_equal(one[:10], fewer)
    np.testing.assert_array_equal(boxes[:10], boxes_of_fewer)
    assert len({view.tobytes() for view in one}) > 15


def test_erasing_boxes_have_the_released_sizes():
    image = np.zeros((384, 128, 3), np.uint8)
    _, boxes = views(image, 1000, erase=0.5)
    drawn = boxes[boxes.any(1)].astype(float)
    assert 420 < len(drawn) < 580  # 500 +- 16; five standard deviations
    top, left, height, width = drawn.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 384).all() and (left + width <= 128).all()
    area = height * width / (384 * 128)
    assert 0.019 < area.min() < 0.025 and 0.3 < area.max() < 0.335
    aspect = height / width
    assert 0.29 < aspect.min() < 0.35 and 3.0 < aspect.max() < 3.4
    # Wide boxes fit less often: among the smallest, which always fit, the aspect is log-uniform, its median 1.
    small = aspect[area < 0.1]
    assert abs(np.log(small).mean()) < 5 * np.log(3.3 / 0.3) / np.sqrt(12 * len(small)) + 0.02


def slow_box(uniform, size):
    """The procedure, one try after the other."""
    for u, v in zip(uniform[2:12], uniform[12:], strict=True):
        area = size[0] * size[1] * (0.02 + u * 0.31)
        aspect = np.exp(np.log(0.3) + v * (np.log(3.3) - np.log(0.3)))
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if height < size[0] and width < size[1]:
            top, left = int(uniform[0] * (size[0] - height + 1)), int(uniform[1] * (size[1] - width + 1))
            return [top, left, height, width]
    return [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(96, 48), (200, 20), (4, 100)])
def test_the_box_is_the_first_of_ten_tries_that_fits(size):
    uniforms = np.random.default_rng(0).random((20, 10, 22))
    boxes = augment.erase_boxes(uniforms, size)
    assert boxes.reshape(-1, 4).tolist() == [slow_box(u, size) for u in uniforms.reshape(-1, 22)]


def test_where_no_try_fits_nothing_is_erased():
    uniform = np.full(22, 0.99)  # a third of the image at aspect 3.2 is higher than an image 8 x 128
    assert augment.erase_boxes(uniform, (8, 128)).tolist() == [0, 0, 0, 0]
