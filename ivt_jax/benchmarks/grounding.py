"""Measure on PEDES-Synth how well the scores and heat maps of phrases agree with what each crop shows.

    python -m ivt_jax.benchmarks.grounding --workdir=runs/demo

Every part of a person in the test split has a true phrase, such as "white shoes". It counts if at least LEAST of the
crop's pixels show the part.

*Scores.* Two areas under the ROC curve. "false": how often a true pair of phrase and crop scores higher than a false
pair. "recoloured": how often the true phrase scores higher with its crop than the same thing in another colour. Each
for the cosine similarity, and for the share of the crops that fit the phrase less well, which search shows.

*Heat.* The pointing game: how often the hottest patch of a phrase contains some of the part, for the whole phrase and
without its colour ("thing"). For comparison a random patch ("chance"), and the best one fixed for all crops ("fixed").
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.synthetic.canvas import PARTS
from input_pipeline.synthetic.parts import label_parts, list_shots
from input_pipeline.synthetic.persons import NONE, Attributes
from ivt_jax.common.command import filled_path, positive
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command
from ivt_jax.evaluation.calibration import area

if TYPE_CHECKING:
    from ivt_jax.encoding.encoder import Encoder

LEAST = 0.002
BATCH = 64

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped flag answer at once.


class Phrase(NamedTuple):
    """A phrase for a part of a person; colour is "" if the attributes have none."""

    colour: str
    thing: str

    def __str__(self) -> str:
        return f"{self.colour} {self.thing}".strip()


class Crop(NamedTuple):
    """A crop at the model's input size: pixels, part labels and true phrases."""

    pixels: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8, indices of PARTS
    phrases: dict[str, Phrase]  # part -> true phrase, for the parts that the person has

    def shows(self, part: str) -> bool:
        return bool(self.mask(part).mean() >= LEAST)

    def mask(self, part: str) -> np.ndarray:
        """Returns the pixels that show the part, (H, W) bool."""
        return self.labels == PARTS.index(part)


def true_phrases(who: Attributes) -> dict[str, Phrase]:
    """Returns a true phrase for each part that the person has."""
    phrases = {
        "hair": Phrase(who.hair_colour, "hair"),
        "glasses": Phrase("", "glasses" if who.glasses == "yes" else NONE),
        "hat": Phrase(who.hat_colour, who.hat),
        "upper": Phrase(who.upper_colour, who.upper_type),
        "lower": Phrase(who.lower_colour, who.lower_type),
        "shoes": Phrase(who.shoes_colour, who.shoes_type),
        "bag": Phrase(who.bag_colour, who.bag),
        "held": Phrase("", who.holding),
    }
    return {part: phrase for part, phrase in phrases.items() if phrase.thing != NONE}


def read_crops(root: Path, size: tuple[int, int], count: int) -> list[Crop]:
    """Reads `count` crops of the test split, evenly spaced, or all if there are fewer; size: (height, width).

    Raises UserError if `root` is not a PEDES-Synth, or if an image there is not the one that its seed draws.
    """
    from ivt_jax.encoding.images import load_image, open_image

    shots = list_shots(root, "test")
    chosen = [shots[i] for i in np.unique(np.linspace(0, len(shots) - 1, count).round().astype(int))]
    crops = []
    for job, shot in progress(chosen, len(chosen), "drawing parts: ", "crops", brief=True):
        path = root / "imgs" / shot.path
        labels = Image.fromarray(label_parts(job, shot, open_image(path)))
        labels = labels.resize(size[::-1], Image.Resampling.NEAREST)
        crops.append(Crop(load_image(path, size), np.asarray(labels), true_phrases(job.who)))
    return crops


def pair_up(crops: Sequence[Crop], part: str) -> tuple[list[Phrase], np.ndarray, np.ndarray]:
    """Pairs the T distinct phrases for a part with the N crops; returns (phrases, true (T, N), false (T, N)), bool.

    A pair is true if the phrase describes the crop's person and the crop shows the part. It is neither true nor false
    if the phrase describes the person but the crop hides the part.
    """
    own = [crop.phrases.get(part) for crop in crops]
    phrases = sorted({phrase for phrase in own if phrase})
    same = np.array([[phrase == other for other in own] for phrase in phrases])
    return phrases, same & [crop.shows(part) for crop in crops], ~same


def shares(scores: np.ndarray) -> np.ndarray:
    """Returns for each score of (T, N) the share of the N crops that score lower; equal scores count half."""
    from scipy.stats import rankdata  # slow to import

    return (rankdata(scores, axis=1) - 0.5) / scores.shape[1]


def recolour(values: np.ndarray, phrases: Sequence[Phrase], true: np.ndarray) -> list[float]:
    """Returns, for each true phrase of each crop, the share of recoloured ones that score lower. values: (T, N)."""
    wins = []
    for row, column in zip(*np.nonzero(true), strict=True):
        thing = phrases[row].thing
        others = [i for i, phrase in enumerate(phrases) if phrase.thing == thing and i != row]
        if others:
            wins.append(area(values[[row], column], values[others, column]))
    return wins


def score_table(crops: Sequence[Crop], score: Callable[[list[str]], np.ndarray]) -> str:
    """Formats the table of scores in Markdown. score: T texts -> their similarities with the N crops, (T, N)."""
    kinds: dict[str, list[list[np.ndarray]]] = {}
    for part in (part for part in PARTS if any(part in crop.phrases for crop in crops)):
        phrases, true, false = pair_up(crops, part)
        scores = score([str(phrase) for phrase in phrases])
        kinds[part] = [[x[true], x[false], np.array(recolour(x, phrases, true))] for x in (scores, shares(scores))]
    kinds["all"] = [[np.concatenate(x) for x in zip(*kind, strict=True)] for kind in zip(*kinds.values(), strict=True)]
    lines = ["| part | true pairs | false: cosine | share | recoloured: cosine | share |", "|---|---|---|---|---|---|"]
    for part, both in kinds.items():
        areas = [f"{area(true, false):.3f}" for true, false, _ in both]
        areas += [f"{wins.mean():.3f}" if len(wins) else "" for *_, wins in both]  # "glasses" have no colour
        lines.append(f"| {part} | {len(both[0][0]):,} | {' | '.join(areas)} |")
    return "\n".join(lines)


def covered(mask: np.ndarray, patch_size: int, stride: int) -> np.ndarray:
    """Returns which patches contain some of a mask (H, W) bool: (N,) bool, row by row."""
    windows = np.lib.stride_tricks.sliding_window_view(mask, (patch_size, patch_size))[::stride, ::stride]
    return windows.any((-2, -1)).ravel()


def pointing(hits: Sequence[tuple[bool, bool]], patches: Sequence[np.ndarray]) -> list[float]:
    """Returns hits in percent, for one part: of the phrase, the thing, a random patch, and the best fixed one.

    hits: for each crop, whether the hottest patches of phrase and thing contain some of the part; patches: (N,) bool
    for each crop, the patches that do.
    """
    return [100 * float(x) for x in (*np.mean(hits, axis=0), np.mean(patches), np.mean(patches, axis=0).max())]


def heat_table(crops: Sequence[Crop], encoder: "Encoder", vectors: Mapping[str, np.ndarray]) -> str:
    """Formats the table of heat maps in Markdown. vectors: embeddings of all phrases and things."""
    from ivt_jax.retrieval.explain import heat_maps

    model = encoder.config.model
    hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    covers: dict[str, list[np.ndarray]] = defaultdict(list)
    for crop in progress(crops, len(crops), "heat-maps: ", "crops", brief=True):
        parts = [part for part in crop.phrases if crop.shows(part)]
        texts = [text for part in parts for text in (str(crop.phrases[part]), crop.phrases[part].thing)]
        heat = heat_maps(encoder, crop.pixels, np.stack([vectors[text] for text in texts]))
        hottest = heat.reshape(len(texts), -1).argmax(1)
        for part, (phrase, thing) in zip(parts, hottest.reshape(-1, 2), strict=True):
            patches = covered(crop.mask(part), model.patch_size, model.stride)
            hits[part].append((patches[phrase], patches[thing]))
            covers[part].append(patches)
    rows = {part: pointing(hits[part], covers[part]) for part in PARTS if part in hits}
    lines = ["| part | crops | phrase, % | thing, % | chance, % | fixed, % |", "|---|---|---|---|---|---|"]
    for part, figures in [*rows.items(), ("mean", np.mean(list(rows.values()), axis=0))]:
        count = f"{len(hits[part]):,}" if part in hits else ""
        lines.append(f"| {part} | {count} | {' | '.join(f'{x:.1f}' for x in figures)} |")
    return "\n".join(lines)


def measure(workdir: Path, root: Path | None, count: int) -> str:
    """Returns both tables. root: folder of the dataset, None for that of the run's config.

    Raises UserError if the workdir has no checkpoint, and as `read_crops`.
    """
    from ivt_jax.encoding.embedding import embed_texts
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.run.workdir import folder_tokenizer

    encoder = Encoder(workdir)
    tokenizer = folder_tokenizer(workdir, encoder.config)
    crops = read_crops(root or Path(encoder.config.data.root), encoder.size, count)
    pixels = [crop.pixels for crop in crops]
    images = encoder.embed(np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
    texts = sorted({text for crop in crops for phrase in crop.phrases.values() for text in (str(phrase), phrase.thing)})
    ids = tokenizer.encode(texts, encoder.config.text.length["sentence"])
    vectors = dict(zip(texts, embed_texts(encoder.model, encoder.params, ids, tokenizer.mask(ids), BATCH), strict=True))
    scores = score_table(crops, lambda texts: np.stack([vectors[text] for text in texts]) @ images.T)
    return f"{scores}\n\n{heat_table(crops, encoder, vectors)}"


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.grounding", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=filled_path, help="folder of a run trained on PEDES-Synth")
    parser.add_argument("--root", type=filled_path, help="folder of the dataset (default: the run's data.root)")
    parser.add_argument("--crops", type=positive, default=400, help="how many, evenly spaced (default 400)")
    args = parser.parse_args(argv)
    return run_command(lambda: print(measure(args.workdir, args.root, args.crops)))


if __name__ == "__main__":
    sys.exit(main())
