"""Two processes that form one run, as launch/local.sh starts them, against one process."""

import json

import jax
import numpy as np
import pytest

from ivt_jax.run.checkpoint import Checkpoints, restore_params

pytestmark = pytest.mark.faults
RUN = ["--config.train.steps=3", "--config.train.eval_every=2"]


@pytest.fixture(scope="module")
def workdirs(start, tmp_path_factory):
    """The workdirs of two equal runs: on two processes of one device each, over which the parameters are split, and on
    one process."""
    folder = tmp_path_factory.mktemp("processes")
    processes = start(folder / "two", *RUN, "--config.runtime.mesh.fsdp=2", count=2)
    processes.append(start(folder / "one", *RUN))
    assert [process.finish() for process in processes] == [0] * 3, [process.said() for process in processes]
    return folder / "two", folder / "one"


def test_two_processes_train_what_one_does(workdirs):
    two, one = (Checkpoints(workdir).restore_params(3) for workdir in workdirs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), two, one)
    earlier = Checkpoints(workdirs[1]).restore_params(2)
    assert max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), one, earlier))) > 1e-3
    lines = [map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) for workdir in workdirs]
    steps = []
    for line_of_two, line_of_one in zip(*lines, strict=True):
        steps.append(line_of_one["step"])
        assert line_of_two.keys() == line_of_one.keys()
        if "loss" in line_of_one:
            assert line_of_two["loss"] == pytest.approx(line_of_one["loss"], rel=1e-5)
    assert steps == [1, 2, 2, 3, 3]


def test_the_first_process_alone_writes(workdirs):
    workdir = workdirs[0]
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert json.loads((workdir / "config.json").read_text())["device"] == "2 x cpu, 2 process(es)"
    assert (workdir / "report.html").exists() and (workdir / "test/summary.json").exists()
    restored = restore_params(workdir)  # by one process, what two have written
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.params))
