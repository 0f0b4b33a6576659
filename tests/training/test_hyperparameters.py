"""Hyperparameters are inputs: another value needs the same program, a part that is switched off another program."""

import functools
import json
import operator

import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import default
from ivt_jax.models.build import build_model
from ivt_jax.training import loop
from ivt_jax.training.hyperparameters import INPUTS, is_on, plain_values, rate_tables, read_tables, with_complement
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer, make_schedules, scale_by_adam
from ivt_jax.training.program import batch_shapes, build_program
from ivt_jax.training.train_step import init_state, train_step
from tests.training.test_loop import tiny_config

STARTS = np.array([0, 3, 5, 9])
ON = {"optimizer.clip_norm": 5.0, "optimizer.layer_decay": 0.75, "optimizer.ema": 0.9, "train.spike_factor": 8.0}
ADAMW = {**ON, "optimizer.name": "adamw"}
LEARNED = {
    "match.temperature": 0.3,
    "id.weight": 0.2,
    "itm.weight": 0.4,
    "model.projection": 4,
    "data.name": "icfg_pedes",
}
MATCHING = {"bmm.word_weight": 0.0, "bmm.patch_weight": 0.0}  # without reconstruction: faster to trace


def tiny(changes):
    """One view and one text of each pair, one block; everything random is on."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {"data.batch_size": 8, "model.image_size": (12, 12), "model.patch_size": 6, "model.stride": 6,
         "model.width": 8, "model.depth": 1, "model.num_heads": 2, "model.vocab_size": 40, "model.max_text_length": 8,
         "model.dtype": "float32", "text.length.sentence": 8, "mla.levels": ("sentence",), "mla.views": 1, **changes}
    )  # fmt: skip
    return config


def make_batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40, (8, 8), np.int32)
    return {
        "images": rng.integers(0, 256, (8, 1, 12, 12, 3), np.uint8), "erase": np.tile([2, 3, 8, 6], (8, 1, 1)),
        "text": {"sentence": ids}, "mask": {"sentence": ids > 0},
        "words": np.tile(np.arange(8, dtype=np.int32), (8, 1)),
        "person_ids": np.arange(8, dtype=np.int32) // 2, "pair_ids": np.arange(8, dtype=np.int32),
    }  # fmt: skip


def program_text(config, starts=STARTS):
    """Returns what XLA compiles, as text; the key of the compilation cache follows from it."""
    program = build_program(config, starts, config.train.steps or int(starts[-1]), mask_id=4)
    shapes = program.target, batch_shapes(config, program.mesh), program.hyperparameter_shapes
    return program.step.lower(*shapes).as_text()


@pytest.fixture(scope="module")
def text_of():
    """text_of(*changes): the text of a program, lowered once for each set of changes."""
    return functools.cache(lambda *changes: program_text(tiny(dict(changes))))


SWEPT = {
    "seed": 5,
    "mla.weight": 0.5, "match.temperature": 0.5, "id.weight": 0.5, "itm.weight": 0.5,
    "bmm.word_weight": 0.5, "bmm.patch_weight": 0.5, "bmm.word_ratio": 0.4, "optimizer.epsilon": 1e-3,
    "optimizer.schedule": "smooth", "optimizer.learning_rate": 0.5, "optimizer.bias_learning_rate": 0.5,
    "optimizer.start": 0.01, "optimizer.floor": 0.01, "optimizer.warmup_epochs": 2.0, "optimizer.momentum": 0.5,
    "optimizer.b1": 0.5, "optimizer.b2": 0.5, "optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.1,
    "optimizer.layer_decay": 0.5, "optimizer.ema": 0.5, "train.spike_factor": 5.0, "train.epochs": 3,
    "train.first_epoch": 0, "train.steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("base", [{**ADAMW, **LEARNED}, {**ON, **MATCHING}], ids=["adamw", "sgd"])
def test_other_values_are_the_same_program(text_of, base):
    values = {key: operator.attrgetter(key)(tiny(base)) for key in SWEPT}
    assert all(values[key] != SWEPT[key] for key in SWEPT)
    on = [key for key, value in values.items() if value not in INPUTS.get(key, ())]
    swept = {key: SWEPT[key] for key in on}
    same = text_of(*base.items()) == text_of(*{**base, **swept}.items())
    assert same, [key for key in swept if text_of(*base.items()) != text_of(*{**base, key: swept[key]}.items())]


def test_the_table_names_every_input():
    assert INPUTS.keys() <= SWEPT.keys()


def test_another_length_of_the_run_is_the_same_program(text_of):
    changes = {**ADAMW, **MATCHING}
    assert program_text(tiny(changes), np.arange(40) * 7) == text_of(*changes.items())


@pytest.mark.parametrize(("key", "off"), [(key, off) for key, values in INPUTS.items() for off in values])
def test_a_part_that_is_switched_off_is_another_program(text_of, key, off):
    base = {**ADAMW, **(MATCHING if key.startswith(("optimizer", "train")) else LEARNED)}
    assert text_of(*base.items()) != text_of(*{**base, key: off}.items())


ODD = {
    "seed": 2**32 + 77, "mla.weight": 0.7, "match.temperature": 0.8, "id.weight": 0.6, "optimizer.epsilon": 1e-2,
    "bmm.word_weight": 1.3, "bmm.patch_weight": 0.3, "bmm.word_ratio": 0.45,
    "optimizer.learning_rate": 0.03, "optimizer.bias_learning_rate": 0.02, "optimizer.momentum": 0.6,
    "optimizer.b1": 0.7, "optimizer.b2": 0.85, "optimizer.weight_decay": 0.2, "optimizer.clip_norm": 0.9,
    "optimizer.layer_decay": 0.65, "optimizer.ema": 0.15, "train.spike_factor": 1.5,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"optimizer.name": name} for name in ("adamw", "muon")] + [MATCHING])
def test_inputs_do_what_constants_do(changes):
    """Three steps of the compiled program beside the same functions with the config's own numbers."""
    config = tiny({**ODD, **changes})
    program = build_program(config, STARTS, 9, mask_id=4, persons=5)
    model = build_model(config.model)
    tx = make_optimizer(config, make_schedules(config, STARTS, 9))
    plain = jax.jit(functools.partial(train_step, objective=Objective(model, config, 4), tx=tx))
    state, given, expected = program.init(), program.hyperparameters(), init_state(model, tx, config, 5)
    for _ in range(3):
        state, metrics = program.step(state, make_batch(), given)
        expected, terms = plain(expected, make_batch())
        assert metrics.pop("learning_rate") > 0
        for actual, wanted in zip(jax.tree.leaves((state, metrics)), jax.tree.leaves((expected, terms)), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_tables_hold_the_schedules():
    """Equal to rounding; to the bit with XLA's optimisation, which the tests switch off."""
    for schedule in ("released", "smooth"):
        config = tiny({"optimizer.schedule": schedule, "optimizer.warmup_epochs": 1.0})
        schedules = make_schedules(config, STARTS, 9)
        tables = read_tables(jax.jit(lambda schedules=schedules: rate_tables(schedules, 9))())
        for name in ("weight", "bias"):
            rates = jax.jit(schedules[name])
            np.testing.assert_allclose([tables[name](s) for s in range(9)], [rates(s) for s in range(9)], rtol=5e-7)


def test_a_table_is_as_long_as_the_run():
    tables = rate_tables({"weight": lambda step: step + 0.0}, 70_000)
    assert len(tables["weight"]) == 2**17 and tables["weight"][69_999] == 69_999


def test_plain_values_leave_out_what_is_off():
    assert [is_on(0.0), is_on(2.0), is_on(1.0, off=1.0), is_on(0.5, off=1.0)] == [False, True, False, True]
    assert is_on(jax.numpy.zeros(()))
    for temperature in (1.0, 0.0):
        assert "match.temperature" not in plain_values(tiny({"match.temperature": temperature}))
    values = plain_values(tiny({"optimizer.b2": 0.98, "bmm.word_weight": 0.0, "seed": 2**32 + 3}))
    assert values["seed"] == 3 and "bmm.word_weight" not in values and "optimizer.ema" not in values
    # 1 - 0.98 in float32 would be 0.01999998.
    np.testing.assert_array_equal(values["optimizer.b2"], np.float32([0.98, 0.02]))
    assert with_complement(0.75) == (0.75, 0.25)


def test_adam_is_optax_to_the_bit():
    rng, params = np.random.default_rng(0), {"kernel": np.ones((3, 4), np.float32)}
    ours, theirs = scale_by_adam((0.9, 1 - 0.9), (0.98, 1 - 0.98)), optax.scale_by_adam(0.9, 0.98)
    states = [tx.init(params) for tx in (ours, theirs)]
    for _ in range(5):
        gradient = {"kernel": rng.standard_normal((3, 4), np.float32)}
        updates, states = zip(
            *(tx.update(gradient, s) for tx, s in zip((ours, theirs), states, strict=True)), strict=True
        )
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        jax.tree.map(np.testing.assert_array_equal, (updates[0], states[0]), (updates[1], states[1]))


# ---- checkpoints of earlier versions


PARAMS = {
    "blocks/attn/proj/bias": (1, 8), "blocks/attn/proj/kernel": (1, 8, 8), "blocks/attn/qkv/bias": (1, 24),
    "blocks/attn/qkv/kernel": (1, 8, 24), "blocks/mlp_txt/fc1/bias": (1, 32), "blocks/mlp_txt/fc1/kernel": (1, 8, 32),
    "blocks/mlp_txt/fc2/bias": (1, 8), "blocks/mlp_txt/fc2/kernel": (1, 32, 8), "blocks/mlp_vis/fc1/bias": (1, 32),
    "blocks/mlp_vis/fc1/kernel": (1, 8, 32), "blocks/mlp_vis/fc2/bias": (1, 8), "blocks/mlp_vis/fc2/kernel": (1, 32, 8),
    "blocks/norm/bias": (8,), "blocks/norm/scale": (8,), "blocks/norm1/bias": (1, 8), "blocks/norm1/scale": (1, 8),
    "blocks/norm2/bias": (1, 8), "blocks/norm2/scale": (1, 8), "image_embedding/bias": (8,),
    "image_embedding/cls": (1, 1, 8), "image_embedding/kernel": (108, 8), "image_embedding/mask_token": (1, 1, 8),
    "image_embedding/pos_embed": (1, 5, 8), "image_embedding/type_embed": (1, 5, 8), "patch_head/bias": (108,),
    "patch_head/kernel": (8, 108), "text_embedding/bias": (8,), "text_embedding/position": (8, 8),
    "text_embedding/scale": (8,), "text_embedding/token_type": (2, 8), "text_embedding/word": (40, 8),
    "word_head/bias": (8,), "word_head/kernel": (8, 8), "word_head/norm/bias": (8,), "word_head/norm/scale": (8,),
    "word_head/output/bias": (40,),
}  # fmt: skip
COUNTS = ("step", "bad_steps")
# Changes of the config, the trees that are shaped like the parameters, and the counts; read off the version before.
LAYOUTS = [
    ({}, ["params", "opt_state/1/trace"],
     ["opt_state/2/inner_states/bias/inner_state/count", "opt_state/2/inner_states/weight/inner_state/count"]),
    ({"optimizer.name": "adamw"}, ["params", "opt_state/0/mu", "opt_state/0/nu"],
     ["opt_state/0/count", "opt_state/2/inner_states/bias/inner_state/count",
      "opt_state/2/inner_states/weight/inner_state/count"]),
    (ON, ["params", "opt_state/2/trace", "ema"],
     ["opt_state/4/inner_states/bias/inner_state/count", "opt_state/4/inner_states/weight/inner_state/count",
      "spikes/count"]),
    (ADAMW, ["params", "opt_state/1/mu", "opt_state/1/nu", "ema"],
     ["opt_state/1/count", "opt_state/4/inner_states/bias/inner_state/count",
      "opt_state/4/inner_states/weight/inner_state/count", "spikes/count"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "trees", "counts"), LAYOUTS)
def test_a_checkpoint_holds_what_it_held_when_rates_were_constants(changes, trees, counts):
    target = build_program(tiny(changes), STARTS, 9, mask_id=4).target
    held = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    expected = {f"{tree}/{name}": (shape, "float32") for tree in trees for name, shape in PARAMS.items()}
    expected |= dict.fromkeys([*COUNTS, *counts], ((), "int32"))
    expected |= {"spikes/norms": ((100,), "float32")} if "spikes/count" in counts else {}
    assert held == expected


# ---- compilations

KEPT = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture
def compiled(tmp_path):
    """compiled(): the names of the programs that this process has compiled since, one for each compilation."""
    changes = {**KEPT, "jax_compilation_cache_dir": str(tmp_path / "cache")}
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield lambda: sorted(path.name.rsplit("-", 2)[0] for path in (tmp_path / "cache").glob("*-cache"))
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_sweep_compiles_once(compiled, pedes_root, tmp_path, monkeypatch):
    """Three short trainings: other values compile only their tables, a weight of 0 compiles another step."""
    monkeypatch.setattr(loop, "evaluate", lambda *args, **kwargs: {"test": {"step": 0, "t2i": {}}})
    monkeypatch.setattr(loop, "write_report", lambda workdir: workdir)
    sweep = {
        "optimizer.learning_rate": 3e-3, "optimizer.bias_learning_rate": 2e-3, "optimizer.weight_decay": 0.3,
        "optimizer.b2": 0.9, "bmm.word_weight": 4.0, "seed": 5, "train.steps": 2,
    }  # fmt: skip
    logged = []

    def run(number, changes):
        config = tiny_config(pedes_root)
        config.update_from_flattened_dict({"mla.levels": ("sentence",), "mla.views": 1, "train.steps": 1, **changes})
        loop.train_and_evaluate(config, tmp_path / str(number))
        logged.append(json.loads((tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()[0]))
        return compiled()

    first = run(1, {})
    assert [first.count(name) for name in ("jit_step", "jit_init", "jit_hyperparameters")] == [1, 1, 1]
    second = run(2, sweep)
    assert second == sorted([*first, "jit_hyperparameters"])
    third = run(3, {**sweep, "bmm.word_weight": 0.0})
    assert third.count("jit_step") == 2 and "words" not in logged[2]
