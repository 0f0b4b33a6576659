"""What a command sets before JAX starts: XLA's flags; and the platform."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from ivt_jax.common import startup
from ivt_jax.common.errors import UserError
from tests.conftest import needs_tensorflow

ROOT = Path(__file__).parents[2]
FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"


# Three programs that XLA's CPU backend computes wrongly by default, and their results by hand: 32768 ** 2; 60 products
# of b and 0.5 times b, summed over 60 x 60; ones added in twos, 3,072 times.
SPOILED = """
import sys
from ivt_jax.common import startup

def work():
    import jax
    import jax.numpy as jnp

    rows = jnp.zeros((32769, 3)).at[:, 0].set(jnp.arange(32769.0))
    print(float(jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)[-1]))
    e = jnp.ones((5, 60, 60)) * jnp.arange(1.0, 6.0)[:, None, None]
    print(*jax.jit(lambda e, c: jnp.sum((e @ jnp.full_like(e, c)) * e, axis=(1, 2)))(e, 0.5).tolist(), flush=True)
    ones = jnp.ones((3, 1, 2, 2, 8, 8, 8))  # jaxlib 0.10.2 ends here with a segmentation fault
    print(float(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(ones, ones).sum()))

sys.exit(startup.run_command(work))
"""
RIGHT = ["1073741824.0", "108000.0 432000.0 972000.0 1728000.0 2700000.0", "6144.0"]


def run_python(*arguments, **variables):
    """Runs Python in a user's environment, changed by `variables`; None unsets a variable."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": None, **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("given", [None, "--xla_force_host_platform_device_count=2"], ids=["none", "the user's own"])
def test_programs_compute_right_under_a_commands_flags(given):
    done = run_python("-c", SPOILED, XLA_FLAGS=given)
    assert (done.returncode, done.stdout.splitlines()) == (0, RIGHT), done.stderr


def test_the_fusions_that_the_user_sets_stay():
    done = run_python("-c", SPOILED, XLA_FLAGS=f"{FUSIONS}=individual_dot,individual_convolution,reduce")
    lines = done.stdout.splitlines()  # the third program may end the process
    # XLA's default is wrong; when this test fails, the flag can be removed.
    assert len(lines) >= 2 and lines[:2] != RIGHT[:2], done.stderr


COMMANDS = {
    "index": ("run", ["--images=x", "--index=y"]),
    "search": ("run", ["--index=y", "red"]),
    "serve.__main__": ("run", ["--index=y"]),
    "embed": ("run", ["--workdir=w", "--shards=x", "--out=y"]),
    "convert": ("convert", ["--source=vit", "--weights=x", "--out=y"]),
    "bench": ("run", []),
    "benchmarks.index": ("run", []),
    "benchmarks.grounding": ("measure", ["--workdir=w"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_starts_jax_sets_the_flags(monkeypatch, name):
    command, (work, arguments), seen = importlib.import_module(f"ivt_jax.{name}"), COMMANDS[name], []
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(command, work, lambda *args: seen.append(os.environ["XLA_FLAGS"].split()))
    command.main(arguments)
    assert seen == [list(startup.FLAGS)]


def test_an_encoder_without_a_command_sets_the_flags(workdir):
    code = "from ivt_jax.encoding.encoder import Encoder; Encoder(sys.argv[1]); print(os.environ['XLA_FLAGS'])"
    done = run_python("-c", f"import os, sys; {code}", str(workdir))
    assert done.stdout.split() == list(startup.FLAGS), done.stderr


@pytest.mark.parametrize(("deterministic", "more"), [(False, []), (True, ["--xla_gpu_deterministic_ops=true"])])
def test_training_sets_the_flags(monkeypatch, deterministic, more):
    monkeypatch.setenv("XLA_FLAGS", "")
    config = ConfigDict({"runtime": {"deterministic": deterministic}, "model": {"dtype": "bfloat16"}})
    for _ in range(2):  # a second call adds nothing
        startup.set_environment(config)
        assert os.environ["XLA_FLAGS"].split() == [*startup.FLAGS, *more]


@pytest.mark.parametrize(("platform", "more"), [("tpu", []), ("cuda", ["--xla_gpu_autotune_level=0"])])
def test_a_process_can_compile_for_an_accelerator_that_it_lacks(monkeypatch, platform, more):
    changed = {**os.environ, "JAX_PLATFORMS": "cuda,cpu", "XLA_FLAGS": ""}  # what the user has set gives way
    monkeypatch.setattr(os, "environ", changed)
    config = ConfigDict({"runtime": {"deterministic": False}, "model": {"dtype": "bfloat16"}})
    startup.set_environment(config, platform)
    assert changed["XLA_FLAGS"].split() == [*startup.FLAGS, *more]
    assert changed["JAX_PLATFORMS"] == "cpu" and startup.COMPILE_ONLY[platform].items() <= changed.items()


def test_jaxlib_knows_the_flags():
    """XLA ends a process that sets one it does not know."""
    flags = [*startup.FLAGS, "--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0"]
    assert startup.known_flags(flags) == flags
    assert startup.known_flags(["--xla_no_such_flag=1", startup.FLAGS[0]]) == [startup.FLAGS[0]]


def test_another_jaxlib_gets_no_flag_that_it_does_not_know(monkeypatch):
    monkeypatch.setattr(startup, "TESTED", ())
    monkeypatch.setattr(startup, "FLAGS", ("--xla_no_such_flag=1", *startup.FLAGS))
    monkeypatch.setenv("XLA_FLAGS", "")
    startup.set_xla_flags()
    assert os.environ["XLA_FLAGS"].split() == list(startup.FLAGS[1:])


def test_the_users_flags_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=here {FUSIONS}=")
    startup.set_xla_flags()
    assert os.environ["XLA_FLAGS"].split() == [*startup.FLAGS[1:], "--xla_dump_to=here", f"{FUSIONS}="]


def test_xla_is_asked_about_a_users_flags_alone_and_once(monkeypatch):
    """Asking starts a process. A command settles the flags, and so does the encoder that it opens."""
    asked = []
    monkeypatch.setattr(startup, "_refusal", lambda flags: asked.append(flags) or "")
    monkeypatch.setattr(startup, "TESTED", (*startup.TESTED, importlib.metadata.version("jaxlib")))
    for given, times in (("", 0), ("--xla_dump_to=/nowhere", 1)):
        monkeypatch.setenv("XLA_FLAGS", given)
        startup.set_xla_flags()
        startup.set_xla_flags("--xla_gpu_deterministic_ops=true")
        assert os.environ["XLA_FLAGS"].count("--xla_gpu_deterministic_ops=true") == 1
        assert len(asked) == times


def test_flags_are_read_from_the_file_that_the_variable_names(tmp_path):
    """XLA takes a value that begins with no dash for the name of a file."""
    (tmp_path / "flags.txt").write_text("--xla_force_host_platform_device_count=4\n--xla_cpu_prefer_vector_width=256\n")
    code = "from ivt_jax.common import startup; startup.set_xla_flags(); import jax; print(jax.device_count())"
    code += "; import os; print(os.environ['XLA_FLAGS'])"
    done = run_python("-c", code, XLA_FLAGS=str(tmp_path / "flags.txt"))
    count, flags = done.stdout.splitlines()
    assert count == "4", done.stderr
    assert flags.split() == [
        startup.FLAGS[0], startup.FLAGS[2], "--xla_force_host_platform_device_count=4",
        "--xla_cpu_prefer_vector_width=256",
    ]  # fmt: skip


FAULTS = {
    "XLA_FLAGS: Unknown flag: --xla_no_such_flag=1; correct or remove it: jaxlib": "--xla_no_such_flag=1",
    "XLA_FLAGS: Unknown flags: --xla_no_such_flag --xla_nor_this=1; ": "--xla_no_such_flag --xla_nor_this=1",
    "XLA_FLAGS: Couldn't interpret value many for flag xla_force_host_platform_device_count; ":
        "--xla_force_host_platform_device_count=many",
    f"XLA_FLAGS: Illegal value for {FUSIONS} ": f"{FUSIONS}=all",
    "/unknown: Unknown flag: --xla_no_such_flag=1; correct or remove it: jaxlib": "{folder}/unknown",
    "the file cannot be read (No such file or directory); name a file of flags, or set --FLAG=VALUE": "nowhere.txt",
    "the file cannot be read (Is a directory); ": "{folder}",
    "/binary: the file cannot be read (not a text file); ": "{folder}/binary",
    "/zero: the file cannot be read (not a text file); ": "{folder}/zero",
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_flags_that_xla_refuses_are_a_users_mistake(monkeypatch, tmp_path, message):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "zero").write_bytes(b"--xla\0")
    (tmp_path / "unknown").write_text("--xla_no_such_flag=1\n")
    monkeypatch.setenv("XLA_FLAGS", given := FAULTS[message].format(folder=tmp_path))
    with pytest.raises(UserError) as fault:
        startup.set_xla_flags()
    assert message in str(fault.value) and "\n" not in str(fault.value)
    assert os.environ["XLA_FLAGS"] == given


# ---- the platform

WITHOUT_GPU = {
    "cuda": "JAX_PLATFORMS=cuda: JAX sees no such device; set JAX_PLATFORMS=cpu, or unset it to let JAX choose",
    "cpux": "JAX_PLATFORMS=cpux: Backend 'cpux' is not in the list of known backends: [",
}


@pytest.mark.skipif(any(Path("/dev").glob("nvidia*")), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("command", "platform"),
    [("search", "cuda"), ("embed", "cpux"), pytest.param("main", "cuda", marks=needs_tensorflow)],
)
def test_a_platform_that_cannot_start_is_one_line_and_exit_code_2(workdir, tmp_path, platform, command):
    Image.new("RGB", (12, 24)).save(tmp_path / "black.png")
    arguments = {
        "search": [f"--workdir={workdir}", f"--images={tmp_path}", "red"],
        "embed": [f"--workdir={workdir}", f"--shards={tmp_path}", f"--out={tmp_path}/out"],
        "main": ["--config=configs/synth.py", f"--workdir={tmp_path}/out"],
    }
    done = run_python("-m", f"ivt_jax.{command}", *arguments[command], JAX_PLATFORMS=platform)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"error: {WITHOUT_GPU[platform]}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_errors_are_no_fault_of_the_platform(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert startup.platform_fault(AssertionError()) is None
    assert startup.platform_fault(RuntimeError("no")) is None
    monkeypatch.delenv("JAX_PLATFORMS")
    hint = "(you may need to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip this backend.)"
    broken = RuntimeError(f"Unable to initialize backend 'cuda': no driver {hint}")
    assert str(startup.platform_fault(broken)) == f"JAX cannot start: no driver {hint}"
