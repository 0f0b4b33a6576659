"""The command as a user types it: one short training, everything that follows it, and what is said of mistakes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import synth
from input_pipeline.datasets import parse_datasets
from input_pipeline.perturbations import PERTURBATIONS
from ivt_jax import main, search
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.images import load_image
from ivt_jax.encoding.pixels import normalise
from ivt_jax.evaluation.cross_domain import cross_domain
from ivt_jax.evaluation.run import evaluate
from ivt_jax.export.run import export
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import Checkpoints, restore_params
from ivt_jax.run.workdir import config_of_run, load_config
from ivt_jax.training import loop
from tests.conftest import QUICKLY

ROOT = Path(__file__).parent.parent
# A tower that compiles in seconds; matching of sentences alone. What the terms compute is tested elsewhere.
TINY = [
    "--config.data.name=cuhk_pedes", "--config.data.batch_size=8", "--config.model.image_size=(24,12)",
    "--config.model.patch_size=6", "--config.model.stride=6", "--config.model.width=8", "--config.model.depth=1",
    "--config.model.num_heads=2", "--config.text.length.sentence=16", "--config.mla.levels=('sentence',)",
    "--config.mla.views=1", "--config.bmm.align=off", "--config.bmm.rows=0", "--config.bmm.word_weight=0.0",
    "--config.bmm.patch_weight=0.0", "--config.data.sampling=uniform", "--config.train.steps=2",
    "--config.train.eval_every=1", "--config.runtime.log_every=1", "--config.runtime.eval_batch_size=8",
]  # fmt: skip


def start(*arguments):
    """`python -m ivt_jax.main` on one CPU device, which compiles without optimisation, as the tests themselves."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")  # users have not set it
    command = [sys.executable, "-m", "ivt_jax.main", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(pedes_root, tmp_path_factory):
    """The workdir of a run of two steps, and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["--config=configs/synth.py", f"--workdir={workdir}", f"--config.data.root={pedes_root}", *TINY]
    code, out, err = finish(start(*arguments))
    assert code == 0, err
    return workdir, out, err


def test_a_run_says_what_it_does_and_nothing_else(trained):
    workdir, out, err = trained
    patterns = [
        r"warning: .*/reid_raw.json is not as published: train 6 18 36 instead of 11,003 34,054 68,126, .*",
        r"cuhk_pedes: preparing train: 18 images in .* s",
        r"cuhk_pedes: preparing val: 6 images in .* s",
        r"cuhk_pedes: preparing test: 6 images in .* s",
        rf"training from step 0 of 2: {workdir}",
        r"compiling the training step, or loading it from the compilation cache",
        r"training step ready in \d+:\d\d",
        r"step 1/2  grad_norm .*  loss .*  mla .*  \d+ pairs/s  input \d+%  \d+:\d\d left",
        r"step 1: val t2i/R1 .* i2t/mINP .*",
        r"step 2/2  grad_norm .*  loss .*  mla .*  \d+ pairs/s  input \d+%  0:00 left",
        r"step 2: val t2i/R1 .* i2t/mINP .*",
        r"test, step \d: t2i/R1 .*  t2i/mINP .*",
        rf"report: {workdir}/report.html",
    ]
    assert out == ""
    lines = err.splitlines()
    if "not as published" not in lines[0]:  # prepared by another test already
        patterns = patterns[4:]
    assert len(lines) == len(patterns), err
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_run_leaves_its_files(trained):
    workdir = trained[0]
    names = {path.name for path in workdir.iterdir() if not path.name.startswith("events.out.tfevents")}
    texts = {"config.json", "parameters.txt", "sharding.txt", "metrics.jsonl", "report.html", "lock"}
    assert names == texts | {"checkpoints", "val", "test"}
    assert re.search(r"\| blocks/attn/qkv/kernel .*\(1, 8, 24\)", (workdir / "parameters.txt").read_text())
    assert (workdir / "sharding.txt").read_text().startswith("mesh: data 1 x fsdp 1, ")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    for split in ("val", "test"):
        files = {path.name for path in (workdir / split).iterdir()}
        assert files == {"summary.json", "embeddings.npz", "items.json", "queries.jsonl"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line, "val/t2i/R1" in line) for line in lines] == [
        (1, True, False), (1, False, True), (2, True, False), (2, False, True),
    ]  # fmt: skip
    summary = json.loads((workdir / "test/summary.json").read_text())
    assert (summary["queries"], summary["gallery"], summary["persons"]) == (12, 6, 2)
    best = max((line["val/t2i/R1"], line["step"]) for line in lines if "val/t2i/R1" in line)
    assert summary["step"] == best[1]  # of equals the latest
    config = load_config(workdir)
    assert (config.data.batch_size, list(config.model.image_size)) == (8, [24, 12])
    assert "<svg" in (workdir / "report.html").read_text()


def test_evaluate_prints_a_table_and_where_all_figures_are(trained, pedes_root, tmp_path):
    workdir = trained[0]

    def summaries():
        return {split: json.loads((workdir / split / "summary.json").read_text()) for split in ("val", "test")}

    before = summaries()
    moved = tmp_path / "moved"
    moved.symlink_to(pedes_root)  # the data may have moved; the keys that are not given are the run's own
    arguments = ["--config=configs/synth.py", "--config.data.name=cuhk_pedes", f"--config.data.root={moved}"]
    code, out, err = finish(start(*arguments, f"--workdir={workdir}", "--mode=evaluate"))
    assert (code, err) == (0, f"report: {workdir / 'report.html'}\n")
    assert before == summaries()
    lines = out.splitlines()
    assert len(lines) <= 9
    for split in ("val", "test"):
        scores, interval = before[split]["t2i"], before[split]["interval"]["t2i"]["R1"]
        figures = f"{scores['R1']:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
        (line,) = [line for line in lines if line.startswith(f"{split}, step {before[split]['step']}, text to image")]
        assert figures in line and line.split()[-2:] == [f"{scores['mAP']:.2f}", f"{scores['mINP']:.2f}"]
    assert lines[-1] == f"all figures: {workdir / 'val/summary.json'} {workdir / 'test/summary.json'}"
    assert json.loads((workdir / "test/items.json").read_text())["root"] == str(moved)


def test_the_summary_of_test_has_best_last_and_robustness(trained):
    summary = json.loads((trained[0] / "test/summary.json").read_text())
    assert summary["selected_on"] == "val" and summary["last"]["step"] == 2
    if summary["step"] == 2:
        assert summary["last"]["t2i"] == summary["t2i"]
    assert set(summary["robustness"]) == set(PERTURBATIONS)
    for row in summary["robustness"].values():
        assert row["R1"] == pytest.approx(summary["t2i"]["R1"] + row["change"])
        assert row["interval"][0] <= row["change"] <= row["interval"][1]
    val = json.loads((trained[0] / "val/summary.json").read_text())
    assert summary["calibration"]["threshold"] == val["calibration"]["threshold"]
    assert "robustness" not in val and "last" not in val


def test_runs_are_tested_on_other_datasets(trained, pedes_root, tmp_path):
    """The same pictures under two names: the row of the run itself repeats its own test figures."""
    workdir = trained[0]
    arguments = ["--config=configs/synth.py", "--config.data.name=cuhk_pedes", f"--workdir={workdir}"]
    datasets = f"--datasets=cuhk:{pedes_root},synth:{pedes_root}"
    code, out, err = finish(start(*arguments, "--mode=evaluate", datasets, f"--runs={workdir}"))
    assert code == 0, err
    summary = json.loads((workdir / "test/summary.json").read_text())
    cells = json.loads((workdir / "cross_domain.json").read_text())
    pairs = [(cell["trained_on"], cell["tested_on"]) for cell in cells]  # a workdir named twice is one row
    assert pairs == [("CUHK-PEDES", "CUHK-PEDES"), ("CUHK-PEDES", "PEDES-Synth")]
    for cell in cells:
        assert cell["t2i"] == summary["t2i"] and cell["i2t"] == summary["i2t"] and cell["step"] == summary["step"]
    figures = f"{summary['t2i']['R1']:.2f} / {summary['t2i']['mAP']:.2f}"
    assert out.splitlines()[0].split() == ["trained", "on", "CUHK-PEDES", "PEDES-Synth"]
    assert out.splitlines()[1].count(figures) == 2 and "CUHK-PEDES" in out.splitlines()[1]
    assert "Scores across datasets" in (workdir / "report.html").read_text()
    (workdir / "cross_domain.json").unlink()


def test_the_gallery_can_be_searched(trained, pedes_root, capsys):
    assert search.main([f"--workdir={trained[0]}", f"--images={pedes_root}/imgs", "--top=3", "a red shirt"]) == 0
    *lines, told = capsys.readouterr().out.partition("no fit of phrases")[0].splitlines()
    assert re.search(r"\(from validation, with 6 pictures\)$", told)
    assert [re.match(r" +(\d)  [+-][01]\.\d{4}  .*/imgs/\d\d_\d\.jpg$", line)[1] for line in lines] == ["1", "2", "3"]


def test_an_export_is_restored_by_the_lines_of_the_readme(trained, pedes_root):
    workdir = trained[0]
    export(workdir, ["orbax", "safetensors"])
    (code,) = re.findall(r"```python\n(import orbax.*?)```", (ROOT / "docs/weights.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 6
    code = code.replace("/path/to/runs/cuhk", str(workdir)).replace("runs/cuhk", str(workdir))
    items = json.loads((workdir / "test/items.json").read_text())
    pictures = np.stack([load_image(pedes_root / "imgs" / path, (24, 12)) for path in items["paths"]])
    names = {"images": normalise(pictures, IVTConfig())}
    exec(code, names)
    embeddings = names["embeddings"] / np.linalg.norm(names["embeddings"], axis=-1, keepdims=True)
    with np.load(workdir / "test/embeddings.npz") as expected:
        np.testing.assert_allclose(embeddings, expected["image"], atol=2e-3)  # Pillow's pixels against TensorFlow's
    jax.tree.map(np.testing.assert_array_equal, names["params"], restore_params(workdir).params)
    before = (workdir / "export/params/_METADATA").stat().st_mtime_ns
    assert export(workdir, ["orbax"]) == workdir / "export"
    assert (workdir / "export/params/_METADATA").stat().st_mtime_ns == before


@pytest.mark.parametrize("use", ["train", "evaluate", "cross_domain", "search", "export"])
def test_another_tokenizer_is_refused_wherever_a_run_is_used(trained, pedes_root, tmp_path, monkeypatch, use):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir, ignore=shutil.ignore_patterns("export"))
    record = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**record, "tokenizer": "0123456789ab" + "0" * 52}))
    config = load_config(workdir)
    actions = {
        "train": lambda: loop.train_and_evaluate(config, workdir),
        "evaluate": lambda: evaluate(workdir, config),
        "cross_domain": lambda: cross_domain([workdir], parse_datasets([f"cuhk:{pedes_root}"], "--datasets"), config),
        "search": lambda: search.index_folder(pedes_root / "imgs", workdir).__enter__(),
        "export": lambda: export(workdir, ["orbax"]),
    }
    told = (
        rf'^{workdir} was made with tokenizer 0123456789ab, but text.tokenizer="" is now {record["tokenizer"][:12]}: '
    )
    with pytest.raises(UserError, match=told):
        actions[use]()
    assert not (workdir / "export").exists()


def test_resuming_may_be_elsewhere_but_not_with_another_config(trained, capsys):
    workdir = trained[0]
    before = (workdir / "config.json").read_bytes()
    config = load_config(workdir)
    config.runtime.log_every = 7
    loop.train_and_evaluate(config, workdir)  # eight devices instead of one
    assert capsys.readouterr().err == f"complete: 2 steps, tested; report: {workdir}/report.html\n"
    config.train.steps = 3
    with pytest.raises(UserError, match=r"belongs to another config: train.steps was 2, is 3\."):
        loop.train_and_evaluate(config, workdir)
    assert (workdir / "config.json").read_bytes() == before
    assert Checkpoints(workdir).latest_step() == 2


@pytest.mark.parametrize(
    "action",
    [lambda workdir: config_of_run(workdir, synth.get_config(), ()), lambda workdir: export(workdir, ["orbax"])],
)
def test_a_folder_without_a_run_is_one_line(action, tmp_path):
    with pytest.raises(
        UserError, match=f"^{tmp_path}/config.json not found: {tmp_path} is not the workdir of a run; a model on"
    ):
        action(tmp_path)


# ---- mistakes, each in a process of its own, three at a time

SYNTH = "--config=configs/synth.py"
INFINITE = [f"--config.optimizer.{name}=1e30" for name in ("start", "learning_rate", "bias_learning_rate")]
MISTAKES = {
    "variant": (["--config=configs/cuhk.py:fast"], "error: this config has no variant :fast; it has (none), :release"),
    "key": ([SYNTH, "--config.mla.wieght=2"],
            "error: the config has no key 'mla.wieght'; configs/default.py lists all."),
    "type": ([SYNTH, "--config.train.steps=many"], "train.steps"),
    "flag": ([SYNTH, "--workdri=x"], "Unknown command line flag 'workdri'"),
    "mode": ([SYNTH, "--mode=test"], "--mode"),
    "rest": ([SYNTH, "train"], "unexpected arguments: train"),
    "file": (["--config=configs/cuhk.clip"],
             "error: --config: configs/cuhk.clip not found; a variant follows a colon, as in configs/cuhk.py:release"),
    "none": ([], "error: --config is required, such as --config=configs/cuhk.py"),
    "export": (["--mode=export", "--workdir=WORKDIR"],
               "error: --config is required: the config that the run was started with, such as --config=configs/"),
    "flag alone": (["--config.data.root=x"], "error: --config is required, such as"),
    "fault": ([SYNTH, "--config.optimizer.name=lion", "--dry_run"], 'optimizer.name is "lion"; expected one of sgd'),
    "number": ([SYNTH, "--mode=evaluate", "--config.runtime.eval_batch_size=0"],
               "error: runtime.eval_batch_size is 0; expected 1 or more"),
    "negative": ([SYNTH, "--config.optimizer.learning_rate=-1", "--dry_run"],
                 "error: optimizer.learning_rate is -1.0; expected 0 or more"),
    "tuple": ([SYNTH, "--config.model.image_size=(72,36)", "--config.model.image_size=(48,20)", "--dry_run"],
              "model.image_size (48, 20): patches of 12 at stride 12 do not cover the last 8 of 20 columns; choose "
              "(48, 12) or (48, 24)"),
    "data": (["--config=configs/rstp.py", "--workdir=WORKDIR", "--config.data.root=nowhere"],
             "nowhere/data_captions.json not found: --config.data.root expects the RSTPReid folder"),
    "path": ([SYNTH, "--workdir=WORKDIR/[x]\nrun", "--config.data.root=ROOT", *TINY],
             r'[x]\nrun: a path with "[" is not supported for checkpoints and exports; rename'),
    "infinite": ([SYNTH, "--workdir=WORKDIR/run", "--config.data.root=ROOT", *TINY, "--config.train.steps=9",
                  "--config.train.eval_every=9", *INFINITE], "not finite: "),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(pedes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    replace = {"WORKDIR": str(folder), "ROOT": str(pedes_root)}
    finished = {}
    names = list(MISTAKES)
    for first in range(0, len(names), 3):
        processes = {}
        for name in names[first : first + 3]:
            arguments = MISTAKES[name][0]
            for word, place in replace.items():
                arguments = [argument.replace(word, place) for argument in arguments]
            processes[name] = start(*arguments)
        finished |= {name: finish(process) for name, process in processes.items()}
    return finished


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistakes, name):
    code, out, err = mistakes[name]
    assert code == 2 and out == ""
    *before, last = err.splitlines()
    assert last.startswith("error: ") and MISTAKES[name][1] in last
    if name == "infinite":
        assert re.search(r"step \d: not finite: .*loss.*mla.*; 1 such steps in a row \(train.max_bad_steps\)", last)
        assert "Traceback" not in err
    else:
        assert before == []


# ---- flags


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/cuhk.py", "runs/cuhk"),
        ("configs/cuhk.py:release", "runs/cuhk-release"),
        ("/elsewhere/my.config.py:a", "runs/my.config-a"),
    ],
)
def test_the_workdir_is_named_after_the_config(config, workdir):
    assert main.default_workdir(config) == workdir


class Flag:
    def __init__(self, value, present=False):
        self.value, self.present = value, present


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, None),
        (
            {"COORDINATOR": "host:1", "NUM_PROCESSES": 4, "PROCESS_ID": 2},
            ("host:1", 4, 2, {"heartbeat_timeout_seconds": 33}),
        ),
        ({"DISTRIBUTED": True}, (None, None, None, {"heartbeat_timeout_seconds": 33})),
    ],
)
def test_processes_join_as_the_flags_say(monkeypatch, flags, expected):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append((*args, more)))
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "DISTRIBUTED"):
        monkeypatch.setattr(main, name, Flag(flags.get(name)))
    monkeypatch.setattr(main.watchdog, "answer_abort", lambda: None)
    monkeypatch.setattr(main.preemption, "share", lambda: None)
    config = synth.get_config()
    config.runtime.heartbeat = 33
    main.start_distributed(config)
    assert calls == ([expected] if expected else [])


@pytest.mark.parametrize(("name", "least"), [("devices", 1), ("num_processes", 1), ("process_id", 0)])
def test_numbers_of_devices_and_processes_have_a_bound(name, least):
    parse = main.flags.FLAGS[name].parser.parse
    assert parse(str(least)) == least
    with pytest.raises(ValueError):
        parse(str(least - 1))


def test_a_process_is_numbered_below_the_number_of_processes(monkeypatch):
    for name, value in (("COORDINATOR", "host:1"), ("NUM_PROCESSES", 2), ("PROCESS_ID", 2)):
        monkeypatch.setattr(main, name, Flag(value))
    with pytest.raises(
        UserError, match=r"^--process_id=2 is not below --num_processes=2: processes are numbered from 0$"
    ):
        main.start_distributed(synth.get_config())


@pytest.mark.parametrize("given", [("COORDINATOR",), ("NUM_PROCESSES", "PROCESS_ID"), ("COORDINATOR", "PROCESS_ID")])
def test_flags_of_a_process_go_together(monkeypatch, given):
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "DISTRIBUTED"):
        monkeypatch.setattr(main, name, Flag(0 if name in given else None))
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id go together"):
        main.start_distributed(synth.get_config())


@pytest.mark.parametrize(
    ("mode", "dry", "plan", "topology", "called"),
    [
        ("train", False, False, None, "train a"),
        ("evaluate", False, False, None, "evaluate a"),
        ("export", False, False, None, "export a ['orbax']"),
        ("train", True, False, None, "dry on 4"),
        ("train", True, True, None, "plan"),
        ("train", True, False, "v5e:2x2", "set tpu, dry for v5e:2x2"),
        ("train", True, True, "h200:8", "set cuda, plan for h200:8"),
    ],
)
def test_mode_and_dry_run_choose_what_happens(monkeypatch, capsys, mode, dry, plan, topology, called):
    calls = []
    for name, value in {"CONFIG": synth.get_config(), "WORKDIR": "a", "MODE": mode, "DRY_RUN": dry}.items():
        monkeypatch.setattr(main, name, Flag(value))
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "DISTRIBUTED", "DATASETS", "RUNS"):
        monkeypatch.setattr(main, name, Flag(None))
    monkeypatch.setattr(loop, "train_and_evaluate", lambda config, workdir: calls.append(f"train {workdir}"))
    monkeypatch.setattr(main.config_flags, "get_override_values", lambda _: {})
    monkeypatch.setattr("ivt_jax.run.workdir.config_of_run", lambda workdir, config, given: config)
    monkeypatch.setattr(main, "evaluate", lambda workdir, config: calls.append(f"evaluate {workdir}"))
    monkeypatch.setattr(main, "FORMATS", Flag(["orbax"], present=mode == "export"))
    monkeypatch.setattr(
        "ivt_jax.export.run.export", lambda workdir, formats: calls.append(f"export {workdir} {formats}")
    )
    monkeypatch.setattr(main, "DEVICES", Flag(4))
    monkeypatch.setattr(main, "PLAN", Flag(plan))
    monkeypatch.setattr("ivt_jax.cost.dry_run.dry_run", lambda config, devices: calls.append(f"dry on {devices}"))
    monkeypatch.setattr("ivt_jax.cost.dry_run.dry_run_plan", lambda config: calls.append("plan") or ["a table"])
    monkeypatch.setattr(main, "TOPOLOGY", Flag(topology))
    for function, word in (("dry_run_topology", "dry"), ("dry_run_topology_plan", "plan")):
        monkeypatch.setattr(
            f"ivt_jax.cost.dry_run.{function}",
            lambda config, topology, word=word: calls.append(f"{word} for {topology.name}") or ["a text"],
        )
    monkeypatch.setattr(main, "set_environment", lambda config, platform: platform and calls.append(f"set {platform}"))
    main.main(["main"])
    assert calls == called.split(", ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"MODE": "train", "DATASETS": ["icfg:a"]}, "--datasets goes with --mode=evaluate"),
        ({"MODE": "evaluate", "RUNS": ["runs/a"]}, "--runs goes with --datasets"),
        ({"MODE": "evaluate", "FORMATS": ["orbax"]}, "--formats goes with --mode=export"),
        ({"PLAN": True}, "--plan, --devices and --topology go with --dry_run"),
        ({"DEVICES": 4}, "--plan, --devices and --topology go with --dry_run"),
        ({"TOPOLOGY": "v5e:4x4"}, "--plan, --devices and --topology go with --dry_run"),
        ({"TOPOLOGY": ""}, "--plan, --devices and --topology go with --dry_run"),  # of an empty variable
        ({"DRY_RUN": True, "TOPOLOGY": "v5e:4x4", "DEVICES": 4}, "--topology has its own number of devices"),
        ({"DRY_RUN": True, "PLAN": True, "DEVICES": 4}, "--plan has its own numbers of devices"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(monkeypatch, flags, message):
    for name in ("MODE", "DATASETS", "RUNS", "FORMATS", "DRY_RUN", "PLAN", "DEVICES", "TOPOLOGY"):
        monkeypatch.setattr(main, name, Flag(flags.get(name), present=name in flags))
    with pytest.raises(UserError, match=message):
        main.main(["main"])
