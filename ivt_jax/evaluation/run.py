"""A run's checkpoints scored on validation and test: the best, and beside it the last."""

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
from ivt_jax.evaluation.protocols import Embeddings, image_records, standard
from ivt_jax.evaluation.ranking import Ranks, bootstrap_interval, query_scores, rank_embeddings
from ivt_jax.evaluation.split import (
    RERANKED,
    both_scores,
    embed_captions,
    embed_split,
    split_captions,
    summarise,
    write_results,
)
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer, other_data

_ROC_POINTS = 200  # of the curve in summary.json


def evaluate(workdir: Path, config: ConfigDict, write: bool = True, pictures: str = "") -> dict[str, Any]:
    """Scores the best checkpoint on val and test: writes val/ and test/ into the workdir, returns {split: summary}.

    config: the run's; where it computes, where the data lie and what is told may differ from what was recorded. Beside
    what `summarise` tells, the summary of val has the calibration; that of test how it holds there, the last
    checkpoint's scores, and those with spoiled queries. With several processes all call it, for all read the
    checkpoint, and one of them writes.

    pictures: the digest of the images that the run began with, to score these; "" scores the images as they are now.
    Warns on stderr if annotations or images are not those of the training.
    """
    best = restore_params(workdir)
    params = jax.device_put(best.params)  # once, for all that is embedded with them
    model = IVT(IVTConfig.from_config(config.model))
    tokenizer = folder_tokenizer(workdir, config)
    rerank = config.evaluation.rerank
    summaries: dict[str, Any] = {}
    calibration = None

    source = pipeline.open_split(config, "val", pictures)
    if len(source.person_ids):
        found = embed_split(model, params, source, tokenizer, config)
        calibration = fit_calibration(_tops(found))
        told = summarise(found, standard(found), source, best.step, rerank)
        summaries["val"] = told | {"calibration": calibration._asdict()}
        if write:
            write_results(workdir, summaries["val"], source, found)

    source = pipeline.open_split(config, "test", pictures)
    if write and (others := other_data(workdir, source.annotations, source.pictures)):
        remedy = "restore them to reproduce its scores"
        print(f"warning: {source.root} has other {others} than {workdir} was trained with: {remedy}", file=sys.stderr)
    found = embed_split(model, params, source, tokenizer, config)
    ranks = standard(found)
    summary = summarise(found, ranks, source, best.step, rerank) | {"selected_on": config.train.select_on}
    last_step, last_ranks = restore_params(workdir, best=False, shapes_alone=True).step, ranks
    if last_step != best.step:
        last = restore_params(workdir, best=False)
        last_ranks = standard(embed_split(model, last.params, source, tokenizer, config))
    summary["last"] = {"step": last_step, **both_scores(last_ranks)}
    if calibration:
        summary["calibration"] = detection(calibration, _tops(found))
    if config.evaluation.robustness:

        def embed(captions: list[str]) -> np.ndarray:
            return embed_captions(model, params, captions, tokenizer, config)

        summary["robustness"] = robustness(found, ranks["t2i"], split_captions(source), embed, config.seed)
    if write:
        write_results(workdir, summary, source, found)
    return summaries | {"test": summary}


def score_table(summaries: Mapping[str, Any]) -> str:
    """Returns what `evaluate` returned as a table of a line for each split and direction, in percent."""
    lines = [f"{'':36}{'R@1 (95% interval)':24}{'R@5':>8}{'R@10':>8}{'mAP':>8}{'mINP':>8}"]

    def add(title: str, scores: Mapping[str, float], interval: Sequence[float] = ()) -> None:
        first = f"{scores['R1']:.2f}" + ("" if not interval else " ({:.2f} to {:.2f})".format(*interval))
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
    found: Embeddings, clean: Ranks, captions: list[str], embed: Callable[[list[str]], np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """R@1 of text to image, in percent, with the same captions spoiled in the ways of `perturbations`.

    clean: the ranks of the captions as they are. embed: captions -> (N, D) float32. -> way: {"R1"; "change", against
    the captions as they are; "interval", 95%, of the change, by resampling persons; "example", a caption that the way
    alters}.
    """
    rows, correct, table = image_records(found), query_scores(clean)["R1"], {}
    for name in PERTURBATIONS:
        spoiled = perturb(name, captions, seed)
        ranks = rank_embeddings(embed(spoiled), found.image[rows], found.text_person, found.image_person[rows])
        values = query_scores(ranks)["R1"]
        table[name] = {
            "R1": float(np.nanmean(values)),
            "change": float(np.nanmean(values - correct)),
            "interval": bootstrap_interval(values - correct, found.text_person),
            "example": next((s for s, c in zip(spoiled, captions, strict=True) if s != c), captions[0]),
        }
    return table


def detection(calibration: Calibration, scores: TopScores) -> dict[str, Any]:
    """How the calibration of val holds on other scores, and the ROC of telling that nobody fits, thinned for a plot."""
    curve = roc(scores)
    points = np.unique(np.linspace(0, len(curve.caught) - 1, _ROC_POINTS).astype(int))
    shown = {name: getattr(curve, name)[points].round(5).tolist() for name in ("false_alarm", "caught")}
    return {**calibration._asdict(), **judge(scores, calibration), "roc": shown}


def _tops(e: Embeddings) -> TopScores:
    return top_scores(e.text, e.image, e.text_person, e.image_person)
