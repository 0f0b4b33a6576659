"""Heat-maps against the tower in NumPy that sees one patch after another; how heat is drawn."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from scipy.special import erf

from ivt_jax.encoding.embedding import embed_images
from ivt_jax.retrieval.explain import heat_maps, overlay
from tests.gallery.conftest import SIZE
from tests.models import test_dual as dual

PATCH, STRIDE, HEADS, ROWS, COLUMNS, WIDTH = 6, 4, 3, 3, 2, 12  # of the tower of `write_model`
ALL = [*np.ndindex(ROWS, COLUMNS)]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def phrases():
    vectors = np.random.default_rng(1).standard_normal((4, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def norm(x, scale, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def embed_slowly(p, image, seen):
    """The embedding of a crop of which only the patches (row, column) in `seen` are seen, in float64."""
    pixels, e = image / 127.5 - 1, {name.split("/")[1]: x for name, x in p.items() if name.startswith("image_emb")}
    tokens, place = [e["cls"][0, 0] + e["pos_embed"][0, 0] + e["type_embed"][0, 0]], 1
    for row in range(ROWS):
        for column in range(COLUMNS):
            if (row, column) in seen:
                top, left = row * STRIDE, column * STRIDE
                patch = pixels[top : top + PATCH, left : left + PATCH].ravel() @ e["kernel"] + e["bias"]
                tokens.append(patch + e["pos_embed"][0, place] + e["type_embed"][0, place])
            place += 1
    x = np.stack(tokens)
    for i in range(2):
        b = {name.removeprefix("blocks/"): x[i] for name, x in p.items() if name.startswith("blocks/") and x.ndim > 1}
        normed = norm(x, b["norm1/scale"], b["norm1/bias"])
        q, k, v = np.split(normed @ b["attn/qkv/kernel"] + b["attn/qkv/bias"], 3, axis=1)
        heads = []
        for h in np.split(np.arange(WIDTH), HEADS):
            weights = np.exp(q[:, h] @ k[:, h].T / np.sqrt(WIDTH / HEADS))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, h])
        x = x + np.concatenate(heads, 1) @ b["attn/proj/kernel"] + b["attn/proj/bias"]
        hidden = norm(x, b["norm2/scale"], b["norm2/bias"]) @ b["mlp_vis/fc1/kernel"] + b["mlp_vis/fc1/bias"]
        x = x + hidden * (1 + erf(hidden / np.sqrt(2))) / 2 @ b["mlp_vis/fc2/kernel"] + b["mlp_vis/fc2/bias"]
    vector = norm(x, p["blocks/norm/scale"], p["blocks/norm/bias"])[0]
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def params(encoder):
    return {name: np.asarray(x, np.float64) for name, x in flatten_dict(encoder.params, sep="/").items()}


def test_the_slow_tower_is_the_tower(encoder, params, image):
    expected = embed_images(encoder.model, encoder.params, [image[None]])[0]
    np.testing.assert_allclose(embed_slowly(params, image, ALL), expected, atol=1e-5)


def test_heat_is_the_similarity_with_a_patch_alone(encoder, params, image, phrases):
    heat = heat_maps(encoder, image, phrases)
    assert heat.shape == (4, ROWS, COLUMNS) and heat.dtype == np.float32
    for phrase, found in zip(phrases, heat, strict=True):
        scores = np.zeros((ROWS, COLUMNS))
        for place in ALL:
            scores[place] = phrase @ embed_slowly(params, image, [place])
        np.testing.assert_allclose(found, (scores - scores.min()) / np.ptp(scores), atol=1e-4)
        assert (found.min(), found.max()) == (0, 1)


def test_a_phrase_does_not_depend_on_those_beside_it(encoder, image, phrases):
    alone, together = (heat_maps(encoder, image, phrases[rows]) for rows in (slice(2, 3), slice(4)))
    np.testing.assert_allclose(alone, together[2:3], atol=1e-5)
    assert heat_maps(encoder, image, phrases[:0]).shape == (0, ROWS, COLUMNS)


def test_a_phrase_that_no_patch_is_nearer_to_is_cold_everywhere(encoder, image):
    np.testing.assert_array_equal(heat_maps(encoder, image, np.zeros((1, WIDTH), np.float32)), np.zeros((1, 3, 2)))


# --- drawing


def test_where_it_is_cold_the_picture_is_as_it_was():
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (30, 20, 3), np.uint8))
    np.testing.assert_array_equal(overlay(image, np.zeros((3, 2), np.float32)), image)


def test_the_hottest_is_drawn_at_three_quarters_of_its_colour():
    drawn = overlay(Image.new("L", (4, 6), 100), np.ones((3, 2), np.float32))
    assert (drawn.mode, drawn.size) == ("RGB", (4, 6))
    # (245, 249, 161) * 0.75 + 100 * 0.25
    np.testing.assert_array_equal(drawn, np.full((6, 4, 3), (209, 212, 146)))


def test_hotter_is_lighter():
    heats = [overlay(Image.new("RGB", (1, 1)), np.full((1, 1), heat, np.float32)) for heat in np.linspace(0, 1, 41)]
    grey = [float(np.asarray(drawn, float)[0, 0] @ (0.2126, 0.7152, 0.0722)) for drawn in heats]
    assert all(a < b for a, b in itertools.pairwise(grey))


def test_heat_lies_on_its_patch_and_fades_out_around_it():
    heat = np.zeros((3, 2), np.float32)
    heat[2, 1] = 1
    drawn = np.asarray(overlay(Image.new("RGB", (20, 30)), heat), int).sum(-1)
    # patches are 10 by 10 pixels: the centre of (2, 1) is between the pixels 24 and 25, 14 and 15; half-way to the
    # centres of its neighbours it is half as hot
    assert drawn.max() == drawn[25, 15] == drawn[29, 19] and drawn[25, 15] > drawn[21, 15] > drawn[17, 15] > 0
    assert not drawn[:15].any() and not drawn[:, :5].any()


def test_without_a_class_token_the_patch_is_seen_alone():
    model, params = dual.model_of(), dual.params()
    image = np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)
    phrases = np.random.default_rng(1).standard_normal((2, 16)).astype(np.float32)
    heat = heat_maps(SimpleNamespace(model=model, params=params), image, phrases)
    seen = np.stack([dual.slow_image(params, image / 127.5 - 1, [place]) for place in range(8)])
    scores = phrases @ (seen / np.linalg.norm(seen, axis=1, keepdims=True)).T
    expected = (scores - scores.min(1, keepdims=True)) / np.ptp(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(heat, expected.reshape(2, 4, 2), atol=1e-4)
