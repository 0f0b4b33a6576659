"""What is wrong with a dataset folder, said before any training.

    python -m input_pipeline.doctor --dataset=cuhk --root=data/CUHK-PEDES
    python -m input_pipeline.doctor --dataset=icfg --root=data/ICFG-PEDES --against=rstp:data/RSTPReid
    python -m input_pipeline.doctor --dataset=rstp --root=data/RSTPReid --fix-list

It reads the annotations as training does, opens every image, and prints the splits beside the published ones and a line
for each kind of fault. Exit code: 0 clean; 1 usable, with warnings; 2 unusable.
"""

import argparse
import collections
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.annotations import (
    DATASETS,
    QUARANTINE,
    Annotations,
    Record,
    local_root,
    quarantined,
    read_annotations,
)
from input_pipeline.arguments import positive
from input_pipeline.command import exit_code
from input_pipeline.errors import DataError, UserError
from input_pipeline.files import lines_of, printable, write_text
from input_pipeline.inspection import MISSING, Inspected, inspect_images, near_duplicates
from input_pipeline.progress import progress
from input_pipeline.sampling import EpochPlans
from input_pipeline.statistics import PUBLISHED, Counts, other_splits, split_counts, split_table
from input_pipeline.variants import README

LONGEST = 98  # words and punctuation marks: a sentence of 100 tokens has [CLS] and [SEP] too
SMALLEST = 16  # pixels of a side
_BATCH, _INSTANCES, _EPOCHS = 28, 4, 120  # of the released recipe
_SHOWN = 3  # examples that a line names
_CODE = re.compile(r"<\s*/?\w[^<>]*>|[{}]|\\[nrtux]|&#?\w+;")


class Finding(NamedTuple):
    """One kind of fault, as a line. A severe one stops training or evaluation."""

    severe: bool
    line: str


def check_splits(counts: Counts, published: Counts) -> list[Finding]:
    """Splits that are not as published, and a test split that lacks."""
    other = other_splits(counts, published)
    findings = [Finding(False, f"not as published: {', '.join(other)}")] if other else []
    if "test" not in counts:
        findings.append(Finding(True, "there is no test split: nothing can be evaluated"))
    return findings


def check_ids(records: Sequence[Record]) -> list[Finding]:
    """Person ids that several splits have: persons seen in training must not be searched for in evaluation."""
    splits = collections.defaultdict(set)
    for record in records:
        splits[record.person_id].add(record.split)
    shared = [str(person) for person in sorted(splits) if len(splits[person]) > 1]
    kind = "person ids are in several splits, which share these persons unless each split numbers its own"
    return [Finding(False, _line(kind, shared))] if shared else []


def check_captions(records: Sequence[Record]) -> list[Finding]:
    """Captions that are empty, over-long, in another script, or the same for several persons of a split."""
    persons = collections.defaultdict(set)
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for record in records:
        for caption in record.captions:
            if not caption.strip():
                kinds["captions are empty"].append(record.where)
                continue
            persons[record.split, " ".join(caption.lower().split())].add(record.person_id)
            if len(re.findall(r"\w+|[^\w\s]", caption)) > LONGEST:
                kinds[f"captions have over {LONGEST} words and marks: their ends are cut off"].append(record.where)
            if _CODE.search(caption):
                kinds["captions have pieces of code in them: tags, braces, escapes"].append(record.where)
            if any(c.isalpha() and "LATIN" not in unicodedata.name(c, "LATIN") for c in caption):
                kinds["captions have letters that are not Latin"].append(record.where)
    shared = [f'"{text[:60]}"' for (_, text), ids in persons.items() if len(ids) > 1]
    if shared:
        kinds["captions are the same for several persons"] = shared
    return [Finding(False, _line(kind, examples)) for kind, examples in kinds.items()]


def check_images(annotations: Annotations, images: Sequence[Inspected]) -> list[Finding]:
    """Folders and images that are missing, images that cannot be read, and those too small for a person."""
    kinds: dict[tuple[bool, str], list[str]] = collections.defaultdict(list)
    for image in images:
        folder = image.path.rpartition("/")[0]
        if image.fault == MISSING and not (annotations.images / folder).is_dir():
            kinds[True, f"images are missing with their folder {folder}/"].append(image.path)
        elif image.fault:
            kinds[True, f"images are {image.fault}"].append(image.path)
        elif min(image.size) < SMALLEST:
            kinds[False, f"images have a side below {SMALLEST} pixels"].append(image.path)
    return [Finding(severe, _line(kind, paths)) for (severe, kind), paths in kinds.items()]


def sound_in_quarantine(annotations: Annotations) -> list[str]:
    """Returns the images that the quarantine leaves out although they have no fault, such as repaired ones."""
    left_out = sorted(quarantined(annotations.path))
    return [image.path for image in inspect_images(annotations.images, left_out, workers=1) if not image.fault]


def check_overlap(images: Sequence[Inspected], others: Sequence[Inspected], name: str) -> list[Finding]:
    """Images that look like some of another dataset: what is trained on one must not be tested on the other."""
    pairs = [f"{ours} = {theirs}" for ours, theirs in near_duplicates(images, others)]
    return [Finding(False, _line(f"pairs of images look the same here and in {name}", pairs))] if pairs else []


def describe_run(records: Sequence[Record], images: Sequence[Inspected]) -> str:
    """Ids, sizes on disk and in pixels, and the steps that the released recipe makes of it."""
    ids = sorted({record.person_id for record in records})
    sizes = np.array([image.size for image in images if not image.fault] or [(0, 0)])
    persons = np.array([r.person_id for r in records if r.split == "train" for _ in r.captions])
    try:
        starts = EpochPlans(persons, _BATCH, "identity", _INSTANCES).epoch_starts(1)
        steps = int(starts[1]) * _EPOCHS
        hours = steps * _BATCH / 100 / 3600
        run = (
            f"about {starts[1]:,} steps an epoch in batches of {_BATCH}, {steps:,} in {_EPOCHS} epochs; "
            f"{hours:,.0f} hours at 100 pairs a second"
        )
    except UserError as error:
        run = str(error)
    return (
        f"ids: {ids[0]} to {ids[-1]}, {ids[-1] - ids[0] + 1 - len(ids):,} of them in no record\n"
        f"images: {sum(i.file_bytes for i in images) / 1e6:,.0f} MB; "
        f"height {sizes[:, 0].min()} to {sizes[:, 0].max()}, median {int(np.median(sizes[:, 0]))}; "
        f"width {sizes[:, 1].min()} to {sizes[:, 1].max()}, median {int(np.median(sizes[:, 1]))}\n"
        f"a run: {run}"
    )


def write_quarantine(annotations: Annotations, images: Sequence[Inspected]) -> Path:
    """Lists the images with a fault, one a line, where `read_annotations` looks for them and leaves them out.

    Raises DataError if a name holds a line break.
    """
    path = annotations.path.parent / QUARANTINE
    paths = sorted({*quarantined(annotations.path), *(image.path for image in images if image.fault)})
    for name in paths:
        if lines_of(f"{name}\n") != [name]:
            raise DataError(f"{path} cannot list {printable(name)}, whose name holds a line break: rename the image")
    write_text(path, "".join(f"{name}\n" for name in paths))
    return path


def _line(kind: str, examples: Sequence[str]) -> str:
    shown = printable(", ".join(examples[:_SHOWN])) + (", ..." if len(examples) > _SHOWN else "")
    return f"{len(examples):,} {kind}: {shown}"


def _inspect(annotations: Annotations, workers: int) -> list[Inspected]:
    """All images. Raises DataError where their folder is missing, as in one that `input_pipeline.prepare` made."""
    if not annotations.images.is_dir():
        where = f"the images of {annotations.path.name} are expected in it"
        raise DataError(f"{annotations.images} not found: {where}; {README}")
    paths = [record.image_path for record in annotations.records]
    return list(progress(inspect_images(annotations.images, paths, workers), len(paths)))


def run(args: argparse.Namespace) -> int:
    """Examines the dataset and prints what was found; returns the exit code."""
    name = DATASETS[args.dataset]
    annotations = read_annotations(local_root(args.root), name)
    counts, published = split_counts(annotations.records), PUBLISHED[name]
    print(f"{annotations.path}\n{split_table(counts, published)}")
    images = _inspect(annotations, args.workers)
    print(describe_run(annotations.records, images))
    if sound := sound_in_quarantine(annotations):  # no finding: a line may have been added by hand
        noun = "image" if len(sound) == 1 else "images"
        print(_line(f"intact {noun} left out by {QUARANTINE} (to use an image, remove its line)", sound))
    findings = check_splits(counts, published) + check_ids(annotations.records)
    findings += check_captions(annotations.records) + check_images(annotations, images)
    if args.against:
        other, _, root = args.against.partition(":")
        if other not in DATASETS or not root:
            raise UserError(f"--against={args.against}: expected DATASET:DIR, such as rstp:data/RSTPReid")
        others = _inspect(read_annotations(local_root(root), DATASETS[other]), args.workers)
        findings += check_overlap(images, others, root)
    if args.fix_list and any(image.fault for image in images):
        print(f"left out from now on: {write_quarantine(annotations, images)}")
    for finding in findings:
        print(f"{'error' if finding.severe else 'warning'}: {finding.line}")
    print("clean" if not findings else f"{len(findings)} kinds of fault")
    return 2 if any(finding.severe for finding in findings) else 1 if findings else 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.doctor",
        description="Say what is wrong with a dataset folder.",
        epilog="exit code: 0 clean; 1 usable, with warnings; 2 unusable",
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--root", required=True, help="the dataset's folder, or its annotation file")
    parser.add_argument("--against", help="DATASET:DIR, look for images that another dataset has too")
    parser.add_argument("--fix-list", action="store_true", help=f"write {QUARANTINE}: faulty images are left out then")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes that open images")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
