"""Compares runs that differ in a variant and a seed: their scores, and differences by seed, as tables and a plot."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Of text to image, by split. A choice between variants goes by validation; R@1 on test is plotted.
MEASURES = (("val", "R1"), ("test", "R1"), ("test", "R5"), ("test", "R10"), ("test", "mAP"))
PLOTTED = MEASURES.index(("test", "R1"))


def scores(out: Path, variants: Sequence[str], seeds: int) -> dict[str, np.ndarray]:
    """Reads MEASURES of the chosen checkpoints in percent: variant -> (seeds, measures)."""

    def read(variant: str, seed: int) -> list[float]:
        folder = out / f"{variant}-{seed}"
        splits = {split: json.loads((folder / split / "summary.json").read_text()) for split in ("val", "test")}
        return [splits[split]["t2i"][measure] for split, measure in MEASURES]

    return {variant: np.array([read(variant, seed) for seed in range(seeds)]) for variant in variants}


def tables(results: dict[str, np.ndarray]) -> str:
    """Formats in Markdown the scores and, if there are two seeds or more, the differences to the first variant."""
    has_pairs = len(next(iter(results.values()))) > 1
    return table(results) + ("\n" + differences(results) if has_pairs else "")


def table(results: dict[str, np.ndarray]) -> str:
    """Formats means and sample standard deviations over the seeds in Markdown; of one seed, its scores alone."""
    seeds = len(next(iter(results.values())))
    rows = {}
    for variant, values in results.items():
        rows[variant] = [f"{mean:.2f}" for mean in values.mean(0)]
        if seeds > 1:
            deviations = values.std(0, ddof=1)
            rows[variant] = [f"{cell} ± {std:.2f}" for cell, std in zip(rows[variant], deviations, strict=True)]
    spread = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return _markdown("variant", rows, f"Text to image, in percent: {spread}.")


def differences(results: dict[str, np.ndarray]) -> str:
    """Formats in Markdown the differences of each variant to the first, seed by seed, of two seeds or more.

    Means and 95% intervals by Student's t, each for itself: it assumes differences that are normally distributed.
    """
    from scipy.stats import t

    (first, reference), *others = results.items()
    seeds = len(reference)
    rows = {}
    for variant, values in others:
        more = values - reference
        means, halves = more.mean(0), t.ppf(0.975, seeds - 1) * more.std(0, ddof=1) / np.sqrt(seeds)
        intervals = zip(means, means - halves, means + halves, strict=True)
        rows[variant] = [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in intervals]
    note = f"Differences with the same seed: mean and 95% interval over {seeds} seeds."
    return _markdown(f"more than {first}", rows, note)


def _markdown(title: str, rows: dict[str, list[str]], note: str) -> str:
    """Formats a table with a column for each of MEASURES, and a note below; title: of the column of row names."""
    header = [title, *(f"{split} {measure}" for split, measure in MEASURES)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *([name, *cells] for name, cells in rows.items()))]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:], "", note]) + "\n"


def plot(results: dict[str, np.ndarray], path: Path) -> None:
    """Plots R@1: a dot for each seed, a bar for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for position, values in enumerate(results.values()):
        axes.barh(position, values[:, PLOTTED].mean(), color="#9db8d9")
        axes.plot(values[:, PLOTTED], [position] * len(values), "o", color="#1f3a5f", markersize=4)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlabel("test R@1, text to image, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
