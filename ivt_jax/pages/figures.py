"""The figures of a report: inline SVG that takes the page's own text colour, in light and in dark mode."""

import io
import itertools
import re
from typing import Any

import numpy as np
from markupsafe import Markup

from ivt_jax.evaluation.ranking import Ranks

CMC_RANKS = 50
TERMS = {"loss": "Total loss", "mla": "Alignment (MLA)", "words": "Masked words", "patches": "Masked patches"}
_COLOURS = ("#4f7df3", "#e8833a", "#2fa37c", "#b267d6", "#d9527a")
_INK = "#010203"  # stands for the colour of the page's text, until the figure is inside the page
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10, "axes.edgecolor": _INK,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
_POINTS = 300  # of a curve; longer ones are averaged in as many bins


def loss_figures(lines: list[dict[str, float]]) -> list[Markup]:
    """One small figure for each loss term of the run."""
    terms = [term for term in TERMS if any(term in line for line in lines)]
    return [
        line_figure(TERMS[term], {"": thinned([(x["step"], x[term]) for x in lines if term in x])}, "step", colour)
        for term, colour in zip(terms, ("#8a90a0", *_COLOURS), strict=False)
    ]


def validation_figures(lines: list[dict[str, float]]) -> list[Markup]:
    """R@k and mAP against steps on the split that chooses, one figure for each of its directions."""
    figures = []
    splits = ("val", "Validation"), ("test", "Test, which chose")
    for (split, title), (way, told) in itertools.product(splits, (("t2i", "text to image"), ("i2t", "image to text"))):
        prefix = f"{split}/{way}/"
        names = [name for name in ("R10", "R5", "R1", "mAP") if any(prefix + name in line for line in lines)]
        series = {name.replace("R", "R@"): np.array([(x["step"], x[prefix + name]) for x in lines]).T for name in names}
        if series:
            figures.append(line_figure(f"{title}, {told}", series, "step", unit="%", marker="o"))
    return figures


def roc_figure(roc: dict[str, list[float]]) -> Markup:
    """How many absent persons are told as such, against how many present ones are too, in percent."""
    curve = 100 * np.array([roc["false_alarm"], roc["caught"]])
    series = {"this model": curve, "chance": np.array([[0, 100], [0, 100]])}
    return line_figure("", series, "present persons called absent, %", unit="%", size=(4.8, 2.9))


def cmc_figure(ranks: dict[str, Ranks], oracle: float | None) -> Markup:
    """The share of queries whose person is among the first k, k = 1..CMC_RANKS, in percent."""
    steps = np.arange(1, CMC_RANKS + 1)
    series = {}
    for way, result in ranks.items():
        known = result.first[~np.isnan(result.first)]
        series[way] = np.stack([steps, [100 * (known <= k).mean() for k in steps]])
    if oracle is not None:
        series["oracle, text to image"] = np.array([[1], [oracle]])
    return line_figure("", series, "rank k", unit="%", marker="o", size=(4.8, 2.9))


def line_figure(
    title: str, series: dict[str, np.ndarray], xlabel: str, colour: str = "", unit: str = "", marker: str = "",
    size: tuple[float, float] = (3.7, 2.5),
) -> Markup:  # fmt: skip
    """Curves {label: (2, n) of x and y} as an inline SVG in the colours and the font of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for (label, (x, y)), default in zip(series.items(), _COLOURS, strict=False):
            axes.plot(x, y, label=label, color=colour or default, marker=marker, markersize=3, linewidth=1.8)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", alpha=0.12, linewidth=0.8)
        if unit:
            axes.yaxis.set_major_formatter(f"{{x:g}} {unit}")
            axes.set_ylim(0, 100)
        if any(series):
            axes.legend(fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return Markup(svg[svg.index("<svg") :].replace(_INK, "currentColor"))


def thinned(points: list[tuple[float, float]]) -> np.ndarray:
    """(2, n) of x and y with n at most _POINTS: the means of equal bins of consecutive points."""
    bins = np.array_split(np.array(points, float), min(_POINTS, len(points)))
    return np.stack([part.mean(0) for part in bins], axis=1)
