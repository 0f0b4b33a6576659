"""launch/environment.sh: flags that exist, in the environment of the command that it runs."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_xla_knows_every_flag(platform, bench):
    """XLA reads the flags of GPUs on a CPU as well, and aborts at the first that it does not know."""
    command = ["launch/environment.sh", platform, sys.executable, "-c", "import jax; print(jax.device_count())"]
    result = bench.run(command, JAX_PLATFORMS="cpu", DEVICES="3")
    assert (result.returncode, result.stdout) == (0, "3\n" if platform == "cpu" else "1\n"), result.stderr[-2000:]
    result = bench.run(command, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_no_such_flag=1")
    assert result.returncode != 0 and "--xla_no_such_flag=1" in result.stderr


@pytest.mark.parametrize(
    "platform, variable", [("cpu", "XLA_FLAGS"), ("gpu", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")]
)
def test_flags_of_the_user_come_last(platform, variable, bench):
    printed = bench.run(["launch/environment.sh", platform], **{variable: "--mine=1"}).stdout
    [line] = [line for line in printed.splitlines() if line.startswith(f"{variable}=")]
    assert line.startswith(f"{variable}=--xla_") and line.endswith(" --mine=1")
    ran = bench.run(["launch/environment.sh", platform, "env"], **{variable: "--mine=1"}).stdout
    assert set(printed.splitlines()) < set(ran.splitlines())


def test_a_worker_without_its_tpu_does_not_train_on_its_cpu(bench):
    for given, set_to in ("", "tpu,cpu"), ("cpu", "cpu"):
        printed = bench.run(["launch/environment.sh", "tpu"], JAX_PLATFORMS=given).stdout.splitlines()
        assert f"JAX_PLATFORMS={set_to}" in printed


def test_flags_are_read_from_the_file_that_the_variable_names(tmp_path, bench):
    (tmp_path / "flags.txt").write_text("--one=1\n--two=2\n")
    for platform, first in ("cpu", "--xla_force_host_platform_device_count=1"), ("gpu", "--xla_gpu_"):
        printed = bench.run(["launch/environment.sh", platform], XLA_FLAGS=str(tmp_path / "flags.txt")).stdout
        [line] = [line for line in printed.splitlines() if line.startswith("XLA_FLAGS=")]
        assert line.startswith(f"XLA_FLAGS={first}") and line.split()[-2:] == ["--one=1", "--two=2"]
    result = bench.run(["launch/environment.sh", "cpu"], XLA_FLAGS=str(tmp_path / "none"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: XLA_FLAGS={tmp_path}/none: the file cannot be read")


def test_signals_reach_the_command(bench):
    """It is the command, in the end, and no shell around it."""
    process = subprocess.Popen(
        ["launch/environment.sh", "cpu", "bash", "-c", "echo $$"], cwd=bench.repository, stdout=subprocess.PIPE
    )
    assert int(process.communicate(timeout=20)[0]) == process.pid


def test_a_mistake_gets_one_line_and_exit_code_2(bench):
    for command in ["launch/environment.sh"], ["launch/environment.sh", "abacus"]:
        result = bench.run(command)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("error: say which platform")
