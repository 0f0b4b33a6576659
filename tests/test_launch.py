import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TPU = {
    "TPU_NAME": "pod",
    "ZONE": "us-east5-a",
    "PROJECT": "mine",
    "REPOSITORY": "https://host/ivt.git",
    "REVISION": "abc",
}
ARGUMENTS = ["--config=configs/cuhk.py", "--workdir=/mnt/my runs/cuhk", "--config.mla.levels=('sentence','word')"]
REMOTE = [
    "test -d ivt_jax || git clone --quiet https://host/ivt.git ivt_jax; "
    "cd ivt_jax && git fetch --quiet && git checkout --quiet --detach abc",
    "cd ivt_jax && make install PYTHON=python3 && "
    ".venv/bin/pip install --quiet --requirement=requirements.txt 'jax[tpu]'",
    "cd ivt_jax && .venv/bin/python -m ivt_jax.main --config=configs/cuhk.py '--workdir=/mnt/my runs/cuhk' "
    r"'--config.mla.levels=('\''sentence'\'','\''word'\'')' --distributed",
]


def run(command, **environment):
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def script(path, *lines):
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def gcloud(tmp_path):
    """A PATH whose gcloud records its arguments, NUL after each, and runs nothing."""
    script(tmp_path / "gcloud", f'printf "%s\\0" "$@" >>{tmp_path}/calls', 'exit "${GCLOUD_CODE:-0}"')
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_tpu_runs_three_steps_on_all_workers(gcloud, tmp_path):
    result = run(["launch/cloud_tpu.sh", "--", *ARGUMENTS], **TPU, **gcloud)
    assert result.returncode == 0, result.stderr
    ssh = ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-east5-a", "--project=mine", "--worker=all"]
    expected = [word for remote in REMOTE for word in [*ssh, f"--command={remote}"]]
    assert (tmp_path / "calls").read_text().split("\0")[:-1] == expected


def test_tpu_dry_run_prints_what_would_run_and_runs_nothing(gcloud, tmp_path):
    printed = run(["launch/cloud_tpu.sh", "--dry-run", "--", *ARGUMENTS], **TPU, **gcloud).stdout
    assert not (tmp_path / "calls").exists()
    assert [line for line in printed.splitlines() if line.startswith("#")] == [
        "# 1/3 the repository at abc",
        "# 2/3 the environment",
        "# 3/3 the training",
    ]
    # Pasted into a shell, the printed lines are the very same calls.
    run(["bash", "-c", printed], **gcloud)
    pasted = (tmp_path / "calls").read_text()
    (tmp_path / "calls").unlink()
    run(["launch/cloud_tpu.sh", "--", *ARGUMENTS], **TPU, **gcloud)
    assert (tmp_path / "calls").read_text() == pasted


def test_tpu_stops_at_the_first_step_that_fails(gcloud, tmp_path):
    result = run(["launch/cloud_tpu.sh", "--", *ARGUMENTS], **TPU, **gcloud, GCLOUD_CODE="7")
    assert result.returncode == 7
    assert (tmp_path / "calls").read_text().count("--command=") == 1


def test_tpu_remote_commands_read_back_the_arguments(tmp_path):
    python = script(tmp_path / "python", f'printf "%s\\n" "$@" >{tmp_path}/argv')
    command = REMOTE[2].replace("cd ivt_jax", "true").replace(".venv/bin/python", python)
    subprocess.run(["bash", "-c", command], check=True)
    assert (tmp_path / "argv").read_text().splitlines() == ["-m", "ivt_jax.main", *ARGUMENTS, "--distributed"]


@pytest.mark.parametrize("name", ["TPU_NAME", "ZONE", "PROJECT"])
@pytest.mark.parametrize("value", ["", "a b"])
def test_tpu_names_the_variable_that_is_missing_or_wrong(name, value, gcloud, tmp_path):
    result = run(["launch/cloud_tpu.sh", "--", *ARGUMENTS], **{**TPU, name: value}, **gcloud)
    assert result.returncode == 2
    assert result.stderr == f"error: set {name} (now: '{value}'); launch/cloud_tpu.sh --help tells more\n"
    assert not (tmp_path / "calls").exists()


@pytest.fixture
def python(tmp_path):
    """A stub of the interpreter: records its arguments and XLA_FLAGS by process, then does what the test says."""

    def stub(*lines):
        record = [
            "id=${!#}; id=${id#--process_id=}",
            f'printf "%s\\n" "$@" >{tmp_path}/argv-$id; echo "$XLA_FLAGS" >{tmp_path}/flags-$id',
            "echo hello from $id",
        ]
        return {"PYTHON": script(tmp_path / "python", *record, *lines)}

    return stub


def until_stopped(tmp_path):
    """Lines of a stub that says it is ready and runs until it is told to stop, half a minute at most."""
    return [
        f'trap "touch {tmp_path}/stopped-$id; exit 0" TERM',
        f"touch {tmp_path}/ready-$id",
        "for _ in {1..600}; do sleep 0.05; done",
    ]


def local(tmp_path, *options):
    return ["launch/local.sh", f"--logs={tmp_path}/logs", *options, "--", *ARGUMENTS]


def test_local_starts_every_process_with_its_flags(python, tmp_path):
    result = run(local(tmp_path, "--processes=3", "--devices_per_process=2"), **python())
    assert result.returncode == 0, result.stderr
    assert result.stdout == "hello from 0\n"
    ports = set()
    for i in range(3):
        *argv, coordinator, count, number = (tmp_path / f"argv-{i}").read_text().splitlines()
        assert argv == ["-m", "ivt_jax.main", *ARGUMENTS]
        assert (count, number) == ("--num_processes=3", f"--process_id={i}")
        assert (tmp_path / f"flags-{i}").read_text().strip() == "--xla_force_host_platform_device_count=2"
        assert (tmp_path / "logs" / f"process-{i}.log").read_text() == f"hello from {i}\n"
        ports.add(coordinator)
    assert len(ports) == 1 and ports.pop().startswith("--coordinator=127.0.0.1:")


def test_local_stops_all_and_returns_the_code_of_the_process_that_failed(python, tmp_path):
    failing = f"until test -e {tmp_path}/ready-0 -a -e {tmp_path}/ready-2; do sleep 0.05; done; exit 3"
    result = run(
        local(tmp_path, "--processes=3"), **python(f'test "$id" = 1 && {{ {failing}; }}', *until_stopped(tmp_path))
    )
    assert result.returncode == 3
    assert result.stderr == f"error: process 1 ended with exit code 3; its log: {tmp_path}/logs/process-1.log\n"
    assert [(tmp_path / f"stopped-{i}").exists() for i in range(3)] == [True, False, True]


def heed_interrupts():
    """What runs in the background ignores SIGINT, the tests perhaps, and a shell cannot trap what it inherits so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_local_stops_all_when_interrupted(python, tmp_path):
    stub = python(*until_stopped(tmp_path))
    process = subprocess.Popen(
        local(tmp_path, "--processes=2"), cwd=ROOT, env={"PATH": os.environ["PATH"], **stub}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, preexec_fn=heed_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"ready-{i}").exists() for i in range(2)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert all((tmp_path / f"stopped-{i}").exists() for i in range(2))


@pytest.mark.parametrize(
    "command, message",
    [
        (["launch/local.sh", "--", "--config=c.py"], "error: say how many processes: --processes=2"),
        (["launch/local.sh", "--processes=2"], "error: say what to run: launch/local.sh --processes=2 -- "),
        (["launch/local.sh", "--workers=2"], "error: unknown option --workers=2; "),
        (["launch/local.sh", "--processes=2", "--", "x"], "error: /nowhere/python not found: "),
        (["launch/cloud_tpu.sh"], "error: say what to run: launch/cloud_tpu.sh -- "),
        (["launch/cloud_tpu.sh", "--worker=1"], "error: unknown option --worker=1; "),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(command, message):
    result = run(command, **TPU, PYTHON="/nowhere/python")
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
