"""Evaluation of a run: scores its best checkpoint on validation and test, and its last one on test."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import pipeline
from input_pipeline.perturbations import PERTURBATIONS, perturb
from ivt_jax.evaluation.calibration import Calibration, TopScores, fit_calibration, judge, roc, top_scores
from ivt_jax.evaluation.protocols import RERANKED, Embeddings, image_records, standard, text_to_image
from ivt_jax.evaluation.ranking import Ranks, bootstrap_interval, query_scores
from ivt_jax.evaluation.split import both_scores, embed_captions, embed_split, split_captions, summarise, write_results
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer, other_data

_ROC_POINTS = 200  # of the curve in summary.json


def evaluate(workdir: Path, config: ConfigDict, write: bool = True, images_digest: str = "") -> dict[str, Any]:
    """Scores the best checkpoint on val and test, without those that have no images; returns {split: summary}.

    Every summary has the keys of `summarise`. Val's adds the calibration fitted there. The last summary, of test or
    without a test split of val, adds the scores of the last checkpoint and of perturbed captions; test's also the
    quality of val's calibration on test.

    config: the run's; `runtime`, `data.root` and `evaluation` may differ from the recorded config. write: write
    WORKDIR/val and WORKDIR/test, and warn on stderr if the data have changed since training; every process of a run
    calls this, one with `write`. images_digest: which images to score; "" scores the present ones.
    """
    best = restore_params(workdir)
    best_params = jax.device_put(best.params)  # once for both splits
    model = build_model(config.model)
    tokenizer = folder_tokenizer(workdir, config)
    summaries: dict[str, Any] = {}
    calibration = None

    def embed(source: Any, params: Any = best_params) -> Embeddings:
        return embed_split(model, params, source, tokenizer, config)

    sources = [pipeline.open_split(config, split, images_digest) for split in ("val", "test")]
    sources = [source for source in sources if len(source.person_ids)]
    if write and sources:
        _warn_of_other_data(workdir, sources[-1])
    for source in sources:
        embeddings = embed(source)
        ranks = standard(embeddings)
        summary = summarise(embeddings, ranks, source, best.step, config.evaluation.rerank)
        if source.split == "val":
            calibration = fit_calibration(_top_scores(embeddings))
            summary["calibration"] = calibration._asdict()
        elif calibration:
            summary["calibration"] = detection(calibration, _top_scores(embeddings))
        if source is sources[-1]:
            summary["selected_on"] = config.train.select_on
            last_step = restore_params(workdir, best=False, shapes_alone=True).step
            last = ranks if last_step == best.step else standard(embed(source, restore_params(workdir, False).params))
            summary["last"] = {"step": last_step, **both_scores(last)}
            if config.evaluation.robustness:
                texts = functools.partial(embed_captions, model, best_params, tokenizer=tokenizer, config=config)
                summary["robustness"] = robustness(embeddings, ranks["t2i"], split_captions(source), texts, config.seed)
        if write:
            write_results(workdir, summary, source, embeddings)
        summaries[source.split] = summary
    return summaries


def _warn_of_other_data(workdir: Path, source: Any) -> None:
    if changed := other_data(workdir, source.annotations, source.images_digest):
        remedy = "restore them to reproduce its scores"
        print(f"warning: {source.root} has other {changed} than {workdir} was trained with: {remedy}", file=sys.stderr)


def score_table(summaries: Mapping[str, Any]) -> str:
    """Formats the summaries as a table in percent, with a line for each split and direction."""
    lines = [f"{'':36}{'R@1 (95% interval)':24}{'R@5':>8}{'R@10':>8}{'mAP':>8}{'mINP':>8}"]

    def add(title: str, scores: Mapping[str, float], interval: Sequence[float] = ()) -> None:
        first = f"{scores['R1']:.2f}" + (" ({:.2f} to {:.2f})".format(*interval) if interval else "")
        lines.append(f"{title:36}{first:24}" + "".join(f"{scores[name]:8.2f}" for name in ("R5", "R10", "mAP", "mINP")))

    for split, summary in summaries.items():
        for way, name in (("t2i", "text to image"), ("i2t", "image to text")):
            add(f"{split}, step {summary['step']}, {name}", summary[way], summary["interval"][way]["R1"])
        if again := summary["protocols"].get(RERANKED):
            add("  text to image, re-ranked", again)
        last = summary.get("last", summary)
        if last["step"] != summary["step"]:
            add(f"  last step {last['step']}, text to image", last["t2i"])
    return "\n".join(lines)


def robustness(
    e: Embeddings, clean: Ranks, captions: list[str], embed: Callable[[list[str]], np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """Returns R@1 of text to image, in percent, with the captions perturbed in each way of `PERTURBATIONS`.

    clean: the ranks of the captions unperturbed. embed: captions -> (N, D) float32. Returns for each way {"R1";
    "change" from the unperturbed captions; "interval", 95%, of the change, by resampling persons; "example", a caption
    that the way changes}.
    """
    rows, correct, table = image_records(e), query_scores(clean)["R1"], {}
    for name in PERTURBATIONS:
        perturbed = perturb(name, captions, seed)
        values = query_scores(text_to_image(e._replace(text=embed(perturbed)), rows))["R1"]
        table[name] = {
            "R1": float(np.nanmean(values)),
            "change": float(np.nanmean(values - correct)),
            "interval": bootstrap_interval(values - correct, e.text_person),
            "example": next((new for new, old in zip(perturbed, captions, strict=True) if new != old), captions[0]),
        }
    return table


def detection(calibration: Calibration, scores: TopScores) -> dict[str, Any]:
    """Returns val's calibration, its quality on `scores`, and the ROC of detecting absent persons, thinned to plot."""
    curve = np.stack(roc(scores))
    thinned = curve[:, np.unique(np.linspace(0, curve.shape[1] - 1, _ROC_POINTS).astype(int))].round(5).tolist()
    points = dict(zip(("false_alarm", "caught"), thinned, strict=True))
    return {**calibration._asdict(), **judge(scores, calibration), "roc": points}


def _top_scores(e: Embeddings) -> TopScores:
    return top_scores(e.text, e.image, e.text_person, e.image_person)
