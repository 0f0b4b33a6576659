import json

import pytest
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from ivt_jax.workdir import load_config, record_config, refuse_other_config


def config(**changes):
    config = ConfigDict(
        {"seed": 1, "model": {"image_size": (96, 48), "width": 8}, "runtime": {"mesh": {"data": -1, "fsdp": 1}}}
    )
    config.update_from_flattened_dict(changes)
    return config


def test_a_recorded_config_comes_back_and_is_accepted_again(tmp_path):
    workdir = tmp_path / "runs" / "new"
    refuse_other_config(workdir, config())  # nobody's yet
    record_config(workdir, config())
    assert load_config(workdir).model.to_dict() == {"image_size": [96, 48], "width": 8}  # JSON knows no tuples
    refuse_other_config(workdir, config())
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_config_json_tells_code_versions_and_devices(tmp_path):
    record_config(tmp_path, config())
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert set(recorded) == {"config", "revision", "versions", "device"}
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= set(recorded["versions"])
    assert recorded["device"] == "8 x cpu, 1 process(es)"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 2}, "seed was 1, is 2."),
        ({"model.image_size": (96, 64)}, "model.image_size was [96, 48], is [96, 64]."),
        ({"seed": 2, "model.width": 16}, "model.width was 8, is 16; seed was 1, is 2."),
    ],
)
def test_another_config_is_refused_with_what_differs(tmp_path, changes, difference):
    record_config(tmp_path, config())
    with pytest.raises(UserError) as error:
        refuse_other_config(tmp_path, config(**changes))
    assert str(error.value) == f"{tmp_path} belongs to another config: {difference} Choose another --workdir"


def test_a_key_that_one_config_lacks_counts_as_different(tmp_path):
    record_config(tmp_path, ConfigDict({"seed": 1, "old": {"key": 3}}))
    with pytest.raises(UserError, match=r"new was None, is 4; old.key was 3, is None\."):
        refuse_other_config(tmp_path, ConfigDict({"seed": 1, "new": 4}))


def test_where_a_run_computes_may_differ(tmp_path):
    record_config(tmp_path, config())
    refuse_other_config(tmp_path, config(**{"runtime.mesh.fsdp": 8}))


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config.json not found: .* is not the workdir of a run$"):
        load_config(tmp_path)
