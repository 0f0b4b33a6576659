"""launch/local.sh: with a stand-in for the interpreter, and once for real."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import QUICKLY, needs_tensorflow

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--config=configs/cuhk.py", "--workdir=runs/my cuhk", "--config.mla.levels=('sentence','word')"]


@pytest.fixture
def python(bench):
    """A stub of the interpreter: keeps XLA_FLAGS by process, says hello, then does what the test says."""

    def stub(*lines):
        process = ["id=${!#}; id=${id#--process_id=}", 'echo "$XLA_FLAGS" >flags-$id', "echo hello from $id"]
        return {"PYTHON": bench.stub("python", *process, *lines)}

    return stub


def until_stopped(code):
    """Lines of a stub that says it is ready and runs until it is stopped, half a minute at most."""
    return [
        f'trap "sleep 0.3; touch stopped-$id; exit {code}" TERM',
        "touch ready-$id",
        "for _ in {1..600}; do sleep 0.05; done",
    ]


def local(*options):
    return ["launch/local.sh", *options, "--", *ARGUMENTS]


def test_it_starts_every_process_with_its_flags(python, bench):
    (bench.repository / "runs/logs").mkdir(parents=True)
    (bench.repository / "runs/logs/process-0.log").write_text("of an earlier run\n")
    result = bench.run(local("--processes=3", "--devices_per_process=2"), **python())
    assert result.returncode == 0, result.stderr
    assert result.stdout == "hello from 0\n"
    ports = set()
    for i, call in enumerate(sorted(bench.calls(), key=lambda call: call[-1])):
        *argv, coordinator, count, number = call
        assert argv == ["python", "-m", "ivt_jax.main", *ARGUMENTS]
        assert (count, number) == ("--num_processes=3", f"--process_id={i}")
        flags = (bench.folder / f"flags-{i}").read_text().strip()
        assert flags == "--xla_force_host_platform_device_count=2"
        assert (bench.repository / f"runs/logs/process-{i}.log").read_text() == f"hello from {i}\n"
        ports.add(coordinator)
    assert i == 2 and len(ports) == 1 and ports.pop().startswith("--coordinator=127.0.0.1:")


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_prints_what_would_run_and_runs_nothing(flag, python, bench):
    environment = python()
    printed = bench.run(local("--processes=2", "--logs=my logs", flag), **environment).stdout
    assert not bench.calls() and not (bench.repository / "my logs").exists()
    # Pasted into a shell, the printed lines are the very same calls, but for the port.
    bench.run(["bash", "-c", printed])
    pasted = bench.calls()
    assert (bench.repository / "my logs/process-1.log").read_text() == "hello from 1\n"
    bench.run(local("--processes=2", "--logs=my logs"), **environment)
    without_port = [sorted(call[:-3] + call[-2:] for call in calls) for calls in (pasted, bench.calls())]
    assert len(pasted) == 2 and without_port[0] == without_port[1]


def test_it_stops_all_and_returns_the_code_of_the_process_that_failed(python, bench):
    failing = "until test -e ready-0 -a -e ready-2; do sleep 0.05; done; exit 3"
    result = bench.run(local("--processes=3"), **python(f'test "$id" = 1 && {{ {failing}; }}', *until_stopped(75)))
    assert result.returncode == 3
    assert result.stderr == "error: process 1 ended with exit code 3; its log: runs/logs/process-1.log\n"
    assert [(bench.folder / f"stopped-{i}").exists() for i in range(3)] == [True, False, True]


def test_preempted_processes_end_by_themselves(python, bench):
    saving = "trap 'touch disturbed' TERM; for _ in {1..20}; do sleep 0.05; done; touch saved; exit 75"
    result = bench.run(local("--processes=2"), **python(f'test "$id" = 1 && {{ {saving}; }}', "exit 75"))
    assert result.returncode == 75
    assert result.stderr.endswith("process-0.log\nthe same command resumes the run\n")
    assert (bench.folder / "saved").exists() and not (bench.folder / "disturbed").exists()


def heed_interrupts():
    """What runs in the background ignores SIGINT, the tests perhaps, and a shell cannot trap what it inherits so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("ends_with, code", [(75, 75), (0, 130)])
def test_an_interrupt_stops_all(ends_with, code, python, bench):
    stub = python(*until_stopped(ends_with))
    process = subprocess.Popen(
        local("--processes=2"), cwd=bench.repository, env={**bench.environment, **stub}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, preexec_fn=heed_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not all((bench.folder / f"ready-{i}").exists() for i in range(2)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == code
    assert all((bench.folder / f"stopped-{i}").exists() for i in range(2))


def test_an_interrupt_while_it_starts_leaves_none_behind(python, bench):
    record = ["id=${!#}; id=${id#--process_id=}", "echo $$ >pid-$id"]
    bench.stub("env", *record, 'test "$id" = 0 && kill -INT $PPID', 'exec /usr/bin/env "$@"')
    stub = python(*until_stopped(75))
    process = subprocess.Popen(
        local("--processes=40"), cwd=bench.repository, env={**bench.environment, **stub},
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=heed_interrupts,
    )  # fmt: skip
    assert process.wait(timeout=60) in (75, 130)  # 130 where the first had not yet learned to save
    started = [pid for path in bench.folder.glob("pid-*") if (pid := path.read_text().strip())]  # none: it died at once
    assert started and not [pid for pid in started if Path("/proc", pid).exists()]


@pytest.mark.parametrize(
    "command, message",
    [
        (["--", "--config=c.py"], "say how many processes: --processes=2"),
        (["--processes=2"], "say what to run: launch/local.sh --processes=2 -- "),
        (["--processes=2", "--devices_per_process=x", "--", "y"], "--devices_per_process must be a number, not x"),
        (["--processes=2", "--logs=", "--", "y"], "--logs must name a folder"),
        (["--workers=2"], "unknown option --workers=2; "),
        (["--processes=2", "--", "x"], "/nowhere/python not found: "),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(command, message, bench):
    result = bench.run(["launch/local.sh", *command], PYTHON="/nowhere/python")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1


TINY = [
    "--config=configs/synth.py", "--config.data.name=cuhk_pedes", "--config.data.batch_size=8",
    "--config.data.sampling=uniform", "--config.model.image_size=(24,12)", "--config.model.patch_size=6",
    "--config.model.stride=6", "--config.model.width=8", "--config.model.depth=1", "--config.model.num_heads=2",
    "--config.text.length.sentence=16", "--config.mla.levels=('sentence',)", "--config.mla.views=1",
    "--config.bmm.align=off", "--config.bmm.rows=0", "--config.bmm.word_weight=0.0", "--config.bmm.patch_weight=0.0",
    "--config.train.steps=2", "--config.runtime.log_every=1", "--config.runtime.eval_batch_size=8",
    "--config.evaluation.robustness=False",
]  # fmt: skip


@needs_tensorflow
def test_two_processes_train_for_real(pedes_root, tmp_path, bench):
    command = [ROOT / "launch/local.sh", "--processes=2", f"--logs={tmp_path}/logs", "--", *TINY]
    result = bench.run(
        [*command, f"--config.data.root={pedes_root}", f"--workdir={tmp_path}/run"],
        PYTHON=sys.executable, XLA_FLAGS=QUICKLY, TF_CPP_MIN_LOG_LEVEL="2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + (tmp_path / "logs/process-0.log").read_text()[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]  # two steps and a validation
    assert json.loads((tmp_path / "run/config.json").read_text())["device"] == "2 x cpu, 2 process(es)"
