"""Two processes that form one run, as launch/local.sh starts them, against one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ivt_jax.checkpoint import Checkpoints, restore_params

ROOT = Path(__file__).parent.parent
CONFIG = [
    "--config=configs/synth.py", "--config.data.name=cuhk_pedes", "--config.data.batch_size=8",
    "--config.model.image_size=(24,12)", "--config.model.patch_size=6", "--config.model.stride=6",
    "--config.model.width=8", "--config.model.depth=1", "--config.model.num_heads=2", "--config.model.dropout=0.1",
    "--config.text.length.sentence=16", "--config.mla.levels=('sentence',)",
    "--config.mla.views=1", "--config.bmm.align=fast", "--config.bmm.rows=0", "--config.bmm.word_weight=0.0",
    "--config.bmm.patch_weight=0.0", "--config.data.sampling=uniform",
    "--config.optimizer.name=sgd", "--config.optimizer.start=0.01", "--config.optimizer.learning_rate=0.01",
    "--config.train.steps=3", "--config.train.eval_every=2", "--config.runtime.log_every=1",
    "--config.runtime.eval_batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def workdirs(pedes_root, tmp_path_factory):
    """The workdirs of two equal runs: on two processes of one device each, over which the parameters are split, and on
    one process."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = [f"--coordinator={address}", "--num_processes=2", "--config.runtime.mesh.fsdp=2"]
    commands = {
        "first": [f"--workdir={folder}/two", *together, "--process_id=0"],
        "second": [f"--workdir={folder}/two", *together, "--process_id=1"],
        "alone": [f"--workdir={folder}/one"],
    }
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = {}
    for name, arguments in commands.items():
        command = [sys.executable, "-m", "ivt_jax.main", *CONFIG, f"--config.data.root={pedes_root}", *arguments]
        with (folder / name).open("w") as log:
            processes[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        codes = {name: process.wait(timeout=240) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert set(codes.values()) == {0}, [codes, *((folder / name).read_text() for name in commands)]
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
