"""launch/slurm.sh: what it submits, and what the submitted script does, against stand-ins for Slurm's tools."""

import os
import re
import subprocess
import sys

import pytest

JOB = {"NAME": "cuhk", "NODES": "2", "GPUS": "4", "TIME": "24:00:00"}
ARGUMENTS = ["--config=configs/cuhk.py", "--workdir=/disk/my runs/cuhk", "--config.mla.levels=('sentence','word')"]
OPTIONS = [
    "--gpus-per-node=4", "--time=24:00:00", "--output=runs/logs/%x-%j.log", "--open-mode=append",
    "--dependency=singleton", "--requeue", "--signal=TERM@120",
]  # fmt: skip


@pytest.fixture
def slurm(bench):
    """slurm(*options): launch/slurm.sh, whose sbatch keeps the script that it gets, and says what its stub says."""
    bench.stub("sbatch", "cat >script", 'exit "${SBATCH_CODE:-0}"')
    python = bench.stub("python")

    def run(*options, **environment):
        command = ["launch/slurm.sh", *options, "--", *ARGUMENTS]
        return bench.run(command, **{**JOB, "PYTHON": python, **environment})

    return run


@pytest.mark.parametrize("flag, tasks", [("--tasks_per=gpu", 4), ("--tasks_per=node", 1), ("--tasks-per=node", 1)])
def test_it_submits_one_task_per_gpu_or_per_node(flag, tasks, slurm, bench):
    result = slurm(flag)
    assert result.returncode == 0, result.stderr
    head = ["sbatch", "--job-name=cuhk", "--nodes=2", f"--ntasks-per-node={tasks}"]
    assert bench.calls() == [[*head, *OPTIONS]]
    assert (bench.repository / "runs/logs").is_dir()  # Slurm does not make it, and a job without a log file fails


def test_partition_account_and_other_options(slurm, bench):
    assert slurm("--sbatch=--qos=high", "--sbatch=--mem=0", PARTITION="a,b", ACCOUNT="vision").returncode == 0
    [call] = bench.calls()
    assert {"--partition=a,b", "--account=vision"} < set(call) and call[-2:] == ["--qos=high", "--mem=0"]


def test_dry_run_prints_what_would_run_and_runs_nothing(slurm, bench):
    printed = slurm("--dry_run").stdout
    assert slurm("--dry-run").stdout == printed  # the former spelling
    assert not bench.calls() and not (bench.repository / "runs").exists()
    slurm()
    expected = bench.calls(), (bench.folder / "script").read_text()
    assert len(expected[0]) == 1
    (bench.folder / "script").unlink()
    bench.run(["bash", "-c", printed])
    assert (bench.calls(), (bench.folder / "script").read_text()) == expected


def test_its_exit_code_is_that_of_sbatch(slurm):
    assert slurm(SBATCH_CODE="1").returncode == 1


def run_script(bench, code, **environment):
    """The submitted script, on a cluster whose tasks end with this code."""
    bench.calls()
    bench.stub("srun", f"exit {code}")
    bench.stub("scontrol")
    return bench.run(["bash", bench.folder / "script"], SLURM_JOB_ID="42", **environment)


def test_the_script_runs_the_training_as_tasks(slurm, bench):
    assert slurm().returncode == 0
    assert run_script(bench, 0).returncode == 0
    [call] = bench.calls()
    python = str(bench.folder / "tools/python")
    command = ["launch/environment.sh", "gpu", python, "-m", "ivt_jax.main", *ARGUMENTS, "--distributed"]
    assert call == ["srun", "--label", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", *command]


@pytest.mark.parametrize(
    "code, restarts, again",
    [(75, "0", True), (76, "1", True), (137, "0", True), (75, "2", False), (1, "0", False), (2, "0", False)],
)
def test_the_script_queues_again_what_can_go_on(code, restarts, again, slurm, bench):
    assert slurm("--retries=2").returncode == 0
    assert run_script(bench, code, SLURM_RESTART_COUNT=restarts).returncode == code
    assert (["scontrol", "requeue", "42"] in bench.calls()) == again


VISIBLE = """
import jax
from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES
jax.distributed.initialize()
print(CUDA_VISIBLE_DEVICES.value, jax.process_count())
"""


@pytest.mark.parametrize("tasks_per, visible", [("gpu", "1"), ("node", "0,1,2,3")])
def test_a_task_sees_its_gpu_or_all_of_the_node(tasks_per, visible, slurm, bench):
    """JAX itself, where Slurm's variables say: the only task, and the second on its node."""
    assert slurm(f"--tasks_per={tasks_per}").returncode == 0
    bench.stub("srun", 'echo "DEVICES ${JAX_LOCAL_DEVICE_IDS:-}"')
    printed = bench.run(["bash", bench.folder / "script"], SLURM_JOB_ID="42").stdout
    devices = re.search("^DEVICES (.*)$", printed, re.MULTILINE)[1]
    task = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "1", "JAX_PLATFORMS": "cpu", "JAX_LOCAL_DEVICE_IDS": devices,
    }  # fmt: skip
    environment = {**os.environ, **task}
    command = [sys.executable, "-c", VISIBLE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout == f"{visible} 1\n", result.stderr[-2000:]


@pytest.mark.parametrize(
    "options, environment, message",
    [
        ([], {"NAME": ""}, "set NAME, as in NAME=cuhk (now: '')"),
        ([], {"NODES": "0"}, "set NODES, as in NODES=2 (now: '0')"),
        ([], {"GPUS": "all"}, "set GPUS, as in GPUS=8 (now: 'all')"),
        ([], {"TIME": "a day"}, "set TIME, as in TIME=24:00:00 (now: 'a day')"),
        ([], {"PARTITION": "a b"}, "set PARTITION, as in "),
        ([], {"ACCOUNT": "a;b"}, "set ACCOUNT, as in "),
        (["--tasks_per=core"], {}, "--tasks_per must be gpu or node, not core"),
        (["--retries=x"], {}, "--retries must be a number, not x"),
        (["--gpus=2"], {}, "unknown option --gpus=2; "),
        ([], {"PYTHON": "/nowhere/python"}, "/nowhere/python not found: "),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(options, environment, message, slurm, bench):
    result = slurm(*options, **environment)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    assert not bench.calls()
