"""Validation during training: when it is due, and its scores, which choose the best checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import opening
from input_pipeline.joint import JointSource
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.means import mean_of
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.split import both_scores, embed_split
from ivt_jax.training.sharding import gather_params
from ivt_jax.training.train_step import TrainState


def is_due(step: int, *, every: int, starts: np.ndarray, last: int) -> bool:
    """Returns whether a validation follows this step: every `every` steps (0: at each epoch's end), and at the last."""
    return step == last or (step % every == 0 if every else step in starts)


def format_scores(scores: Mapping[str, float]) -> str:
    """Formats the scores of a validation, by "SPLIT/WAY/NAME"; of several datasets the means and each one's R@1."""
    means = {name: value for name, value in scores.items() if "." not in name.partition("/")[0]}
    split = next(iter(means)).partition("/")[0]
    text = "  ".join(f"{name.partition('/')[2]} {value:.1f}" for name, value in means.items())
    parts = {name.partition("/")[0]: value for name, value in scores.items() if name.endswith("/t2i/R1")}
    labels = (f"{name.partition('.')[2]} {value:.1f}" for name, value in parts.items() if name != split)
    return f"{split} {text}" + (f"  ({each})" if (each := ", ".join(labels)) else "")


def make_validation(run: Any) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function that scores a state on the split `train.select_on`; no scores if that split is empty.

    run: a `loop.Run`.
    With several datasets, the scores "val/..." are the means, which choose the best checkpoint, and "val.LABEL/..." are
    those of each dataset. A dataset without the split has no part in them.
    """
    config, split = run.config, run.config.train.select_on
    parts = opening.open_parts(config, split, run.source.images_digests)
    empty = [label for label, source in parts.items() if not len(source.person_ids)]
    for label in empty if len(empty) < len(parts) else ():
        run.progress.say(f"{label} has no {split}: the mean of the others chooses the best checkpoint")
    if len(empty) == len(parts):
        run.progress.say("no val split: the last step counts as the best")
        return lambda state: {}

    def validate(state: TrainState) -> dict[str, float]:
        params = gather_params(run.program.mesh, state.learned)
        scores = {
            label: both_scores(standard(embed_split(run.program.model, params, source, run.tokenizer, config)))
            for label, source in parts.items()
            if label not in empty
        }
        by_name = {split: mean_of(list(scores.values()))}
        by_name |= {f"{split}.{label}": part for label, part in scores.items() if label}
        return {
            f"{name}/{way}/{measure}": value
            for name, ways in by_name.items()
            for way, values in ways.items()
            for measure, value in values.items()
        }

    return validate


def refuse_empty_selection(config: ConfigDict, source: JointSource) -> None:
    """Raises UserError if test is to choose the checkpoint and no dataset of `source` has a test split."""
    if config.train.select_on != "test":
        return
    parts = opening.open_parts(config, "test", source.images_digests)
    if not any(len(part.person_ids) for part in parts.values()):
        first = next(iter(parts.values())).annotations
        raise UserError(f"{first} has no test records to select on; set --config.train.select_on=val")
