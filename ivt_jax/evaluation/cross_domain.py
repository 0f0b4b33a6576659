"""Train on one dataset, test on another: scores of every run on every dataset."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import opening
from input_pipeline.datasets import Dataset, datasets_of, shared_warning, title_of_data
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.split import both_scores, embed_split
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer, with_later_keys


def cross_domain(workdirs: Sequence[Path], datasets: Sequence[Dataset], config: ConfigDict) -> list[dict[str, Any]]:
    """Scores the best checkpoint of every run on the test split of every dataset, by the protocol `standard`.

    config: its `runtime` applies to all runs. Returns a cell {run, trained_on, tested_on, step, queries, gallery, t2i,
    i2t, warning} for each pair, run by run; trained_on and tested_on are titles of datasets. Raises UserError for a
    dataset without a test split.
    """
    cells = []
    for workdir in dict.fromkeys(workdirs):
        restored = restore_params(workdir)
        run_config = with_later_keys(restored.config, config)
        run_config.runtime = config.runtime
        model = build_model(run_config.model)
        tokenizer = folder_tokenizer(workdir, run_config)
        trained_on, names = title_of_data(run_config.data), {d.name for d in datasets_of(run_config.data)}
        for dataset in datasets:
            print(f"{workdir} ({trained_on}) on {dataset.title}: {dataset.root}", file=sys.stderr)
            test_config = opening.config_of(run_config, dataset)
            test_config.data.identities = True  # those of the test are known, also to a run that was trained without
            source = opening.open_split(test_config, "test")
            if not len(source.person_ids):
                raise UserError(f"{source.annotations} has no test records to score {workdir} on: leave it out")
            embeddings = embed_split(model, restored.params, source, tokenizer, test_config)
            cell = {"run": str(workdir), "trained_on": trained_on, "tested_on": dataset.title, "step": restored.step}
            counts = {"queries": len(embeddings.text), "gallery": int(embeddings.image_copies.sum())}
            warning = shared_warning(names, [dataset.name])
            cells.append({**cell, **counts, **both_scores(standard(embeddings)), "warning": warning})
    return cells


def matrix(cells: list[dict[str, Any]]) -> str:
    """Formats R@1 / mAP in percent as a table of runs (lines) by datasets (columns), with the warnings below."""
    rows = [list(row) for _, row in groupby(cells, key=lambda cell: cell["run"])]
    lines = [f"{'trained on':40}" + "".join(f"{cell['tested_on']:>16}" for cell in rows[0])]
    for row in rows:
        label = f"{row[0]['trained_on']} ({row[0]['run']})"
        scores = [f"{cell['t2i']['R1']:.2f} / {cell['t2i']['mAP']:.2f}" for cell in row]
        lines.append(f"{label:40}" + "".join(f"{score:>16}" for score in scores))
    warnings = dict.fromkeys(cell["warning"] for cell in cells if cell["warning"])
    return "\n".join([*lines, "text to image, test: R@1 / mAP, %", *(f"warning: {warning}" for warning in warnings)])
