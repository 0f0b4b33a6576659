"""The encoders of evaluation and search, on a real model: what they refuse, and what they embed as NaN."""

import numpy as np
import pytest

from ivt_jax.encoding.embedding import embed_images, embed_texts, encode_images, encode_texts


@pytest.fixture
def model(given_away):
    """The model and its parameters."""
    return given_away.trained[:2]


@pytest.mark.parametrize(
    "row",
    [
        [2, 2726, 6, 3],
        [2, 99999, 6, 3],
        [2, -1, 6, 3],
        [2, -2726, 6, 3],
        [-(2**31), 5, 6, 2**31 - 1],
        [0] * 4,
        [0, 2, 5, 3],
    ],
)
def test_a_row_that_is_no_text_is_nan_and_no_other(model, row):
    text = [2, 5, 2725, 0]
    ids = np.array([text, row, text], np.int32)
    found = embed_texts(*model, ids, ids != 0, 3)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(np.linalg.norm(found[[0, 2]], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0], np.asarray(encode_texts(*model, ids[:1], ids[:1] != 0))[0], atol=1e-6)


def test_a_text_with_padding_in_it_keeps_its_end(model):
    """17 places, 3 of them padding: cut to 16, where 14 tokens would fit, the text would lose its end."""
    ids = np.full((1, 20), 7, np.int32)
    ids[0, 3:6], ids[0, 17:] = 0, 0
    np.testing.assert_allclose(
        embed_texts(*model, ids, ids != 0, 1), np.asarray(encode_texts(*model, ids, ids != 0)), atol=1e-6
    )


def test_a_batch_of_0_rows_gives_0_embeddings(model):
    for length in (4, 20):
        ids, mask = np.zeros((0, length), np.int32), np.zeros((0, length), bool)
        for found in (encode_texts(*model, ids, mask), embed_texts(*model, ids, mask, 3)):
            assert (found.shape, found.dtype) == ((0, 16), np.float32)
    for found in (
        encode_images(*model, np.zeros((0, 24, 12, 3), np.uint8)),
        embed_images(*model, [np.zeros((0, 24, 12, 3), np.uint8)]),
    ):
        assert (found.shape, found.dtype) == ((0, 16), np.float32)


def test_other_inputs_are_refused(model):
    with pytest.raises(ValueError, match=r"images are float32; expected uint8, pixels from 0 to 255"):
        encode_images(*model, np.zeros((1, 24, 12, 3), np.float32))
    with pytest.raises(ValueError, match=r"images are \(24, 13\), the model was built for \(24, 12\)"):
        encode_images(*model, np.zeros((1, 24, 13, 3), np.uint8))
    with pytest.raises(ValueError, match="texts of 21 tokens, the model has 20 text positions"):
        encode_texts(*model, np.ones((1, 21), np.int32), np.ones((1, 21), bool))
    for shape in ((2, 0), (4,)):
        with pytest.raises(ValueError, match=r"expected \(batch, length\) with at least 1 token"):
            encode_texts(*model, np.ones(shape, np.int32), np.ones(shape, bool))
