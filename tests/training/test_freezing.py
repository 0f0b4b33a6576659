"""Frozen parameters and factors of the learning rate, by patterns of paths."""

import jax
import numpy as np
import pytest

from configs import default
from ivt_jax.common.errors import UserError
from ivt_jax.models.build import build_model
from ivt_jax.training.freezing import factor_of, join_params, rate_notes, refuse_patterns, split_params
from ivt_jax.training.metrics import parameter_table
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import paths_of
from ivt_jax.training.train_step import init_state, train_step
from tests.conftest import needs_tensorflow
from tests.training.test_losses import BATCH, PERSONS, tiny

TREE = {"blocks": {"attn": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}, "text_embedding": {"word": 4}}
PATHS = ["blocks/attn/bias", "blocks/attn/kernel", "blocks/norm/scale", "text_embedding/word"]


def changed(freeze=(), multipliers=()):
    config = default.get_config()
    config.train.freeze, config.optimizer.multipliers = freeze, multipliers
    return config


def test_a_pattern_is_searched_for_in_the_whole_path():
    trained, frozen = split_params(TREE, ("attn/k", "^text"))
    assert trained == {"blocks": {"attn": {"bias": 2}, "norm": {"scale": 3}}}
    assert frozen == {"blocks": {"attn": {"kernel": 1}}, "text_embedding": {"word": 4}}
    assert join_params(trained, frozen) == TREE
    assert split_params(TREE, ()) == (TREE, {}) and join_params(TREE, {}) is TREE


def test_the_first_pattern_decides_and_may_contain_an_equals_sign():
    multipliers = ("bias=2", "attn=5", "(?=t)text=0.5")
    assert [factor_of(path, multipliers) for path in PATHS] == [2, 5, 1, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("attn", "head")},
         'train.freeze: "head" matches no parameter; --dry_run without it lists the paths'),
        ({"multipliers": ("attn=2", "head=2")},
         'optimizer.multipliers: "head=2" matches no parameter; --dry_run without it lists the paths'),
        ({"freeze": ("blocks", "word")},
         "train.freeze ('blocks', 'word') leaves no parameter to train; remove a pattern"),
    ],
)  # fmt: skip
def test_a_pattern_without_parameters_is_one_line(changes, message):
    refuse_patterns(PATHS, changed(freeze=("attn",), multipliers=("word=2",)))
    refuse_patterns(PATHS, changed(multipliers=("^id_head/bias=2.5", "^id_head/=5")))  # a recipe without its classifier
    refuse_patterns(PATHS, changed(freeze=("^temperature/",), multipliers=("^itm_head/=5",)))  # and without other heads
    with pytest.raises(UserError) as error:
        refuse_patterns(PATHS, changed(**changes))
    assert str(error.value) == message


def test_a_program_refuses_it():
    with pytest.raises(UserError, match=r'^train.freeze: "no_such" matches no parameter'):
        build_program(tiny("sdm", **{"train.freeze": ("no_such",)}), np.array([0, 1]), 1, mask_id=4)


def test_notes_name_what_differs():
    assert rate_notes(PATHS, changed()) == {}
    assert rate_notes(PATHS, changed(("norm",), ("attn/kernel=2.5",))) == {
        "blocks/attn/bias": "", "blocks/attn/kernel": "x 2.5", "blocks/norm/scale": "frozen", "text_embedding/word": "",
    }  # fmt: skip


@needs_tensorflow
def test_the_table_shows_both_and_counts_what_is_trained():
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((20, 30), np.float32)}, "b": jax.ShapeDtypeStruct((7,), np.float32)}
    table = parameter_table(shapes, {"a/kernel": "frozen", "b": "x 5"}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert cells == [
        ["Name", "Shape", "Dtype", "Size", "Rate"],
        ["a/kernel", "(20, 30)", "float32", "600", "frozen"],
        ["b", "(7,)", "float32", "7", "x 5"],
    ]
    assert table[-1] == "Total: 607 -- 2,428 bytes; trained: 7"


FROZEN = ("^text_embedding/", "norm1/scale", "^id_head/bias", "^image_projection")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_parameters_stay_and_take_no_memory(optimizer):
    changes = {"optimizer.name": optimizer, "optimizer.weight_decay": 0.5, "optimizer.clip_norm": 1.0,
               "optimizer.layer_decay": 0.5, "optimizer.ema": 0.3, "optimizer.learning_rate": 0.01}  # fmt: skip
    config = tiny("sdm", **changes, **{"train.freeze": FROZEN})
    program = build_program(config, np.array([0, 9]), 9, mask_id=4, persons=PERSONS, devices=jax.devices()[:1])
    before = program.init()
    start = jax.tree.map(np.asarray, before.params)
    after, metrics = program.step(before, {**BATCH, "pair_ids": BATCH["person_ids"]}, program.hyperparameters())
    trained, frozen = split_params(after.params, FROZEN)
    old_trained, old_frozen = split_params(start, FROZEN)
    jax.tree.map(np.testing.assert_array_equal, frozen, old_frozen)
    jax.tree.map(np.testing.assert_array_equal, split_params(after.ema, FROZEN)[1], old_frozen)
    moved = jax.tree.map(lambda x, y: bool((np.asarray(x) != y).any()), trained, old_trained)
    unused = {"word_head", "patch_head"}  # without reconstruction Adam and SGD move them by their decay alone
    assert all(jax.tree.leaves({part: leaves for part, leaves in moved.items() if part not in unused}))
    held = set(paths_of(after.opt_state))
    for path in paths_of(frozen):
        assert not any(slot.endswith(path) for slot in held)
    slots = 1 if optimizer == "sgd" else 2
    assert sum(slot.endswith("blocks/attn/qkv/kernel") for slot in held) == slots
    assert metrics["grad_norm"] > 0


def test_the_clipped_norm_is_that_of_the_trained_parameters():
    """A gradient of ones: n trained numbers have norm sqrt(n), so clipping to 1 leaves 1 / sqrt(n) of each."""
    config = changed(freeze=("b",))
    config.optimizer.update({"clip_norm": 1.0, "weight_decay": 0.0})
    tx = make_optimizer(config, {"weight": lambda step: 1.0, "bias": lambda step: 1.0})
    trained, _ = split_params({"a": np.ones(9, np.float32), "b": np.ones(100, np.float32)}, config.train.freeze)
    updates, _ = tx.update(trained, tx.init(trained), trained)
    np.testing.assert_allclose(updates["a"], np.full(9, -1 / 3), rtol=1e-6)


def test_the_step_s_norm_leaves_frozen_parameters_out():
    config = tiny("sdm", **{"train.freeze": ("^(?!id_head/bias)",)})
    tx = make_optimizer(config, make_schedules(config, np.array([0, 1, 2]), 2))
    model = build_model(config.model)

    class Sum(Objective):
        def __call__(self, params, *rest):
            loss = 3 * sum(jax.numpy.sum(x) for x in jax.tree.leaves(params))
            return loss, {"loss": loss}

    state = jax.jit(lambda: init_state(model, tx, config, PERSONS))()
    _, metrics = train_step(state, {}, Sum(model, config, 4), tx)
    np.testing.assert_allclose(metrics["grad_norm"], 3 * np.sqrt(PERSONS), rtol=1e-6)
