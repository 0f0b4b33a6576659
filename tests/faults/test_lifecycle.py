"""A run that is killed, preempted, stopped, starved or run twice: its words, its exit code, and nothing is lost."""

import ctypes
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from configs import synth
from input_pipeline import opening, pipeline
from input_pipeline.joint import JointSource
from input_pipeline.sampling import EpochPlans
from input_pipeline.tokenizer import load_tokenizer
from tests.faults.conftest import history, mounted, state_of
from tests.input_pipeline.pairs.test_pairs import build, members, write_tar
from tests.test_variants import write_three

RUN = [
    "--config.train.steps=20", "--config.train.eval_every=10", "--config.runtime.checkpoint_every=4",
    "--config.optimizer.ema=0.9", "--config.train.spike_factor=1.1",
]  # fmt: skip
LOST = r"error: another process of the run is gone \(.*\); the same command resumes"
SAVED = r"preempted: step (\d+) is saved; the same command resumes"
UNHARMED = "preempted: nothing is lost; the same command continues"


def summary_of_test(workdir):
    return json.loads((workdir / "test/summary.json").read_text())


def saved_step(process):
    """The step that a preempted process says is saved, in the one line that it adds to those of the steps."""
    *before, last = process.lines()
    assert not [line for line in before if not re.match(r"step|training|resuming|compil|\(embeds|\[Gloo|W|\d", line)]
    return int(re.fullmatch(SAVED, last)[1])


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """The workdir of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("reference")
    process = start(workdir, *RUN)
    assert process.finish() == 0, process.said()
    state = state_of(workdir, 20)
    assert state["spikes"]["count"] > 2  # steps were skipped, and their number has to be kept
    moved = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (state["params"], state["ema"])), strict=True)]
    assert max(moved) > 1e-4
    return workdir


@pytest.fixture
def assert_as_uninterrupted(reference):
    def check(workdir):
        jax.tree.map(np.testing.assert_array_equal, state_of(workdir, 20), state_of(reference, 20))
        assert history(workdir) == history(reference)
        assert summary_of_test(workdir) == summary_of_test(reference)

    return check


# ---- one process


@pytest.mark.faults
def test_a_run_that_is_killed_twice_ends_as_if_it_were_not(start, tmp_path, assert_as_uninterrupted):
    workdir = tmp_path / "läufe, mit Raum/第一 run"
    for step in sorted(np.random.default_rng(4).choice(np.arange(3, 18), 2, replace=False)):
        process = start(workdir, *RUN, pause=0.3)
        process.wait_for_step(step)
        process.send(signal.SIGKILL)
        assert process.finish() == -signal.SIGKILL
    last = start(workdir, *RUN)
    assert last.finish() == 0, last.said()
    assert re.search(r"^resuming at step (\d+) of 20", last.said(), re.M)[1] in ("8", "10", "12", "16")
    assert_as_uninterrupted(workdir)


def on_three_datasets(folder):
    """Flags of a training on three datasets, and the summaries that it writes."""
    roots = write_three(folder)
    sources = tuple(f"{name}:{root}" for name, root in roots.items())
    flags = ["--config.data.name=joint", f"--config.data.sources={sources}", "--config.data.weights=(1,2,1)"]
    return flags, ["test", *(f"test-{name}" for name in roots)]


def on_pairs(folder):
    """Flags of a pre-training with all its losses on an index of pairs, and the summary that it writes."""
    folder.mkdir()
    for number in range(2):
        write_tar(folder / f"{number}.tar", members(range(30 * number, 30 * number + 30)))
    build(folder / "*.tar", folder=folder / "pairs", val_pairs=3)
    flags = [
        "--config.data.name=pairs", f"--config.data.root={folder / 'pairs'}", "--config.data.identities=False",
        "--config.match.loss=itc", "--config.match.temperature=0.07", "--config.match.learned=True",
        "--config.itm.weight=1.0", "--config.bmm.word_weight=1.0",
    ]  # fmt: skip
    return flags, ["val"]


@pytest.mark.faults
@pytest.mark.parametrize("data", [on_three_datasets, on_pairs])
def test_a_run_on_other_data_that_is_killed_ends_as_if_it_were_not(start, tmp_path, data):
    flags, folders = data(tmp_path / "data")
    whole = start(tmp_path / "whole", *RUN, *flags)
    assert whole.finish() == 0, whole.said()
    process = start(tmp_path / "killed", *RUN, *flags, pause=0.3)
    process.wait_for_step(13)
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    last = start(tmp_path / "killed", *RUN, *flags)
    assert last.finish() == 0, last.said()
    assert re.search(r"^resuming at step (\d+) of 20", last.said(), re.M)[1] in ("10", "12")
    jax.tree.map(np.testing.assert_array_equal, *(state_of(tmp_path / name, 20) for name in ("whole", "killed")))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    for folder in folders:
        path = f"{folder}/summary.json"
        assert (tmp_path / "killed" / path).read_text() == (tmp_path / "whole" / path).read_text()


@pytest.mark.faults
def test_a_signal_saves_the_step_and_nothing_is_lost(start, tmp_path, assert_as_uninterrupted):
    for number, step in ((signal.SIGTERM, 5), (signal.SIGINT, 13)):
        process = start(tmp_path, *RUN, pause=0.3)
        process.wait_for_step(step)
        process.send(number)
        assert process.finish() == 75, process.said()
        assert step < saved_step(process) <= step + 3
        assert (tmp_path / f"checkpoints/{saved_step(process)}/state").is_dir()
    last = start(tmp_path, *RUN)
    assert last.finish() == 0, last.said()
    assert f"resuming at step {saved_step(process)} of 20" in last.said()
    assert_as_uninterrupted(tmp_path)


@pytest.mark.faults
def test_a_signal_at_work_that_is_no_step(start, tmp_path, assert_as_uninterrupted):
    """Compiling and the last test end at once, for nothing would be lost; a validation is finished."""
    process = start(tmp_path, *RUN)
    process.wait_for("compiling the training step")
    process.send(signal.SIGTERM)
    assert process.finish(10) == 75
    assert process.lines()[-1] == UNHARMED

    process = start(tmp_path, *RUN, "--config.runtime.watchdog=3", pause=0.3, embedding=5)
    process.wait_for("(embeds)")  # at step 10, to choose
    process.send(signal.SIGTERM)
    assert process.finish(30) == 75
    assert saved_step(process) == 11
    assert [line["step"] for line in history(tmp_path)] == [*range(1, 11), 10, 11]

    process = start(tmp_path, *RUN, "--config.runtime.watchdog=3", embedding=4)
    process.wait_for("step 20: val")
    process.wait_for("(embeds)", after="step 20: val")  # to test; to choose it has done so before
    process.send(signal.SIGTERM)
    assert process.finish(2) == 75
    assert process.lines()[-1] == UNHARMED

    process = start(tmp_path, *RUN)
    assert process.finish() == 0
    assert_as_uninterrupted(tmp_path)


@pytest.mark.faults
def test_a_second_run_in_the_workdir_is_refused_until_the_first_is_gone(start, tmp_path):
    first = start(tmp_path, *RUN, "--config.runtime.checkpoint_every=100", pause=5)  # no step is saved meanwhile
    first.wait_for_step(1)
    second = start(tmp_path, *RUN)
    assert second.finish() == 2
    refused = f"error: another run is at work in {tmp_path}: wait for its end, or choose another --workdir"
    assert second.lines() == [refused]
    for _ in range(2):  # the second time it does not wait for the step
        first.send(signal.SIGINT)
        time.sleep(0.2)
    assert first.finish(3) == 130
    third = start(tmp_path, *RUN)
    third.wait_for("training from step 0 of 20")
    third.kill()
    fourth = start(tmp_path, *RUN)
    fourth.wait_for("training from step 0 of 20")  # the lock went with the process
    assert fourth.finish() == 0


# ---- several processes


def stop_at(processes, step, number, victim):
    """Sends a signal to one of the processes once it is past the step; when, by the monotonic clock."""
    processes[victim].wait_for_step(step)
    processes[victim].send(number)
    return time.monotonic()


@pytest.mark.faults
def test_a_run_goes_from_one_process_to_two_and_to_four(start, tmp_path, reference):
    """Preempted where it was, each time: a signal to one process, and all save the same step."""
    process = start(tmp_path, *RUN, pause=0.3)
    stop_at([process], 4, signal.SIGTERM, 0)
    assert process.finish() == 75
    two = start(tmp_path, *RUN, count=2, pause=0.3)
    stop_at(two, 9, signal.SIGTERM, 1)
    assert [process.finish() for process in two] == [75, 75], [process.said() for process in two]
    assert saved_step(two[0]) == saved_step(two[1]) > 9
    four = start(tmp_path, *RUN, count=4)
    assert [process.finish() for process in four] == [0] * 4, [process.said() for process in four]

    states = [state_of(workdir, 20) for workdir in (tmp_path, reference)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), *(s["params"] for s in states))
    told, expected = history(tmp_path), history(reference)
    assert [line["step"] for line in told] == [line["step"] for line in expected]
    for line, other in zip(told, expected, strict=True):
        assert line.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-4)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("victim", "pause"),
    [(1, 0.3), (1, 60), (0, 60)],
    ids=["a sum over both fails", "no heartbeat of the other", "no coordinator any more"],
)
def test_a_process_whose_neighbour_is_killed_ends(start, tmp_path, victim, pause):
    processes = start(tmp_path, *RUN, "--config.runtime.heartbeat=10", count=2, pause=pause)
    if pause == 60:  # both wait for their second batch, none for the other
        for process in processes:
            process.wait_for("training step ready")
        time.sleep(1)
        processes[victim].send(signal.SIGKILL)
        then = time.monotonic()
    else:
        then = stop_at(processes, 3, signal.SIGKILL, victim)
    other = processes[1 - victim]
    assert other.finish(60) == 76, other.said()
    assert time.monotonic() - then < 20
    assert len(re.findall(f"^{LOST}$", other.said(), re.M)) == 1
    assert "Traceback" not in other.said()


@pytest.mark.faults
def test_the_watchdog_ends_a_run_whose_neighbour_is_stopped(start, tmp_path):
    processes = start(tmp_path, *RUN, "--config.runtime.watchdog=6", count=2, pause=0.3)
    then = stop_at(processes, 3, signal.SIGSTOP, 1)
    assert processes[0].finish(60) == 76
    assert time.monotonic() - then < 20  # its clock began at its own last step, which may be before the signal
    said = processes[0].said()
    line = "error: no step in 6 s (runtime.watchdog): the run hangs; the same command resumes. Stacks of all threads:"
    _, stacks = said.split(f"{line}\n")
    assert re.search(r"ivt_jax/training/loop.py\", line \d+ in train_and_evaluate", stacks)
    assert stacks.count("Thread 0x") > 1
    processes[1].send(signal.SIGCONT)
    assert processes[1].finish(60) == 76


@pytest.mark.faults
def test_a_process_that_fails_alone_does_not_keep_the_others(start, tmp_path):
    """The first process finds its metrics.jsonl unreadable: a fault of its own, with a traceback."""
    (tmp_path / "metrics.jsonl").mkdir()
    processes = start(tmp_path, *RUN, "--config.runtime.heartbeat=20", count=2)
    assert [process.finish(60) for process in processes] == [1, 76]
    assert "IsADirectoryError" in processes[0].said()
    assert re.search(f"^{LOST}$", processes[1].said(), re.M)


@pytest.mark.faults
def test_what_all_processes_find_at_fault_each_of_them_says(start, tmp_path):
    processes = start(tmp_path, *RUN, "--config.data.batch_size=9", count=2)
    assert [process.finish(60) for process in processes] == [2, 2]
    for process in processes:
        assert process.lines()[-1] == "error: data.batch_size 9 is not a multiple of the 2 devices; choose 8 or 10"


@pytest.mark.faults
def test_a_run_whose_picture_was_replaced_ends_as_if_it_had_not_been(
    start, tmp_path, pedes_root, assert_as_uninterrupted
):
    root, workdir = tmp_path / "data", tmp_path / "run"
    (root / "imgs").mkdir(parents=True)
    shutil.copy(pedes_root / "reid_raw.json", root)
    for path in (pedes_root / "imgs").iterdir():
        shutil.copy(path, root / "imgs")
    process = start(workdir, *RUN, f"--config.data.root={root}", pause=0.3)
    process.wait_for_step(5)
    process.send(signal.SIGTERM)
    assert process.finish() == 75
    for person in (0, 6, 8):  # of train, val, test
        shutil.copy(root / f"imgs/{person + 1:02d}_1.jpg", root / f"imgs/{person:02d}_0.jpg")
    process = start(workdir, *RUN, f"--config.data.root={root}")
    assert process.finish() == 0
    changed = "3 changed: 00_0.jpg, 06_0.jpg, 08_0.jpg"
    line = f"{root}/imgs: images differ ({changed}); this run continues with those it began with, in "
    assert process.said().count(line) == 1 and "preparing" not in process.said()
    assert_as_uninterrupted(workdir)


@pytest.mark.faults
def test_evaluate_on_two_processes_writes_once(start, tmp_path, reference):
    arguments = ["--mode=evaluate"]
    processes = start(reference, *RUN, *arguments, count=2)
    before = summary_of_test(reference)
    assert [process.finish() for process in processes] == [0, 0], [process.said() for process in processes]
    assert summary_of_test(reference) == before
    said = processes[0].said()
    assert f"test, step {before['step']}, text to image" in said and f"report: {reference}/report.html" in said
    assert not [line for line in processes[1].lines() if not line.startswith("[Gloo]")]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_their_own_rows_and_together_the_same_batches(pedes_root, hosts):
    config = synth.get_config()
    config.update_from_flattened_dict(
        {"data.name": "cuhk_pedes", "data.root": str(pedes_root), "data.batch_size": 8, "data.sampling": "uniform",
         "model.image_size": (12, 12), "mla.levels": ("sentence",), "mla.views": 1}
    )  # fmt: skip
    source = opening.open_split(config, "train")
    plans = EpochPlans(source.person_ids[source.pairs[0]], 8, "uniform", 4, config.seed)
    tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size)
    read, rows = {}, [[] for _ in range(5)]
    for host in range(hosts):
        own = opening.open_split(config, "train")
        original, read[host] = own.read, []
        own.read = lambda indices, original=original, host=host: read[host].append(list(indices)) or original(indices)
        batches = pipeline.train_batches(config, JointSource({"": own}), tokenizer, plans, 3, (host, hosts))
        for step in range(5):
            rows[step].append(next(batches)["pair_ids"])
        batches.close()
    for step, parts in enumerate(rows):
        assert [len(part) for part in parts] == [8 // hosts] * hosts
        ids = np.concatenate(parts)
        np.testing.assert_array_equal(ids, plans.rows(3 + step)[2])  # the order of the epochs, whatever the hosts
        for host, part in enumerate(parts):
            np.testing.assert_array_equal(read[host][step], source.pairs[0][part])


# ---- places that cannot be written


def without_privilege():
    """Makes the permissions of files bind root as well: gives up CAP_DAC_OVERRIDE, which the process cannot regain."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("run/inner", r"error: the workdir \S*/run/inner cannot be made: Permission denied"),
        ("run", r"error: the workdir \S*/run cannot be written"),
    ],
)
def test_a_workdir_without_permission_is_one_line(start, tmp_path, folder, told):
    (tmp_path / "run").mkdir(mode=0o555)
    process = start(tmp_path / folder, *RUN, preexec_fn=without_privilege)
    assert process.finish() == 2
    assert re.fullmatch(told, process.lines()[-1])  # the first run of all says before that it prepares the data
    assert process.said().count("error") == 1 and "Traceback" not in process.said()


@pytest.mark.faults
def test_checkpoints_without_permission_end_the_run_at_once(start, tmp_path):
    (tmp_path / "checkpoints").mkdir(mode=0o555)
    process = start(tmp_path, *RUN, preexec_fn=without_privilege)
    assert process.finish(60) == 2, process.said()
    last = process.lines()[-1]  # Orbax's own thread has said its part before
    assert last.startswith("error: ") and f"{tmp_path}/checkpoints" in last and "Permission denied" in last


@pytest.mark.faults
def test_a_compilation_cache_without_permission_costs_time_alone(start, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o555)
    process = start(
        tmp_path / "run", *RUN, preexec_fn=without_privilege,
        environment={"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert process.finish() == 0, process.said()


@pytest.mark.faults
def test_a_workdir_that_can_only_be_read_is_one_line(start, tmp_path):
    process = start(tmp_path, *RUN, before=mounted("ro", tmp_path))
    assert process.finish() == 2
    assert process.lines() == [f"error: the workdir {tmp_path} cannot be written"]


@pytest.mark.faults
def test_no_space_for_the_prepared_data_is_one_line(start, tmp_path):
    process = start(
        tmp_path / "run", *RUN, f"--config.runtime.prepared={tmp_path}/small/prepared",
        before=mounted("size=8k", (tmp_path / "small").mkdir() or tmp_path / "small"),
    )  # fmt: skip
    assert process.finish() == 2, process.said()
    assert process.lines()[-1].startswith("error: ") and "No space left on device" in process.lines()[-1]
    assert "Traceback" not in process.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_no_space_in_the_workdir_is_one_line(start, tmp_path):
    (tmp_path / "run").mkdir()
    process = start(tmp_path / "run", *RUN, before=mounted("size=8k", tmp_path / "run"))
    assert process.finish() == 2, process.said()
    assert process.lines()[-1].startswith("error: ") and "No space left on device" in process.lines()[-1]
    assert "Traceback" not in process.said()
