"""A training step of a model with relative positions and a projection, on one device and on eight."""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from ivt_jax.training.optimizer import by_layer, matrices
from ivt_jax.training.sharding import global_batch, place
from tests.training.test_train_step import assert_trees, close, on_mesh, program, small, small_batch


def config_of(parts):
    config = small(relative_positions=True, projection=8)
    config.bmm.align, config.runtime.microbatches = "fast", parts
    return config


def full_batch():
    batch = small_batch()
    return {**batch, "mask": {level: ids > 0 for level, ids in batch["text"].items()}}


def with_tables(state):
    """Tables of zeros hide mistakes: they get noise."""
    rng = np.random.default_rng(0)

    def noisy(path, x):
        noise = 0.3 * rng.standard_normal(x.shape).astype(np.float32)
        return jax.device_put(x + noise, x.sharding) if "relative" in jax.tree_util.keystr(path) else x

    return state.replace(params=jax.tree_util.tree_map_with_path(noisy, state.params))


def test_devices_and_micro_batches_change_nothing():
    init, step = program(config_of(1))
    state = with_tables(jax.jit(init)())
    alone, metrics = jax.jit(step)(state, full_batch())
    changed = jax.tree.map(
        lambda old, new: float(np.abs(old - new).max()), state.params["blocks"], alone.params["blocks"]
    )
    assert min(changed["relative"].values()) > 0  # every table has a gradient
    assert np.any(alone.params["image_projection"]["kernel"] != state.params["image_projection"]["kernel"])
    mesh, init, step = on_mesh(config_of(2), 2, 2)
    together, others = step(with_tables(init()), global_batch(mesh, full_batch()))
    assert_trees(close, (together.params, others), (alone.params, metrics))


def test_projections_are_split_and_tables_copied():
    sizes = {"data": 2, "fsdp": 4}
    assert place("image_projection/kernel", (16, 8), sizes).spec == PartitionSpec("fsdp", None)
    assert place("text_projection/kernel", (16, 8), sizes).spec == PartitionSpec("fsdp", None)
    for name in ("blocks/relative/image", "similarity/log_scale"):
        assert place(name, (4, 4, 4, 4), sizes).parts == 1


def test_tables_go_with_their_layer_and_do_not_decay():
    updates = {
        "blocks": {"norm1": {"scale": np.full((3, 2), 8.0)}, "relative": {"image": np.full((3, 2, 5, 3), 8.0)}},
        "image_projection": {"kernel": np.full((2, 2), 8.0)},
        "similarity": {"log_scale": np.full((), 8.0)},
    }
    scaled = by_layer(updates, 0.5, {})
    for layer, expected in zip(scaled["blocks"]["relative"]["image"], (1.0, 2.0, 4.0), strict=True):
        np.testing.assert_array_equal(layer, np.full((2, 5, 3), expected))
    for same in (scaled["image_projection"]["kernel"], scaled["similarity"]["log_scale"]):
        np.testing.assert_array_equal(same, np.full(np.shape(same), 8.0))
    decayed = matrices(updates)
    assert decayed["image_projection"]["kernel"] and not decayed["similarity"]["log_scale"]
    assert not decayed["blocks"]["relative"]["image"]
