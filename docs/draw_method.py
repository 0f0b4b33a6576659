"""Draw the method as one figure, docs/method.png.

python docs/draw_method.py
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, GREY = "#1f2430", "#8a90a0"
IMAGE, TEXT, SHARED, LOSS = "#e8833a", "#4f7df3", "#2fa37c", "#b267d6"


def box(axes: Axes, at: tuple[float, float], size: tuple[float, float], label: str, colour: str) -> None:
    """Draws a rounded box with its lower left corner at `at`, and its label in the middle."""
    shape = FancyBboxPatch(at, *size, boxstyle="round,pad=0,rounding_size=0.12", fc=colour + "22", ec=colour, lw=1.4)
    axes.add_patch(shape)
    axes.text(at[0] + size[0] / 2, at[1] + size[1] / 2, label, ha="center", va="center", color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    """Draws an arrow from `start` to `end`."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    )


def draw() -> Figure:
    """Returns the figure: inputs on the left, the tower in the middle, the losses on the right."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 16.4), ylim=(0, 6.6))
    axes.axis("off")
    box(axes, (0.1, 4.3), (3.2, 1.7), "crop\n384 x 128 pixels", IMAGE)
    box(axes, (0.1, 2.9), (3.2, 0.9), "sentence", TEXT)
    box(axes, (0.1, 1.7), (3.2, 0.9), "phrases: one clause", TEXT)
    box(axes, (0.1, 0.5), (3.2, 0.9), "words: “red coat”, ...", TEXT)
    box(axes, (4.1, 4.3), (2.2, 1.7), "patches\n+ position\n+ type", IMAGE)
    box(axes, (4.1, 0.5), (2.2, 3.3), "WordPiece\ntokens\n+ position\n+ type", TEXT)
    arrow(axes, (3.35, 5.15), (4.05, 5.15), IMAGE)
    for y in (3.35, 2.15, 0.95):
        arrow(axes, (3.35, y), (4.05, y), TEXT)
    axes.add_patch(
        FancyBboxPatch((7.0, 0.3), 4.0, 6.0, boxstyle="round,pad=0,rounding_size=0.2", fc="none", ec=GREY, lw=1)
    )
    axes.text(9.0, 6.02, "block, 12 times", ha="center", va="center", color=GREY)
    box(axes, (7.3, 0.6), (1.6, 5.1), "attention,\nshared by\nboth", SHARED)
    box(axes, (9.3, 3.4), (1.4, 2.3), "MLP\nof images", IMAGE)
    box(axes, (9.3, 0.6), (1.4, 2.3), "MLP\nof texts", TEXT)
    arrow(axes, (6.35, 5.15), (7.25, 4.6), IMAGE)
    arrow(axes, (6.35, 2.15), (7.25, 2.15), TEXT)
    arrow(axes, (8.95, 4.55), (9.25, 4.55), IMAGE)
    arrow(axes, (8.95, 1.75), (9.25, 1.75), TEXT)
    box(
        axes,
        (11.9, 3.4),
        (4.4, 2.6),
        "MLA: [CLS] of images\nagainst [CLS] of sentences,\nphrases and words\n(CMPM over the batch)",
        LOSS,
    )
    box(
        axes,
        (11.9, 0.5),
        (4.4, 2.4),
        "BMM: some tokens hidden;\nmatched without them, and\nmasked words and patches\npredicted from both sides",
        LOSS,
    )
    for start, end in (
        ((10.75, 4.55), (11.85, 4.7)),
        ((10.75, 1.75), (11.85, 1.7)),
        ((10.75, 1.9), (11.85, 4.4)),
        ((10.75, 4.4), (11.85, 1.9)),
    ):
        arrow(axes, start, end, IMAGE if start[1] > 3 else TEXT)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("method.png"), dpi=150, facecolor="white")
