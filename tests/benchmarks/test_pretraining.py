import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivt_jax.benchmarks import pretraining


@pytest.fixture
def commands(monkeypatch):
    """The flags of every command. Data are annotations of 20 persons; a run's R@1 on test is its number."""
    monkeypatch.setattr(pretraining, "VAL", 4)
    monkeypatch.setattr(pretraining, "FEW", 3)
    seen = []

    def fake(*arguments):
        flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments[2:])
        seen.append(flags)
        if arguments[1] == "input_pipeline.synthetic":
            folder = Path(flags["out"])
            (folder / "imgs").mkdir(parents=True, exist_ok=True)
            splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
            records = [{"id": person, "split": split} for person, split in enumerate(splits) for _ in range(2)]
            (folder / "reid_raw.json").write_text(json.dumps(records))
            return
        base = float(len(seen))
        for split, better in (("val", 5), ("test", 0)):
            folder = Path(flags["workdir"]) / split
            folder.mkdir(parents=True)
            scores = dict.fromkeys(("R1", "R5", "R10", "mAP"), base + better)
            (folder / "summary.json").write_text(json.dumps({"t2i": scores}))

    monkeypatch.setattr(pretraining, "command", fake)
    return seen


def persons(folder):
    """The ids of each split."""
    by_split = {}
    for record in json.loads((folder / "reid_raw.json").read_text()):
        by_split.setdefault(record["split"], set()).add(record["id"])
    return by_split


def test_nobody_is_in_two_parts(commands, tmp_path):
    many, few = pretraining.divide(tmp_path)
    assert persons(many) == {"train": {*range(3, 12)}, "val": {12, 13}}
    assert persons(few) == {"train": {0, 1, 2}, "val": {14, 15}, "test": {16, 17, 18, 19}}
    assert len(json.loads((few / "reid_raw.json").read_text())) == 18  # all records of nine persons
    assert (few / "imgs").resolve() == (many / "imgs").resolve() == tmp_path / "people/imgs"


def test_an_existing_division_stays(commands, tmp_path):
    _, few = pretraining.divide(tmp_path)
    (few / "reid_raw.json").write_text("[]")
    pretraining.divide(tmp_path)
    assert (few / "reid_raw.json").read_text() == "[]"


def test_every_start_is_fine_tuned_with_every_seed_and_random_weights_have_all_steps(commands, tmp_path, capsys):
    pretraining.run(SimpleNamespace(out=tmp_path, seeds=2, pretraining_steps=20, steps=7))
    trained = {Path(flags["workdir"]).name: flags for flags in commands[1:]}
    assert len(trained) == len(commands) - 1 == 3 + 2 * 4
    steps = {name: int(flags["config.train.steps"]) for name, flags in trained.items()}
    assert steps == {
        **dict.fromkeys(("pretrained-itc", "pretrained-itc_mlm", "pretrained-itc_itm_mlm"), 20),
        **{f"{name}-{seed}": 7 for name in ("itc", "itc_mlm", "itc_itm_mlm") for seed in range(2)},
        "random-0": 27, "random-1": 27,
    }  # fmt: skip
    starts = {name: flags["config.train.init_from"] for name, flags in trained.items()}
    assert {name: Path(start).name for name, start in starts.items() if start} == {
        f"{name}-{seed}": f"pretrained-{name}" for name in pretraining.PRETRAINED for seed in range(2)
    }
    assert trained["pretrained-itc"]["config"] == "configs/synth.py:pretrain_itc"
    assert trained["itc-1"]["config"] == "configs/synth.py:" and trained["itc-1"]["config.seed"] == "1"
    for name, flags in trained.items():
        assert Path(flags["config.data.root"]).name == ("many" if name.startswith("pretrained") else "few")
        assert flags["config.train.eval_every"] == flags["config.train.steps"]
    table = (tmp_path / "pretraining.md").read_text()
    assert table in capsys.readouterr().out
    means = {"random": 10, "itc": 7, "itc_mlm": 8, "itc_itm_mlm": 9}  # of runs 8 and 12, 5 and 9, ...
    for name, mean in means.items():
        assert f"| {name} | {mean + 5}.00 ± 2.83 | {mean}.00 ± 2.83 |" in table
    assert (tmp_path / "pretraining.png").exists()
