import contextlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import synth
from ivt_jax.common.errors import UserError
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run import checkpoint
from ivt_jax.run.checkpoint import SELECTION, Checkpoints, export_params, restore_params
from ivt_jax.run.digests import UNFINISHED
from ivt_jax.run.workdir import lock_folder
from ivt_jax.training import program
from ivt_jax.training.train_step import TrainState


def make_state(step):
    """Every array tells the step."""
    params = {"block": {"kernel": jnp.arange(16.0).reshape(8, 2) + step}, "bias": jnp.full((3,), 10.0 * step)}
    slots = jax.tree.map(lambda x: -x, params)
    return TrainState(jnp.int32(step), params, ({"trace": slots}, ()), jnp.int32(0))


def tiny_config():
    config = synth.get_config()
    sizes = {"image_size": (12, 12), "patch_size": 6, "stride": 6, "width": 8, "depth": 2, "num_heads": 2}
    config.model.update({**sizes, "vocab_size": 20, "max_text_length": 9})
    return config


def tiny_params(changes=()):
    """Those of the tiny config's model, each of one value; `changes`: path -> array, or None to leave it out."""
    shapes = parameter_shapes(IVTConfig.from_config(tiny_config().model))
    flat = {path: np.full(shape, 0.5 + i, np.float32) for i, (path, shape) in enumerate(shapes.items())}
    flat |= dict(changes)
    return unflatten_dict({path: value for path, value in flat.items() if value is not None}, sep="/")


def write_config(folder):
    (folder / "config.json").write_text(json.dumps({"config": tiny_config().to_dict()}))


def save_all(workdir, scores, select_on="val", make_state=make_state):
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


def on_mesh(config, devices, fsdp):
    """The state's shapes and shardings of a run of so many devices, as training restores into them."""
    config.runtime.mesh.update({"data": -1, "fsdp": fsdp})
    return program.build_program(config, np.array([0, 10]), 10, mask_id=4, devices=jax.devices()[:devices]).target


def test_a_run_goes_from_eight_devices_to_one_to_four_and_keeps_every_bit(tmp_path):
    """Parameters, Adam's memory, the average and the counts, in the places that the rules of sharding give them."""
    config, rng = tiny_config(), np.random.default_rng(8)
    config.optimizer.update({"name": "adamw", "ema": 0.9})
    meshes = [on_mesh(config, devices, fsdp) for devices, fsdp in ((8, 4), (1, 1), (4, 2))]

    def draw(x):
        return rng.normal(size=x.shape).astype(x.dtype) if x.dtype == np.float32 else np.full(x.shape, 7, x.dtype)

    written = jax.tree.map(draw, meshes[0])
    state = jax.tree.map(lambda x, target: jax.device_put(x, target.sharding), written, meshes[0])
    for step, target in enumerate([*meshes[1:], meshes[0]], start=1):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, state)
        checkpoints.close()
        state = Checkpoints(tmp_path).restore(step, target)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), written)
        assert jax.tree.leaves(state.params)[0].sharding.mesh.size == (1, 4, 8)[step - 1]
        halves = [x for x in jax.tree.leaves((state.params, state.opt_state, state.ema)) if not x.is_fully_replicated]
        assert bool(halves) == (step > 1)


def test_parameters_are_restored_alone_from_the_best(tmp_path, monkeypatch):
    read = []
    restore = ocp.CheckpointManager.restore
    monkeypatch.setattr(
        ocp.CheckpointManager, "restore", lambda self, step, args: read.append(args) or restore(self, step, args=args)
    )
    write_config(tmp_path)
    save_all(tmp_path, [20.0, 10.0, 15.0], make_state=run_state)[0].close()
    config, params, step = restore_params(tmp_path)
    assert (config.seed, step) == (tiny_config().seed, 1)
    jax.tree.map(np.testing.assert_array_equal, params, run_state(1).params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert set(read[0]["state"].item) == {"params"}  # the optimiser's arrays are not read


def test_where_a_run_keeps_an_average_that_is_what_is_restored(tmp_path):
    write_config(tmp_path)
    state = run_state(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state.replace(ema=jax.tree.map(lambda x: x / 2, state.params)))
    checkpoints.close()
    shapes = restore_params(tmp_path, shapes_alone=True).params
    assert jax.tree.map(lambda leaf: tuple(leaf.shape), shapes) == jax.tree.map(jnp.shape, state.params)
    params = restore_params(tmp_path).params
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y / 2), params, state.params)


def test_a_step_that_a_run_at_work_deletes_gives_way_to_another(tmp_path, monkeypatch):
    write_config(tmp_path)
    save_all(tmp_path, [10.0, 20.0, 15.0], make_state=run_state)[0].close()
    monkeypatch.setattr(checkpoint, "_MOMENT", 0.01)
    read = Checkpoints.restore_params

    def restore(self, step, shapes_alone=False):
        if step == 2 and not shapes_alone:
            shutil.rmtree(tmp_path / "checkpoints/2")
        return read(self, step, shapes_alone)

    monkeypatch.setattr(Checkpoints, "restore_params", restore)
    with lock_folder(tmp_path, "run", "--workdir"):
        assert restore_params(tmp_path).step == 3
        for path in (tmp_path / "checkpoints/3").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        with pytest.raises(UserError, match="step 3 is damaged"):  # that nobody has deleted
            restore_params(tmp_path)


def test_without_a_run_at_work_a_step_that_is_gone_is_an_error(tmp_path, monkeypatch):
    write_config(tmp_path)
    save_all(tmp_path, [10.0, 20.0], make_state=run_state)[0].close()
    monkeypatch.setattr(checkpoint.time, "sleep", None)
    read = Checkpoints.restore_params

    def remove(self, step, shapes_alone=False):
        if not shapes_alone:
            shutil.rmtree(tmp_path / f"checkpoints/{step}")
        return read(self, step, shapes_alone)

    monkeypatch.setattr(Checkpoints, "restore_params", remove)
    with pytest.raises(UserError, match="step 2 is damaged"):
        restore_params(tmp_path)


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


# ---- what is refused

KERNEL, BIAS = "blocks/attn/proj/kernel", "blocks/attn/proj/bias"  # (2, 8, 8), (2, 8)
HOLED = np.where(np.arange(16).reshape(2, 8) == 11, np.nan, 1).astype(np.float32)
FAULTS = {
    "shape": ({BIAS: np.ones((3, 8))}, f"{BIAS} has shape (3, 8), the model of its config has (2, 8)"),
    "missing": ({KERNEL: None}, f"{KERNEL} is missing"),
    "unexpected": ({"fusion/bias": np.ones(3)}, "fusion/bias has shape (3,), and the model of its config has no such "),
    "nan": ({BIAS: HOLED}, f"{BIAS} has values that are not finite"),
    "infinite": ({BIAS: np.where(HOLED == 1, HOLED, np.inf)}, f"{BIAS} has values that are not finite"),
}  # fmt: skip


def run_state(step, changes=()):
    params = jax.tree.map(lambda x: jnp.asarray(x * step, jnp.float32), tiny_params(changes))
    return TrainState(jnp.int32(step), params, ({"trace": params}, ()), jnp.int32(0))


def refusal(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FAULTS)
def test_parameters_at_fault_are_refused_with_folder_step_and_name(tmp_path, name):
    changes, fault = FAULTS[name]
    for kind in ("run", "params"):
        (tmp_path / kind).mkdir()
        write_config(tmp_path / kind)
    save_all(tmp_path / "run", [None, None], make_state=lambda step: run_state(step, changes))[0].close()
    export_params(tmp_path / "params/params", tiny_params(changes))
    told = refusal(lambda: restore_params(tmp_path / "run"))
    assert told.startswith(f"{tmp_path}/run, step 2: {fault}")
    assert told.endswith(f"; remove {tmp_path}/run/checkpoints/2 to use the checkpoint before it")
    told = refusal(lambda: restore_params(tmp_path / "params"))
    assert told.startswith(f"{tmp_path}/params, step 0: {fault}") and told.endswith("; export or convert again")


def test_shapes_are_compared_before_anything_is_read(tmp_path, monkeypatch):
    write_config(tmp_path)
    save_all(tmp_path, [None], make_state=lambda step: run_state(step, FAULTS["shape"][0]))[0].close()
    monkeypatch.setattr(ocp.CheckpointManager, "restore", None)
    for shapes_alone in (False, True):
        told = refusal(lambda: restore_params(tmp_path, shapes_alone=shapes_alone))  # noqa: B023
        assert FAULTS["shape"][1] in told


def test_optional_parameters_may_be_missing_but_no_others(tmp_path):
    write_config(tmp_path)
    export_params(tmp_path / "params", tiny_params({"word_head/bias": None, BIAS: None}))
    assert "word_head" in restore_params(tmp_path, optional=("word_head/", BIAS)).params
    assert f"{BIAS} is missing" in refusal(lambda: restore_params(tmp_path, optional=("word_head/",)))
    assert "word_head/bias is missing" in refusal(lambda: restore_params(tmp_path, optional=(BIAS,)))


def test_the_step_that_an_export_records_is_returned(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": tiny_config().to_dict(), "step": 40}))
    export_params(tmp_path / "params", tiny_params())
    assert restore_params(tmp_path).step == 40


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_does_not_resume_from_parameters_at_fault(tmp_path, name):
    """Whether in the parameters or in the optimiser's memory."""
    changes, fault = FAULTS[name]
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    everywhere = NamedSharding(mesh, P())
    shapes = jax.eval_shape(lambda: run_state(1))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    well, ill = run_state(1), run_state(1, changes)
    for place, state in (("params", well.replace(params=ill.params)), ("opt", well.replace(opt_state=ill.opt_state))):
        (tmp_path / place).mkdir()
        save_all(tmp_path / place, [None], make_state=lambda step: state)[0].close()  # noqa: B023
        told = refusal(lambda: Checkpoints(tmp_path / place).restore(1, target))  # noqa: B023
        prefix = "params/" if place == "params" else "opt_state/0/trace/"
        assert told.startswith(f"{tmp_path}/{place}, step 1: {prefix}{fault}")


# ---- a step counts only when it can be read again


def large_state(step):
    """Returns a state with an array large enough for a file of its own."""
    state = make_state(step)
    noise = np.random.default_rng(step).normal(size=(70, 30)).astype(np.float32)
    return state.replace(params={**state.params, "large": jnp.asarray(noise)})


def data_file(state):
    """Returns the largest file of chunks."""
    return max(state.glob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def lose_a_chunk(state):
    """Removes a chunk from the merged database, as if a process had written its part to another disk."""
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}}
    tensorstore.KvStore.open(database).result()["params.large/0.0"] = None


LOSSES = {
    "manifest": (lambda state: (state / "manifest.ocdbt").unlink(), "its arrays cannot be read again (NOT_FOUND"),
    "names": (lambda state: (state / "_METADATA").unlink(), "its arrays cannot be read again ("),
    "file": (lambda state: data_file(state).unlink(), "is missing or cut short"),
    "end": (lambda state: os.truncate(data_file(state), 100), "is missing or cut short"),
    "chunk": (lose_a_chunk, "params/large has 0 of 1 chunks"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_that_cannot_be_read_again_does_not_count(tmp_path, monkeypatch, name):
    lose, fault = LOSSES[name]
    complete = Checkpoints._complete

    def lose_first(self):
        if self._saving == 2:
            lose(tmp_path / f"checkpoints/2{UNFINISHED}/state")
        complete(self)

    monkeypatch.setattr(Checkpoints, "_complete", lose_first)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, large_state(1))
    checkpoints.save(2, large_state(2))
    told = refusal(lambda: checkpoints.save(3, large_state(3)))
    assert told.startswith(f"{tmp_path}/checkpoints: step 2 could not be saved: ") and fault in told
    assert told.endswith("; run the same command again to resume from the last whole checkpoint")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", f"2{UNFINISHED}"}
    assert Checkpoints(tmp_path).latest_step() == 1


def test_arrays_that_are_missing_or_of_another_shape_are_a_fault(tmp_path):
    params = {"a": {"kernel": np.ones((3, 4), np.float32)}, "b": np.float32(2)}
    export_params(tmp_path / "params", params)
    shapes = {"a/kernel": (3, 4), "b": ()}
    assert checkpoint.find_fault(tmp_path / "params", shapes) == ""
    fault = checkpoint.find_fault(tmp_path / "params", {**shapes, "c": (2,)})
    assert fault == "c is missing, or has another shape than (2,)"
    fault = checkpoint.find_fault(tmp_path / "params", {**shapes, "a/kernel": (4, 3)})
    assert fault == "a/kernel is missing, or has another shape than (4, 3)"


def test_a_node_behind_its_values_counts_towards_the_length_of_its_file(tmp_path):
    files = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path}/"}).result()
    database = tensorstore.KvStore.open({"driver": "ocdbt", "base": files.spec().to_json()}).result()
    database.write(b"a", bytes(1000)).result()  # too large to lie in the node
    (path,) = (tmp_path / "d").iterdir()
    assert dict(sorted(checkpoint._file_lengths(files))) == {f"d/{path.name}": path.stat().st_size}
    assert path.stat().st_size > 1000


def test_every_chunk_of_a_state_in_shards_is_counted(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    state = large_state(1)
    kernel = jax.device_put(state.params["block"]["kernel"], NamedSharding(mesh, P("fsdp", "data")))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state.replace(params={**state.params, "block": {"kernel": kernel}}))
    checkpoints.close()
    keys = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path}/checkpoints/1/state/"}}
    )
    assert sum(key.startswith(b"params.block.kernel/") for key in keys.result().list().result()) == 8 + 1


@pytest.mark.parametrize("name", ["[x]", "a\\b", "gs:", os.fsdecode(b"a\xffb")])
def test_no_checkpoint_counts_under_a_path_that_orbax_misreads(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(UserError), contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, make_state(1))
    assert not list(folder.glob("checkpoints/1"))
    with pytest.raises(UserError):
        export_params(folder / "params", make_state(1).params)
    write_config(folder)
    (folder / "params").mkdir(exist_ok=True)
    assert "\n" not in refusal(lambda: restore_params(folder))


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a#b", "a%41b", "a\nb", "~", "{a,b}", "]", "\u65e5"])
def test_other_paths_are_read_as_they_were_written(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    write_config(folder)
    save_all(folder, [None], make_state=run_state)[0].close()
    export_params(folder / "params", tiny_params())
    jax.tree.map(np.testing.assert_array_equal, restore_params(folder).params, run_state(1).params)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read_params(folder / "params"), tiny_params())


@pytest.mark.parametrize("name", ["[x]", "a*b"])
def test_a_run_that_was_moved_to_such_a_path_is_still_read(tmp_path, name):
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run")
    save_all(tmp_path / "run", [None], make_state=run_state)[0].close()
    (tmp_path / "run").rename(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / name).params, run_state(1).params)
