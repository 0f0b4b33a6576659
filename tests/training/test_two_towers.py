"""Two towers in training: kept tokens, devices, micro-batches, rates by layer, the start from another folder."""

import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import default
from ivt_jax.common.errors import UserError
from ivt_jax.conversion.positions import resize_positions
from ivt_jax.losses import bmm
from ivt_jax.losses.mla import sharded_mla_loss
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import export_params
from ivt_jax.training.global_gradients import global_gradients, gradients_of_rows
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import by_layer
from ivt_jax.training.sharding import global_batch, state_sharding

CLIP = {"model.projection": 8, "model.text.causal": True, "model.text.pooling": "end", "model.image_norm": True}
SIGLIP = {
    "model.projection": 16, "model.pooling": "attention", "model.text.pooling": "last",
    "model.text.projection_bias": True,
}  # fmt: skip
KINDS = {"clip": CLIP, "siglip": SIGLIP}
PAIRS, LENGTH, KEY = 16, 10, jax.random.key(7)


def tiny(kind, **changes):
    """All that is drawn."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {"model.towers": 2, "model.image_size": (24, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 16,
         "model.depth": 2, "model.num_heads": 2, "model.text.width": 8, "model.text.depth": 3,
         "model.text.num_heads": 2, "model.vocab_size": 40, "model.max_text_length": LENGTH, "model.dropout": 0.3,
         "model.drop_path": 0.5, "model.dtype": "float32", "bmm.align": "fast", "bmm.align_ratio": 0.8,
         "bmm.word_weight": 0.0, "bmm.patch_weight": 0.0, "mla.views": 1, "mla.levels": ("sentence", "word"),
         **KINDS[kind], **changes}
    )  # fmt: skip
    config.text.length.update(dict.fromkeys(config.text.length, LENGTH))
    return config


def make_batch(kind):
    """SigLIP attends to its padding."""
    rng = np.random.default_rng(0)
    text, mask = {}, {}
    for level in ("sentence", "word"):
        lengths = rng.integers(3, LENGTH + 1, (PAIRS, 1))
        mask[level] = (np.arange(LENGTH) < lengths) | (kind == "siglip")
        text[level] = np.where(np.arange(LENGTH) < lengths, rng.integers(5, 40, (PAIRS, LENGTH)), 1).astype(np.int32)
    return {
        "images": rng.integers(0, 256, (PAIRS, 1, 24, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 8, 6], np.int32), (PAIRS, 1, 1)),
        "text": text, "mask": mask, "words": np.zeros((PAIRS, LENGTH), np.int32),
        "person_ids": rng.integers(0, 6, PAIRS).astype(np.int32),
    }  # fmt: skip


@functools.cache
def params(kind):
    model = build_model(tiny(kind).model)
    drawn = jax.jit(model.init)(jax.random.key(0))["params"]
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), drawn)


@functools.cache
def gradients(kind, count=1):
    config = tiny(kind, **{"runtime.microbatches": count})
    objective = Objective(build_model(config.model), config, 4)
    return jax.jit(lambda params, batch: gradients_of_rows(objective, params, batch, KEY))(
        params(kind), make_batch(kind)
    )


def assert_close(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), actual, expected)


# ---- masked alignment


@pytest.mark.parametrize("ordered", [False, True])
def test_fast_alignment_keeps_the_first_and_the_pooled_token(ordered):
    mask, always = np.arange(12) < 9, (0, 8)
    for seed in range(30):
        key = jax.random.key(seed)
        indices, valid = map(np.asarray, bmm.fast_selection(key, mask, 1.0, always=always, ordered=ordered))
        kept = indices[valid]
        assert len(kept) == 5 and len(indices) == 7 and {0, 8} <= {*kept} and len({*indices}) == 7  # 4 of 9 dropped
        assert (kept < 9).all() and (not ordered or (np.diff(kept) > 0).all())
    drawn = {tuple(np.asarray(bmm.fast_selection(jax.random.key(s), mask, 1.0, always=always)[0])) for s in range(30)}
    assert len(drawn) > 20
    found = bmm.fast_selection(jax.random.key(0), np.array([True, True]), 1.0, always=(0, 1))
    np.testing.assert_array_equal(found[0], [0, 1])


def test_without_a_class_token_any_patch_may_be_dropped():
    draws = [bmm.fast_selection(jax.random.key(seed), np.ones(6, bool), 1.0, always=())[0] for seed in range(40)]
    assert all(len(kept) == 4 for kept in draws)
    assert {*range(6)} == {place for place in range(6) if any(place not in kept for kept in draws)}


# ---- devices and micro-batches


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_but_what_the_loss_does_not_use(kind):
    found, metrics = gradients(kind)
    assert sorted(metrics) == ["loss", "mla"] and np.isfinite(metrics["loss"])
    still = {path for path, leaf in flatten_dict(found, sep="/").items() if np.abs(leaf).max() < 1e-7}
    assert still == {path for path in flatten_dict(found, sep="/") if path.startswith("similarity/")}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_whole_batch_s_loss_and_gradients(kind):
    assert_close(gradients(kind, 2), gradients(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_many_devices_give_the_same_loss_and_gradients(kind):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    config, batch = tiny(kind), global_batch(mesh, make_batch(kind))
    matching = functools.partial(sharded_mla_loss, axes=mesh.axis_names)
    objective = Objective(build_model(config.model), config, 4, matching, mesh.axis_names)
    place = jax.jit(lambda tree: tree, out_shardings=state_sharding(mesh, params(kind)))
    actual = jax.jit(functools.partial(global_gradients, objective, mesh))(place(params(kind)), batch, KEY)
    assert_close(actual, gradients(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_split(kind):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    leaves = jax.tree_util.tree_leaves_with_path(
        state_sharding(mesh, params(kind)), is_leaf=lambda x: isinstance(x, NamedSharding)
    )
    specs = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec for path, leaf in leaves}
    split = {path for path, spec in specs.items() if spec != P()}
    assert split == {path for path in specs if path.endswith("/kernel")} | {"text_embedding/word"}
    assert specs["text_blocks/mlp/fc1/kernel"] == P(None, None, "fsdp")
    assert kind == "clip" or specs["image_head/attn/qkv/kernel"] == P(None, "fsdp")


def test_each_tower_has_its_own_layers():
    ones = jax.tree.map(np.ones_like, params("clip"))
    found = flatten_dict(by_layer(ones, 0.5, {"image_embedding": 2, "text_embedding": 3}), sep="/")
    np.testing.assert_array_equal(found["image_blocks/norm1/scale"][:, 0], [0.25, 0.5])
    np.testing.assert_array_equal(found["text_blocks/mlp/fc1/kernel"][:, 0, 0], [0.125, 0.25, 0.5])
    assert (found["image_embedding/kernel"] == 0.125).all() and (found["text_embedding/word"] == 0.0625).all()
    for path in ("image_blocks/norm/scale", "text_projection/kernel", "similarity/log_scale"):
        assert (found[path] == 1).all()


# ---- the start from another folder


@pytest.fixture
def folder(tmp_path):
    """folder(kind, changes): an export of these parameters."""

    def write(kind, **changes):
        config = tiny(kind, **changes)
        shapes = flatten_dict(params(kind), sep="/")
        export_params(tmp_path / "weights/params", unflatten_dict(jax.tree.map(np.asarray, shapes), sep="/"))
        (tmp_path / "weights/config.json").write_text(json.dumps({"config": config.to_dict()}))
        return str(tmp_path / "weights")

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_resized_with_a_class_token_and_without(folder, kind):
    start = {"train.init_from": folder(kind), "model.image_size": (30, 18)}
    initial = initial_params(tiny(kind, **start))
    assert initial.summary.endswith("resized 4x2 -> 5x3: image_embedding/pos_embed")
    old = np.asarray(params(kind)["image_embedding"]["pos_embed"])
    found = initial.params["image_embedding/pos_embed"]
    assert found.shape[1] == 15 + (kind == "clip")
    np.testing.assert_array_equal(found, resize_positions(old, (4, 2), (5, 3)))
    patches = np.concatenate([np.zeros((1, 1, 16), np.float32), old[:, kind == "clip" :]], axis=1)
    np.testing.assert_allclose(found[:, kind == "clip" :], resize_positions(patches, (4, 2), (5, 3))[:, 1:])


def test_other_settings_are_named_with_their_flags(folder):
    other = {"model.text.num_heads": 4, "model.text.causal": False, "model.pixel_mean": (0.4, 0.5, 0.5)}
    start = {"train.init_from": folder("clip", **{"model.pixel_mean": (0.25, 0.5, 0.5)}), **other}
    with pytest.raises(UserError) as error:
        initial_params(tiny("clip", **start), shapes_alone=True)
    assert str(error.value).endswith(
        "is of a model with another pixel_mean, text.num_heads, text.causal; set "
        '--config.model.pixel_mean="(0.25,0.5,0.5)" --config.model.text.num_heads=2 --config.model.text.causal=True'
    )


def test_one_tower_does_not_start_from_two(folder):
    start = {"train.init_from": folder("siglip"), "model.towers": 1, "model.pooling": "class"}
    with pytest.raises(UserError, match="of a model with another towers, pooling; set --config"):
        initial_params(tiny("siglip", **start), shapes_alone=True)
