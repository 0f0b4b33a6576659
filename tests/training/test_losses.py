"""Every loss with the learned scale and the classifier, in every way that a step computes gradients: as on one device.

The losses themselves are held to float64 versions in tests/losses.
"""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import default
from ivt_jax.models.build import build_model
from ivt_jax.training.freezing import split_params
from ivt_jax.training.global_gradients import global_gradients, gradients_of_rows
from ivt_jax.training.objective import Objective
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import global_batch

PAIRS, PERSONS = 16, 6
LENGTHS = {"sentence": 10, "word": 6}
KEY = jax.random.key(7)


def tiny(loss, **changes):
    """One view, two levels, no reconstruction; a learned scale and a classifier."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": (12, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 16, "model.depth": 1,
         "model.num_heads": 2, "model.vocab_size": 40, "model.max_text_length": 10, "model.dtype": "float32",
         "model.projection": 8, "mla.levels": ("sentence", "word"), "mla.views": 1, "mla.groups": 2,
         "bmm.word_weight": 0.0, "bmm.patch_weight": 0.0, "match.loss": loss, "match.temperature": 0.0,
         "id.weight": 0.7, **changes}
    )  # fmt: skip
    return config


def make_batch():
    rng = np.random.default_rng(0)
    text = {level: rng.integers(5, 40, (PAIRS, length), np.int32) for level, length in LENGTHS.items()}
    return {
        "images": rng.integers(0, 256, (PAIRS, 1, 12, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 5, 6], np.int32), (PAIRS, 1, 1)),
        "text": text,
        "mask": {level: ids > 0 for level, ids in text.items()},
        "words": np.ones((PAIRS, 10), np.int32),
        "person_ids": rng.integers(0, PERSONS, PAIRS).astype(np.int32),
    }


BATCH = make_batch()


@functools.cache
def params():
    """Random parameters; the classifier's are not small."""
    target = build_program(tiny("sdm"), np.array([0, 1]), 1, mask_id=4, persons=PERSONS).target.params
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), target)
    drawn["similarity"]["log_scale"] = np.float32(np.log(5))
    return drawn


@functools.cache
def whole(config_key):
    """(gradients, metrics) of the whole batch on one device."""
    config = tiny(config_key[0], **dict(config_key[1:]))
    objective = Objective(build_model(config.model), config, 4)
    return jax.jit(lambda params: gradients_of_rows(objective, params, BATCH, KEY))(params())


def assert_close(actual, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), actual, expected)


WAYS = [
    ("sdm", 1, "global", 2), ("sdm", 8, "sharded", 2), ("tal", 4, "sharded", 1), ("itc", 4, "global", 2),
    ("cmpm", 4, "sharded", 2),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "devices", "matching", "parts"), WAYS)
def test_every_way_gives_the_gradients_of_one_device(loss, devices, matching, parts):
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 1 else 1), ("data", "fsdp"))
    config = tiny(loss, **{"runtime.microbatches": parts, "runtime.matching": matching})
    program = build_program(config, np.array([0, 1]), 1, mask_id=4, persons=PERSONS, devices=jax.devices()[:devices])
    objective = program.objective(config)
    if devices == 1:
        run = jax.jit(lambda params, batch: gradients_of_rows(objective, params, batch, KEY))
        actual = run(params(), BATCH)
    else:
        run = jax.jit(lambda params, batch: global_gradients(objective, mesh, params, batch, KEY))
        actual = run(params(), global_batch(mesh, BATCH))
    expected = whole((loss,))
    assert set(actual[1]) == {"loss", "mla", "id"}
    assert_close(actual, expected)
    for leaf in (expected[0]["similarity"]["log_scale"], *expected[0]["id_head"].values()):
        assert np.abs(leaf).max() > 1e-3  # against zeros any gradient would be close


def test_the_gradient_of_the_scale_is_the_difference_quotient():
    gradients, _ = whole(("sdm",))
    config = tiny("sdm")
    objective, losses = Objective(build_model(config.model), config, 4), []
    run = jax.jit(lambda params: objective(params, BATCH, KEY)[0])
    for step in (0.01, -0.01):
        moved = {**params(), "similarity": {"log_scale": np.float32(np.log(5) + step)}}
        losses.append(float(run(moved)))
    np.testing.assert_allclose(gradients["similarity"]["log_scale"], (losses[0] - losses[1]) / 0.02, rtol=2e-3)


def test_a_fixed_temperature_is_the_scale_s_inverse():
    learned, fixed = whole(("sdm",)), whole(("sdm", ("match.temperature", 0.2)))
    assert_close(fixed[1], learned[1])
    assert not np.any(fixed[0]["similarity"]["log_scale"])  # it is not used


def test_the_total_has_the_identity_loss_with_its_weight():
    _, metrics = whole(("sdm",))
    np.testing.assert_allclose(metrics["loss"], metrics["mla"] + 0.7 * metrics["id"], rtol=1e-6)
    _, alone = whole(("sdm", ("mla.weight", 0.0)))
    assert set(alone) == {"loss", "id"}
    np.testing.assert_allclose(alone["id"], metrics["id"], rtol=1e-6)


FROZEN = ("text_embedding/", "attn/qkv", "similarity/", "id_head/bias")


@pytest.mark.parametrize(("devices", "parts"), [(1, 1), (8, 2)])
def test_frozen_parameters_have_no_gradient_and_the_others_the_same(devices, parts):
    changes = {"train.freeze": FROZEN, "runtime.microbatches": parts, "runtime.matching": "sharded"}
    config = tiny("sdm", **changes)
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 1 else 1), ("data", "fsdp"))
    program = build_program(config, np.array([0, 1]), 1, mask_id=4, persons=PERSONS, devices=jax.devices()[:devices])
    objective = program.objective(config)
    if devices == 1:
        actual = jax.jit(lambda params: gradients_of_rows(objective, params, BATCH, KEY))(params())
    else:
        run = jax.jit(lambda params, batch: global_gradients(objective, mesh, params, batch, KEY))
        actual = run(params(), global_batch(mesh, BATCH))
    gradients, metrics = whole(("sdm",))
    assert_close(actual, (split_params(gradients, FROZEN)[0], metrics))
