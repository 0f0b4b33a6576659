"""The ablations: variants of configs/synth.py, some seeds each, at equal steps.

    python -m ivt_jax.ablation --study=terms --out=runs/ablation --root=data/pedes-synth-few
    python -m ivt_jax.ablation --study=optimizers --out=runs/optimizers --root=data/pedes-synth-few
    python -m ivt_jax.ablation --study=choices --out=runs/choices --root=data/pedes-synth-few

Each run is `ivt_jax.main` in a workdir of its own, so that a second call resumes where the first one ended; the table
(ablation.md) and the plot (ablation.png) are made from what the runs wrote. Several run at a time, each on its own
share of the cores: so small a model gains little from a second core.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs import synth
from ivt_jax.common.command import exit_code, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, refuse_path
from ivt_jax.training.metrics import format_seconds

# The demo is one of the choices: `align_fast` and `one_view` are what it has.
CHOICES = ("full", *(name for name in synth.CHOICES if name not in ("align_fast", "one_view")))
STUDIES = {"terms": synth.TERMS, "optimizers": synth.OPTIMIZERS, "choices": CHOICES}
MEASURES = ("R1", "R5", "R10", "mAP")


def run(out: Path, root: str, variants: Sequence[str], seeds: int, steps: int, jobs: int) -> None:
    """Trains every variant with every seed, `jobs` runs at a time; a run that is complete is left as it is.

    Raises UserError where a run fails: those under way are still waited for, no other is started.
    """
    pending = [(variant, seed) for seed in range(seeds) for variant in variants]
    cores = sorted(os.sched_getaffinity(0))
    jobs = max(1, min(jobs, len(cores), len(pending)))
    shares = [cores[job::jobs] for job in range(jobs)]
    began = time.monotonic()
    failures: list[UserError] = []

    def take_share() -> None:
        os.sched_setaffinity(0, shares.pop())  # of this thread; the processes it starts inherit it

    def attempt(variant: str, seed: int) -> None:
        if not failures:
            try:
                train(out, root, variant, seed, steps)
            except UserError as error:
                failures.append(error)

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_share) as pool:
        runs = {pool.submit(attempt, variant, seed): f"{variant}, seed {seed}" for variant, seed in pending}
        for number, ended in enumerate(concurrent.futures.as_completed(runs), start=1):
            if not failures:
                left = format_seconds((time.monotonic() - began) / number * (len(runs) - number))
                print(f"{number} of {len(runs)} done: {runs[ended]}; {left} left\n", end="", flush=True)
    if failures:
        raise failures[0]


def train(out: Path, root: str, variant: str, seed: int, steps: int) -> None:
    """One run in the workdir OUT/VARIANT-SEED, its output beside it in OUT/VARIANT-SEED.log."""
    workdir, log = out / f"{variant}-{seed}", out / f"{variant}-{seed}.log"
    command = [
        sys.executable, "-m", "ivt_jax.main", f"--config=configs/synth.py:{variant}", f"--workdir={workdir}",
        f"--config.seed={seed}", f"--config.data.root={root}", f"--config.train.steps={steps}",
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    print(f"{variant}, seed {seed}: {log}\n", end="", flush=True)  # in one piece: others print at the same time
    with log.open("a") as file:
        failed = subprocess.run(command, stdout=file, stderr=file).returncode
    if failed:
        raise UserError(f"{variant}, seed {seed} failed, see {log}; run the same command again to resume")


def scores(out: Path, variants: Sequence[str], seeds: int) -> dict[str, np.ndarray]:
    """Test scores, text to image, percent: variant -> (seeds, measures)."""

    def read(variant: str, seed: int) -> dict[str, float]:
        return json.loads((out / f"{variant}-{seed}" / "test/summary.json").read_text())["t2i"]

    return {v: np.array([[read(v, s)[m] for m in MEASURES] for s in range(seeds)]) for v in variants}


def table(results: dict[str, np.ndarray]) -> str:
    """Markdown: mean and sample standard deviation over the seeds."""
    lines = ["| variant | " + " | ".join(MEASURES) + " |", "|---" * (1 + len(MEASURES)) + "|"]
    for variant, values in results.items():
        spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        cells = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(values.mean(0), spread, strict=True)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, np.ndarray], path: Path) -> None:
    """R@1 of every seed as a dot, their mean as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for position, values in enumerate(results.values()):
        axes.barh(position, values[:, 0].mean(), color="#9db8d9")
        axes.plot(values[:, 0], [position] * len(values), "o", color="#1f3a5f", markersize=4)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlabel("test R@1, text to image, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=STUDIES, default="terms", help="which variants are compared")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs, table and plot")
    parser.add_argument("--root", default="data/pedes-synth-few", help="folder of the generated benchmark")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=1000, help="steps of every run")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="runs at a time (one for each core)")
    args = parser.parse_args()
    return exit_code(lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Trains what lacks, writes table and plot."""
    refuse_path(args.out, UNWRITABLE)
    variants = STUDIES[args.study]
    run(args.out, args.root, variants, args.seeds, args.steps, args.jobs)
    results = scores(args.out, variants, args.seeds)
    (args.out / "ablation.md").write_text(table(results))
    plot(results, args.out / "ablation.png")
    print(table(results) + f"{args.out}/ablation.md, {args.out}/ablation.png")


if __name__ == "__main__":
    sys.exit(main())
