"""A run on three datasets: trained, killed and resumed, validated and tested on each, reported, exported."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import joint
from input_pipeline import opening, pipeline
from input_pipeline.datasets import parse_datasets
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.cross_domain import cross_domain, matrix
from ivt_jax.evaluation.run import evaluate, score_table
from ivt_jax.export.run import export
from ivt_jax.retrieval.verdict import read_calibration
from ivt_jax.run.workdir import config_of_run, load_record
from ivt_jax.training import loop, validation
from tests.test_variants import VARIANTS, compiled_once, joint_config, read_json, write_three  # noqa: F401
from tests.training.test_loop import KilledError, Patient, killed_after, metrics

SCORED = {name: VARIANTS[title].scored for name, title in
          (("cuhk", "CUHK-PEDES"), ("icfg", "ICFG-PEDES"), ("rstp", "RSTPReid"))}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of a run in one go, and of one that was killed at step 3 after a checkpoint at 2, and resumed."""
    roots = write_three(tmp_path_factory.mktemp("data"))
    changes = {"train.steps": 4, "train.eval_every": 2, "data.weights": (1, 2, 1)}
    config = joint_config(roots, **changes)
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    batches, programs = pipeline.train_batches, []

    with pytest.MonkeyPatch.context() as patch:
        build, said = loop.build_program, []
        patch.setattr(loop, "Checkpoints", Patient)
        patch.setattr(loop, "build_program", lambda *args: programs.append(build(*args)) or programs[-1])
        patch.setattr(loop.Progress, "say", lambda self, line, transient=False: said.append(line))
        loop.train_and_evaluate(config, whole)
        lines = said.copy()
        patch.setattr(pipeline, "train_batches", killed_after(3, batches))
        with pytest.raises(KilledError):
            loop.train_and_evaluate(config, resumed)
        patch.setattr(pipeline, "train_batches", batches)
        moved = {name: root.rename(root.with_name(f"{name} moved")) for name, root in roots.items()}
        resumed_config = joint_config(moved, **changes)  # folders may change
        loop.train_and_evaluate(resumed_config, resumed)
    logged = {"said": lines, "target": programs[0].target}  # of the run in one go
    return SimpleNamespace(whole=whole, resumed=resumed, config=resumed_config, roots=moved, **logged)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs):
    states = [Patient(workdir).restore(4, runs.target) for workdir in (runs.whole, runs.resumed)]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), *states)
    whole, resumed = (metrics((workdir / "metrics.jsonl").read_text()) for workdir in (runs.whole, runs.resumed))
    assert whole == resumed and [line["step"] for line in whole] == [1, 2, 2, 3, 4, 4]
    for split in ("test", "test-cuhk", "test-icfg", "test-rstp", "val", "val-icfg"):
        assert read_json(runs.whole / split / "summary.json") == read_json(runs.resumed / split / "summary.json")


def test_the_mean_of_the_validations_is_logged_beside_each(runs):
    lines = [line for line in metrics((runs.whole / "metrics.jsonl").read_text()) if "val/t2i/R1" in line]
    for line in lines:
        for name in ("t2i/R1", "t2i/mAP", "i2t/R5"):
            each = [line[f"val.{label}/{name}"] for label in SCORED]
            assert line[f"val/{name}"] == pytest.approx(sum(each) / 3)
        shown = f"step {line['step']}: val t2i/R1 {line['val/t2i/R1']:.1f}  "
        labels = ", ".join(f"{label} {line[f'val.{label}/t2i/R1']:.1f}" for label in SCORED)
        assert any(text.startswith(shown) and text.endswith(f"  ({labels})") for text in runs.said)
    assert any(
        text.startswith("warning: ICFG-PEDES and RSTPReid take their pictures from MSMT17") for text in runs.said
    )


def test_each_dataset_is_validated_and_tested_by_itself(runs):
    for split in ("val", "test"):
        summaries = {label: read_json(runs.whole / f"{split}-{label}/summary.json") for label in SCORED}
        for label, summary in summaries.items():
            counts = summary["queries"], summary["gallery"], summary["persons"]
            assert counts == SCORED[label][split] and (runs.whole / f"{split}-{label}/queries.jsonl").exists()
        mean = read_json(runs.whole / split / "summary.json")
        assert mean["parts"] == ["cuhk", "icfg", "rstp"] and "interval" not in mean
        assert mean["i2t"]["mAP"] == pytest.approx(np.mean([s["i2t"]["mAP"] for s in summaries.values()]))
        assert mean["queries"] == sum(SCORED[label][split][0] for label in SCORED)
    assert mean["last"]["step"] == 4
    # One calibration for all, which search reads: of galleries of 3, 5 and 3 images, by 6, 5 and 6 queries.
    calibration = read_calibration(runs.whole)
    assert calibration._asdict() == read_json(runs.whole / "val-rstp/summary.json")["calibration"]
    assert calibration.gallery == round((6 * 3 + 5 * 4 + 6 * 3) / 17)


def test_the_run_records_each_dataset_and_belongs_to_them(runs, tmp_path):
    record = load_record(runs.resumed)
    assert [*record["annotations"]] == [*record["pictures"]] == ["cuhk", "icfg", "rstp"]
    assert record["config"]["data"]["sources"] == [f"{name}:{root}" for name, root in runs.roots.items()]
    config = runs.config.copy_and_resolve_references()
    config.data.sources = config.data.sources[::-1]
    with pytest.raises(UserError, match=r"data.sources was \['cuhk', 'icfg', 'rstp'\], is \['rstp', 'icfg', 'cuhk'\]"):
        loop.train_and_evaluate(config, runs.resumed)
    shutil.copytree(runs.roots["rstp"], tmp_path / "rstp")
    file = tmp_path / "rstp/data_captions.json"
    file.write_text(file.read_text() + "\n")
    config = runs.config.copy_and_resolve_references()
    config.data.sources = (*config.data.sources[:2], f"rstp:{tmp_path}/rstp")
    with pytest.raises(UserError, match=rf"was trained with other annotations than {file}. Choose another --workdir"):
        loop.train_and_evaluate(config, runs.resumed)


def test_a_complete_run_is_left_as_it_is(runs, capsys):
    before = (runs.resumed / "report.html").stat().st_mtime_ns
    loop.train_and_evaluate(runs.config, runs.resumed)
    assert "complete: 4 steps, tested" in capsys.readouterr().err
    assert (runs.resumed / "report.html").stat().st_mtime_ns == before


def test_the_report_has_each_dataset_and_their_mean(runs):
    page = (runs.resumed / "report.html").read_text()
    assert "<h1>IVT on CUHK-PEDES + ICFG-PEDES + RSTPReid</h1>" in page
    for label, title in (("cuhk", "CUHK-PEDES"), ("icfg", "ICFG-PEDES"), ("rstp", "RSTPReid")):
        assert page.count(f'<h2 id="{label}">{title}</h2>') == 1
        summary = read_json(runs.resumed / f"test-{label}/summary.json")
        r1, interval = summary["t2i"]["R1"], summary["interval"]["t2i"]["R1"]
        row = '<a href="#{}">{}</a></td><td>{:.2f} <small>{:.1f} to {:.1f}</small>'
        assert row.format(label, title, r1, *interval) in page
        queries = SCORED[label]["test"][0]
        assert f"<h2>Results of {queries} test captions: {title}</h2>" in page
    mean = read_json(runs.resumed / "test/summary.json")["t2i"]["R1"]
    assert f"<td><b>Mean</b></td><td>{mean:.2f}</td>" in page
    assert "ICFG-PEDES and RSTPReid take their pictures from MSMT17" in page
    assert "Validation R@1, text to image" in page and "Validation, text to image, mean" in page
    assert "21 test captions of 3 datasets" in page


def test_an_evaluation_finds_the_same_scores(runs, capsys):
    other = joint.get_config()
    config = config_of_run(runs.resumed, other, ())
    assert config.data.sources == [f"{name}:{root}" for name, root in runs.roots.items()]
    other.data.sources = tuple(f"{name}:{runs.roots[name]}/." for name in SCORED)
    config = config_of_run(runs.resumed, other, ("data.sources",))
    assert [*config.data.sources] == [*other.data.sources]
    summaries = evaluate(runs.resumed, config, write=False)
    assert [*summaries] == [
        "val-cuhk", "val-icfg", "val-rstp", "test-cuhk", "test-icfg", "test-rstp", "val", "test",
    ]  # fmt: skip
    for folder, summary in summaries.items():
        assert json.loads(json.dumps(summary)) == read_json(runs.resumed / folder / "summary.json")
    table = score_table(summaries)
    assert "test (mean), step" in table and "val-icfg, step" in table
    other.data.sources = other.data.sources[:2]
    with pytest.raises(UserError, match=r"belongs to another config: data.sources was "):
        config_of_run(runs.resumed, other, ("data.sources",))


def test_the_matrix_names_the_mix_and_warns(runs):
    datasets = parse_datasets([f"cuhk:{runs.roots['cuhk']}", f"rstp:{runs.roots['rstp']}"], "--datasets")
    cells = cross_domain([runs.resumed], datasets, runs.config)
    assert {cell["trained_on"] for cell in cells} == {"CUHK-PEDES + ICFG-PEDES + RSTPReid"}
    for cell, label in zip(cells, ("cuhk", "rstp"), strict=True):
        assert cell["t2i"] == read_json(runs.resumed / f"test-{label}/summary.json")["t2i"]
        assert bool(cell["warning"]) == (label == "rstp")  # it was trained on ICFG-PEDES
    assert "CUHK-PEDES + ICFG-PEDES + RSTPReid (" in matrix(cells)


def test_an_export_names_each_dataset(runs):
    text = (export(runs.resumed, ["safetensors"]) / "README.md").read_text()
    digests = load_record(runs.resumed)["annotations"]
    assert "trained on CUHK-PEDES + ICFG-PEDES + RSTPReid" in text
    assert f"annotations: `{digests['cuhk']}` (cuhk), `{digests['icfg']}` (icfg), `{digests['rstp']}` (rstp)." in text
    assert (
        "| dataset | split | persons | images | captions |\n|---|---|---|---|---|\n| CUHK-PEDES | train | 11,003 |"
        in text
    )
    for title, (queries, images, persons) in (
        ("RSTPReid", SCORED["rstp"]["test"]),
        ("ICFG-PEDES", SCORED["icfg"]["test"]),
    ):
        assert f"{title}, test, protocol `standard`: {queries} captions, {images} images, {persons} persons." in text
    assert "Mean over the datasets, test, protocol" in text and "each dataset counts equally" in text
    assert read_calibration(runs.resumed / "export") == read_calibration(runs.resumed)


def test_two_tables_of_own_data_are_two_datasets(runs, tmp_path, monkeypatch):
    """The second one has neither val, for which a person is held out, nor test."""
    monkeypatch.setattr(loop, "write_report", lambda workdir: None)
    shutil.copytree(runs.roots["icfg"] / "imgs", tmp_path / "imgs")
    paths = sorted(f"imgs/{path.relative_to(tmp_path / 'imgs')}" for path in (tmp_path / "imgs").rglob("*.jpg"))
    for name, splits in (("shop", ["train", "train", "val", "test"]), ("station", ["train"] * 3)):
        rows = [f"{path},Person {n // 2}.,{n // 2},{splits[n // 2]}" for n, path in enumerate(paths[: 2 * len(splits)])]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,caption,person,split", *rows]) + "\n")
    sources = tuple(f"own:{tmp_path}/{name}.csv" for name in ("shop", "station"))
    config = joint_config({}, **{"data.sources": sources, "data.title": "Shop and station"})
    loop.train_and_evaluate(config, tmp_path / "run")
    for label, counts in (("own", {"train": 4, "val": 2, "test": 2}), ("own-2", {"train": 4, "val": 2})):
        lines = (tmp_path / f"run/splits-{label}.csv").read_text().splitlines()[1:]
        assert Counter(line.rpartition(",")[2] for line in lines) == counts
    assert read_json(tmp_path / "run/val/summary.json")["parts"] == ["own", "own-2"]
    assert read_json(tmp_path / "run/test/summary.json")["parts"] == ["own"]
    assert not (tmp_path / "run/test-own-2").exists()
    assert "trained on Shop and station" in (export(tmp_path / "run", ["safetensors"]) / "README.md").read_text()


@pytest.mark.parametrize(
    ("empty", "line"), [(["icfg"], "icfg has no val: the mean"), (["icfg", "cuhk", "rstp"], "no val")]
)
def test_a_dataset_without_validation_has_no_part_in_the_mean(runs, monkeypatch, empty, line):
    open_split, said = opening.open_split, []

    def opened(config, split, digest):
        names = {"cuhk_pedes": "cuhk", "icfg_pedes": "icfg", "rstp_reid": "rstp"}
        return SimpleNamespace(person_ids=[]) if names[config.data.name] in empty else open_split(config, split, digest)

    monkeypatch.setattr(opening, "open_split", opened)
    monkeypatch.setattr(validation, "embed_split", lambda *args: None)
    monkeypatch.setattr(validation, "standard", lambda embeddings: None)
    monkeypatch.setattr(validation, "both_scores", lambda ranks: {"t2i": {"R1": 7.0}, "i2t": {"R1": 8.0}})
    monkeypatch.setattr(validation, "gather_params", lambda mesh, params: params)
    run = SimpleNamespace(
        config=runs.config, source=SimpleNamespace(images_digests={}), tokenizer=None,
        program=SimpleNamespace(model=None, mesh=None), progress=SimpleNamespace(say=said.append),
    )  # fmt: skip
    scores = validation.make_validation(run)(SimpleNamespace(learned={}))
    assert said[0].startswith(line) and len(said) == 1
    expected = [] if len(empty) == 3 else ["val", "val.cuhk", "val.rstp"]
    assert sorted({name.partition("/")[0] for name in scores}) == expected
