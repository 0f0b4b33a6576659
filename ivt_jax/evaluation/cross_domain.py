"""Train on one dataset, test on another: the matrix that tells what was learned of persons, and what of cameras."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import pipeline
from input_pipeline.annotations import DATASETS
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.split import both_scores, embed_split
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.workdir import folder_tokenizer, write_json

_SHARED = {"icfg_pedes", "rstp_reid"}
SHARED_WARNING = (
    "ICFG-PEDES and RSTPReid take their pictures from MSMT17 and number the persons each in its own way: persons of "
    "this test may have been trained on. "
    "`python -m input_pipeline.doctor --dataset=icfg --root=DIR --against=rstp:DIR` finds pictures that both have"
)


def parse_datasets(given: Sequence[str]) -> dict[str, str]:
    """["icfg:data/ICFG-PEDES"] -> {"icfg_pedes": "data/ICFG-PEDES"}. Raises UserError."""
    datasets = {}
    for text in given:
        name, _, root = text.partition(":")
        if name not in DATASETS or not root:
            raise UserError(f"--datasets={text}: expected DATASET:DIR with one of {', '.join(DATASETS)}")
        datasets[DATASETS[name]] = root
    return datasets


def cross_domain(workdirs: Sequence[Path], datasets: dict[str, str], config: ConfigDict) -> list[dict[str, Any]]:
    """The best checkpoint of every run on the test split of every dataset; text to image by the protocol `standard`.

    datasets: name -> root. config: the first run's, which tells where to compute. A cell is {run, trained_on,
    tested_on, step, queries, gallery, t2i, i2t, warning}.
    """
    cells = []
    for workdir in dict.fromkeys(workdirs):
        restored = restore_params(workdir)
        model = IVT(IVTConfig.from_config(restored.config.model))
        tokenizer = folder_tokenizer(workdir, restored.config)
        for name, root in datasets.items():
            trained_on = restored.config.data.name
            print(f"{workdir} ({trained_on}) on {name}: {root}", file=sys.stderr)
            there = ConfigDict(restored.config.to_dict())
            there.runtime = config.runtime
            there.data.update({"name": name, "root": root})
            source = pipeline.open_split(there, "test")
            found = embed_split(model, restored.params, source, tokenizer, there)
            cells.append(
                {
                    "run": str(workdir), "trained_on": trained_on, "tested_on": name, "step": restored.step,
                    "queries": len(found.text), "gallery": int(found.image_copies.sum()),
                    **both_scores(standard(found)),
                    "warning": SHARED_WARNING if {trained_on, name} == _SHARED else "",
                }
            )  # fmt: skip
    return cells


def write_matrix(workdir: Path, cells: list[dict[str, Any]]) -> None:
    """Keeps the cells for the report."""
    write_json(workdir / "cross_domain.json", cells)


def matrix(cells: list[dict[str, Any]]) -> str:
    """R@1 / mAP in percent as a table, a line for each run and a column for each test, and the warnings below."""
    tests = list(dict.fromkeys(cell["tested_on"] for cell in cells))
    lines = [f"{'trained on':40}" + "".join(f"{test:>16}" for test in tests)]
    for run in dict.fromkeys(cell["run"] for cell in cells):
        row = {cell["tested_on"]: cell for cell in cells if cell["run"] == run}
        label = f"{row[tests[0]]['trained_on']} ({run})"
        figures = [f"{row[test]['t2i']['R1']:.2f} / {row[test]['t2i']['mAP']:.2f}" for test in tests]
        lines.append(f"{label:40}" + "".join(f"{figure:>16}" for figure in figures))
    warnings = dict.fromkeys(cell["warning"] for cell in cells if cell["warning"])
    return "\n".join([*lines, "text to image, test: R@1 / mAP, %", *(f"warning: {warning}" for warning in warnings)])
