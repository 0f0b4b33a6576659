"""Checkpoints of real runs that are cut short, damaged, of another mesh or run, or not finite: never silently wrong."""

import json
import os
import re
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ivt_jax import search
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.evaluation.run import evaluate
from ivt_jax.export.run import export
from ivt_jax.run.checkpoint import SELECTION, Checkpoints
from ivt_jax.run.digests import UNFINISHED
from ivt_jax.run.workdir import load_config
from ivt_jax.training import loop
from ivt_jax.training.program import build_program
from tests.faults.conftest import history, state_of

RUN = [
    "--config.train.steps=12", "--config.train.eval_every=6", "--config.runtime.checkpoint_every=3",
    "--config.optimizer.ema=0.9",
]  # fmt: skip
BIAS = "blocks/attn/proj/bias"
# `python -m ivt_jax.main` that stands still where {function} is called with something that has {text} in its name.
STOPPED = """
import sys, time
import orbax.checkpoint as ocp
from orbax.checkpoint._src.path import deleter
from ivt_jax.run import digests
from ivt_jax import main

original = {function}

def stop(*arguments):
    if "{text}" in str(arguments[-1]):
        print("(stands still)", file=sys.stderr, flush=True)
        time.sleep(600)
    return original(*arguments)

{function} = stop
main.run()
"""


def files_of(folder):
    """Name -> content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest(step):
    """The file with the most of the numbers."""
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def reference(start, tmp_path_factory):
    """The workdir of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("reference")
    process = start(workdir, *RUN)
    assert process.finish() == 0, process.said()
    assert {"9", "12"} <= {path.name for path in (workdir / "checkpoints").iterdir()}
    return workdir


@pytest.fixture
def workdir(reference, tmp_path):
    """A copy of it that still has to be tested."""
    shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/test")
    return tmp_path / "run"


@pytest.fixture
def assert_as_uninterrupted(reference):
    def check(workdir):
        jax.tree.map(np.testing.assert_array_equal, state_of(workdir, 12), state_of(reference, 12))
        assert history(workdir) == history(reference)
        summaries = [json.loads((folder / "test/summary.json").read_text()) for folder in (workdir, reference)]
        assert summaries[0] == summaries[1]

    return check


# ---- a save that is cut short


@pytest.mark.faults
@pytest.mark.parametrize(
    ("function", "text", "left"),
    [
        ("digests.write_digests", f"/9{UNFINISHED}", 6),
        ("ocp.PyTreeCheckpointHandler.finalize", f"/9{UNFINISHED}", 6),
        ("deleter.PathDeleter.delete", "checkpoints/3", 9),
    ],
    ids=["when all files are written", "when arrays are written", "when the next is there and the old one goes"],
)
def test_a_kill_in_mid_save_leaves_the_step_before(start, tmp_path, function, text, left, assert_as_uninterrupted):
    process = start(tmp_path, *RUN, code=STOPPED.format(function=function, text=text))
    process.wait_for("(stands still)")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == ({"3", "6", f"9{UNFINISHED}"} if left == 6 else {"3", "6", "9"})
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    assert Checkpoints(tmp_path).latest_step() == left
    process = start(tmp_path, *RUN)
    assert process.finish() == 0, process.said()
    assert f"resuming at step {left} of 12" in process.said()
    assert ("step 9: an unfinished save is removed" in process.lines()) == (left == 6)
    assert "warning" not in process.said()
    assert_as_uninterrupted(tmp_path)


# `python -m ivt_jax.main` where step 9 loses its manifest when Orbax has written all of it.
LOST = """
import orbax.checkpoint as ocp
from ivt_jax import main

finalize = ocp.PyTreeCheckpointHandler.finalize

def lose(self, directory):
    finalize(self, directory)
    if "/9{unfinished}" in str(directory):
        (directory / "manifest.ocdbt").unlink()

ocp.PyTreeCheckpointHandler.finalize = lose
main.run()
"""


@pytest.mark.faults
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_cannot_be_read_again_ends_the_run_and_does_not_count(
    start, tmp_path, count, assert_as_uninterrupted
):
    processes = start(tmp_path, *RUN, code=LOST.format(unfinished=UNFINISHED), count=count)
    first = processes if count == 1 else processes[0]
    assert first.finish() == 2, first.said()
    told = f"error: {tmp_path}/checkpoints: step 9 could not be saved: its arrays cannot be read again (NOT_FOUND: "
    assert [line.startswith(told) for line in first.lines() if "error" in line] == [True], first.said()
    assert "Traceback" not in first.said() and "step 9/" in first.said()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "6", f"9{UNFINISHED}"}
    if count == 2:
        assert processes[1].finish() != 0
    else:
        process = start(tmp_path, *RUN)
        assert process.finish() == 0, process.said()
        assert "resuming at step 6 of 12" in process.said()
        assert_as_uninterrupted(tmp_path)


ROOM = """
mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 99
folder=$2 out=$3; shift 3
"$@"; echo "code $?"
ls "$folder/checkpoints"
mount -o remount,size=100m "$folder" && "$@" && cp -r "$folder/." "$out"
"""


@pytest.mark.faults
def test_a_disk_that_fills_up_in_a_save(start, reference, tmp_path):
    """Room for two checkpoints and a half, which are also what is written beside: the second or third save fails."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    blocks = sum(-(-len(content) // 4096) for content in files_of(reference / "checkpoints/12").values())
    inner, out = tmp_path / "run", tmp_path / "out"
    inner.mkdir()
    out.mkdir()
    before = ("unshare", "-m", "sh", "-c", ROOM, "sh", f"{blocks * 10}k", str(inner), str(out))
    process = start(inner, *RUN, "--config.runtime.log_every=100", before=before)
    assert process.finish() == 0, process.said()
    first, second = process.said().split("code 2\n")
    told = re.fullmatch(
        rf"error: {inner}/checkpoints: step ([69]) could not be saved: No space left on device; correct this and "
        "run the same command again to resume from the last whole checkpoint",
        first.splitlines()[-1],
    )
    assert told and first.count("No space left") == 1, first
    assert "ivt_jax/" not in first  # no traceback of ours; TensorStore's threads may find their event loop closed
    step = int(told[1])
    assert f"step {step}: an unfinished save is removed" in second
    assert f"resuming at step {step - 3} of 12" in second
    jax.tree.map(np.testing.assert_array_equal, state_of(out, 12), state_of(reference, 12))


# ---- damage


@pytest.mark.faults
def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before(start, workdir, assert_as_uninterrupted):
    flip_a_bit(largest(workdir / "checkpoints/12"))
    name = largest(workdir / "checkpoints/12").relative_to(workdir / "checkpoints/12")
    process = start(workdir, *RUN)
    assert process.finish() == 0, process.said()
    assert process.lines()[0] == (
        f"warning: step 12 is damaged: {name} has other bytes than were written; it is moved to {workdir}/damaged/12, "
        "the newest valid one is 9"
    )
    assert process.lines()[1] == f"resuming at step 9 of 12: {workdir}"
    assert_as_uninterrupted(workdir)


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut short", "gone", "without a list", "an empty folder beside"])
def test_other_damage_costs_no_more(start, workdir, damage, assert_as_uninterrupted):
    step = workdir / "checkpoints/12"
    if damage == "cut short":
        os.truncate(largest(step), 100)
    elif damage == "gone":
        largest(step).unlink()
    elif damage == "without a list":
        (step / "digests.json").unlink()
    else:
        (workdir / "checkpoints/13").mkdir()
    process = start(workdir, *RUN)
    assert process.finish() == 0, process.said()
    warnings = [line for line in process.lines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and re.search(r"step 1[23] is damaged: \S+ (is missing|has 100 bytes)", warnings[0])
    assert f"resuming at step {12 if 'beside' in damage else 9} of 12" in process.said()
    assert_as_uninterrupted(workdir)


@pytest.mark.faults
def test_processes_agree_on_the_step_and_on_the_refusal(start, workdir):
    flip_a_bit(largest(workdir / "checkpoints/12"))
    stopped = start(workdir, *RUN, "--config.runtime.on_damage=stop", count=2)
    assert [process.finish() for process in stopped] == [2, 2], [process.said() for process in stopped]
    lines = [[line for line in process.lines() if line.startswith("error: ")] for process in stopped]
    assert lines[0] == lines[1] and f"error: {workdir}, step 12 is damaged: state/" in lines[0][0]
    assert not (workdir / "damaged").exists()

    processes = start(workdir, *RUN, count=2)
    assert [process.finish() for process in processes] == [0, 0], [process.said() for process in processes]
    assert [process.said().count("is damaged") for process in processes] == [1, 0]
    assert all(f"resuming at step 9 of 12: {workdir}" in process.lines() for process in processes)
    assert (workdir / "damaged/12").is_dir() and (workdir / "checkpoints/12").is_dir()
    assert [line["step"] for line in history(workdir)] == [*range(1, 7), 6, *range(7, 13), 12]


# ---- what is refused, with nothing changed


def config_of(workdir, **changes):
    """The config that the run's command has."""
    config = load_config(workdir)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def refusal(workdir, action, *arguments):
    """The line of the refusal; no file of the workdir has changed, none is new."""
    before = files_of(workdir)
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert files_of(workdir) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def saved_again(workdir, change):
    """Writes step 12 anew, with the parameters that `change` makes of its own, as the best."""
    program = build_program(config_of(workdir), np.array([0, 10]), 10, mask_id=4)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(12, program.target)
    checkpoints.close()
    shutil.rmtree(workdir / "checkpoints/12")
    checkpoints = Checkpoints(workdir)
    kept = {name: change(getattr(state, name)) for name in ("params", "ema")}
    checkpoints.save(12, state.replace(**kept), {f"val/{SELECTION}": 100.0})
    checkpoints.close()


def with_bias(change):
    """A function of parameters that changes one of them."""

    def changed(params):
        proj = params["blocks"]["attn"]["proj"]
        attn = {**params["blocks"]["attn"], "proj": {**proj, "bias": change(proj["bias"])}}
        return {**params, "blocks": {**params["blocks"], "attn": attn}}

    return changed


def test_a_workdir_of_a_later_format_is_refused(workdir):
    record = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**record, "format": 99}))
    told = f"{workdir}/config.json has format 99, this ivt_jax reads format 1 and older: update ivt_jax"
    for action, arguments in (
        (loop.train_and_evaluate, (ConfigDict(record["config"]), workdir)),
        (export, (workdir, ["orbax"])),
        (Encoder, (workdir,)),
    ):
        assert refusal(workdir, action, *arguments) == told


def test_a_workdir_of_another_config_is_refused(workdir):
    config = config_of(workdir, optimizer__ema=0.5, model__width=16, runtime__log_every=7)
    told = refusal(workdir, loop.train_and_evaluate, config, workdir)
    difference = "model.width was 8, is 16; optimizer.ema was 0.9, is 0.5"
    assert told == f"{workdir} belongs to another config: {difference}. Choose another --workdir"


def test_a_workdir_of_another_vocabulary_is_refused(workdir):
    record = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**record, "tokenizer": "0" * 64}))
    told = refusal(workdir, loop.train_and_evaluate, config_of(workdir), workdir)
    assert f"{workdir} was made with tokenizer 000000000000, but " in told


def test_checkpoints_of_another_shape_are_refused(workdir):
    saved_again(workdir, with_bias(lambda bias: jnp.ones((1, 9))))
    told = f"{BIAS} has shape (1, 9), the model of its config has (1, 8)"
    remedy = f"remove {workdir}/checkpoints/12 to use the checkpoint before it"
    config = config_of(workdir)
    name = f"{workdir}, step 12"
    assert refusal(workdir, loop.train_and_evaluate, config, workdir) == f"{name}: params/{told}; {remedy}"
    assert refusal(workdir, export, workdir, ["orbax"]) == f"{name}: {told}; {remedy}"


@pytest.fixture
def not_finite(workdir):
    saved_again(workdir, with_bias(lambda bias: bias.at[0, 3].set(jnp.nan)))
    return workdir


def doors(workdir, crops):
    """Every way in to the parameters of a run, with what it is called by."""
    config = config_of(workdir)
    return {
        "resume": (loop.train_and_evaluate, config, workdir),
        "evaluate": (evaluate, workdir, config),
        "export": (export, workdir, ["orbax", "safetensors"]),
        "search": (search.index_folder(crops, workdir).__enter__,),
        "embed": (Encoder, workdir),
        "init_from": (loop.initial_params, config_of(workdir, train__init_from=str(workdir))),
    }


def test_values_that_are_not_finite_are_refused_at_every_door(not_finite, pedes_root):
    for name, (action, *arguments) in doors(not_finite, pedes_root / "imgs").items():
        told = refusal(not_finite, action, *arguments)
        where = f"params/{BIAS}" if name == "resume" else BIAS
        assert f"{not_finite}, step 12: {where} has values that are not finite; remove " in told, name


def test_a_damaged_step_is_refused_at_every_door_but_training(workdir, pedes_root):
    saved_again(workdir, lambda params: params)  # the best
    flip_a_bit(largest(workdir / "checkpoints/12"))
    for name, (action, *arguments) in doors(workdir, pedes_root / "imgs").items():
        if name != "resume":
            told = refusal(workdir, action, *arguments)
            assert re.search(rf"{workdir}, step 12 is damaged: state/\S+ has other bytes than were written; ", told), (
                name
            )


@pytest.mark.faults
def test_commands_end_with_one_line_at_values_that_are_not_finite(start, not_finite, pedes_root):
    told = f"error: {not_finite}, step 12: (params/)?{BIAS} has values that are not finite; remove .* before it"
    before = files_of(not_finite)
    for flags in ([], ["--mode=evaluate"], ["--mode=export"]):
        process = start(not_finite, *RUN, *flags)
        assert process.finish() == 2, process.said()
        assert [re.fullmatch(told, line) for line in process.lines() if line.startswith("error")] != [None]
        assert "Traceback" not in process.said()
    assert files_of(not_finite) == before
