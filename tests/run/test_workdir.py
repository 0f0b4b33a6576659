import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import default
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.run.workdir import (
    FORMAT,
    config_of_run,
    folder_tokenizer,
    hold_workdir,
    load_config,
    make_workdir,
    other_data,
    record_config,
    record_conversion,
    recorded_images_digests,
    refuse_other_config,
    refuse_other_data,
)

ROOT = Path(__file__).parents[2]


def config(**changes):
    config = ConfigDict(
        {
            "seed": 1,
            "model": {"image_size": (96, 48), "width": 8},
            "runtime": {"mesh": {"data": -1, "fsdp": 1}},
            "data": {"name": "cuhk_pedes", "root": "data"},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def record(tmp_path_factory):
    """`record(workdir, config)`: records it, with annotations of one letter."""
    annotations = tmp_path_factory.mktemp("data") / "reid_raw.json"
    annotations.write_text("a")
    return lambda workdir, config: record_config(workdir, config, {"": annotations}, load_tokenizer())


def test_a_recorded_config_comes_back_and_is_accepted_again(tmp_path, record):
    workdir = tmp_path / "runs" / "new"
    refuse_other_config(workdir, config())  # nobody's yet
    record(workdir, config())
    assert load_config(workdir).model.to_dict() == {"image_size": [96, 48], "width": 8}  # JSON knows no tuples
    refuse_other_config(workdir, config())
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_config_json_has_code_versions_and_devices(tmp_path, record):
    record(tmp_path, config())
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert set(recorded) == {"config", "annotations", "revision", "versions", "device", "format", "tokenizer"}
    assert (recorded["format"], recorded["tokenizer"]) == (1, load_tokenizer().digest)
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= set(recorded["versions"])
    assert recorded["device"] == "8 x cpu, 1 process(es)"
    # sha256 of "a"
    assert recorded["annotations"] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 2}, "seed was 1, is 2."),
        ({"model.image_size": (96, 64)}, "model.image_size was [96, 48], is [96, 64]."),
        ({"seed": 2, "model.width": 16}, "model.width was 8, is 16; seed was 1, is 2."),
    ],
)
def test_another_config_is_refused_with_what_differs(tmp_path, record, changes, difference):
    record(tmp_path, config())
    with pytest.raises(UserError) as error:
        refuse_other_config(tmp_path, config(**changes))
    assert str(error.value) == f"{tmp_path} belongs to another config: {difference} Choose another --workdir"


def test_a_key_missing_in_one_config_counts_as_different(tmp_path, record):
    record(tmp_path, ConfigDict({"seed": 1, "old": {"key": 3}}))
    with pytest.raises(UserError, match=r"new was None, is 4; old.key was 3, is None\."):
        refuse_other_config(tmp_path, ConfigDict({"seed": 1, "new": 4}))


def test_a_key_that_came_after_the_run_began_counts_as_its_default(tmp_path, record):
    """A run without train.spike_factor, optimizer.ema, and the whole of augment; their defaults are 0, 0 and pad 10."""
    whole, begun = default.get_config(), default.get_config()
    del begun.train.spike_factor, begun.optimizer.ema, begun.augment, begun.runtime.on_damage
    record(tmp_path, begun)
    refuse_other_config(tmp_path, whole)
    whole.runtime.on_damage = "stop"
    refuse_other_config(tmp_path, whole)
    evaluated = config_of_run(tmp_path, whole, ["runtime.on_damage"])
    assert (evaluated.runtime.on_damage, evaluated.augment.pad, evaluated.optimizer.ema) == ("stop", 10, 0.0)
    whole.augment.pad, whole.train.spike_factor = 9, 1.5
    with pytest.raises(UserError) as error:
        refuse_other_config(tmp_path, whole)
    difference = "augment.pad was 10, is 9; train.spike_factor was 0.0, is 1.5."
    assert str(error.value) == f"{tmp_path} belongs to another config: {difference} Choose another --workdir"
    assert load_config(tmp_path).to_dict() == json.loads(json.dumps(begun.to_dict()))  # nothing was written


def test_where_a_run_computes_and_where_the_data_lie_may_differ(tmp_path, record):
    record(tmp_path, config())
    refuse_other_config(tmp_path, config(**{"runtime.mesh.fsdp": 8, "data.root": "elsewhere"}))


def test_other_annotations_are_refused(tmp_path, record):
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    same.write_text("a")
    other.write_text("b")
    refuse_other_data(tmp_path, {"": other})  # no run yet
    record(tmp_path, config())
    refuse_other_data(tmp_path, {"": same})
    with pytest.raises(
        UserError, match=r"was trained with other annotations than .*other.json. Choose another --workd"
    ):
        refuse_other_data(tmp_path, {"": other})


def test_the_digest_of_a_run_s_images_is_recorded_if_it_is_known(tmp_path, record):
    assert recorded_images_digests(tmp_path) == {}  # no run yet
    record(tmp_path, config())
    assert recorded_images_digests(tmp_path) == {}
    annotations = tmp_path / "reid_raw.json"
    annotations.write_text("a")
    record_config(tmp_path, config(), {"": annotations}, load_tokenizer(), {"": "abc"})
    assert recorded_images_digests(tmp_path) == {"": "abc"}


def test_other_data_than_those_of_the_training_are_named_where_both_are_known(tmp_path):
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    same.write_text("a")
    other.write_text("b")
    assert other_data(tmp_path, "", other, "def") == ""  # no run
    record_config(tmp_path, config(), {"": same}, load_tokenizer(), {"": "abc"})
    assert other_data(tmp_path, "", same, "abc") == other_data(tmp_path, "", same, "") == ""
    assert other_data(tmp_path, "", same, "def") == "images"
    assert other_data(tmp_path, "", other, "") == "annotations"
    assert other_data(tmp_path, "", other, "def") == "annotations and images"
    record_config(tmp_path, config(), {"": same}, load_tokenizer())  # as an older version did
    assert other_data(tmp_path, "", same, "def") == ""


def test_a_run_is_evaluated_by_its_own_config_at_the_places_given(tmp_path, record):
    record(tmp_path, config())
    new = config(**{"seed": 2, "runtime.mesh.fsdp": 4, "data.root": "elsewhere"})
    assert config_of_run(tmp_path, new, ["data.root"]).to_dict() == {
        "seed": 1, "model": {"image_size": [96, 48], "width": 8}, "runtime": {"mesh": {"data": -1, "fsdp": 1}},
        "data": {"name": "cuhk_pedes", "root": "elsewhere"},
    }  # fmt: skip
    assert config_of_run(tmp_path, new, ["runtime.mesh.fsdp"]).runtime.mesh.fsdp == 4
    with pytest.raises(UserError, match=r"belongs to another config: seed was 1, is 2\. Give the --config that it was"):
        config_of_run(tmp_path, new, ["seed"])
    with pytest.raises(UserError, match=r"data.name was 'cuhk_pedes', is 'icfg_pedes'\."):
        config_of_run(tmp_path, config(**{"data.name": "icfg_pedes"}), [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no config of ivt_jax"),
        ('{"architectures": []}', "holds no config of ivt_jax"),
    ],
)
def test_a_config_json_that_is_not_ours_is_one_line(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        UserError, match=rf"config.json {message}.*: {tmp_path} is not the workdir of a run; .*ivt_jax.convert\)$"
    ):
        load_config(tmp_path)


@pytest.mark.parametrize("version", [FORMAT + 1, "2", None])
def test_a_later_format_is_one_line_with_both(tmp_path, record, version):
    record(tmp_path, config())
    recorded = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**recorded, "format": version}))
    with pytest.raises(UserError) as error:
        load_config(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/config.json has format {version}, this ivt_jax reads format 1 and older: update ivt_jax"
    )


def test_a_folder_without_a_format_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 7}}))
    assert load_config(tmp_path).seed == 7


@pytest.fixture
def vocabularies(tmp_path):
    """Two folders of tokenizers with as many entries, of which the last differs."""
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text(f"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{name}\n")
    return tmp_path


def with_tokenizer(folder):
    return config(**{"text": ConfigDict({"tokenizer": str(folder), "clean": ""}), "model.vocab_size": 6})


def test_another_tokenizer_than_recorded_is_one_line_that_names_both(vocabularies, tmp_path):
    red, blue = (load_tokenizer(str(vocabularies / name)) for name in ("red", "blue"))
    (tmp_path / "a").write_text("a")
    record_config(tmp_path / "run", with_tokenizer(vocabularies / "red"), {"": tmp_path / "a"}, red)
    assert folder_tokenizer(tmp_path / "run", with_tokenizer(vocabularies / "red")).digest == red.digest
    (vocabularies / "red/vocab.txt").write_text((vocabularies / "blue/vocab.txt").read_text())
    with pytest.raises(UserError) as error:
        folder_tokenizer(tmp_path / "run", with_tokenizer(vocabularies / "red"))
    assert str(error.value) == (
        f'{tmp_path}/run was made with tokenizer {red.digest[:12]}, but text.tokenizer="{vocabularies}/red" is now '
        f"{blue.digest[:12]}: restore the first one, or choose another --workdir"
    )


def test_a_folder_that_records_no_tokenizer_is_not_checked(vocabularies, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    for folder in (tmp_path, tmp_path / "new"):  # an old run, and none yet
        assert folder_tokenizer(folder, with_tokenizer(vocabularies / "red")).vocab_size == 6


def test_the_tokenizer_that_a_folder_carries_comes_first(vocabularies, tmp_path):
    red, blue = (load_tokenizer(str(vocabularies / name)) for name in ("red", "blue"))
    (tmp_path / "a").write_text("a")
    record_config(tmp_path / "run", with_tokenizer("no-such-name"), {"": tmp_path / "a"}, red)
    red.save(tmp_path / "run")
    assert folder_tokenizer(tmp_path / "run", with_tokenizer("no-such-name")).digest == red.digest
    blue.save(tmp_path / "run")
    with pytest.raises(
        UserError, match=rf"tokenizer {red.digest[:12]}, but .*/run/tokenizer.json is now {blue.digest[:12]}:"
    ):
        folder_tokenizer(tmp_path / "run", with_tokenizer("no-such-name"))


def test_without_git_there_is_no_revision(tmp_path, record, monkeypatch):
    monkeypatch.setenv("PATH", "")
    record(tmp_path, config())
    assert json.loads((tmp_path / "config.json").read_text())["revision"] == ""


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config.json not found: .* is not the workdir of a run; "):
        load_config(tmp_path)


def test_a_workdir_is_one_process_s_until_it_ends(tmp_path, capsys):
    code = "import sys, pathlib; from ivt_jax.run.workdir import hold_workdir; hold_workdir(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 0
    hold_workdir(tmp_path)
    hold_workdir(tmp_path)  # it is ours already
    refused = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert f"another run is at work in {tmp_path}: wait for its end, or choose another --workdir" in refused.stderr
    assert capsys.readouterr().err == ""


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def without_locks(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    hold_workdir(tmp_path)
    told = f"warning: {tmp_path} has no locks (No locks available): make sure that no second run writes there\n"
    assert capsys.readouterr().err == told


def test_weights_that_are_converted_again_keep_their_origin(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = {"source": "clip", "files": {"clip.pt": "ff00"}}
    record_conversion(
        tmp_path, {"config": {}, "weights": before}, "export", [tmp_path / "model.safetensors"], load_tokenizer()
    )
    weights = json.loads((tmp_path / "config.json").read_text())["weights"]
    assert (
        weights["before"] == before and weights["source"] == "export" and set(weights["files"]) == {"model.safetensors"}
    )


def test_a_workdir_that_cannot_be_made_is_one_line():
    with pytest.raises(UserError, match=r"^the workdir /dev/null/run cannot be made: Not a directory$"):
        make_workdir(Path("/dev/null/run"))
