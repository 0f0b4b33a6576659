"""The evaluation of a run, with a stand-in for the model: the best checkpoint is right, the last is wrong."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import cuhk
from input_pipeline.perturbations import perturb
from ivt_jax.evaluation import run
from ivt_jax.evaluation.protocols import Embeddings, standard

CAPTIONS = ["A man. In black.", "A woman. In red.", "A boy. In blue.", "A girl. In white."]
RIGHT = np.eye(4, dtype=np.float32)
WRONG = RIGHT[::-1].copy()  # every caption finds the image of another


@pytest.fixture
def evaluate(monkeypatch):
    """evaluate(best=step, last=step, val=persons) -> the summaries; evaluate.texts: the captions embedded beside."""
    texts, opened, written, measured = [], [], [], []

    def embed_split(model, params, source, tokenizer, config):
        persons = np.arange(4)
        scale = evaluate.val_scale if source.split == "val" else 1
        return Embeddings(RIGHT, scale * np.asarray(params), persons, persons, np.arange(4), np.ones(4, int))

    def embed_captions(model, params, captions, tokenizer, config):
        texts.append(captions)
        return np.array([RIGHT[i] if c == CAPTIONS[i] else WRONG[i] for i, c in enumerate(captions)])

    def measure_nouns(parts, embed):
        measured.append([(captions, e.text.max()) for captions, e in parts])
        return {"coat": (0.9, 7)}

    monkeypatch.setattr(run, "embed_split", embed_split)
    monkeypatch.setattr(run, "measure_nouns", measure_nouns)
    monkeypatch.setattr(run, "embed_captions", embed_captions)
    monkeypatch.setattr(run, "split_captions", lambda source: CAPTIONS)
    monkeypatch.setattr(run, "folder_tokenizer", lambda *args: None)
    monkeypatch.setattr(run, "write_results", lambda folder, summary, source, found: written.append(folder.name))

    def evaluate(best, last, val=4, test=4, write=False, images_digests=run.opening.UNKNOWN, **changes):
        checkpoints = {False: (WRONG if best != last else RIGHT, last), True: (RIGHT, best)}

        def restore_params(workdir, best=True, shapes_alone=False):
            params, step = checkpoints[best]
            return SimpleNamespace(params=params, step=step)

        def open_split(config, split, images_digest):
            opened.append((split, images_digest))
            images = test if split == "test" else val
            persons = np.arange(images if isinstance(images, int) else images[config.data.name])
            return SimpleNamespace(
                name="cuhk_pedes",
                split=split,
                person_ids=persons,
                root=Path("nowhere"),
                annotations=Path(__file__),
                images_digest="",
                identities=True,
            )

        monkeypatch.setattr(run, "restore_params", restore_params)
        monkeypatch.setattr(run.opening, "open_split", open_split)
        config = cuhk.get_config()
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        return run.evaluate(Path("nowhere"), config, write, images_digests)

    evaluate.texts, evaluate.val_scale = texts, np.float32(1)
    evaluate.opened, evaluate.written, evaluate.measured = opened, written, measured
    return evaluate


def test_test_is_scored_for_the_best_and_for_the_last_checkpoint(evaluate):
    summary = evaluate(best=40, last=60)["test"]
    assert (summary["step"], summary["t2i"]["R1"]) == (40, 100)
    assert (summary["last"]["step"], summary["last"]["t2i"]["R1"]) == (60, 0)
    assert summary["selected_on"] == "val"


def test_both_splits_are_opened_as_the_run_saw_them_and_written_where_that_is_asked(evaluate):
    evaluate(best=40, last=60, write=True, images_digests={"": "digest"})
    assert evaluate.opened == [("val", "digest"), ("test", "digest")] and evaluate.written == ["val", "test"]
    evaluate(best=40, last=60)
    assert evaluate.written == ["val", "test"]  # nothing more


SOURCES = {"data__name": "joint", "data__sources": ("cuhk:a", "icfg:b", "own:c.csv")}


def test_several_datasets_are_scored_each_by_itself_and_their_means_last(evaluate):
    """ICFG has no val, the table no test. The right images score 2 on val and 1 on test: all are absent there."""
    evaluate.val_scale = np.float32(2)
    val, test = {"cuhk_pedes": 4, "icfg_pedes": 0, "own": 4}, {"cuhk_pedes": 4, "icfg_pedes": 4, "own": 0}
    digests = {"cuhk": "1", "own": "3"}
    summaries = evaluate(best=40, last=60, val=val, test=test, images_digests=digests, **SOURCES)
    assert [*summaries] == ["val-cuhk", "val-own", "test-cuhk", "test-icfg", "val", "test"]
    assert evaluate.opened == [(split, digest) for split in ("val", "test") for digest in ("1", "", "3")]
    assert (summaries["val"]["parts"], summaries["test"]["parts"]) == (["cuhk", "own"], ["cuhk", "icfg"])
    assert summaries["test"]["t2i"]["R1"] == 100 and summaries["test"]["last"]["t2i"]["R1"] == 0
    assert "last" not in summaries["val"] and "last" not in summaries["val-own"]
    for name in ("val", "val-cuhk", "val-own"):
        assert summaries[name]["calibration"]["threshold"] == 2
    for name in ("test-cuhk", "test-icfg"):
        assert summaries[name]["calibration"]["false_alarm"] == 1 and "robustness" in summaries[name]


def test_nouns_are_measured_on_validation_of_all_datasets_together(evaluate):
    evaluate.val_scale = np.float32(2)
    val = {"cuhk_pedes": 4, "icfg_pedes": 0, "own": 4}
    summaries = evaluate(best=40, last=60, val=val, **SOURCES)
    assert evaluate.measured == [[(CAPTIONS, 2), (CAPTIONS, 2)]]
    for name in ("val", "val-cuhk", "val-own", "test-icfg"):
        assert summaries[name]["calibration"]["nouns"] == {"coat": (0.9, 7)}


def test_several_datasets_without_a_test_split_are_reported_on_val(evaluate):
    summaries = evaluate(best=40, last=60, test=0, **SOURCES)
    assert [*summaries] == ["val-cuhk", "val-icfg", "val-own", "val"]
    assert summaries["val"]["last"]["step"] == summaries["val-own"]["last"]["step"] == 60


def test_re_ranking_and_robustness_follow_the_config(evaluate):
    for rerank in (False, True):
        summaries = evaluate(best=60, last=60, evaluation__rerank=rerank, evaluation__robustness=False)
        for split in ("val", "test"):
            assert ("standard, re-ranked" in summaries[split]["protocols"]) == rerank
            assert "robustness" not in summaries[split]
    assert evaluate.texts == []


def test_captions_are_perturbed_with_the_seed_of_the_config(evaluate):
    table = evaluate(best=60, last=60, seed=7)["test"]["robustness"]
    assert evaluate.texts == [perturb(name, CAPTIONS, 7) for name in table]
    assert evaluate.texts != [perturb(name, CAPTIONS, 8) for name in table]


def test_the_calibration_is_of_captions_that_look_for_unique_images():
    """Two captions of person 1 and three images. The first caption finds an image of person 2 first."""
    found = Embeddings(
        image=np.float32([[1, 0], [0, 1], [0.6, 0.8]]), text=np.float32([[1, 0], [0, 1]]),
        image_person=np.array([2, 1, 3]), text_person=np.array([1, 1]), text_image=np.array([1, 1]),
        image_copies=np.array([1, 4, 1]),
    )  # fmt: skip
    tops = run._top_scores(found)
    assert (tops.top.tolist(), tops.right.tolist(), tops.gallery) == ([1, 1], [False, True], 3)
    np.testing.assert_allclose(tops.absent, [1, 0.8], rtol=1e-6)


def test_a_long_curve_is_thinned_to_two_hundred_points_with_both_ends():
    present, absent = np.arange(400) / 400, np.arange(400) / 400 - 0.5
    scores = run.TopScores(present, np.ones(400, bool), absent, 400)
    curve = run.detection(run.fit_calibration(scores), scores)["roc"]
    assert len(curve["caught"]) == len(curve["false_alarm"]) == 200
    assert [(curve["false_alarm"][i], curve["caught"][i]) for i in (0, -1)] == [(0, 0), (1, 1)]


def test_where_the_last_is_the_best_it_is_the_same(evaluate):
    summary = evaluate(best=60, last=60)["test"]
    assert summary["last"] == {"step": 60, "t2i": summary["t2i"], "i2t": summary["i2t"]}


def test_without_validation_there_is_no_calibration(evaluate):
    summaries = evaluate(best=60, last=60, val=0)
    assert set(summaries) == {"test"} and "calibration" not in summaries["test"]


def test_without_a_test_split_validation_has_what_the_report_shows(evaluate):
    summaries = evaluate(best=40, last=60, test=0, write=True)
    assert set(summaries) == {"val"} and evaluate.written == ["val"]
    summary = summaries["val"]
    assert (summary["last"]["step"], summary["last"]["t2i"]["R1"], summary["selected_on"]) == (60, 0, "val")
    assert summary["calibration"].keys() == evaluate(best=40, last=60)["val"]["calibration"].keys()
    assert len(summary["robustness"]) == 4
    assert "last" not in evaluate(best=40, last=60)["val"]


def test_a_perfect_split_has_no_false_alarm(evaluate):
    summaries = evaluate(best=60, last=60)
    assert summaries["test"]["calibration"]["caught"] == 1 and summaries["test"]["calibration"]["false_alarm"] == 0
    assert summaries["test"]["calibration"]["roc"] == {"false_alarm": [0, 0, 1], "caught": [0, 1, 1]}


def test_other_data_than_those_of_the_training_are_a_warning(evaluate, monkeypatch, capsys):
    evaluate(best=60, last=60, write=True)
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(run, "other_data", lambda *args: "images")
    evaluate(best=60, last=60, write=True)
    warning = "warning: nowhere has other images than nowhere was trained with: restore them to reproduce its scores\n"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("scale", [0.5, 2])
def test_the_threshold_comes_from_validation_and_not_from_test(evaluate, scale):
    """The right images score 0.5 or 2 on val and 1 on test. By val's threshold all or none are present on test."""
    evaluate.val_scale = np.float32(scale)
    summaries = evaluate(best=60, last=60)
    assert summaries["val"]["calibration"]["threshold"] == scale
    on_test = summaries["test"]["calibration"]
    assert on_test["threshold"] == scale
    assert (on_test["false_alarm"], on_test["caught"]) == (float(scale > 1), 1)


def test_the_interval_of_robustness_draws_persons():
    """Person 1 has one caption, which stays right; person 2 has 40, which all become wrong.

    A quarter of the draws holds person 1 twice and a quarter person 2 twice: the change lies between -100 and 0. If
    captions were drawn, the upper end would lie below -90.
    """
    persons, image = np.array([1] + [2] * 40), np.array([0] + [1] * 40)
    found = Embeddings(RIGHT[:2, :2], RIGHT[image, :2], np.array([1, 2]), persons, image, np.ones(2, int))
    captions = ["A man. In black."] * 41
    spoiled, embedded = RIGHT[np.zeros(41, int), :2], []  # every caption finds the image of person 1

    def embed(captions):
        embedded.append(captions)
        return spoiled

    table = run.robustness(found, standard(found)["t2i"], captions, embed, seed=7)
    assert embedded == [perturb(name, captions, 7) for name in table]
    row = table["first sentence only"]
    assert (row["R1"], row["change"]) == (pytest.approx(100 / 41), pytest.approx(-4000 / 41))
    assert row["interval"] == (-100.0, 0.0)


def test_robustness_compares_with_the_captions_as_they_are(evaluate):
    table = evaluate(best=60, last=60)["test"]["robustness"]
    row = table["first sentence only"]  # every caption loses a sentence, and finds another's image
    assert (row["R1"], row["change"], row["interval"], row["example"]) == (0, -100, (-100, -100), "A man.")
    assert table["phrases shuffled"]["R1"] < 100 and len(evaluate.texts) == len(table) == 4


def test_no_split_to_evaluate_is_a_line():
    assert run.score_table({}) == "not evaluated: the data have no split for it"
