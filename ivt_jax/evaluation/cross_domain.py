"""Train on one dataset, test on another: scores of every run on every dataset."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import pipeline
from input_pipeline.annotations import DATASETS, dataset_name
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.split import both_scores, embed_split
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer

_SHARED = {"icfg_pedes", "rstp_reid"}
SHARED_WARNING = (
    "ICFG-PEDES and RSTPReid take their pictures from MSMT17 and number the persons each in its own way: the run may "
    "have trained on persons of this test. "
    "`python -m input_pipeline.doctor --dataset=icfg --root=DIR --against=rstp:DIR` finds pictures that both have"
)


def parse_datasets(given: Sequence[str]) -> list[tuple[str, str]]:
    """Parses ["icfg:data/ICFG-PEDES"] into [("icfg_pedes", "data/ICFG-PEDES")]. Raises UserError."""
    datasets = []
    for text in given:
        name, _, root = text.partition(":")
        if name not in DATASETS or not root:
            raise UserError(f"--datasets={text}: expected DATASET:DIR with one of {', '.join(DATASETS)}")
        datasets.append((DATASETS[name], root))
    return datasets


def cross_domain(
    workdirs: Sequence[Path], datasets: Sequence[tuple[str, str]], config: ConfigDict
) -> list[dict[str, Any]]:
    """Scores the best checkpoint of every run on the test split of every dataset, by the protocol `standard`.

    datasets: names and roots. config: its `runtime` applies to all runs. Returns a cell {run, trained_on, tested_on,
    step, queries, gallery, t2i, i2t, warning} for each pair, run by run. Raises UserError for a dataset without test
    split.
    """
    cells = []
    for workdir in dict.fromkeys(workdirs):
        restored = restore_params(workdir)
        model = build_model(restored.config.model)
        tokenizer = folder_tokenizer(workdir, restored.config)
        for name, root in datasets:
            trained_on = dataset_name(restored.config.data)
            print(f"{workdir} ({trained_on}) on {name}: {root}", file=sys.stderr)
            test_config = ConfigDict(restored.config.to_dict())
            test_config.runtime = config.runtime
            test_config.data.update({"name": name, "root": root, "title": ""})
            tested_on = dataset_name(test_config.data)
            source = pipeline.open_split(test_config, "test")
            if not len(source.person_ids):
                raise UserError(f"{source.annotations} has no test records to score {workdir} on")
            embeddings = embed_split(model, restored.params, source, tokenizer, test_config)
            cell = {"run": str(workdir), "trained_on": trained_on, "tested_on": tested_on, "step": restored.step}
            counts = {"queries": len(embeddings.text), "gallery": int(embeddings.image_copies.sum())}
            warning = SHARED_WARNING if {restored.config.data.name, name} == _SHARED else ""
            cells.append({**cell, **counts, **both_scores(standard(embeddings)), "warning": warning})
    return cells


def matrix(cells: list[dict[str, Any]]) -> str:
    """Formats R@1 / mAP in percent as a table of runs (lines) by datasets (columns), with the warnings below."""
    rows = [list(row) for _, row in groupby(cells, key=lambda cell: cell["run"])]
    widths = [max(16, len(cell["tested_on"]) + 2) for cell in rows[0]]
    names = [f"{cell['tested_on']:>{width}}" for cell, width in zip(rows[0], widths, strict=True)]
    lines = [f"{'trained on':40}" + "".join(names)]
    for row in rows:
        label = f"{row[0]['trained_on']} ({row[0]['run']})"
        scores = [f"{cell['t2i']['R1']:.2f} / {cell['t2i']['mAP']:.2f}" for cell in row]
        cells_of_row = (f"{score:>{width}}" for score, width in zip(scores, widths, strict=True))
        lines.append(f"{label:40}" + "".join(cells_of_row))
    warnings = dict.fromkeys(cell["warning"] for cell in cells if cell["warning"])
    return "\n".join([*lines, "text to image, test: R@1 / mAP, %", *(f"warning: {warning}" for warning in warnings)])
