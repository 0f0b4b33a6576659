"""Whether phrases' scores and heat-maps mean something, in figures: on PEDES-Synth, where it is known what is where.

    python -m ivt_jax.benchmarks.grounding --workdir=runs/demo

For each part of the person in a crop of the test split there is a phrase that is true, such as "white shoes".

*Scores.* The area under the ROC curve, twice: how often a phrase scores higher with a crop that it is true of than a
phrase does with one that it is false of ("false"); and how often the true phrase scores higher than the same thing in
another colour with the same crop ("recoloured"). Each for the cosine similarity and for the share of the crops that fit
the phrase less well, which is what search shows.

*Heat.* The pointing game: how often some of the part lies in the hottest patch of its phrase, and of the phrase without
its colour ("thing"). Beside them how often it lies in a patch drawn at random ("chance"), and in the one patch of the
grid, the same for all crops, in which it lies most often ("fixed").

A phrase counts as true where at least LEAST of the crop's pixels show the part.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.synthetic.canvas import PARTS
from input_pipeline.synthetic.parts import label_parts, list_shots
from input_pipeline.synthetic.persons import NONE, Attributes
from ivt_jax.common.command import positive
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command

if TYPE_CHECKING:
    from ivt_jax.encoding.encoder import ImageEncoder

LEAST = 0.002
BATCH = 64

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped flag answer at once.


class Phrase(NamedTuple):
    """What is said of a part; the colour is "" where none is told."""

    colour: str
    thing: str

    def __str__(self) -> str:
        return f"{self.colour} {self.thing}".strip()


class Crop(NamedTuple):
    """A crop as the model takes it, and what is known of it."""

    pixels: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8, places in PARTS
    told: dict[str, Phrase]  # part -> what is true of it; what the person lacks is missing

    def shows(self, part: str) -> bool:
        return bool(self.mask(part).mean() >= LEAST)

    def mask(self, part: str) -> np.ndarray:
        """(H, W) bool: where the part is seen."""
        return self.labels == PARTS.index(part)


def tell(who: Attributes) -> dict[str, Phrase]:
    """A true phrase for each part that the person has."""
    told = {
        "hair": Phrase(who.hair_colour, "hair"),
        "glasses": Phrase("", "glasses" if who.glasses == "yes" else NONE),
        "hat": Phrase(who.hat_colour, who.hat),
        "upper": Phrase(who.upper_colour, who.upper_type),
        "lower": Phrase(who.lower_colour, who.lower_type),
        "shoes": Phrase(who.shoes_colour, who.shoes_type),
        "bag": Phrase(who.bag_colour, who.bag),
        "held": Phrase("", who.holding),
    }
    return {part: phrase for part, phrase in told.items() if phrase.thing != NONE}


def read_crops(root: Path, size: tuple[int, int], count: int) -> list[Crop]:
    """`count` crops of the test split, evenly spaced, or all where there are fewer; at `size` (height, width).

    Raises UserError where `root` is no PEDES-Synth, or an image there another than its seed draws.
    """
    from ivt_jax.encoding.images import load_image, open_image

    shots = list_shots(root, "test")
    chosen = [shots[i] for i in np.unique(np.linspace(0, len(shots) - 1, count).round().astype(int))]
    crops = []
    for job, shot in progress(chosen, len(chosen), "drawing parts: ", "crops", brief=True):
        path = root / "imgs" / shot.path
        labels = Image.fromarray(label_parts(job, shot, open_image(path)))
        labels = labels.resize(size[::-1], Image.Resampling.NEAREST)
        crops.append(Crop(load_image(path, size), np.asarray(labels), tell(job.who)))
    return crops


class Pairs(NamedTuple):
    """The T phrases that are true of a part of any crop, with each of the N crops."""

    phrases: list[Phrase]
    true: np.ndarray  # (T, N) bool: the phrase is true of the crop, which shows the part
    false: np.ndarray  # (T, N) bool: it is false, or the person lacks the part


def all_parts(crops: Sequence[Crop]) -> list[str]:
    """The parts of which anything is told, from the top down."""
    return [part for part in PARTS if any(part in crop.told for crop in crops)]


def pair_up(crops: Sequence[Crop], part: str) -> Pairs:
    """All pairs of a phrase and a crop; those of which the part is hidden are neither true nor false."""
    told = [crop.told.get(part) for crop in crops]
    phrases = sorted({phrase for phrase in told if phrase})
    said = np.array([[phrase == own for own in told] for phrase in phrases])
    return Pairs(phrases, said & [crop.shows(part) for crop in crops], ~said)


def area(true: np.ndarray, false: np.ndarray) -> float:
    """P(one of `true` is larger than one of `false`), equal ones counting half; nan where one of the two is empty."""
    if not len(true) or not len(false):
        return float("nan")
    less, up_to = (np.searchsorted(np.sort(false), true, side) for side in ("left", "right"))
    return float((less + up_to).mean() / (2 * len(false)))


def shares(scores: np.ndarray) -> np.ndarray:
    """Of scores (T, N) the share of the N crops that fit a phrase less well, equals counting half: (T, N)."""
    ranks = [np.searchsorted(np.sort(row), row, side) for side in ("left", "right") for row in scores]
    return np.mean(np.reshape(ranks, (2, *scores.shape)), axis=0) / scores.shape[1]


def recolour(values: np.ndarray, pairs: Pairs) -> list[float]:
    """For each true pair: how often its value of (T, N) is larger than the crop's with the thing in another colour."""
    wins = []
    for row, column in zip(*np.nonzero(pairs.true), strict=True):
        thing = pairs.phrases[row].thing
        others = [i for i, phrase in enumerate(pairs.phrases) if phrase.thing == thing and i != row]
        if others:
            wins.append(area(values[[row], column], values[others, column]))
    return wins


def score_table(crops: Sequence[Crop], score: Callable[[list[str]], np.ndarray]) -> str:
    """The table of scores, in Markdown. score: texts -> their similarities with the crops, (T, N)."""
    kinds: dict[str, list[list[np.ndarray]]] = {}
    for part in all_parts(crops):
        pairs = pair_up(crops, part)
        scores = score([str(phrase) for phrase in pairs.phrases])
        kinds[part] = [
            [values[pairs.true], values[pairs.false], np.array(recolour(values, pairs))]
            for values in (scores, shares(scores))
        ]
    kinds["all"] = [[np.concatenate(x) for x in zip(*kind, strict=True)] for kind in zip(*kinds.values(), strict=True)]
    lines = ["| part | true pairs | false: cosine | share | recoloured: cosine | share |", "|---|---|---|---|---|---|"]
    for part, ((true, false, wins), (true_shares, false_shares, wins_of_shares)) in kinds.items():
        areas = [f"{area(true, false):.3f}", f"{area(true_shares, false_shares):.3f}"]
        areas += [f"{x.mean():.3f}" if len(x) else "" for x in (wins, wins_of_shares)]  # "glasses" have no colour
        lines.append(f"| {part} | {len(true):,} | {' | '.join(areas)} |")
    return "\n".join(lines)


def covered(mask: np.ndarray, patch_size: int, stride: int) -> np.ndarray:
    """In which patches some of a mask (H, W) bool lies: (N,) bool, patches row by row."""
    windows = np.lib.stride_tricks.sliding_window_view(mask, (patch_size, patch_size))[::stride, ::stride]
    return windows.any((-2, -1)).ravel()


class Pointed(NamedTuple):
    """Where a part lies in a crop, and whether its heat-maps are hottest there."""

    phrase: bool
    thing: bool
    lies: np.ndarray  # (N,) bool: the patches in which some of it is seen


def pointing(pointed: Sequence[Pointed]) -> tuple[float, ...]:
    """Of one part, in percent: hits of the phrase, of the thing, of a random patch, of the best fixed one."""
    phrase, thing, lies = (np.array(column) for column in zip(*pointed, strict=True))
    return tuple(100 * float(x) for x in (phrase.mean(), thing.mean(), lies.mean(), lies.mean(0).max()))


def heat_table(crops: Sequence[Crop], encoder: "ImageEncoder", vectors: Mapping[str, np.ndarray]) -> str:
    """The table of heat, in Markdown. vectors: of all phrases, and of their things."""
    from ivt_jax.retrieval.explain import heat_maps

    model = encoder.config.model
    found: dict[str, list[Pointed]] = {part: [] for part in all_parts(crops)}
    for crop in progress(crops, len(crops), "heat-maps: ", "crops", brief=True):
        parts = [part for part in crop.told if crop.shows(part)]
        texts = [text for part in parts for text in (str(crop.told[part]), crop.told[part].thing)]
        heat = heat_maps(encoder, crop.pixels, np.stack([vectors[text] for text in texts]))
        hottest = heat.reshape(len(texts), -1).argmax(1)
        for part, (phrase, thing) in zip(parts, hottest.reshape(-1, 2), strict=True):
            lies = covered(crop.mask(part), model.patch_size, model.stride)
            found[part].append(Pointed(lies[phrase], lies[thing], lies))
    rows = {part: pointing(pointed) for part, pointed in found.items() if pointed}
    lines = ["| part | crops | phrase, % | thing, % | chance, % | fixed, % |", "|---|---|---|---|---|---|"]
    for part, figures in [*rows.items(), ("mean", np.mean(list(rows.values()), axis=0))]:
        count = f"{len(found[part]):,}" if part in found else ""
        lines.append(f"| {part} | {count} | {' | '.join(f'{x:.1f}' for x in figures)} |")
    return "\n".join(lines)


def measure(workdir: Path, root: Path | None, count: int) -> str:
    """Both tables, of a run with the dataset in `root`, or else that of its config.

    Raises UserError where the workdir has no checkpoint, or as `read_crops`.
    """
    from ivt_jax.encoding.embedding import embed_texts
    from ivt_jax.encoding.encoder import ImageEncoder
    from ivt_jax.run.workdir import folder_tokenizer

    encoder = ImageEncoder(workdir)
    tokenizer, length = folder_tokenizer(workdir, encoder.config), encoder.config.text.length["sentence"]

    def embed(texts: list[str]) -> np.ndarray:
        return embed_texts(encoder.model, encoder.params, tokenizer.encode(texts, length), BATCH)

    crops = read_crops(root or Path(encoder.config.data.root), encoder.size, count)
    pixels = [crop.pixels for crop in crops]
    images = encoder.embed(np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
    texts = sorted({text for crop in crops for told in crop.told.values() for text in (str(told), told.thing)})
    vectors = dict(zip(texts, embed(texts), strict=True))
    scores = score_table(crops, lambda texts: np.stack([vectors[text] for text in texts]) @ images.T)
    return f"{scores}\n\n{heat_table(crops, encoder, vectors)}"


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.grounding", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a run trained on PEDES-Synth")
    parser.add_argument("--root", type=Path, help="folder of the dataset (default: the run's data.root)")
    parser.add_argument("--crops", type=positive, default=400, help="how many, evenly spaced (default 400)")
    args = parser.parse_args(argv)
    return run_command(lambda: print(measure(args.workdir, args.root, args.crops)))


if __name__ == "__main__":
    sys.exit(main())
