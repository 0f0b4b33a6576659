"""Micro-batches against the whole batch at once: the same loss, terms and gradients, in less memory."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import default
from ivt_jax.losses.mla import sharded_mla_loss
from ivt_jax.models.build import build_model
from ivt_jax.training.global_gradients import global_gradients, gradients_of_rows
from ivt_jax.training.gradient_cache import join, split
from ivt_jax.training.objective import Objective
from ivt_jax.training.sharding import global_batch

PAIRS = 16
LENGTHS = {"sentence": 12, "phrase": 8, "word": 6}


def tiny(**changes):
    """All terms, and all that is drawn."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": (24, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 16, "model.depth": 2,
         "model.num_heads": 2, "model.vocab_size": 40, "model.max_text_length": 12, "model.dropout": 0.3,
         "model.drop_path": 0.5, "model.dtype": "float32", "bmm.align_ratio": 0.6, **changes}
    )  # fmt: skip
    return config


def make_batch():
    """Texts of 4 to 12 tokens: rows have unequal weights in the reconstruction."""
    rng = np.random.default_rng(0)
    text = {}
    for level, length in LENGTHS.items():
        lengths = rng.integers(4, length + 1, (PAIRS, 1))
        text[level] = np.where(np.arange(length) < lengths, rng.integers(5, 40, (PAIRS, length)), 0).astype(np.int32)
    return {
        "images": rng.integers(0, 256, (PAIRS, 3, 24, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 8, 6], np.int32), (PAIRS, 3, 1)),
        "text": text,
        "mask": {level: ids > 0 for level, ids in text.items()},
        "words": np.where(text["sentence"] > 0, np.arange(12), 0).astype(np.int32),
        "person_ids": rng.integers(0, 6, PAIRS).astype(np.int32),
    }


BATCH, KEY = make_batch(), jax.random.key(7)


@functools.cache
def params():
    return jax.jit(build_model(tiny().model).init)(jax.random.key(0))["params"]


def gradients(config):
    """(gradients, metrics) as the step computes them, of parameters and batch; not compiled."""
    objective = Objective(build_model(config.model), config, 4)
    return lambda params, batch: gradients_of_rows(objective, params, batch, KEY)


ALL = ()
WORDS = (("mla.weight", 0.0), ("bmm.patch_weight", 0.0), ("bmm.rows", 4))


@functools.cache
def compiled(changes, count):
    run = jax.jit(gradients(tiny(**dict(changes), **{"runtime.microbatches": count})))
    return run.lower(params(), BATCH).compile()


def assert_close(actual, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), actual, expected)


@pytest.mark.parametrize(
    ("changes", "count", "terms"),
    [(ALL, 2, ["mla", "patches", "words"]), (WORDS, 2, ["words"])],
)
def test_micro_batches_give_the_whole_batch_s_loss_and_gradients(changes, count, terms):
    actual, metrics = compiled(changes, count)(params(), BATCH)
    of_whole, metrics_of_whole = compiled(changes, 1)(params(), BATCH)
    assert sorted(metrics) == sorted(metrics_of_whole) == ["loss", *terms]
    assert_close(metrics, metrics_of_whole)
    assert_close(actual, of_whole)
    if changes == ALL:
        for leaf in jax.tree.leaves(of_whole):
            assert np.abs(leaf).max() > 1e-4  # against zeros any gradient would be close


def test_micro_batches_need_less_memory():
    whole, parts = (compiled(ALL, count).memory_analysis().temp_size_in_bytes for count in (1, 2))
    assert parts < 0.75 * whole


def test_on_many_devices_with_sharded_matching():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    config, batch = tiny(**{"runtime.microbatches": 2}), global_batch(mesh, BATCH)
    matching = functools.partial(sharded_mla_loss, axes=mesh.axis_names)
    objective = Objective(build_model(config.model), config, 4, matching, mesh.axis_names)
    run = jax.jit(functools.partial(global_gradients, objective, mesh)).lower(params(), batch, KEY).compile()
    assert_close(run(params(), batch, KEY), compiled(ALL, 1)(params(), BATCH))
    assert run.cost_analysis()["flops"] < 1.5 / 8 * compiled(ALL, 2).cost_analysis()["flops"]  # nothing is done twice


def test_splitting_takes_rows_in_turn_and_joining_undoes_it():
    x = np.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(split(x, 3)[1], x[[1, 4]])
    np.testing.assert_array_equal(join(split(x, 3)), x)
