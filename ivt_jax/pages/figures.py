"""The figures of a report: inline SVG in the text colour of the page, for light and dark mode."""

import io
import itertools
import re
from typing import Any

import numpy as np
from markupsafe import Markup

from ivt_jax.evaluation.ranking import Ranks

CMC_RANKS = 50
TERMS = {
    "loss": "Total loss", "mla": "Alignment (MLA)", "id": "Identity", "itm": "Image-text matching (ITM)",
    "words": "Masked words", "patches": "Masked patches", "temperature": "Learned temperature",
}  # fmt: skip
_COLOURS = ("#4f7df3", "#e8833a", "#2fa37c", "#b267d6", "#d9527a")
_INK = "#010203"  # placeholder for the text colour of the page
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "axes.edgecolor": _INK,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.prop_cycle": f"cycler(color={_COLOURS})", "lines.markersize": 3, "lines.linewidth": 1.8,
}  # fmt: skip
_POINTS = 300  # of a curve; longer ones are averaged in this many bins


def loss_figures(lines: list[dict[str, float]]) -> list[Markup]:
    """Plots every loss term of the run, and its learned temperature, in a small figure of its own."""
    points = {term: [(line["step"], line[term]) for line in lines if term in line] for term in TERMS}
    curves = {TERMS[term]: thinned(curve) for term, curve in points.items() if curve}
    colours = itertools.cycle(("#8a90a0", *_COLOURS))
    return [line_figure(x, {"": curves[x]}, "step", color=c) for x, c in zip(curves, colours, strict=False)]


def validation_figures(lines: list[dict[str, float]]) -> list[Markup]:
    """Plots R@k and mAP by step on the split that selects the checkpoint, in a figure for each direction.

    With several datasets these are means, and two more figures have R@1 of each dataset.
    """
    figures = []
    splits = {"val": "Validation", "test": "Test, used for selection"}
    each = _labels(lines)
    for split, (way, direction) in itertools.product(splits, (("t2i", "text to image"), ("i2t", "image to text"))):
        keys = {name.replace("R", "R@"): f"{split}/{way}/{name}" for name in ("R10", "R5", "R1", "mAP")}
        if series := _series(lines, keys):
            mean = ", mean" if each else ""
            figures.append(line_figure(f"{splits[split]}, {direction}{mean}", series, "step", percent=True, marker="o"))
        keys = {label: f"{split}.{label}/{way}/R1" for label in each}
        if series := _series(lines, keys):
            title = f"{splits[split]} R@1, {direction}"
            figures.append(line_figure(title, series, "step", percent=True, marker="o"))
    return figures


def _labels(lines: list[dict[str, float]]) -> list[str]:
    """Returns the labels of the datasets whose scores the lines have by themselves, as "val.LABEL/t2i/R1"."""
    splits = dict.fromkeys(key.partition("/")[0] for line in lines for key in line)
    return list(dict.fromkeys(split.partition(".")[2] for split in splits if "." in split))


def _series(lines: list[dict[str, float]], keys: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns (2, n) of step and value for the keys, by name, that the lines have."""
    found = {name: [(line["step"], line[key]) for line in lines if key in line] for name, key in keys.items()}
    return {name: np.array(points).T for name, points in found.items() if points}


def roc_figure(roc: dict[str, list[float]]) -> Markup:
    """Plots the share of absent persons detected against the share of present persons called absent, in percent."""
    curve = 100 * np.array([roc["false_alarm"], roc["caught"]])
    series = {"this model": curve, "chance": np.array([[0, 100], [0, 100]])}
    return line_figure("", series, "present persons called absent, %", percent=True, size=(4.8, 2.9))


def cmc_figure(ranks: dict[str, Ranks], oracle: float | None) -> Markup:
    """Plots the share of queries with a match among the first k, k = 1..CMC_RANKS, in percent."""
    steps = np.arange(1, CMC_RANKS + 1)
    series = {}
    for way, result in ranks.items():
        known = result.first[~np.isnan(result.first)]
        series[way] = np.stack([steps, 100 * (known[:, None] <= steps).mean(0)])
    if oracle is not None:
        series["oracle, text to image"] = np.array([[1], [oracle]])
    return line_figure("", series, "rank k", percent=True, size=(4.8, 2.9), marker="o")


def line_figure(
    title: str, series: dict[str, np.ndarray], xlabel: str, *, percent: bool = False,
    size: tuple[float, float] = (3.7, 2.5), **style: Any,
) -> Markup:  # fmt: skip
    """Plots curves {label: (2, n) of x and y} as an inline SVG. percent: y from 0 to 100 %; style: as `Axes.plot`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for label, (x, y) in series.items():
            axes.plot(x, y, label=label, **style)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", alpha=0.12, linewidth=0.8)
        if percent:
            axes.yaxis.set_major_formatter("{x:g} %")
            axes.set_ylim(0, 100)
        if any(series):
            axes.legend(fontsize=8, loc="lower right" if percent else "best")  # shares rise from left to right
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return Markup(svg[svg.index("<svg") :].replace(_INK, "currentColor"))


def thinned(points: list[tuple[float, float]]) -> np.ndarray:
    """Averages consecutive points (x, y) in at most _POINTS equal bins: (2, n)."""
    bins = np.array_split(np.array(points, float), min(_POINTS, len(points)))
    return np.stack([part.mean(0) for part in bins], axis=1)
