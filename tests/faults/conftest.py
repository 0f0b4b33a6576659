"""Tiny runs in processes of their own, for tests to stop, kill and starve."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.conftest import QUICKLY

ROOT = Path(__file__).parent.parent.parent
CONFIG = [
    "--config=configs/synth.py", "--config.data.name=cuhk_pedes", "--config.data.batch_size=8",
    "--config.model.image_size=(24,12)", "--config.model.patch_size=6", "--config.model.stride=6",
    "--config.model.width=8", "--config.model.depth=1", "--config.model.num_heads=2", "--config.model.dropout=0.1",
    "--config.text.length.sentence=16", "--config.mla.levels=('sentence',)",
    "--config.mla.views=1", "--config.bmm.align=fast", "--config.bmm.rows=0", "--config.bmm.word_weight=0.0",
    "--config.bmm.patch_weight=0.0", "--config.data.sampling=uniform",
    "--config.optimizer.name=sgd", "--config.optimizer.start=0.01", "--config.optimizer.learning_rate=0.01",
    "--config.runtime.log_every=1", "--config.runtime.eval_batch_size=8",
]  # fmt: skip
# `python -m ivt_jax.main`, with TRAINING seconds between two batches, and EMBEDDING seconds after each batch of images
# to embed, of which it tells: so that a test has time to act.
SLOWLY = """
import os, sys, time
from input_pipeline import pipeline
from ivt_jax import main

def slowly(function, seconds, told=""):
    def call(*arguments):
        for batch in function(*arguments):
            print(told, end="", file=sys.stderr, flush=True)
            yield batch
            time.sleep(float(seconds))
    return call

pipeline.train_batches = slowly(pipeline.train_batches, os.environ["TRAINING"])
pipeline.image_batches = slowly(pipeline.image_batches, os.environ["EMBEDDING"], "(embeds)\\n")
main.run()
"""


class Process:
    """One process of a run; what it says goes to a file."""

    def __init__(self, log, command, environment, **options):
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file, **options
            )

    def said(self):
        return self._log.read_text()

    def lines(self):
        return self.said().splitlines()

    def wait_for(self, text, seconds=120, after=""):
        """Until it has said `text`, since it first said `after`."""
        self._wait(lambda: text in self.said()[self.said().find(after) :], seconds, f"to say {text!r}")

    def wait_for_step(self, step, seconds=120):
        """Until it has logged `step`; the next ones are under way then."""
        self.wait_for(f"\nstep {step}/", seconds)

    def _wait(self, done, seconds, what):
        end = time.monotonic() + seconds
        while not done():
            assert self._process.poll() is None, f"ended with {self._process.poll()} instead {what}:\n{self.said()}"
            assert time.monotonic() < end, f"not in {seconds} s {what}:\n{self.said()}"
            time.sleep(0.02)

    def send(self, number):
        self._process.send_signal(number)

    def finish(self, seconds=240):
        """Its exit code."""
        return self._process.wait(timeout=seconds)

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def start(pedes_root, tmp_path_factory):
    """start(workdir, *flags): the process of a run, or with count=N the list of them; what is compiled is kept.

    pause, embedding: seconds after a batch. before: a command that is given this one, such as ("unshare", "-m").
    environment: variables; code: a program that runs instead of `python -m ivt_jax.main`; the rest goes to Popen.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and then by the runs as well
    logs, cache, started = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("compiled"), []
    common = {
        "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": QUICKLY,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip

    def start(workdir, *flags, count=1, pause=0, embedding=0, before=(), environment=None, code=None, **options):
        code = code or (SLOWLY if pause or embedding else None)
        program = ["-c", code] if code else ["-m", "ivt_jax.main"]
        command = [*before, sys.executable, *program, *CONFIG, f"--config.data.root={pedes_root}"]
        command += [f"--workdir={workdir}", *flags]
        if count > 1:
            command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
        processes = []
        for number in range(count):
            own = [f"--process_id={number}"] if count > 1 else []
            variables = {**common, "TRAINING": str(pause), "EMBEDDING": str(embedding), **(environment or {})}
            processes.append(Process(logs / f"{len(started)}.log", [*command, *own], variables, **options))
            started.append(processes[-1])
        return processes if count > 1 else processes[0]

    yield start
    for process in started:
        process.kill()


def free_port():
    """Below the ports that Linux hands out by itself: it is seconds until the first process of the run takes it."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'


def mounted(options, folder):
    """Before a command: gives it a file system of its own in `folder`, which nobody else sees."""
    command = ("unshare", "-m", "sh", "-c", MOUNT, "sh", options, str(folder))
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    return command


def history(workdir):
    """The lines of metrics.jsonl without what the clock wrote."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key not in ("pairs_per_second", "input_wait")} for line in lines
    ]


def state_of(workdir, step):
    """Everything that a checkpoint holds, as NumPy arrays."""
    path = workdir / f"checkpoints/{step}/state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, restore_args=how)
