"""Does pre-training on pairs without identities help, and which of its losses? A small tower, on PEDES-Synth.

    python -m ivt_jax.benchmarks.pretraining --out=runs/pretraining

1. 8,950 persons are drawn once and divided, so that nobody is in two parts: 8,000 to pre-train on and 150 to validate
   that; 500 to fine-tune on, 150 to validate and 150 to test that.
2. The tower is pre-trained on the images and captions of the 8,000, each image a person of its own: with ITC alone,
   with ITC and MLM, with ITC, ITM and MLM (configs/synth.py:pretrain_itc, :pretrain_itc_mlm, :pretrain).
3. Each result is fine-tuned on the 500 by the demo's recipe, with some seeds. `random` trains from random weights on
   the 500 alone, for as many steps as pre-training and fine-tuning have together.

Writes pretraining.md and pretraining.png into --out, and prints the table. Each training is `ivt_jax.main` in a workdir
of its own: a second call resumes.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivt_jax.benchmarks.comparison import plot, scores, tables
from ivt_jax.benchmarks.transfer import command
from ivt_jax.common.command import exit_code, filled_path, positive
from ivt_jax.common.files import whole_folder, write_text

PRETRAINED = {"itc": "pretrain_itc", "itc_mlm": "pretrain_itc_mlm", "itc_itm_mlm": "pretrain"}  # name -> variant
NAMES = ("random", *PRETRAINED)
PERSONS, VAL, TEST, FEW = 8950, 300, 150, 500


def run(options: argparse.Namespace) -> None:
    """Pre-trains and fine-tunes what is missing under --out; prints and writes the table, writes the plot."""
    out = options.out
    many, few = divide(out)
    for name, variant in PRETRAINED.items():
        train(out / f"pretrained-{name}", variant, many, options.pretraining_steps)
    for seed in range(options.seeds):
        for name in PRETRAINED:
            train(out / f"{name}-{seed}", "", few, options.steps, seed, out / f"pretrained-{name}")
        train(out / f"random-{seed}", "", few, options.pretraining_steps + options.steps, seed)
    results = scores(out, NAMES, options.seeds)
    write_text(out / "pretraining.md", tables(results))
    plot(results, out / "pretraining.png")
    print(tables(results), end="")


def divide(out: Path) -> tuple[Path, Path]:
    """Generates the persons and returns two folders that share their images: to pre-train on, and to fine-tune on."""
    people, many, few = (out / name for name in ("people", "many", "few"))
    command("-m", "input_pipeline.synthetic", f"--out={people}", f"--persons={PERSONS}", f"--val_persons={VAL}",
            f"--test_persons={TEST}", "--size=96x48", "--seed=1")  # fmt: skip
    records = json.loads((people / "reid_raw.json").read_text(encoding="utf-8"))
    persons = {split: sorted({r["id"] for r in records if r["split"] == split}) for split in ("train", "val", "test")}
    train, val = persons["train"], persons["val"]
    parts: Mapping[Path, dict[str, Any]] = {
        many: {"train": train[FEW:], "val": val[: VAL // 2]},
        few: {"train": train[:FEW], "val": val[VAL // 2 :], "test": persons["test"]},
    }
    for folder, splits in parts.items():
        if not folder.exists():
            own = {person for chosen in splits.values() for person in chosen}
            with whole_folder(folder) as partial:
                (partial / "imgs").symlink_to((people / "imgs").absolute())
                write_text(partial / "reid_raw.json", json.dumps([r for r in records if r["id"] in own]))
    return many, few


def train(workdir: Path, variant: str, root: Path, steps: int, seed: int = 0, start: Path | None = None) -> None:
    """Trains a variant of configs/synth.py, validated once, at its end; a complete run ends at once."""
    command("-m", "ivt_jax.main", f"--config=configs/synth.py:{variant}", f"--workdir={workdir}",
            f"--config.data.root={root}", f"--config.train.steps={steps}", f"--config.train.eval_every={steps}",
            f"--config.seed={seed}", f"--config.train.init_from={start or ''}",
            "--config.evaluation.robustness=False")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.benchmarks.pretraining", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=filled_path, default=Path("runs/pretraining"), help="folder of data and runs")
    parser.add_argument("--seeds", type=positive, default=3, help="fine-tunings of each start (3)")
    parser.add_argument("--pretraining_steps", type=positive, default=2000, help="steps on the 8,000 persons (2000)")
    parser.add_argument("--steps", type=positive, default=1000, help="steps of each fine-tuning (1000)")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
