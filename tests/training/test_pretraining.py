"""The losses of pre-training together: contrastive with a learned temperature, image-text matching, masked words.

Each term is held to float64, from what the tower gives; loss and gradients in every way that a step computes them are
those of one device.
"""

import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import default
from ivt_jax.models.build import build_model
from ivt_jax.training.draws import row_keys
from ivt_jax.training.global_gradients import global_gradients, gradients_of_rows
from ivt_jax.training.negatives import draw_pairs
from ivt_jax.training.objective import Objective
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import global_batch
from tests.losses.test_itm import slow_losses, slow_probabilities
from tests.losses.test_matching import slow_loss

PAIRS, LENGTH, KEY = 16, 8, jax.random.key(7)
RANDOM = {"model.dropout": 0.3, "model.drop_path": 0.5, "augment.erase": 0.5}


def tiny(**changes):
    """The released form of the contrastive loss; one view, one level; patches are visible."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": (12, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 16, "model.depth": 2,
         "model.num_heads": 2, "model.vocab_size": 40, "model.max_text_length": LENGTH, "model.dtype": "float32",
         "model.dropout": 0.0, "model.drop_path": 0.0, "augment.erase": 0.0, "mla.levels": ("sentence",),
         "mla.views": 1, "mla.weight": 0.5, "match.loss": "itc", "match.normalise": "neither",
         "match.temperature": 0.5, "match.learned": True, "itm.weight": 0.8, "bmm.align": "off",
         "bmm.word_weight": 0.6, "bmm.word_ratio": 0.25, "bmm.patch_weight": 0.0, **changes}
    )  # fmt: skip
    return config


def make_batch(persons=10):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, LENGTH + 1, (PAIRS, 1))
    ids = np.where(np.arange(LENGTH) < lengths, rng.integers(5, 40, (PAIRS, LENGTH)), 0).astype(np.int32)
    return {
        "images": rng.integers(0, 256, (PAIRS, 1, 12, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 5, 6], np.int32), (PAIRS, 1, 1)),
        "text": {"sentence": ids},
        "mask": {"sentence": ids > 0},
        "words": np.where(ids > 0, np.arange(LENGTH), 0).astype(np.int32),
        "person_ids": rng.integers(0, persons, PAIRS).astype(np.int32),
    }


BATCH = make_batch()


@functools.cache
def params():
    """Random parameters, also of the heads; the temperature is 0.4."""
    target = build_program(tiny(), np.array([0, 1]), 1, mask_id=4).target.params
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), target)
    drawn["temperature"]["log_scale"] = np.float32(-np.log(0.4))
    return drawn


def objective_of(config):
    return Objective(build_model(config.model), config, 4)


# ---- each term in float64


@pytest.fixture(scope="module")
def seen():
    """The metrics of a batch without dropout, and what each term is computed from."""
    objective = objective_of(tiny())

    def run(params):
        encode = functools.partial(objective.apply, params, "encode_joint")
        draws, (pairs, chosen) = objective.draw(BATCH, KEY), objective.select(BATCH)
        encoded = objective.encode(params, draws, pairs, chosen)
        drawn = objective.draw_negatives(params, draws, encoded, BATCH)
        masked = objective.hide(draws, chosen)
        noise = [
            jax.vmap(lambda key: jax.random.gumbel(key, (PAIRS,)))(
                row_keys(jax.random.fold_in(draws.match, number), np.arange(PAIRS))
            )
            for number in (0, 1)
        ]
        image = masked.clean  # first views, normalised
        ids, mask = BATCH["text"]["sentence"], BATCH["mask"]["sentence"]
        text, other = drawn["other"]["ids"], drawn["other"]["mask"]
        passes = [(image, ids, mask), (image, text, other), (image[drawn["other"]["rows"]], ids, mask)]
        first = [encode(*inputs)[1][:, 0] for inputs in passes]
        hidden = encode(masked.erased, masked.hidden_ids, masked.mask)[1]  # no patch_mask: patches are visible
        metrics = objective(params, BATCH, KEY)[1]
        return {"metrics": metrics, "encoded": encoded, "drawn": drawn, "noise": noise, "first": first,
                "masked": masked._asdict(), "hidden": hidden}  # fmt: skip

    return jax.tree.map(np.asarray, jax.jit(run)(params()))


def test_the_contrastive_term_is_the_float64_version_at_the_learned_temperature(seen):
    (image,), (text,) = seen["encoded"].views, seen["encoded"].levels
    expected = slow_loss("itc", image, text, BATCH["person_ids"], 0.4, "neither")
    np.testing.assert_allclose(seen["metrics"]["mla"], expected, rtol=1e-5)


def test_negatives_are_drawn_by_the_similarities_of_the_contrastive_term(seen):
    """The largest of log p + Gumbel noise, each in float64: texts of images, images of texts."""
    image, text = np.float64(seen["encoded"].views[0]), np.float64(seen["encoded"].levels[0])
    ids, other = BATCH["person_ids"], seen["drawn"]["other"]
    with np.errstate(divide="ignore"):
        of_texts, of_images = (
            np.argmax(np.log(slow_probabilities(similarities / 0.4, ids)) + noise, axis=1)
            for similarities, noise in zip((image @ text.T, text @ image.T), seen["noise"], strict=True)
        )
    np.testing.assert_array_equal(other["ids"], BATCH["text"]["sentence"][of_texts])
    np.testing.assert_array_equal(other["mask"], BATCH["mask"]["sentence"][of_texts])
    np.testing.assert_array_equal(other["rows"], of_images)
    np.testing.assert_array_equal(other["images"], BATCH["images"][of_images, 0])
    assert (of_texts != of_images).any()  # two draws, not one


def test_the_matching_term_is_the_float64_version_of_three_joint_passes(seen):
    """One positive and two negatives of each of 16 pairs."""
    head = jax.tree.map(np.float64, params()["itm_head"])
    losses = slow_losses(head, np.stack(seen["first"], axis=1))
    np.testing.assert_allclose(seen["metrics"]["itm"], losses.sum() / (3 * PAIRS), rtol=1e-5)


def test_the_masked_words_are_the_float64_version_with_all_patches_visible(seen):
    masked, head = seen["masked"], jax.tree.map(np.float64, params()["word_head"])
    assert masked["patches"] is None
    word, losses = np.float64(params()["text_embedding"]["word"]), []
    for row, slot in np.argwhere(masked["weights"]):
        place = masked["positions"][row, slot]
        x = np.float64(seen["hidden"][row, place]) @ head["kernel"] + head["bias"]
        x = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x])
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * head["norm"]["scale"] + head["norm"]["bias"]
        logits = word @ x + head["output"]["bias"]
        losses.append(np.log(np.exp(logits).sum()) - logits[BATCH["text"]["sentence"][row, place]])
    quotas = [max(1, round(0.25 * words)) for words in BATCH["words"].max(1)]
    assert len(losses) == sum(quotas)
    np.testing.assert_allclose(seen["metrics"]["words"], np.mean(losses), rtol=1e-5)


def test_the_total_has_each_term_with_its_weight(seen):
    terms = seen["metrics"]
    assert set(terms) == {"loss", "mla", "itm", "words"}
    np.testing.assert_allclose(terms["loss"], 0.5 * terms["mla"] + 0.8 * terms["itm"] + 0.6 * terms["words"], rtol=1e-6)


# ---- what is drawn


def pairs_of(person_ids, seed=0):
    """Draws from 6 rows whose images are their number and whose texts are 10 times it."""
    rows = np.arange(6, dtype=np.int32)
    own = {"rows": rows, "images": rows, "erase": rows, "ids": 10 * rows, "mask": 10 * rows}
    embeddings = np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)
    return draw_pairs(jax.random.key(seed), tuple(embeddings), person_ids, own, lambda query, key: query @ key.T)


def test_negatives_are_of_other_persons_and_come_whole():
    persons = np.array([0, 0, 1, 2, 2, 2])
    images, texts = set(), set()
    for seed in range(30):
        drawn = pairs_of(persons, seed)
        np.testing.assert_array_equal(drawn["weights"], np.full(6, 3.0))
        other = drawn["other"]
        for name in ("rows", "erase"):
            np.testing.assert_array_equal(other[name], other["images"])
        np.testing.assert_array_equal(other["ids"], other["mask"])
        image, text = np.asarray(other["images"]), np.asarray(other["ids"]) // 10
        assert (persons[image] != persons).all() and (persons[text] != persons).all()
        images |= set(enumerate(image.tolist()))
        texts |= set(enumerate(text.tolist()))
    assert len(images) > 12 and len(texts) > 12 and images != texts


def test_a_batch_of_one_person_does_not_count():
    drawn = pairs_of(np.zeros(6, int))
    np.testing.assert_array_equal(drawn["weights"], np.zeros(6))


@functools.cache
def whole():
    """The gradients and metrics of one device, jitted: of parameters and batch."""
    objective = objective_of(tiny(**RANDOM))
    return jax.jit(lambda params, batch: gradients_of_rows(objective, params, batch, KEY))


def test_without_negatives_the_term_and_its_gradient_are_zero():
    gradients, metrics = whole()(params(), make_batch(persons=1))
    assert metrics["itm"] == 0
    assert not np.any(gradients["itm_head"]["kernel"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_no_two_draws_share_a_key_but_an_image_has_its_noise_everywhere(monkeypatch):
    recorded = []

    def spy(*args, **kwargs):
        recorded.append(row_keys(*args, **kwargs))
        return recorded[-1]

    for owner in ("objective", "negatives"):
        monkeypatch.setattr(f"ivt_jax.training.{owner}.row_keys", spy)
    objective = objective_of(tiny(**RANDOM))

    def run(params):
        objective(params, BATCH, KEY)
        return [jax.random.key_data(keys) for keys in recorded]

    keys = [[tuple(key) for key in drawn.tolist()] for drawn in jax.jit(run)(params())]
    # Noise, dropout of the image and of the text; noise, words, and dropout of the joint pass; negatives twice; the
    # noise of own and other images; dropout of three joint passes.
    sizes = [len(drawn) for drawn in keys]
    assert sorted(sizes) == [PAIRS] * 10 + [3 * PAIRS], sizes
    noise = keys[0]
    again = [drawn for drawn in keys[1:] if drawn == noise]
    (other,) = [drawn for drawn in keys[1:] if drawn != noise and set(drawn) <= set(noise)]
    assert len(again) == 2  # of masked words, and of matching
    distinct = {key for drawn in keys for key in drawn}
    assert len(distinct) == sum(sizes) - 3 * PAIRS and set(other) < distinct


# ---- every way that a step computes gradients


def assert_close(actual, expected):
    """Within 1e-5 of the largest value of each array."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max()),
        *(jax.tree.map(np.asarray, tree) for tree in (actual, expected)),
    )


WAYS = [(1, "global", 2), (2, "global", 1), (4, "global", 2), (8, "sharded", 2)]


@pytest.mark.parametrize(("devices", "matching", "parts"), WAYS)
def test_every_way_gives_the_gradients_of_one_device(devices, matching, parts):
    config = tiny(**RANDOM, **{"runtime.microbatches": parts, "runtime.matching": matching})
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 1 else 1), ("data", "fsdp"))
    program = build_program(config, np.array([0, 1]), 1, mask_id=4, devices=jax.devices()[:devices])
    objective = program.objective(config)
    if devices == 1:
        actual = jax.jit(lambda params, batch: gradients_of_rows(objective, params, batch, KEY))(params(), BATCH)
    else:
        run = jax.jit(lambda params, batch: global_gradients(objective, mesh, params, batch, KEY))
        actual = run(params(), global_batch(mesh, BATCH))
    expected = whole()(params(), BATCH)
    assert set(actual[1]) == {"loss", "mla", "itm", "words"}
    assert_close(actual, expected)
    for leaf in (expected[0]["temperature"]["log_scale"], *expected[0]["itm_head"].values()):
        assert np.abs(leaf).max() > 1e-3  # against zeros any gradient would be close


def test_the_gradient_of_the_temperature_is_the_difference_quotient():
    """The draw of negatives, too, changes with the temperature; its gradient is not followed."""
    gradients, _ = whole()(params(), BATCH)
    losses = []
    for step in (0.01, -0.01):
        moved = {**params(), "temperature": {"log_scale": params()["temperature"]["log_scale"] + np.float32(step)}}
        losses.append(0.5 * float(whole()(moved, BATCH)[1]["mla"]))
    np.testing.assert_allclose(gradients["temperature"]["log_scale"], (losses[0] - losses[1]) / 0.02, rtol=2e-3)


def test_the_scale_is_at_most_100():
    objective = objective_of(tiny())
    for temperature, expected in ((0.05, 20.0), (0.001, 100.0)):
        scale = objective.scale({"temperature": {"log_scale": np.float32(-np.log(temperature))}})
        np.testing.assert_allclose(scale, expected, rtol=1e-5)
