"""Train the variants of configs/synth.py with some seeds each, at equal steps, and compare them.

    python -m ivt_jax.ablation --study=terms --out=runs/ablation --root=data/pedes-synth-few    # or another of STUDIES

Each run is `ivt_jax.main` in its own workdir, so a second call resumes. Several run at a time, each on its share of the
cores, since so small a model gains little from a second core. Writes tables and a plot, terms.md and terms.png, named
after the study. Studies with the same --out share the runs of the same variant. `--help` lists the variants of each
study, and the command that makes the data.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs import synth
from ivt_jax.benchmarks.comparison import plot, scores, tables
from ivt_jax.common.command import MISTAKE, exit_code, filled, filled_path, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, refuse_path
from ivt_jax.training.metrics import format_seconds

# `full` is the demo itself: `align_fast`, `one_view`, and the loss `cmpm`.
CHOICES = ("full", *(name for name in synth.CHOICES if name not in ("align_fast", "one_view")))
STUDIES = {
    "terms": synth.TERMS, "optimizers": synth.OPTIMIZERS, "choices": CHOICES, "losses": ("full", *synth.LOSSES),
    "towers": synth.TOWERS,
}  # fmt: skip
DATA = "python -m input_pipeline.synthetic --out=data/pedes-synth-few --persons=800 --size=96x48"


def run(out: Path, root: str, variants: Sequence[str], seeds: int, steps: int, jobs: int) -> None:
    """Trains every variant with every seed, `jobs` runs at a time; complete runs end at once.

    After a failure no other run starts. Raises its UserError when the running ones have ended.
    """
    pending = [(variant, seed) for seed in range(seeds) for variant in variants]
    cores = sorted(os.sched_getaffinity(0))
    jobs = max(1, min(jobs, len(cores), len(pending)))
    shares = [cores[job::jobs] for job in range(jobs)]
    began = time.monotonic()
    failures: list[UserError] = []

    def take_share() -> None:
        os.sched_setaffinity(0, shares.pop())  # of this thread; its processes inherit it

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
    """Trains in the workdir OUT/VARIANT-SEED, with the output in OUT/VARIANT-SEED.log. Raises UserError if it fails."""
    workdir, log = out / f"{variant}-{seed}", out / f"{variant}-{seed}.log"
    command = [
        sys.executable, "-m", "ivt_jax.main", f"--config=configs/synth.py:{variant}", f"--workdir={workdir}",
        f"--config.seed={seed}", f"--config.data.root={root}", f"--config.train.steps={steps}",
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    print(f"{variant}, seed {seed}: {log}\n", end="", flush=True)  # in one write: other threads print, too
    with log.open("a") as file:
        failed = subprocess.run(command, stdout=file, stderr=file).returncode
    if failed:
        cause = (log.read_text(errors="replace").splitlines() or ["no output"])[-1].removeprefix("error: ")
        remedy = "" if failed == MISTAKE else "; run the same command again to resume"
        raise UserError(f"{variant}, seed {seed} failed, see {log}: {cause}{remedy}")


def compare(args: argparse.Namespace) -> None:
    """Trains the missing runs; writes and prints the table, writes the plot."""
    refuse_path(args.out, UNWRITABLE)
    if "://" not in args.root and not Path(args.root).is_dir():
        raise UserError(f"--root: the folder {args.root} does not exist; make the data first, as with {DATA}")
    variants = STUDIES[args.study]
    run(args.out, args.root, variants, args.seeds, args.steps, args.jobs)
    results = scores(args.out, variants, args.seeds)
    written = args.out / f"{args.study}.md"
    written.write_text(tables(results))
    plot(results, written.with_suffix(".png"))
    print(tables(results) + f"{written}, {written.with_suffix('.png')}")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser; its help lists the variants of each study."""
    studies = "\n".join(f"  {study}: {', '.join(variants)}" for study, variants in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.ablation",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"studies and their variants:\n{studies}\n\nthe data must exist:\n  {DATA}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag, out, root = parser.add_argument, Path("runs/ablation"), "data/pedes-synth-few"
    flag("--study", choices=STUDIES, default="terms", help="the variants to compare, listed below (terms)")
    flag("--out", type=filled_path, default=out, help=f"folder of the runs, table and plot ({out})")
    flag("--root", type=filled, default=root, help=f"folder of the PEDES-Synth dataset, which must exist ({root})")
    flag("--seeds", type=positive, default=3, help="number of seeds (3)")
    flag("--steps", type=positive, default=3000, help="steps of every run (3000)")
    flag("--jobs", type=positive, default=os.cpu_count(), help="runs at a time (one for each core)")
    return parser


def main() -> int:
    """Parses the command line; returns the exit code."""
    args = make_parser().parse_args()
    return exit_code(lambda: compare(args))


if __name__ == "__main__":
    sys.exit(main())
