"""Damage done to checkpoints, and what is said and done about it."""

import hashlib
import json
import os
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.run import digests
from ivt_jax.run.checkpoint import SELECTION, Checkpoints
from ivt_jax.run.digests import find_damage, set_damaged_aside


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the steps 10 (the best), 20 and 30."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step, score in ((10, 50.0), (20, 40.0), (30, 30.0)):
        checkpoints.save(step, {"params": {"w": jnp.arange(1000.0) * step}}, {f"val/{SELECTION}": score})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def files_of(folder):
    """Name -> content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest(step):
    """The file that holds the parameters' numbers."""
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def resume(workdir, on_damage="previous"):
    """What a run that resumes says, and the step it takes."""
    said = []
    set_damaged_aside(workdir, on_damage, said.append)
    return said, Checkpoints(workdir).latest_step()


def refusal(action, *arguments):
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what is found


def test_a_checkpoint_lists_each_of_its_files(saved):
    listed = json.loads((saved / "checkpoints/30/digests.json").read_text())
    files = files_of(saved / "checkpoints/30")
    assert files.keys() - listed.keys() == {"digests.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert {"metrics/metrics", "state/_METADATA", "state/manifest.ocdbt"} <= listed.keys()
    for name, entry in listed.items():
        assert entry == {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    assert [find_damage(saved / f"checkpoints/{step}") for step in (10, 20, 30)] == [""] * 3


def test_a_flipped_bit_is_found_in_any_file(workdir):
    step, rng = workdir / "checkpoints/30", np.random.default_rng(3)
    for name, content in files_of(step).items():
        if name in ("commit_success.txt", "_CHECKPOINT_METADATA"):  # nothing of it is restored
            continue
        flip(step / name, int(rng.integers(8 * len(content))))
        fault = find_damage(step)
        assert fault and (fault == f"{name} has other bytes than were written" or name == "digests.json")
        (step / name).write_bytes(content)
        assert find_damage(step) == ""


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("state/_METADATA", None, "state/_METADATA is missing"),
        ("digests.json", None, "digests.json is missing"),
        ("digests.json", b"{", "digests.json is not what was written"),
        ("digests.json", b'{"state/_METADATA": 3}', "digests.json is not what was written"),
        ("_CHECKPOINT_METADATA", None, "_CHECKPOINT_METADATA is missing"),
        ("_CHECKPOINT_METADATA", b"", "_CHECKPOINT_METADATA is not what was written"),
        ("metrics/metrics", b"", "metrics/metrics has 0 bytes instead of 20"),
    ],
)
def test_a_file_that_is_missing_or_cut_short_is_named(workdir, name, content, fault):
    step = workdir / "checkpoints/30"
    (step / name).unlink()
    if content is not None:
        (step / name).write_bytes(content)
    assert find_damage(step) == fault


def test_a_file_that_cannot_be_read_is_damage_but_one_that_may_not_is_none(workdir, monkeypatch):
    def fails(error):
        monkeypatch.setattr(digests, "digest", lambda path: (_ for _ in ()).throw(error))

    digests._digest_once.cache_clear()
    fails(OSError(5, "Input/output error"))
    assert (
        find_damage(workdir / "checkpoints/30", "metrics/")
        == "metrics/commit_success.txt cannot be read (Input/output error)"
    )
    fails(PermissionError(13, "Permission denied"))
    with pytest.raises(PermissionError):
        find_damage(workdir / "checkpoints/30")


def test_a_file_is_read_once_until_it_changes(workdir, monkeypatch):
    read = []
    original = digests.digest
    monkeypatch.setattr(digests, "digest", lambda path: read.append(path) or original(path))
    step = workdir / "checkpoints/30"
    for _ in range(2):
        assert find_damage(step) == ""
        assert len(read) == len(set(read)) == len(json.loads((step / "digests.json").read_text()))
    status = largest(step).stat()
    flip(largest(step), 4000)
    os.utime(largest(step), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert find_damage(step).endswith("has other bytes than were written")


def test_a_long_comparison_prints_a_line(workdir, monkeypatch, capsys):
    monkeypatch.setattr(digests, "PATIENCE", 0.05)
    original = digests.digest
    monkeypatch.setattr(digests, "digest", lambda path: time.sleep(0.2) or original(path))
    find_damage(workdir / "checkpoints/30")
    find_damage(workdir / "checkpoints/30")  # this one is quick
    assert capsys.readouterr().err == f"comparing {workdir}/checkpoints/30 with its digests\n"


# ---- a run that resumes


def test_a_damaged_step_is_set_aside_and_the_previous_one_is_taken(workdir):
    before = files_of(workdir / "checkpoints")
    flip(largest(workdir / "checkpoints/30"), 4000)
    name = largest(workdir / "checkpoints/30").relative_to(workdir / "checkpoints/30")
    damaged = files_of(workdir / "checkpoints/30")
    aside = workdir / "damaged/30"
    told = f"warning: step 30 is damaged: {name} has other bytes than were written; it is moved to {aside}, "
    assert resume(workdir) == ([told + "the newest valid one is 20"], 20)
    assert files_of(aside) == damaged
    assert files_of(workdir / "checkpoints") == {k: v for k, v in before.items() if not k.startswith("30/")}
    assert resume(workdir) == ([], 20)


def test_a_step_that_is_damaged_again_takes_no_place_of_the_first(workdir):
    for number, expected in enumerate((["30"], ["30", "30-2"], ["30", "30-2", "30-3"])):
        if number:
            shutil.copytree(workdir / "damaged/30", workdir / "checkpoints/30")
        (workdir / "checkpoints/30/state/_METADATA").unlink(missing_ok=True)
        resume(workdir)
        assert sorted(path.name for path in (workdir / "damaged").iterdir()) == expected


@pytest.mark.parametrize("damage", ["cut short", "gone", "an empty folder", "a damaged best"])
def test_with_any_damage_the_newest_valid_step_is_used(workdir, damage):
    folder, number, step = workdir / "checkpoints", 30, 20
    if damage == "cut short":
        path = largest(folder / "30")
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "gone":
        largest(folder / "30").unlink()
    elif damage == "an empty folder":
        (folder / "40").mkdir()
        number, step = 40, 30
    else:
        flip(folder / "10/metrics/metrics", 100)
        number, step = 10, 30
    said, latest = resume(workdir)
    assert latest == step and len(said) == 1
    assert said[0].startswith(f"warning: step {number} is damaged: ") and said[0].endswith(f" one is {step}")
    assert (workdir / f"damaged/{number}").is_dir()
    assert Checkpoints(workdir).best_step() == (20 if damage == "a damaged best" else 10)


def test_a_save_that_was_cut_short_is_removed(workdir):
    unfinished = workdir / f"checkpoints/40{digests.UNFINISHED}"
    shutil.copytree(workdir / "checkpoints/30", unfinished)
    (unfinished / "digests.json").unlink()
    assert resume(workdir) == (["step 40: an unfinished save is removed"], 30)
    assert not unfinished.exists()


def test_where_no_valid_step_is_left_nothing_is_touched(workdir):
    for step in (10, 20, 30):
        largest(workdir / f"checkpoints/{step}").unlink()
    (workdir / f"checkpoints/40{digests.UNFINISHED}").mkdir()
    before = files_of(workdir)
    told = refusal(resume, workdir)
    assert told.startswith(f"{workdir}, step 30 is damaged: state/") and "is missing; no valid one is left: " in told
    assert files_of(workdir) == before and (workdir / f"checkpoints/40{digests.UNFINISHED}").exists()


def test_a_run_that_is_to_stop_stops_and_touches_nothing(workdir):
    assert resume(workdir, "stop") == ([], 30)
    (workdir / "checkpoints/20/state/_METADATA").unlink()
    before = files_of(workdir)
    told = refusal(resume, workdir, "stop")
    assert told == (
        f"{workdir}, step 20 is damaged: state/_METADATA is missing; restore it from a backup, or use "
        "--config.runtime.on_damage=previous to continue from step 30, the newest valid one"
    )
    assert files_of(workdir) == before


def test_a_step_of_an_older_ivt_jax_is_used_with_a_warning(workdir):
    step = workdir / "checkpoints/30"
    (step / "digests.json").unlink()
    description = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({**description, "custom_metadata": {}}))
    told = "warning: step 30 was saved by an older ivt_jax without digests: damage would not be found"
    assert resume(workdir) == ([told], 30)
    assert resume(workdir, "stop") == ([told], 30)


def test_a_run_without_checkpoints_begins(tmp_path):
    assert resume(tmp_path) == ([], None)


# ---- those who read


def test_reading_a_damaged_step_is_refused_and_reads_no_other(workdir):
    name = largest(workdir / "checkpoints/10").relative_to(workdir / "checkpoints/10")
    flip(largest(workdir / "checkpoints/10"), 4000)
    checkpoints = Checkpoints(workdir)  # the scores are whole: the best is known
    assert checkpoints.best_step() == 10
    expected = (
        f"{workdir}, step 10 is damaged: {name} has other bytes than were written; "
        f"remove {workdir}/checkpoints/10 to use the checkpoint before it"
    )
    for action, arguments in (
        (checkpoints.restore_params, (10,)),
        (checkpoints.restore_params, (10, True)),
        (checkpoints.restore, (10, {})),
    ):
        assert refusal(action, *arguments) == expected
    np.testing.assert_array_equal(checkpoints.restore_params(30)["w"], np.arange(1000.0) * 30)


def test_which_is_the_best_is_not_read_from_damaged_scores(workdir):
    scores = workdir / "checkpoints/20/metrics/metrics"
    assert b"40.0" in scores.read_bytes()
    scores.write_bytes(scores.read_bytes().replace(b"40.0", b"60.0"))
    told = refusal(Checkpoints, workdir)
    assert told.startswith(f"{workdir}, step 20 is damaged: metrics/metrics has other bytes than were written; remove ")


# ---- a save that fails


@pytest.mark.parametrize("waits_in", ["save", "close"])
def test_a_disk_that_fills_up_is_one_line_and_the_step_does_not_count(workdir, monkeypatch, waits_in):
    checkpoints = Checkpoints(workdir)

    def full(step):
        raise OSError(28, "No space left on device", str(step))

    monkeypatch.setattr(digests, "write_digests", full)
    state = {"params": {"w": jnp.zeros(10)}}
    checkpoints.save(40, state)
    told = refusal(*((checkpoints.save, 50, state) if waits_in == "save" else (checkpoints.close,)))
    assert told == (
        f"{workdir}/checkpoints: step 40 could not be saved: No space left on device; correct this and "
        "run the same command again to resume from the last whole checkpoint"
    )
    monkeypatch.undo()
    assert resume(workdir) == (["step 40: an unfinished save is removed"], 30)


def test_other_errors_of_a_save_stay_what_they_are(workdir, monkeypatch):
    checkpoints = Checkpoints(workdir)
    monkeypatch.setattr(digests, "write_digests", lambda step: {}["key"])
    checkpoints.save(40, {"params": {"w": jnp.zeros(10)}})
    with pytest.raises(KeyError):
        checkpoints.close()
