"""Counts persons, images and captions of each split, and compares them with the published counts."""

import sys
from collections.abc import Iterable

from input_pipeline.annotations import Annotations, Record, held_out
from input_pipeline.variants import SPLITS

Counts = dict[str, tuple[int, int, int]]  # split -> persons, images, captions

# By the authors of the datasets. PEDES-Synth is generated in any size.
PUBLISHED: dict[str, Counts] = {
    "cuhk_pedes": {"train": (11003, 34054, 68126), "val": (1000, 3078, 6158), "test": (1000, 3074, 6156)},
    "icfg_pedes": {"train": (3102, 34674, 34674), "test": (1000, 19848, 19848)},
    "rstp_reid": {"train": (3701, 18505, 37010), "val": (200, 1000, 2000), "test": (200, 1000, 2000)},
    "pedes_synth": {},
    "pairs": {},
    "own": {},
}
# Persons for training that a run without data assumes if nothing is published: those of PEDES-Synth as
# `python -m input_pipeline.synthetic` makes it by default; of own data a number for the figures of --dry_run.
_ASSUMED = {"pedes_synth": 4000, "own": 1000, "pairs": 1}


def training_persons(name: str, val_persons: float) -> int:
    """Returns the published or assumed number of training persons, without those held out for val; reads no data.

    val_persons: the share held out of a dataset without a val split.
    """
    if name in _ASSUMED:
        return _ASSUMED[name]
    published = PUBLISHED[name]
    persons = published["train"][0]
    return persons - (held_out(persons, val_persons) if "val" not in published else 0)


def split_counts(records: Iterable[Record]) -> Counts:
    """Returns the counts of each split that has records; an image counts as often as the annotations name it."""
    by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        by_split[record.split].append(record)
    return {
        split: (len({r.person_id for r in chosen}), sum(r.copies for r in chosen), sum(len(r.captions) for r in chosen))
        for split, chosen in by_split.items()
        if chosen
    }


def split_table(counts: Counts, published: Counts) -> str:
    """Returns a table of the splits, with the published counts where they differ."""
    lines = [f"{'split':8}{'persons':>10}{'images':>10}{'captions':>10}"]
    for split in SPLITS:
        if split in counts or split in published:
            here, there = counts.get(split, (0, 0, 0)), published.get(split, ())
            note = "as published" if here == there else f"published: {_figures(there)}" if there else ""
            lines.append(f"{split:8}{here[0]:>10,}{here[1]:>10,}{here[2]:>10,}  {note}".rstrip())
    return "\n".join(lines)


def other_splits(counts: Counts, published: Counts) -> list[str]:
    """Returns the splits whose counts are not as published; none if nothing is published."""
    return [split for split in SPLITS if published and counts.get(split) != published.get(split)]


def say_deviation(annotations: Annotations, name: str) -> None:
    """Warns on stderr, in one line, if counts of the dataset `name` are not as published."""
    counts, published, none = split_counts(annotations.records), PUBLISHED[name], (0, 0, 0)
    deviations = [
        f"{split} {_figures(counts.get(split, none))} instead of {_figures(published.get(split, none))}"
        for split in other_splits(counts, published)
    ]
    if deviations:
        line = f"not as published: {', '.join(deviations)} (persons images captions)"
        print(f"warning: {annotations.path} is {line}", file=sys.stderr)


def _figures(counts: Iterable[int]) -> str:
    return " ".join(f"{number:,}" for number in counts)
