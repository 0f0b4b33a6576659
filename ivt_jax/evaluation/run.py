"""Evaluation of a run: scores its best checkpoint on validation and test, and its last one on test."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import opening
from input_pipeline.datasets import folder_of
from input_pipeline.perturbations import PERTURBATIONS, perturb
from ivt_jax.evaluation.calibration import Calibration, TopScores, fit_calibration, judge, roc, top_scores
from ivt_jax.evaluation.means import mean_summary, pooled
from ivt_jax.evaluation.nouns import NounAreas, measure_nouns
from ivt_jax.evaluation.protocols import RERANKED, Embeddings, image_records, standard, text_to_image
from ivt_jax.evaluation.ranking import Ranks, bootstrap_interval, query_scores
from ivt_jax.evaluation.split import both_scores, embed_captions, embed_split, split_captions, summarise, write_results
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer, other_data, write_json

_ROC_POINTS = 200  # of the curve in summary.json


def evaluate(
    workdir: Path, config: ConfigDict, write: bool = True, images_digests: Mapping[str, str] = opening.UNKNOWN
) -> dict[str, Any]:
    """Scores the best checkpoint on val and test of each dataset; leaves out splits without images.

    Returns the summaries by folder of the workdir, "val" and "test". With several datasets the folders are "val-LABEL"
    and "test-LABEL", and "val" and "test" have the means (`mean_summary`). Every summary of a dataset has the keys of
    `summarise`. Val's adds the calibration, fitted on val of all datasets together; test's adds the quality of that
    calibration on test. The last split is test, or val if no dataset has a test split: it adds the scores of the last
    checkpoint and of perturbed captions.

    config: the run's; `runtime`, roots and `evaluation` may differ from the recorded config. write: write the folders,
    and warn on stderr if the data have changed since training; every process of a run calls this, one with `write`.
    images_digests: which images to score, by label; without one, the present ones.
    """
    best = _Best.restore(workdir, config)
    splits = ("val", "test") if config.data.identities else ("val",)  # pre-training never looks at a test split
    opened = {split: _with_images(opening.open_parts(config, split, images_digests)) for split in splits}
    last = [split for split in splits if opened[split]][-1:]
    summaries: dict[str, Any] = {}
    calibration = None
    for split, parts in opened.items():
        embedded = {label: best.embed(source) for label, source in parts.items()}
        if split == "val" and embedded:
            scores = pooled([_top_scores(embeddings) for embeddings in embedded.values()])
            calibration = fit_calibration(scores)._replace(nouns=best.nouns(parts, embedded))
        for label, source in parts.items():
            if write and split in last:
                _warn_of_other_data(workdir, label, source)
            summary = best.summary(source, embedded[label], calibration, split in last)
            summaries[folder_of(split, label)] = summary
            if write:
                write_results(workdir / folder_of(split, label), summary, source, embedded[label])
    one = set(summaries) <= {*splits}  # one dataset, whose folders have no label
    return summaries if one else summaries | _means(workdir, summaries, write)


def _with_images(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {label: source for label, source in parts.items() if len(source.person_ids)}


def _means(workdir: Path, summaries: dict[str, Any], write: bool) -> dict[str, Any]:
    """Returns the means over datasets of "val" and of "test", if any has the split; writes their summary.json."""
    means = {}
    for split in ("val", "test"):
        parts = {name.removeprefix(f"{split}-"): s for name, s in summaries.items() if name.startswith(f"{split}-")}
        if parts:
            means[split] = mean_summary(parts)
        if parts and write:
            (workdir / split).mkdir(exist_ok=True)
            write_json(workdir / split / "summary.json", means[split])
    return means


def _warn_of_other_data(workdir: Path, label: str, source: Any) -> None:
    if changed := other_data(workdir, label, source.annotations, source.images_digest):
        remedy = "restore them to reproduce its scores"
        print(f"warning: {source.root} has other {changed} than {workdir} was trained with: {remedy}", file=sys.stderr)


class _Best(NamedTuple):
    """The best checkpoint of a run, on the devices."""

    workdir: Path
    config: ConfigDict
    model: Any
    params: Any
    step: int
    tokenizer: Any

    @classmethod
    def restore(cls, workdir: Path, config: ConfigDict) -> "_Best":
        restored = restore_params(workdir)
        tokenizer = folder_tokenizer(workdir, config)
        params = jax.device_put(restored.params)  # once for all splits
        return cls(workdir, config, build_model(config.model), params, restored.step, tokenizer)

    def embed(self, source: Any, params: Any = None) -> Embeddings:
        """Embeds a split, by default with the best parameters."""
        params = self.params if params is None else params
        return embed_split(self.model, params, source, self.tokenizer, self.config)

    def nouns(self, parts: Mapping[str, Any], embedded: Mapping[str, Embeddings]) -> NounAreas:
        """Measures on validation which nouns the model can tell."""
        captioned = [(split_captions(source), embedded[label]) for label, source in parts.items()]
        return measure_nouns(captioned, self.embed_captions)

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        return embed_captions(self.model, self.params, captions, self.tokenizer, self.config)

    def summary(
        self, source: Any, embeddings: Embeddings, calibration: Calibration | None, last: bool
    ) -> dict[str, Any]:
        """Returns the summary of a dataset's split. last: whether it is the last split, with more scores."""
        config, ranks = self.config, standard(embeddings)
        summary = summarise(embeddings, ranks, source, self.step, config.evaluation.rerank)
        if calibration and source.split == "val":
            summary["calibration"] = calibration._asdict()
        elif calibration:
            summary["calibration"] = detection(calibration, _top_scores(embeddings))
        if not last:
            return summary
        summary["selected_on"] = config.train.select_on
        last_ranks, last_step = ranks, restore_params(self.workdir, best=False, shapes_alone=True).step
        if last_step != self.step:
            last_ranks = standard(self.embed(source, restore_params(self.workdir, best=False).params))
        summary["last"] = {"step": last_step, **both_scores(last_ranks)}
        if config.evaluation.robustness:
            captions = split_captions(source)
            summary["robustness"] = robustness(embeddings, ranks["t2i"], captions, self.embed_captions, config.seed)
        return summary


def score_table(summaries: Mapping[str, Any]) -> str:
    """Formats the summaries as a table in percent, with a line for each split and direction; none is a line."""
    if not summaries:
        return "not evaluated: the data have no split for it"
    lines = [f"{'':36}{'R@1 (95% interval)':24}{'R@5':>8}{'R@10':>8}{'mAP':>8}{'mINP':>8}"]

    def add(title: str, scores: Mapping[str, float], interval: Sequence[float] = ()) -> None:
        first = f"{scores['R1']:.2f}" + (" ({:.2f} to {:.2f})".format(*interval) if interval else "")
        lines.append(f"{title:36}{first:24}" + "".join(f"{scores[name]:8.2f}" for name in ("R5", "R10", "mAP", "mINP")))

    for split, summary in summaries.items():
        for way, name in (("t2i", "text to image"), ("i2t", "image to text")):
            title = f"{split} (mean)" if "parts" in summary else split
            interval = summary["interval"][way]["R1"] if "interval" in summary else ()
            add(f"{title}, step {summary['step']}, {name}", summary[way], interval)
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
