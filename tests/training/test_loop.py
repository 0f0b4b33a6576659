"""The loop with a stand-in for the device, and a real tiny run that is killed and resumed."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import synth
from input_pipeline import opening, pipeline
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.run.checkpoint import Checkpoints
from ivt_jax.run.workdir import record_config
from ivt_jax.training import loop, validation


def stub_config(**changes):
    config = synth.get_config()
    config.update_from_flattened_dict(
        {"data.batch_size": 8, "train.steps": 6, "train.eval_every": 4, "runtime.log_every": 1,
         "runtime.checkpoint_every": 1000, "train.max_bad_steps": 9, "data.sampling": "uniform", "bmm.rows": 0,
         **changes}
    )  # fmt: skip
    return config


def empty_batches(*args):
    while True:
        yield {}


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """`run(config, saved=step)` runs the loop with stand-ins for model, data and disk and returns the events in order.

    The loss of a step is its number; steps in `bad` are not finite.
    """
    events, bad = [], set()

    class Metric:
        """A device array whose reading is an event."""

        def __init__(self, step, bad_steps):
            self.step, self.bad_steps = step, bad_steps

        def __getitem__(self, name):
            return jax.numpy.zeros(())  # of which the loop asks no more than whether it is there

    def run_step(state, batch, hyperparameters):
        step = state["step"] + 1
        events.append(f"step {step}")
        count = state["bad"] + 1 if step in bad else 0
        return {"step": step, "bad": count}, Metric(step, count)

    def device_get(metric):
        events.append(f"read {metric.step}")
        return {"loss": np.nan if metric.step in bad else float(metric.step), "learning_rate": 0.5, "mla": 1.0,
                "bad_steps": metric.bad_steps}  # fmt: skip

    class Saved:
        def __init__(self, workdir, select_on):
            pass

        def latest_step(self):
            return stub.saved

        def restore(self, step, target):
            return {"step": step, "bad": 0}

        def save(self, step, state, metrics=None):
            assert state["step"] == step
            events.append(f"save {step}" + (f" {metrics['val/t2i/R1']}" if metrics else ""))

        def close(self):
            events.append("close")

    def build(config, epoch_starts, total_steps, mask_id, persons):
        compiled = SimpleNamespace(compile=lambda: events.append("compile") or run_step)
        step = SimpleNamespace(lower=lambda *shapes: compiled)
        return SimpleNamespace(
            mesh=SimpleNamespace(shape={"data": 1, "fsdp": 1}),
            step=step,
            target=SimpleNamespace(params={}, opt_state={}, ema={}),
            init=lambda: {"step": 0, "bad": 0},
            hyperparameters=dict,
            hyperparameter_shapes={},
        )

    def write(self, step, scalars):
        events.append(f"log {step}" + (" val" if "val/t2i/R1" in scalars else ""))

    annotations = tmp_path / "reid_raw.json"
    annotations.write_text("[]")
    pairs = (np.arange(10), np.zeros(10))
    source = SimpleNamespace(person_ids=np.arange(10), pairs=pairs, annotations=annotations, images_digest="")
    source.num_pairs, source.identities, source.person_of_pair, source.num_persons = 10, True, np.arange(10), 10
    tokenizer = SimpleNamespace(mask_id=4, digest="d")
    for owner, name, value in (
        (loop, "Checkpoints", Saved), (loop, "build_program", build),
        (loop, "folder_tokenizer", lambda workdir, config: tokenizer),
        (loop, "global_batch", lambda mesh, batch: batch), (loop, "batch_shapes", lambda config, mesh: {}),
        (loop.jax, "device_get", device_get),
        (loop.ScalarLog, "__init__", lambda *args, **kwargs: None), (loop.ScalarLog, "write", write),
        (opening, "open_split", lambda config, split, images_digest: source),
        (pipeline, "train_batches", empty_batches),
        (loop, "make_validation", lambda *args: lambda state: {"val/t2i/R1": 50.0}),
        (loop, "evaluate", lambda *_: events.append("test") or {"test": {"step": 6, "t2i": {}}}),
        (loop, "write_report", lambda workdir: events.append("report")),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, value)

    def run(config, saved=None):
        stub.saved = saved
        events.clear()
        if saved:
            (tmp_path / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        loop.train_and_evaluate(config, tmp_path / "run")
        return list(events)

    stub = SimpleNamespace(run=run, events=events, bad=bad, saved=None, workdir=tmp_path / "run")
    return stub


def test_metrics_are_read_one_step_late_and_before_a_checkpoint(stub):
    assert stub.run(stub_config()) == [
        "compile", "step 1", "step 2", "read 1", "log 1", "step 3", "read 2", "log 2",
        "step 4", "read 3", "log 3", "read 4", "log 4", "log 4 val", "save 4 50.0",
        "step 5", "step 6", "read 5", "log 5", "read 6", "log 6", "log 6 val", "save 6 50.0", "close", "test", "report",
    ]  # fmt: skip


def test_checkpoints_between_validations_come_after_their_metrics(stub):
    events = stub.run(stub_config(**{"runtime.checkpoint_every": 2, "runtime.log_every": 3}))
    assert [event for event in events if event[:3] in ("log", "sav", "rea")] == [
        "read 1", "read 2", "save 2", "read 3", "log 3", "read 4", "log 4 val", "save 4 50.0",
        "read 5", "read 6", "log 6", "log 6 val", "save 6 50.0",
    ]  # fmt: skip


def test_a_run_resumes_behind_its_latest_checkpoint(stub):
    assert [event for event in stub.run(stub_config(), saved=4) if event.startswith("step")] == ["step 5", "step 6"]


def test_a_run_opens_the_pictures_that_it_began_with(stub, monkeypatch):
    source, opened = opening.open_split(None, "train", ""), []
    source.images_digest = "first"

    def open_split(config, split, images_digest):
        opened.append(images_digest)
        return source

    def evaluate(workdir, config, write, images_digests):
        opened.append(f"evaluate {images_digests['']}")
        return {"test": {"step": 6, "t2i": {}}}

    monkeypatch.setattr(opening, "open_split", open_split)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    stub.run(stub_config())
    stub.run(stub_config(), saved=4)
    assert opened == ["", "evaluate first", "first", "evaluate first"]


def test_a_trained_run_without_results_is_tested_without_training(stub):
    assert stub.run(stub_config(), saved=6) == ["close", "test", "report"]


def test_data_that_cannot_be_evaluated_still_have_a_report(stub, monkeypatch, capsys):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {})
    assert stub.run(stub_config(), saved=6) == ["close", "report"]
    assert "not evaluated: the data have no split for it; the report has the curves alone" in capsys.readouterr().err


def write_results(workdir, last):
    (workdir / "test").mkdir(parents=True, exist_ok=True)
    (workdir / "test/summary.json").write_text(json.dumps({"last": {"step": last}}))
    (workdir / "report.html").touch()


def test_a_complete_run_is_left_as_it_is(stub, capsys):
    write_results(stub.workdir, last=6)
    assert stub.run(stub_config(), saved=6) == []
    assert capsys.readouterr().err == f"complete: 6 steps, tested; report: {stub.workdir}/report.html\n"
    assert not (stub.workdir / "config.json").exists()


def test_a_run_that_resumes_does_not_need_what_it_started_from(stub):
    config = stub_config(**{"train.init_from": "nowhere"})
    assert stub.run(config, saved=4)[-1] == "report"


def test_the_origin_of_the_start_is_recorded_and_kept_when_a_run_resumes(stub, monkeypatch):
    origin = {"folder": "weights/clip", "step": 0, "weights": {"source": "clip", "files": {"clip.pt": "ff00"}}}
    monkeypatch.setattr(loop, "initial_params", lambda config: loop.Initial({}, "from weights/clip", origin))
    config = stub_config(**{"train.init_from": "weights/clip"})
    stub.run(config)
    assert json.loads((stub.workdir / "config.json").read_text())["start"] == origin
    monkeypatch.setattr(loop, "initial_params", None)  # the folder is gone
    stub.run(config, saved=4)
    assert json.loads((stub.workdir / "config.json").read_text())["start"] == origin


def test_a_run_that_began_with_pixels_that_no_patch_covers_is_resumed(stub, capsys):
    config = stub_config(**{"model.image_size": (100, 52)})  # patches of 12: 96 rows and 48 columns
    with pytest.raises(UserError, match=r"^model.image_size \(100, 52\): patches of 12 at stride 12 do not cover "):
        stub.run(config)
    assert not stub.workdir.exists()
    record_config(stub.workdir, config, {"": stub.workdir.parent / "reid_raw.json"}, SimpleNamespace(digest="d"))
    assert stub.run(config, saved=4)[-1] == "report"
    assert "note: model.image_size (100, 52): patches of 12 at stride 12 do not cover" in capsys.readouterr().err


def test_nothing_is_recorded_where_the_start_is_missing(stub):
    with pytest.raises(UserError, match=r"^train.init_from: nowhere not found; convert weights into it"):
        stub.run(stub_config(**{"train.init_from": "nowhere"}))
    assert not (stub.workdir / "config.json").exists() and not stub.workdir.exists()


# ---- another train.steps


def extended(steps, schedule="released"):
    return stub_config(**{"train.steps": steps, "optimizer.schedule": schedule})


def test_a_complete_run_goes_on_to_more_steps_and_is_reported_again(stub):
    stub.run(extended(6))
    write_results(stub.workdir, last=6)
    events = stub.run(extended(8), saved=6)
    assert [event for event in events if not event.startswith(("read", "log"))] == [
        "compile", "step 7", "step 8", "save 8 50.0", "close", "test", "report",
    ]  # fmt: skip
    assert json.loads((stub.workdir / "config.json").read_text())["config"]["train"]["steps"] == 8
    assert not (stub.workdir / "report.html").exists()  # the earlier one; the stand-in writes none


@pytest.mark.parametrize("lost", ["the new summary", "the new report"])
def test_an_extended_run_that_was_killed_before_its_report_is_tested(stub, lost):
    stub.run(extended(8))
    write_results(stub.workdir, last=6 if lost == "the new summary" else 8)
    if lost == "the new report":
        (stub.workdir / "report.html").unlink()
    assert stub.run(extended(8), saved=8) == ["close", "test", "report"]


def test_an_interrupted_run_may_end_earlier_but_not_before_its_last_step(stub):
    stub.run(extended(8))
    assert [event for event in stub.run(extended(5), saved=4) if event.startswith("step")] == ["step 5"]
    assert stub.run(extended(4), saved=4) == ["close", "test", "report"]
    with pytest.raises(UserError, match=r"run is at step 4 already, train.steps is 3: set 4 or more$"):
        stub.run(extended(3), saved=4)


def test_a_schedule_that_depends_on_the_length_is_refused_by_name(stub):
    stub.run(extended(6, "smooth"))
    before = (stub.workdir / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        stub.run(extended(8, "smooth"), saved=6)
    assert str(error.value) == (
        f"{stub.workdir} belongs to another config: train.steps was 6, is 8. With optimizer.schedule smooth this "
        "changes the learning rates of the 6 steps already taken. Choose another --workdir"
    )
    assert (stub.workdir / "config.json").read_bytes() == before


def test_a_folder_of_parameters_alone_is_no_workdir(stub):
    (stub.workdir / "params").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run holds parameters, not a run; to train from them, set "):
        stub.run(stub_config())


def test_a_workdir_where_checkpoints_would_be_lost_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match=r'/\[x\]/run: a path with "\[" is not supported for checkpoints and exports'):
        loop.train_and_evaluate(stub_config(), tmp_path / "[x]/run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("allowed", "stops_at"), [(1, 2), (2, 3), (3, 7)])
def test_steps_in_a_row_that_are_not_finite_end_the_run(stub, allowed, stops_at):
    stub.bad |= {2, 3, 5, 6, 7}
    config = stub_config(**{"train.max_bad_steps": allowed, "train.steps": 8})
    with pytest.raises(UserError) as error:
        stub.run(config)
    assert str(error.value) == (
        f"step {stops_at}: not finite: loss; {allowed} such steps in a row (train.max_bad_steps), their updates were "
        "withheld. In another --workdir, lower the learning rate or use model.dtype float32"
    )
    assert f"save {stops_at}" not in stub.events


def test_fewer_steps_that_are_not_finite_than_allowed_are_passed_over(stub):
    stub.bad |= {2, 3, 5, 6, 7}
    assert stub.run(stub_config(**{"train.max_bad_steps": 4, "train.steps": 8}))[-1] == "report"


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [3, 5, 9, 10]), (4, [4, 8, 10]), (5, [5, 10]), (100, [10])]
)  # fmt: skip
def test_validations_are_due_by_steps_or_by_epochs_and_at_the_end(every, steps):
    starts = np.array([0, 3, 5, 9, 12])
    assert [s for s in range(1, 11) if validation.is_due(s, every=every, starts=starts, last=10)] == steps


def test_a_tokenizer_of_another_size_is_one_line():
    config = synth.get_config()
    config.model.vocab_size = 99
    with pytest.raises(UserError, match=r"the tokenizer has \d+ entries, config.model.vocab_size is 99; set"):
        load_tokenizer(config.text.tokenizer, config.model.vocab_size)


@pytest.mark.parametrize(
    ("name", "file"),
    [("cuhk_pedes", "reid_raw.json"), ("icfg_pedes", "ICFG-PEDES.json"), ("rstp_reid", "data_captions.json")],
)
def test_without_data_a_run_says_what_is_expected_where_and_leaves_no_workdir(tmp_path, name, file):
    config = synth.get_config()
    config.data.name, config.data.root = name, str(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=rf"nowhere/{file} not found: --config.data.root expects the .* folder"
    ) as error:
        loop.train_and_evaluate(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# ---- a real run: eight devices, everything random switched on


def tiny_config(root):
    config = synth.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "cuhk_pedes", "data.root": str(root), "data.batch_size": 8, "data.sampling": "identity",
            "data.instances": 4,
            "text.length.sentence": 12, "text.length.phrase": 8, "text.length.word": 8,
            "model.image_size": (12, 12), "model.patch_size": 6, "model.stride": 6, "model.width": 8, "model.depth": 2,
            "model.num_heads": 2, "model.dropout": 0.2, "model.drop_path": 0.3,
            "mla.levels": ("sentence", "word"), "mla.views": 2, "bmm.align": "exact", "bmm.align_ratio": 0.5,
            "bmm.word_weight": 0.5, "bmm.patch_weight": 2.0, "bmm.rows": 0,
            "optimizer.name": "adamw", "optimizer.schedule": "smooth", "optimizer.learning_rate": 1e-3,
            "optimizer.start": 0.0, "optimizer.floor": 1e-5, "optimizer.warmup_epochs": 0.5,
            "train.steps": 6, "train.eval_every": 3, "runtime.log_every": 1, "runtime.eval_batch_size": 8,
        }
    )  # fmt: skip
    return config


class Patient(Checkpoints):
    """Waits for each save, so that a test knows what a kill leaves behind."""

    def save(self, *args):
        super().save(*args)
        self._manager.wait_until_finished()


class KilledError(Exception):
    pass


def killed_after(count, batches):
    """Returns a function that yields the first `count` batches of `batches`, and then raises KilledError."""

    def killed(*args):
        yield from itertools.islice(batches(*args), count)
        raise KilledError

    return killed


@pytest.fixture(scope="module")
def runs(pedes_root, tmp_path_factory):
    """The workdirs of a run in one go, and of one that was killed at step 5 after a checkpoint at 3, and resumed."""
    config = tiny_config(pedes_root)
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    programs = {}
    build, batches = loop.build_program, pipeline.train_batches

    def build_once(*args):
        if not programs:  # one compilation serves all runs: they have the same config
            program = build(*args)
            step = SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=lambda: compiled(*args)))
            original = program.step

            def compiled(*arguments):
                programs.setdefault("step", original.lower(*arguments).compile())
                return programs["step"]

            programs["program"] = dataclasses.replace(program, step=step)
        return programs["program"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Checkpoints", Patient)
        patch.setattr(loop, "build_program", build_once)
        loop.train_and_evaluate(config, whole)
        patch.setattr(pipeline, "train_batches", killed_after(5, batches))
        with pytest.raises(KilledError):
            loop.train_and_evaluate(config, resumed)
        left = (resumed / "metrics.jsonl").read_text()
        patch.setattr(pipeline, "train_batches", batches)
        loop.train_and_evaluate(config, resumed)
    program, step = programs["program"], programs["step"]
    return SimpleNamespace(whole=whole, resumed=resumed, program=program, step=step, left=left, config=config)


def metrics(text):
    """The lines without what the clock wrote."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("pairs_per_second", "input_wait")} for line in lines
    ]


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs):
    states = [Checkpoints(workdir).restore(6, runs.program.target) for workdir in (runs.whole, runs.resumed)]
    assert int(states[0].step) == 6
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), *states)
    whole = metrics((runs.whole / "metrics.jsonl").read_text())
    assert [line["step"] for line in whole] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert whole == metrics((runs.resumed / "metrics.jsonl").read_text())
    # What the kill had left: a line beyond the checkpoint, which resuming wrote anew.
    assert [line["step"] for line in metrics(runs.left)] == [1, 2, 3, 3, 4]
    tests = [json.loads((workdir / "test/summary.json").read_text()) for workdir in (runs.whole, runs.resumed)]
    assert tests[0] == tests[1]


def test_an_extended_run_equals_a_longer_one_bit_for_bit(runs, tmp_path, monkeypatch):
    build = loop.build_program
    compiled = SimpleNamespace(lower=lambda *shapes: SimpleNamespace(compile=lambda: runs.step))
    monkeypatch.setattr(loop, "build_program", lambda *args: dataclasses.replace(build(*args), step=compiled))
    config = runs.config.copy_and_resolve_references()
    config.optimizer.schedule = "released"
    longer, extended = tmp_path / "longer", tmp_path / "extended"
    loop.train_and_evaluate(config, longer)
    config.train.steps = 4
    loop.train_and_evaluate(config, extended)
    assert json.loads((extended / "test/summary.json").read_text())["last"]["step"] == 4
    config.train.steps = 6
    loop.train_and_evaluate(config, extended)
    states = [Checkpoints(workdir).restore(6, runs.program.target) for workdir in (longer, extended)]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), *states)
    lines = [metrics((workdir / "metrics.jsonl").read_text()) for workdir in (longer, extended)]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 3, 4, 4, 5, 6, 6]  # validated at its former end as well
    assert lines[0] == [*lines[1][:5], *lines[1][6:]]
    assert json.loads((extended / "test/summary.json").read_text())["last"]["step"] == 6
    assert (extended / "report.html").exists()


def test_the_logged_terms_and_rates_are_those_of_the_step(runs):
    for line in metrics((runs.whole / "metrics.jsonl").read_text()):
        if "loss" in line:
            total = line["mla"] + 0.5 * line["words"] + 2 * line["patches"]
            assert line["loss"] == pytest.approx(total, rel=1e-5)
            assert set(line) == {"step", "loss", "mla", "words", "patches", "grad_norm", "learning_rate"}
    rates = [line["learning_rate"] for line in metrics((runs.whole / "metrics.jsonl").read_text()) if "loss" in line]
    # 6 persons with one group of 4 pairs each make 3 batches of 2 groups an epoch; half an epoch, rounded down, is one
    # step of warm-up, at 0; the cosine then runs from the peak at the second step over the five that are left.
    cosine = [(1 + np.cos(np.pi * t / 5)) / 2 for t in range(5)]
    np.testing.assert_allclose(rates, [0, *(1e-5 + (1e-3 - 1e-5) * c for c in cosine)], rtol=1e-5)


def test_a_complete_run_writes_nothing_again(runs, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in runs.whole.rglob("*")}
    monkeypatch.setattr(loop, "build_program", lambda *args: runs.program)
    loop.train_and_evaluate(runs.config, runs.whole)
    assert capsys.readouterr().err.startswith("complete: 6 steps")
    assert {path: path.stat().st_mtime_ns for path in runs.whole.rglob("*")} == before


def test_a_workdir_of_another_config_is_refused_before_anything_is_read(runs):
    config = runs.config.copy_and_resolve_references()
    config.optimizer.learning_rate = 0.5
    config.data.root = "nowhere"
    with pytest.raises(UserError, match=r"belongs to another config: optimizer.learning_rate was 0.001, is 0.5"):
        loop.train_and_evaluate(config, runs.whole)


def test_a_text_that_is_pooled_at_its_last_place_needs_padding_that_is_attended_to():
    """Evaluation cuts padding that is not attended to, so it would pool another token than training."""
    config = synth.get_config("two_towers")
    loop.refuse_unattended_padding(config, load_tokenizer())
    config.model.text.pooling = "last"
    message = r'^model.text.pooling last needs a tokenizer .*, such as SigLIP\'s; that of "" is not: set'
    with pytest.raises(UserError, match=message):
        loop.refuse_unattended_padding(config, load_tokenizer())
    loop.refuse_unattended_padding(config, SimpleNamespace(attends_to_padding=True))
