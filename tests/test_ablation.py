import json
import math
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from configs import synth
from ivt_jax import ablation
from ivt_jax.benchmarks import comparison
from ivt_jax.common.errors import UserError
from ivt_jax.cost.flops import step_cost
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.workdir import flatten

RUNS = [f"{variant}-{seed}" for seed in (0, 1) for variant in synth.TERMS]


@pytest.fixture
def stub(monkeypatch):
    """Runs end at once: a fake one writes the results of its seed, unless its workdir is in `failing`."""
    stub = SimpleNamespace(commands=[], failing=set(), cores=[], before=lambda: None, code=1)

    def run(command, stdout, stderr):
        stub.commands.append(command)
        stub.before()
        flags = dict(argument.lstrip("-").split("=", 1) for argument in command[3:])
        folder = ablation.Path(flags["workdir"])
        stdout.write("error: " * (folder.name in stub.failing) + f"what {folder.name} says\n")
        if folder.name in stub.failing:
            return SimpleNamespace(returncode=stub.code)
        base = 10 * (1 + synth.TERMS.index(folder.name.rpartition("-")[0])) + 2 * int(flags["config.seed"])
        results = {"R1": base, "R5": base + 1.5, "R10": base + 3, "mAP": base / 2, "mINP": 0}
        for split, better in (("val", 5), ("test", 0)):
            (folder / split).mkdir(parents=True, exist_ok=True)
            shown = {measure: value + better for measure, value in results.items()}
            (folder / split / "summary.json").write_text(json.dumps({"t2i": shown}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    return stub


def workdirs(stub):
    return [part.rpartition("/")[2] for command in stub.commands for part in command if part.startswith("--workdir")]


def test_every_variant_runs_with_every_seed_at_equal_steps(stub, tmp_path):
    ablation.run(tmp_path, "DATA", synth.TERMS, seeds=2, steps=7, jobs=1)
    assert workdirs(stub) == RUNS
    assert stub.commands[6] == [
        sys.executable, "-m", "ivt_jax.main", "--config=configs/synth.py:mla", f"--workdir={tmp_path}/mla-1",
        "--config.seed=1", "--config.data.root=DATA", "--config.train.steps=7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (1, "what bmm_align-0 says; run the same command again to resume"),
        (2, "what bmm_align-0 says"),  # a mistake: the same command would fail again
    ],
)
def test_a_failure_ends_it_and_the_next_call_goes_through_all_again(stub, tmp_path, code, cause):
    stub.failing, stub.code = {"bmm_align-0"}, code
    with pytest.raises(UserError, match=rf"^bmm_align, seed 0 failed, see .*bmm_align-0.log: {cause}$"):
        ablation.run(tmp_path, "DATA", synth.TERMS, seeds=2, steps=7, jobs=1)
    assert workdirs(stub) == RUNS[:3]
    stub.failing, stub.commands[:] = set(), []
    ablation.run(tmp_path, "DATA", synth.TERMS, seeds=2, steps=7, jobs=1)
    assert workdirs(stub) == RUNS  # a run that is complete says so, or refuses other steps or data


def test_runs_at_a_time_share_the_cores_and_keep_their_output(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation.os, "sched_getaffinity", lambda _: {3, 5, 8})
    monkeypatch.setattr(ablation.os, "sched_setaffinity", lambda _, cores: stub.cores.append(cores))
    both = threading.Barrier(2)  # the first two runs wait for each other: they do run at the same time
    stub.before = lambda: len(stub.commands) <= 2 and both.wait(timeout=30)
    ablation.run(tmp_path, "DATA", synth.TERMS, seeds=2, steps=7, jobs=2)
    assert sorted(workdirs(stub)) == sorted(RUNS)
    assert sorted(stub.cores) == [[3, 8], [5]]
    assert (tmp_path / "mla-1.log").read_text() == "what mla-1 says\n"
    assert "10 of 10 done" in capsys.readouterr().out


def test_the_table_has_means_and_sample_deviations():
    results = {
        "one": np.array([[3, 10, 20, 30, 5], [3, 14, 20, 33, 6], [3, 12, 20, 36, 7.0]]),
        "two": np.array([[9, 1, 2, 3, 4.0]] * 3),
    }
    # 10, 14, 12: mean 12, squares 4 + 4 over n - 1 = 2; 30, 33, 36: 9 + 9 over 2.
    assert comparison.table(results).splitlines() == [
        "| variant | val R1 | test R1 | test R5 | test R10 | test mAP |",
        "|---|---|---|---|---|---|",
        "| one | 3.00 ± 0.00 | 12.00 ± 2.00 | 20.00 ± 0.00 | 33.00 ± 3.00 | 6.00 ± 1.00 |",
        "| two | 9.00 ± 0.00 | 1.00 ± 0.00 | 2.00 ± 0.00 | 3.00 ± 0.00 | 4.00 ± 0.00 |",
        "",
        "Text to image, in percent: mean ± sample standard deviation over 3 seeds.",
    ]


def test_differences_are_taken_seed_by_seed_from_the_first_variant():
    one, two = np.zeros((3, 5)), np.zeros((3, 5))
    one[:, 1], two[:, 1] = [10, 14, 12], [13, 15, 17]
    two[:, 4] = -1.5
    # 3, 1, 5: mean 3, deviation 2; 4.3027 is the 97.5% quantile of Student's t at two degrees of freedom,
    # 4.3027 * 2 / sqrt(3) = 4.968.
    none = "+0.00 (+0.00 to +0.00)"
    assert comparison.differences({"one": one, "two": two}).splitlines() == [
        "| more than one | val R1 | test R1 | test R5 | test R10 | test mAP |",
        "|---|---|---|---|---|---|",
        f"| two | {none} | +3.00 (-1.97 to +7.97) | {none} | {none} | -1.50 (-1.50 to -1.50) |",
        "",
        "Differences with the same seed: mean and 95% interval over 3 seeds.",
    ]


def test_one_seed_has_no_deviation():
    lines = comparison.tables({"two": np.array([[9, 1, 2, 3, 4.0]])}).splitlines()
    assert lines[2:] == ["| two | 9.00 | 1.00 | 2.00 | 3.00 | 4.00 |", "", "Text to image, in percent: one seed."]


def test_the_help_has_the_defaults_the_variants_and_the_command_for_the_data():
    text = ablation.make_parser().format_help()
    for words in ("below (terms)", "table and plot (runs/ablation)", "(data/pedes-synth-few)", ablation.DATA):
        assert words in " ".join(text.split())
    assert "\n  towers: mla, two_towers\n" in text and "\n  losses: full, sdm, itc, tal\n" in text


def test_a_missing_dataset_is_refused_before_any_run(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", f"--out={tmp_path}/out", f"--root={tmp_path}/none"])
    assert ablation.main() == 2
    expected = (
        f"error: --root: the folder {tmp_path}/none does not exist; make the data first, as with {ablation.DATA}\n"
    )
    assert capsys.readouterr().err == expected
    assert not stub.commands and not (tmp_path / "out").exists()


def test_a_folder_where_checkpoints_would_be_lost_is_refused_before_any_run(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", f"--out={tmp_path}/[x]"])
    assert ablation.main() == 2
    assert f'error: {tmp_path}/[x]: a path with "[" is not supported' in capsys.readouterr().err
    assert not (tmp_path / "[x]").exists()


def test_the_command_writes_table_and_plot(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", f"--out={tmp_path}", "--seeds=2", f"--root={tmp_path}"])
    ablation.main()
    table = (tmp_path / "terms.md").read_text()
    assert (
        "| full | 56.00 ± 1.41 | 51.00 ± 1.41 | 52.50 ± 1.41 | 54.00 ± 1.41 | 25.50 ± 0.71 |" in table
    )  # seeds give 50 and 52
    assert "| full | +40.00 (+40.00 to +40.00) |" in table  # more than baseline, with either seed
    assert table in capsys.readouterr().out
    assert (tmp_path / "terms.png").read_bytes().startswith(b"\x89PNG")


def test_one_tower_and_two_have_equal_parameters_images_and_steps():
    """Heads of reconstruction and the mask token do not count: matching alone trains none of them."""
    one, two = (synth.get_config(name) for name in ablation.STUDIES["towers"])

    def count(config):
        unused = ("word_head/", "patch_head/", "image_embedding/mask_token", "similarity/")
        shapes = parameter_shapes(IVTConfig.from_config(config.model)).items()
        return sum(math.prod(shape) for path, shape in shapes if not path.startswith(unused))

    assert count(two) == pytest.approx(count(one), rel=0.05)
    values, others = flatten(one.to_dict()), flatten(two.to_dict())
    different = {key for key in values if values[key] != others[key]}
    assert different == {"model.towers", "model.mlp_ratio"} | {
        f"model.text.{key}" for key in ("width", "depth", "num_heads", "mlp_ratio")
    }
    assert step_cost(two).forward == pytest.approx(step_cost(one).forward, rel=0.2)
