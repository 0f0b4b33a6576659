"""The mesh, and where each parameter of a state lives on it. Eight fake devices."""

import collections
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import default
from ivt_jax.common.errors import UserError
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.sharding import global_batch, make_mesh, sharding_table, state_sharding
from ivt_jax.training.train_step import init_state

SPLIT = {
    "blocks/attn/qkv/kernel": P(None, None, "fsdp"),
    "blocks/attn/proj/kernel": P(None, "fsdp", None),
    "blocks/mlp_vis/fc1/kernel": P(None, None, "fsdp"),
    "blocks/mlp_vis/fc2/kernel": P(None, "fsdp", None),
    "blocks/mlp_txt/fc1/kernel": P(None, None, "fsdp"),
    "blocks/mlp_txt/fc2/kernel": P(None, "fsdp", None),
    "text_embedding/word": P("fsdp", None),
    "image_embedding/kernel": P("fsdp", None),
    "word_head/kernel": P("fsdp", None),
    "patch_head/kernel": P("fsdp", None),
}


def init_of(optimizer="sgd", ema=0.0, **changes):
    """A function that makes a fresh state."""
    config = default.get_config()
    config.optimizer.name, config.optimizer.ema = optimizer, ema
    sizes = {
        "image_size": (24, 12),
        "patch_size": 6,
        "stride": 6,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "vocab_size": 40,
    }
    model = IVT(IVTConfig(**{**sizes, **changes}))
    tx = make_optimizer(config, make_schedules(config, np.arange(3), 2))
    return lambda: init_state(model, tx, config)


def shapes_of(*args, **changes):
    return jax.eval_shape(init_of(*args, **changes))


def specs_of(tree):
    """path -> spec, the path as written in the rules."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, NamedSharding))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec for path, leaf in leaves}


def mesh_of(data, fsdp):
    return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))


def test_every_matrix_is_split_and_the_rest_is_copied():
    specs = specs_of(state_sharding(mesh_of(4, 2), shapes_of()).params)
    assert {name for name in specs if name.endswith("kernel")} < set(SPLIT)
    assert {name: spec for name, spec in specs.items() if spec != P()} == SPLIT


@pytest.mark.parametrize("optimizer, slots", [("sgd", 1), ("adamw", 2)])
def test_optimiser_slots_follow_their_parameters(optimizer, slots):
    specs = specs_of(state_sharding(mesh_of(4, 2), shapes_of(optimizer)).opt_state)
    for name, spec in SPLIT.items():
        assert [s for path, s in specs.items() if path.endswith(name)] == [spec] * slots
    assert sum(spec != P() for spec in specs.values()) == slots * len(SPLIT)


def test_arrays_that_are_not_divisible_are_copied():
    specs = specs_of(state_sharding(mesh_of(2, 4), shapes_of(vocab_size=42)).params)
    assert specs.pop("text_embedding/word") == P()
    assert {name: spec for name, spec in specs.items() if spec != P()} == {
        name: spec for name, spec in SPLIT.items() if name != "text_embedding/word"
    }


def cells_of(table):
    """The table's lines by rule, and what stands above them."""
    above, lines = table.split("\nrule ")
    return {line.split("  ")[0]: re.split(" {2,}", line)[1:] for line in lines.splitlines()[1:]}, above


def test_the_table_by_hand():
    rows, above = cells_of(sharding_table({"data": 2, "fsdp": 4}, shapes_of("adamw", vocab_size=42)))
    # Two blocks of width 16, hidden 64, in float32: qkv and both fc1; proj and both fc2. AdamW has two slots.
    wide, back = 4 * 2 * 16 * (48 + 64 + 64), 4 * 2 * (16 + 64 + 64) * 16
    for rule, split, arrays, size in (
        ("blocks/.*/(qkv|fc1)/kernel$", "-, -, fsdp", 3, wide),
        ("blocks/.*/(proj|fc2)/kernel$", "-, fsdp, -", 3, back),
        ("image_embedding/kernel$", "fsdp, -", 1, 4 * 108 * 16),
        ("(word_head|patch_head|image_projection|text_projection)/kernel$", "fsdp, -", 2, 4 * 16 * (16 + 108)),
    ):
        counts = arrays, size, size // 4, 2 * size, 2 * size // 4
        assert rows[rule] == [split, *(f"{count:,}" for count in counts)]
    word = 4 * 42 * 16  # 42 rows are not divided by 4
    assert rows["text_embedding/word$"] == ["copied", "1", *(f"{n:,}" for n in (word, word, 2 * word, 2 * word))]
    assert "mesh: data 2 x fsdp 4" in above and "fsdp 4 does not divide them: text_embedding/word (42, 16)" in above


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.0), ("adamw", 0.9), ("muon", 0.0)])
def test_the_table_has_the_bytes_that_devices_hold(optimizer, ema):
    mesh = mesh_of(2, 4)
    init = init_of(optimizer, ema, vocab_size=42)
    state = jax.jit(init, out_shardings=state_sharding(mesh, jax.eval_shape(init)))()
    expected = [len(jax.tree.leaves(state.params))]
    for tree in (state.params, state.opt_state, *([state.ema] if ema else [])):
        held = collections.Counter()
        for leaf in jax.tree.leaves(tree):
            held.update({shard.device.id: shard.data.nbytes for shard in leaf.addressable_shards})
        assert len(held) == 8 and len(set(held.values())) == 1
        expected += [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)), held[0]]
    rows, _ = cells_of(sharding_table(mesh.shape, state))
    assert rows["all"] == [f"{count:,}" for count in expected]


@pytest.mark.parametrize(
    "axes, sizes", [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, -1), (2, 4)), ((8, 1), (8, 1)), ((1, 8), (1, 8))]
)
def test_the_free_axis_takes_what_is_left(axes, sizes):
    mesh = make_mesh({"data": axes[0], "fsdp": axes[1]})
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == sizes


@pytest.mark.parametrize("data, fsdp", [(-1, 3), (4, 1), (16, 1), (-1, -1), (-1, 0), (0, -1), (-2, -4)])
def test_a_mesh_that_does_not_fit_is_one_line(data, fsdp):
    with pytest.raises(UserError, match="8 devices") as error:
        make_mesh({"data": data, "fsdp": fsdp})
    assert "\n" not in str(error.value)
    assert "runtime.mesh" in str(error.value)


def test_a_batch_is_split_over_all_devices():
    batch = {"images": np.arange(16 * 3).reshape(16, 3), "text": {"sentence": np.arange(16)}}
    placed = global_batch(mesh_of(4, 2), batch)
    for leaf, expected in (
        (placed["images"], batch["images"]),
        (placed["text"]["sentence"], batch["text"]["sentence"]),
    ):
        np.testing.assert_array_equal(leaf, expected)
        rows = [np.asarray(shard.data) for shard in sorted(leaf.addressable_shards, key=lambda s: s.device.id)]
        np.testing.assert_array_equal(rows, expected.reshape(8, 2, *expected.shape[1:]))
