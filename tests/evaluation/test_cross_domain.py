"""The matrix of runs and datasets, with stand-ins for models and data."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import icfg, joint, rstp
from input_pipeline.datasets import parse_datasets
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation import cross_domain
from ivt_jax.evaluation.protocols import Embeddings

RUNS = {"runs/icfg": icfg.get_config(), "runs/rstp": rstp.get_config(), "runs/joint": joint.get_config()}
# Two persons, an image of each. A run finds both on its own dataset, and the first alone elsewhere.
RIGHT, HALF = np.eye(2, dtype=np.float32), np.array([[1, 0], [1, 0]], np.float32)


@pytest.fixture
def opened(monkeypatch):
    """What was opened: (run, dataset, root, split)."""
    opened = []

    def restore_params(workdir):
        config = RUNS[str(workdir)]
        config.text.tokenizer = ""
        return SimpleNamespace(config=config, params=str(workdir), step=7)

    def open_split(config, split):
        assert config.data.identities
        return SimpleNamespace(name=config.data.name, root=config.data.root, split=split, person_ids=np.arange(2))

    def embed_split(model, params, source, tokenizer, config):
        opened.append((params, source.name, source.root, source.split, config.runtime.eval_batch_size))
        text = RIGHT if RUNS[params].data.name == source.name else HALF
        persons = np.array([1, 2])
        return Embeddings(RIGHT, text, persons, persons, np.arange(2), np.ones(2, int))

    for name, value in (
        ("restore_params", restore_params), ("embed_split", embed_split),
        ("folder_tokenizer", lambda workdir, config: None),
    ):  # fmt: skip
        monkeypatch.setattr(cross_domain, name, value)
    monkeypatch.setattr(cross_domain.opening, "open_split", open_split)
    return opened


def test_every_run_is_tested_on_every_dataset(opened, capsys):
    here = icfg.get_config()
    here.runtime.eval_batch_size = 5
    datasets = parse_datasets(["icfg:a", "rstp:b"], "--datasets")
    cells = cross_domain.cross_domain([Path("runs/icfg"), Path("runs/rstp"), Path("runs/icfg")], datasets, here)
    assert opened == [
        ("runs/icfg", "icfg_pedes", "a", "test", 5), ("runs/icfg", "rstp_reid", "b", "test", 5),
        ("runs/rstp", "icfg_pedes", "a", "test", 5), ("runs/rstp", "rstp_reid", "b", "test", 5),
    ]  # fmt: skip
    assert [cell["t2i"]["R1"] for cell in cells] == [100, 50, 50, 100]
    assert [bool(cell["warning"]) for cell in cells] == [False, True, True, False]
    assert cells[0] | {"t2i": 0, "i2t": 0} == {
        "run": "runs/icfg", "trained_on": "ICFG-PEDES", "tested_on": "ICFG-PEDES", "step": 7, "queries": 2,
        "gallery": 2, "t2i": 0, "i2t": 0, "warning": "",
    }  # fmt: skip
    lines = cross_domain.matrix(cells).splitlines()
    assert lines[0].split() == ["trained", "on", "ICFG-PEDES", "RSTPReid"]
    # Of two, the second caption finds the wrong image first: AP 1 and 1/2.
    assert lines[1].split() == ["ICFG-PEDES", "(runs/icfg)", "100.00", "/", "100.00", "50.00", "/", "75.00"]
    assert lines[2].split() == ["RSTPReid", "(runs/rstp)", "50.00", "/", "75.00", "100.00", "/", "100.00"]
    assert lines[4].startswith("warning: ICFG-PEDES and RSTPReid take their pictures from MSMT17") and len(lines) == 5


def test_a_run_on_several_datasets_is_warned_of_for_what_it_shares(opened, monkeypatch):
    monkeypatch.setattr(RUNS["runs/joint"].data, "identities", False)
    datasets = parse_datasets(["cuhk:a", "icfg:b", "rstp:c"], "--datasets")
    cells = cross_domain.cross_domain([Path("runs/joint")], datasets, icfg.get_config())
    assert [cell["trained_on"] for cell in cells] == ["CUHK-PEDES + ICFG-PEDES + RSTPReid"] * 3
    assert [bool(cell["warning"]) for cell in cells] == [False, True, True]
    assert len(cross_domain.matrix(cells).splitlines()) == 4


def test_a_run_without_identities_is_tested_by_persons(opened, monkeypatch):
    asked = []
    config = icfg.get_config()
    config.data.identities = False
    monkeypatch.setitem(RUNS, "runs/pretrain", config)
    open_split = cross_domain.opening.open_split
    monkeypatch.setattr(
        cross_domain.opening, "open_split", lambda *given: asked.append(given[0].data.identities) or open_split(*given)
    )
    cross_domain.cross_domain([Path("runs/pretrain")], parse_datasets(["cuhk:c"], "--datasets"), config)
    assert asked == [True]


def test_other_pairs_of_datasets_are_not_warned_of(opened):
    (cell,) = cross_domain.cross_domain(
        [Path("runs/icfg")], parse_datasets(["cuhk:c"], "--datasets"), icfg.get_config()
    )
    assert cell["warning"] == "" and "warning" not in cross_domain.matrix([cell])


@pytest.mark.parametrize("given", ["icfg", "icfg:", "market:data", ":data"])
def test_a_dataset_is_named_with_its_folder(given):
    with pytest.raises(UserError, match=rf"--datasets={given}: expected DATASET:DIR with one of cuhk, icfg, rstp"):
        parse_datasets(["cuhk:data", given], "--datasets")
