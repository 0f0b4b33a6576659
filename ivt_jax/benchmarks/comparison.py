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
    titles = " | ".join(f"{split} {measure}" for split, measure in MEASURES)
    seeds = len(next(iter(results.values())))
    lines = [f"| variant | {titles} |", "|---" * (1 + len(MEASURES)) + "|"]
    for variant, values in results.items():
        cells = [f"{mean:.2f}" for mean in values.mean(0)]
        if seeds > 1:
            cells = [f"{cell} ± {std:.2f}" for cell, std in zip(cells, values.std(0, ddof=1), strict=True)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    spread = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join([*lines, "", f"Text to image, in percent: {spread}."]) + "\n"


def differences(results: dict[str, np.ndarray]) -> str:
    """Formats in Markdown the differences of each variant to the first, seed by seed, of two seeds or more.

    Means and 95% intervals by Student's t, each for itself: it assumes differences that are normally distributed.
    """
    from scipy.stats import t

    (first, reference), *others = results.items()
    seeds = len(reference)
    titles = " | ".join(f"{split} {measure}" for split, measure in MEASURES)
    lines = [f"| more than {first} | {titles} |", "|---" * (1 + len(MEASURES)) + "|"]
    for variant, values in others:
        more = values - reference
        means, halves = more.mean(0), t.ppf(0.975, seeds - 1) * more.std(0, ddof=1) / np.sqrt(seeds)
        intervals = zip(means, means - halves, means + halves, strict=True)
        cells = [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in intervals]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Differences with the same seed: mean and 95% interval over {seeds} seeds."]) + "\n"


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
