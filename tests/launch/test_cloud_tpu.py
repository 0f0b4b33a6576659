"""launch/cloud_tpu.sh against a stand-in for gcloud, and launch/worker.sh, which it runs on the workers, for real."""

import signal
import subprocess
import time

import pytest

TPU = {
    "TPU_NAME": "pod", "ZONE": "us-east5-a", "PROJECT": "mine", "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite", "SHARE": "10.0.0.2:/runs",
    "REPOSITORY": "https://host/ivt.git", "REVISION": "abc",
}  # fmt: skip
ARGUMENTS = [
    "--config=configs/cuhk.py",
    "--workdir=/mnt/shared/my runs/cuhk",
    "--config.mla.levels=('sentence','word')",
]
WHERE = ["--zone=us-east5-a", "--project=mine", "--quiet"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", *WHERE, "--worker=all"]

DESCRIBE = [*QUEUE, "describe", "pod", *WHERE, "--format=value(state.state)"]
CREATE = [*QUEUE, "create", "pod", *WHERE, "--node-id=pod", "--accelerator-type=v5litepod-16",
          "--runtime-version=v2-alpha-tpuv5-lite"]  # fmt: skip
DELETE = [*QUEUE, "delete", "pod", *WHERE, "--force"]
SHARE = [*SSH, "--command=mountpoint --quiet /mnt/shared || { sudo apt-get install --quiet --yes nfs-common && "
         "sudo mkdir --parents /mnt/shared && sudo mount --types nfs 10.0.0.2:/runs /mnt/shared; }"]  # fmt: skip
CLONE = [*SSH, "--command=test -d ivt_jax || git clone --quiet https://host/ivt.git ivt_jax; "
         "cd ivt_jax && git fetch --quiet && git checkout --quiet --detach abc"]  # fmt: skip
INSTALL = [*SSH, "--command=cd ivt_jax && make install PYTHON=python3 && "
           ".venv/bin/pip install --quiet --requirement=requirements.txt 'jax[tpu]'"]  # fmt: skip
TRAIN = [*SSH, "--command=cd ivt_jax && launch/worker.sh run --config=configs/cuhk.py "
         r"'--workdir=/mnt/shared/my runs/cuhk' '--config.mla.levels=('\''sentence'\'','\''word'\'')' --distributed",
         "--", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4"]  # fmt: skip
STOP = [*SSH, "--command=test ! -d ivt_jax || ivt_jax/launch/worker.sh stop"]
LOGS = [*SSH, "--command=cat ivt_jax/runs/worker/log", "--output-directory=runs/logs/pod"]
NAMES = {
    "describe": DESCRIBE, "create": CREATE, "delete": DELETE, "share": SHARE, "clone": CLONE, "install": INSTALL,
    "train": TRAIN, "stop": STOP, "logs": LOGS,
}  # fmt: skip


@pytest.fixture
def tpu(bench):
    """tpu(*options, states=, codes=): launch/cloud_tpu.sh with a gcloud that tells these states and ends training with
    these codes, each the next time it is asked, the last ever after; "none" means there is no such TPU."""
    bench.stub(
        "gcloud",
        'next() { head -n 1 "$1"; [ "$(wc -l <"$1")" = 1 ] || sed -i 1d "$1"; }',
        'case " $* " in',
        '*failedData*) echo "no quota" ;;',
        '*" describe "*) state=$(next states); [ "$state" != none ] && echo "$state" ;;',
        '*"worker.sh run"*) test ! -e blocks || { touch begun; exec sleep 30; }; exit "$(next codes)" ;;',
        '*"make install"*) exit "${INSTALL_CODE:-0}" ;;',
        '*" create "*) exit "${CREATE_CODE:-0}" ;;',
        '*" delete "*) exit "${DELETE_CODE:-0}" ;;',
        '*" cat "*) exit "${LOGS_CODE:-0}" ;;',
        "esac",
    )

    def run(*options, states=("none", "ACTIVE"), codes=(0,), **environment):
        (bench.folder / "states").write_text("\n".join(states) + "\n")
        (bench.folder / "codes").write_text("\n".join(map(str, codes)) + "\n")
        return bench.run(["launch/cloud_tpu.sh", *options, "--", *ARGUMENTS], **{**TPU, **environment})

    return run


def named(calls, *, describe=False):
    """Names of the calls, each of which must be one of NAMES word for word; looks at the state only if asked for."""
    known = {tuple(call): name for name, call in NAMES.items()}
    names = [known[tuple(call)] for call in calls]
    return [name for name in names if describe or name != "describe"]


TRAINED = ["share", "clone", "install", "train", "logs"]


def test_it_creates_waits_trains_collects_and_deletes(tpu, bench):
    result = tpu(states=["none", "WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"])
    assert result.returncode == 0, result.stderr
    names = ["describe", "create", *["describe"] * 4, *TRAINED, "delete"]
    assert named(bench.calls(), describe=True) == names
    states = [line for line in result.stdout.splitlines() if line.startswith("# pod")]
    assert states == ["# pod: WAITING_FOR_RESOURCES", "# pod: PROVISIONING", "# pod: ACTIVE"]
    assert (bench.repository / "runs/logs/pod").is_dir()


@pytest.mark.parametrize("flag, options", [("--dry_run", []), ("--dry_run", ["--existing"]), ("--dry-run", ["--keep"])])
def test_dry_run_prints_what_would_run_and_runs_nothing(flag, options, tpu, bench):
    printed = tpu(flag, *options).stdout
    assert not bench.calls() and not (bench.repository / "runs").exists()
    tpu(*options)
    expected = bench.calls()
    assert len(expected) >= 4
    # Pasted into a shell, the printed lines are the very same calls.
    (bench.folder / "states").write_text("none\nACTIVE\n")
    bench.run(["bash", "-c", printed])
    assert bench.calls() == expected


@pytest.mark.parametrize("kind", ["--spot", "--reserved"])
def test_it_asks_for_the_kind_that_is_named(kind, tpu, bench):
    assert tpu(kind).returncode == 0
    assert [*CREATE, kind] in bench.calls()


def test_existing_neither_creates_nor_deletes(tpu, bench):
    assert tpu("--existing", ACCELERATOR_TYPE="", RUNTIME_VERSION="", SHARE="").returncode == 0
    assert named(bench.calls(), describe=True) == ["clone", "install", "train", "logs"]


def test_a_queued_resource_that_exists_is_used(tpu, bench):
    assert tpu(states=["PROVISIONING", "ACTIVE"]).returncode == 0
    assert named(bench.calls()) == [*TRAINED, "delete"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_is_left_of_an_earlier_one_is_deleted_first(state, tpu, bench):
    assert tpu(states=[state, "ACTIVE"]).returncode == 0
    assert named(bench.calls()) == ["delete", "create", *TRAINED, "delete"]


@pytest.mark.parametrize(
    "codes, states",
    [
        ([75, 0], ["none", "ACTIVE", "none", "ACTIVE"]),
        ([76, 0], ["none", "ACTIVE", "none", "ACTIVE"]),
        ([137, 0], ["none", "ACTIVE", "none", "ACTIVE"]),
        ([255, 0], ["none", "ACTIVE", "none", "ACTIVE"]),
        ([1, 0], ["none", "ACTIVE", "SUSPENDED", "none", "ACTIVE"]),  # ends anyhow, since the TPU was taken away
    ],
)
def test_a_lost_tpu_is_deleted_and_asked_for_again_and_the_same_command_runs(codes, states, tpu, bench):
    result = tpu(codes=codes, states=states)
    assert result.returncode == 0, result.stderr
    assert named(bench.calls()) == ["create", *TRAINED, "delete", "create", *TRAINED, "delete"]
    assert f"# lost, with exit code {codes[0]}: retry 1 of 10\n" in result.stdout


def test_a_tpu_that_is_taken_away_while_awaited_is_asked_for_again(tpu, bench):
    assert tpu(states=["none", "SUSPENDING", "SUSPENDING", "none", "ACTIVE"]).returncode == 0
    assert named(bench.calls()) == ["create", "delete", "create", *TRAINED, "delete"]


def test_without_a_tpu_of_its_own_it_trains_again_on_the_same(tpu, bench):
    assert tpu("--existing", codes=[76, 0]).returncode == 0
    assert named(bench.calls()) == [*TRAINED, *TRAINED]


def test_retries_have_an_end(tpu, bench):
    result = tpu("--retries=1", codes=[75], states=["none", "ACTIVE", "none", "ACTIVE"])
    assert result.returncode == 75
    assert result.stderr == "error: ended with exit code 75, after 1 retries; the same command resumes\n"
    assert named(bench.calls()).count("train") == 2


@pytest.mark.parametrize("code", [1, 2])
def test_what_would_fail_again_is_not_tried_again(code, tpu, bench):
    result = tpu(codes=[code])
    assert result.returncode == code
    assert result.stderr == f"error: ended with exit code {code}\n"
    assert named(bench.calls()) == ["create", *TRAINED, "delete"]


@pytest.mark.parametrize(
    "failing, code, names",
    [
        ({"CREATE_CODE": "1"}, 1, ["create", "delete"]),
        ({"INSTALL_CODE": "7"}, 7, ["create", "share", "clone", "install", "delete"]),
        ({"LOGS_CODE": "1"}, 0, ["create", *TRAINED, "delete"]),
        ({"DELETE_CODE": "1"}, 1, ["create", *TRAINED, "delete"]),
    ],
)
def test_it_stops_at_the_step_that_fails_and_deletes(failing, code, names, tpu, bench):
    result = tpu(**failing)
    assert result.returncode == code
    assert named(bench.calls()) == names
    assert ("may still exist and cost money" in result.stderr) == ("DELETE_CODE" in failing)


def test_a_request_that_failed_says_why(tpu, bench):
    result = tpu(states=["none", "PROVISIONING", "FAILED"])
    assert result.returncode == 1
    assert "no quota\n" in result.stdout
    assert result.stderr.startswith("error: the TPU pod is FAILED\n")
    assert bench.calls()[-1] == DELETE


def test_waiting_has_an_end(tpu, bench):
    result = tpu("--wait=0", states=["none", "WAITING_FOR_RESOURCES"])
    assert result.returncode == 1
    assert "is not active after 0 minutes (WAITING_FOR_RESOURCES)" in result.stderr
    assert named(bench.calls()) == ["create", "delete"]


def heed_interrupts():
    """What runs in the background ignores SIGINT, the tests perhaps, and a shell cannot trap what it inherits so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    "number, options, names",
    [
        (signal.SIGINT, [], ["create", "share", "clone", "install", "train", "stop", "logs", "delete"]),
        (signal.SIGTERM, [], ["create", "share", "clone", "install", "train", "stop", "logs", "delete"]),
        (signal.SIGINT, ["--keep"], ["create", "share", "clone", "install", "train", "stop", "logs"]),
        (signal.SIGINT, ["--existing"], ["share", "clone", "install", "train", "stop", "logs"]),
    ],
)
def test_an_interrupt_stops_the_training_collects_and_deletes(number, options, names, tpu, bench):
    (bench.folder / "blocks").touch()
    (bench.folder / "states").write_text("none\nACTIVE\n")
    process = subprocess.Popen(
        ["launch/cloud_tpu.sh", *options, "--", *ARGUMENTS], cwd=bench.repository, env={**bench.environment, **TPU},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts,
    )  # fmt: skip
    wait_for(bench.folder / "begun")
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert named(bench.calls()) == names


@pytest.mark.parametrize("verb", ["logs", "stop", "delete"])
def test_each_end_by_itself(verb, bench, tpu):
    result = bench.run(["launch/cloud_tpu.sh", verb], TPU_NAME="pod", ZONE="us-east5-a", PROJECT="mine")
    assert result.returncode == 0
    assert named(bench.calls()) == [verb]


@pytest.mark.parametrize("variable", ["TPU_NAME", "ZONE", "PROJECT", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "SHARE"])
@pytest.mark.parametrize("value", ["", "a b", "-x"])
def test_it_names_the_variable_that_is_missing_or_wrong(variable, value, tpu, bench):
    result = tpu(**{variable: value})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: set {variable}, as in {variable}=") and result.stderr.count("\n") == 1
    assert f"(now: '{value}')" in result.stderr
    assert not bench.calls()


@pytest.mark.parametrize(
    "command, message",
    [
        ([], "say what to run: launch/cloud_tpu.sh -- "),
        (["--worker=1"], "unknown option --worker=1; "),
        (["--retries=many"], "--retries must be a number, not many"),
        (["--wait=long"], "--wait must be a number of minutes, not long"),
        (["--", "--workdir=runs/cuhk"], "put the workdir on the shared disk: --workdir=/mnt/shared/pod, "),
        (["--spot", "--reserved"], "--spot or --reserved, not both"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(command, message, bench, tpu):
    result = bench.run(["launch/cloud_tpu.sh", *command], **TPU)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    assert not bench.calls()


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)


@pytest.fixture
def worker(bench):
    """worker(*lines): an environment for launch/worker.sh whose interpreter says hello and does what the lines say."""

    def make(*lines):
        return {**bench.environment, "PYTHON": bench.stub("python", "echo hello; echo trouble >&2", *lines)}

    return make


def start(bench, environment):
    command = ["launch/worker.sh", "run", *ARGUMENTS, "--distributed"]
    return subprocess.Popen(command, cwd=bench.repository, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_worker_shows_the_log_and_returns_the_exit_code(code, worker, bench):
    environment = worker(f"exit {code}")
    for _ in range(2):  # the log of the first is not shown again, and is kept
        process = start(bench, environment)
        assert process.communicate(timeout=20)[0] == "hello\ntrouble\n"
        assert process.returncode == code
    assert bench.calls() == [["python", "-m", "ivt_jax.main", *ARGUMENTS, "--distributed"]] * 2
    assert (bench.repository / "runs/worker/log").read_text() == "hello\ntrouble\n" * 2


def test_a_training_outlives_its_connection_and_the_same_command_shows_it_again(worker, bench):
    environment = worker("touch begun; until test -e end; do sleep 0.05; done; exit 75")
    lost = start(bench, environment)
    wait_for(bench.folder / "begun")
    lost.kill()
    lost.wait(timeout=20)
    again = start(bench, environment)
    assert again.stdout.readline() == "hello\n"
    (bench.folder / "end").touch()
    assert again.wait(timeout=20) == 75
    assert len(bench.calls()) == 1


@pytest.fixture
def starting(bench):
    """A file that is there once a training begins to start, which takes half a second from then on."""
    bench.stub("setsid", 'touch starting; sleep 0.5; cd repository; exec /usr/bin/setsid "$@"')
    return bench.folder / "starting"


def test_a_connection_that_comes_while_a_training_starts_waits_for_it(worker, bench, starting):
    environment = worker("touch begun; until test -e end; do sleep 0.05; done; exit 75")
    lost = start(bench, environment)
    wait_for(starting)
    both = [start(bench, environment)]
    lost.kill()
    lost.wait(timeout=20)
    both.append(start(bench, environment))
    for process in both:
        assert process.stdout.readline() == "hello\n"
    (bench.folder / "end").touch()
    assert [process.wait(timeout=20) for process in both] == [75, 75]
    assert [call[0] for call in bench.calls()] == ["setsid", "python"]


def test_stop_while_a_training_starts_waits_for_it(worker, bench, starting):
    process = start(bench, worker("trap 'exit 75' TERM; for _ in {1..600}; do sleep 0.05; done"))
    wait_for(starting)
    assert bench.run(["launch/worker.sh", "stop"]).returncode == 0
    assert process.wait(timeout=20) in (75, 143)  # 143 where it had not yet learned to save


def test_stop_finds_a_training_whose_command_line_says_nothing(worker, bench):
    process = start(bench, worker("touch begun; exec -a '' sleep 30"))  # as it reads during an exec
    wait_for(bench.folder / "begun")
    assert bench.run(["launch/worker.sh", "stop"]).returncode == 0
    assert process.wait(timeout=20) == 143


def test_stop_lets_the_training_save_and_end(worker, bench):
    environment = worker("trap 'touch saved; exit 75' TERM; touch begun; for _ in {1..600}; do sleep 0.05; done")
    process = start(bench, environment)
    wait_for(bench.folder / "begun")
    assert bench.run(["launch/worker.sh", "stop"]).returncode == 0
    assert (bench.folder / "saved").exists()
    assert process.wait(timeout=20) == 75
    assert bench.run(["launch/worker.sh", "stop"]).returncode == 0  # there is nothing to stop


def test_stop_kills_what_does_not_end(worker, bench):
    environment = worker("trap '' TERM; touch begun; for _ in {1..600}; do sleep 0.05; done")
    process = start(bench, environment)
    wait_for(bench.folder / "begun")
    assert bench.run(["launch/worker.sh", "stop"], STOP_SECONDS="0.5").returncode == 0
    assert process.wait(timeout=20) == 137


def test_the_remote_command_reads_back_the_arguments(tpu, bench):
    tpu()
    [command] = [word.removeprefix("--command=") for call in bench.calls() for word in call if "worker.sh run" in word]
    remote = bench.folder / "ivt_jax/launch"
    remote.mkdir(parents=True)
    (remote / "worker.sh").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" >argv\n')
    (remote / "worker.sh").chmod(0o755)
    subprocess.run(["bash", "-c", command], cwd=bench.folder, check=True)
    assert (bench.folder / "ivt_jax/argv").read_text().splitlines() == ["run", *ARGUMENTS, "--distributed"]
