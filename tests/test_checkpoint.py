import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from input_pipeline.errors import UserError
from ivt_jax.checkpoint import SELECTION, Checkpoints, export_params, restore_params
from ivt_jax.train_step import TrainState


def make_state(step):
    """Every array tells the step."""
    params = {"block": {"kernel": jnp.arange(16.0).reshape(8, 2) + step}, "bias": jnp.full((3,), 10.0 * step)}
    slots = jax.tree.map(lambda x: -x, params)
    return TrainState(jnp.int32(step), params, ({"trace": slots}, ()), jnp.int32(0))


def save_all(workdir, scores, select_on="val"):
    """Saves steps 1, 2, ...; what is kept after each."""
    checkpoints, kept = Checkpoints(workdir, select_on), []
    for step, score in enumerate(scores, start=1):
        checkpoints.save(step, make_state(step), None if score is None else {f"{select_on}/{SELECTION}": score})
        checkpoints._manager.wait_until_finished()
        kept.append(sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()))
    return checkpoints, kept


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints, kept = save_all(tmp_path, [10.0, 30.0, 20.0, None, 25.0])
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5]]
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert (again.best_step(), again.latest_step()) == (2, 5)


def test_of_equally_good_ones_the_latest_is_the_best(tmp_path):
    checkpoints, kept = save_all(tmp_path, [30.0, 30.0, 10.0, 10.0])
    assert checkpoints.best_step() == 2 and kept[-1] == [2, 3, 4]


def test_the_split_that_chooses_can_be_test(tmp_path):
    checkpoints, _ = save_all(tmp_path, [10.0, 30.0, 20.0], select_on="test")
    assert checkpoints.best_step() == 2


def test_without_validation_the_latest_is_the_best(tmp_path):
    checkpoints, kept = save_all(tmp_path, [None, None, None])
    assert checkpoints.best_step() == 3 and kept[-1] == [2, 3]


def test_nothing_saved_is_no_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None and checkpoints.best_step() is None


def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path):
    save_all(tmp_path, [None])[0].close()
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))

    def place(x):
        spec = P("fsdp", None) if x.shape == (8, 2) else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    target = jax.tree.map(place, jax.eval_shape(lambda: make_state(0)))
    state = Checkpoints(tmp_path).restore(1, target)
    assert state.params["block"]["kernel"].addressable_shards[0].data.shape == (2, 2)
    assert jax.tree.structure(state) == jax.tree.structure(make_state(1))
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))


def test_parameters_are_restored_alone_from_the_best(tmp_path, monkeypatch):
    read = []
    restore = ocp.CheckpointManager.restore
    monkeypatch.setattr(
        ocp.CheckpointManager, "restore", lambda self, step, args: read.append(args) or restore(self, step, args=args)
    )
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 5, "train": {"select_on": "val"}}}))
    save_all(tmp_path, [20.0, 10.0, 15.0])[0].close()
    config, params, step = restore_params(tmp_path)
    assert (config.seed, step) == (5, 1)
    jax.tree.map(np.testing.assert_array_equal, params, make_state(1).params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert set(read[0]["state"].item) == {"params"}  # the optimiser's arrays are not read


def test_where_a_run_keeps_an_average_that_is_what_is_restored(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"train": {"select_on": "val"}}}))
    state = make_state(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state.replace(ema=jax.tree.map(lambda x: x / 2, state.params)))
    checkpoints.close()
    shapes = restore_params(tmp_path, shapes_alone=True).params
    assert jax.tree.map(lambda leaf: tuple(leaf.shape), shapes) == jax.tree.map(jnp.shape, state.params)
    params = restore_params(tmp_path).params
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y / 2), params, state.params)


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        restore_params(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="no checkpoint yet; train first"):
        restore_params(tmp_path)


def test_exported_parameters_are_a_plain_orbax_checkpoint(tmp_path):
    params = jax.tree.map(np.asarray, make_state(3).params)
    export_params(tmp_path / "params", params)
    jax.tree.map(np.testing.assert_array_equal, ocp.StandardCheckpointer().restore(tmp_path / "params"), params)
    with pytest.raises(UserError, match="exists already; remove it"):
        export_params(tmp_path / "params", params)
