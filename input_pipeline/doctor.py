"""Checks a dataset folder before training.

    python -m input_pipeline.doctor --dataset=cuhk --root=data/CUHK-PEDES
    python -m input_pipeline.doctor --dataset=icfg --root=data/ICFG-PEDES --against=rstp:data/RSTPReid
    python -m input_pipeline.doctor --dataset=rstp --root=data/RSTPReid --fix_list
    python -m input_pipeline.doctor --dataset=icfg --root=data/ICFG-PEDES --allow=shared_persons,shared_images --all
    python -m input_pipeline.doctor --dataset=own --root=my.csv

It reads the annotations as training does and opens every image. It prints the splits beside the published counts, the
words that the tokenizer does not know, and a line for each kind of fault. A person or an image in two splits is an
error, because evaluation would search for training data; `--allow` makes it a warning.

Exit code: 0 clean; 1 usable, with warnings; 2 unusable.
"""

import argparse
import collections
import os
import sys
from collections.abc import Collection, Mapping, Sequence
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
from input_pipeline.caption_faults import LONGEST, caption_faults
from input_pipeline.inspection import MISSING, Inspected, inspect_images, near_duplicates
from input_pipeline.leaks import (
    Pair,
    copies_between_persons,
    copies_between_splits,
    digests_of_twins,
    look_alike,
    near_copies_between_splits,
    shared_persons,
)
from input_pipeline.sampling import EpochPlans
from input_pipeline.statistics import PUBLISHED, Counts, other_splits, split_counts, split_table
from input_pipeline.tokenizer import Tokenizer, load_tokenizer
from input_pipeline.variants import SEE_DOCS, SPLITS
from ivt_jax.common.command import exit_code, filled, positive
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import lines_of, printable, write_text
from ivt_jax.common.messages import SHOWN, counted, first_few
from ivt_jax.common.progress import progress

SHARED_PERSONS, SHARED_IMAGES = ALLOWED = ("shared_persons", "shared_images")
SMALLEST = 16  # pixels of a side
_BATCH, _INSTANCES, _EPOCHS = 28, 4, 120  # of the released recipe
# First words of each kind of fault, plural: singular.
_SINGULAR = {
    "images are": "image is", "images have": "image has", "images look": "image looks", "images equal": "image equals",
    "pairs of images look": "pair of images looks", "person ids are": "person id is", "captions are": "caption is",
    "captions have": "caption has", "captions were": "caption was",
}  # fmt: skip


class Finding(NamedTuple):
    """One kind of fault. line: what is printed; severe: whether it is an error; examples: all records or images."""

    severe: bool
    line: str
    examples: tuple[str, ...] = ()


def check_splits(counts: Counts, published: Counts) -> list[Finding]:
    """Finds splits whose counts are not as published, and a missing test split."""
    other = other_splits(counts, published)
    findings = [Finding(False, f"not as published: {', '.join(other)}")] if other else []
    if "test" not in counts:
        findings.append(Finding(False, "there is no test split: a run reports validation instead"))
    return findings


def check_persons(records: Sequence[Record], allowed: Collection[str] = ()) -> list[Finding]:
    """Finds person ids in several splits: evaluation must not search for training persons."""
    names = {record.person_id: record.person_name for record in records}
    shared = [f"{names[person]} ({', '.join(splits)})" for person, splits in shared_persons(records).items()]
    severe = SHARED_PERSONS not in allowed
    remedy = f" (if each split numbers its own persons, --allow={SHARED_PERSONS})" if severe else ""
    return _findings(severe, f"person ids are in several splits{remedy}", shared)


def check_copies(annotations: Annotations, images: Sequence[Inspected], allowed: Collection[str] = ()) -> list[Finding]:
    """Finds copies of images, exact or to the eye, in several splits, and exact copies of several persons."""
    records, digests = annotations.records, digests_of_twins(annotations.images, images)
    exact, of_persons = copies_between_splits(records, digests), copies_between_persons(records, digests)
    near = near_copies_between_splits(annotations.images, records, images, {path for path, _ in exact})
    severe = SHARED_IMAGES not in allowed
    remedy = f" (list images in {QUARANTINE}, or --allow={SHARED_IMAGES})" if severe else ""
    splits = {record.image_path: record.split for record in records}
    persons = {record.image_path: f"person {record.person_name}" for record in records}
    return [
        *_findings(severe, f"images equal an image of another split{remedy}", _named(exact, splits)),
        *_findings(severe, f"images look the same as an image of another split{remedy}", _named(near, splits)),
        *_findings(False, "images equal an image of another person", _named(of_persons, persons)),
    ]


def check_captions(records: Sequence[Record]) -> list[Finding]:
    """Finds captions that are empty, have a fault of `caption_faults`, or describe several persons of a split."""
    persons = collections.defaultdict(set)
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for record in records:
        for caption in record.captions:
            if not caption.strip():
                kinds["captions are empty"].append(record.where)
                continue
            persons[record.split, " ".join(caption.lower().split())].add(record.person_id)
            for kind, characters in caption_faults(caption):
                kinds[kind].append(f"{record.where} ({characters})" if characters else record.where)
    most = sorted(persons.items(), key=lambda item: -len(item[1]))
    if shared := [f'"{text[:60]}" ({len(ids)} persons)' for (_, text), ids in most if len(ids) > 1]:
        kinds["captions are the same for several persons"] = shared
    return [finding for kind, examples in kinds.items() for finding in _findings(False, kind, examples)]


def check_words(records: Sequence[Record], tokenizer: Tokenizer, name: str) -> tuple[list[str], list[Finding]]:
    """Counts the tokens of each split that the tokenizer does not know. Returns lines to print, and the faults.

    name: the tokenizer's, for the lines.
    """
    lines, blank = [], []
    for split in SPLITS:
        texts = [(record.where, caption) for record in records if record.split == split for caption in record.captions]
        count, unread = tokenizer.count_unknown([caption for _, caption in texts], LONGEST + 2)
        words = collections.Counter(word.lower() for text in unread.values() for word in text.words)
        share = words.total() / max(count, 1)
        if texts:
            often = "".join(f', "{word[:30]}" {times:,}' for word, times in words.most_common(SHOWN))
            known = f"{words.total():,} of {count:,} tokens ({share:.2%}){printable(often)}"
            lines.append(f"unknown to the tokenizer ({name}): {split} {known}")
        blank += [texts[i][0] for i, text in unread.items() if text.all]
    return lines, _findings(False, "captions have no word that the tokenizer knows", blank)


def check_images(annotations: Annotations, images: Sequence[Inspected]) -> list[Finding]:
    """Finds missing folders and images, unreadable images, and images too small for a person."""
    kinds: dict[tuple[bool, str], list[str]] = collections.defaultdict(list)
    for image in images:
        folder = image.path.rpartition("/")[0]
        if image.fault == MISSING and not (annotations.images / folder).is_dir():
            kinds[True, f"images are missing with their folder {folder}/"].append(image.path)
        elif image.fault:
            kinds[True, f"images are {image.fault}"].append(image.path)
        elif min(image.size) < SMALLEST:
            kinds[False, f"images have a side below {SMALLEST} pixels"].append(image.path)
    return [finding for (severe, kind), paths in kinds.items() for finding in _findings(severe, kind, paths)]


def sound_in_quarantine(annotations: Annotations) -> list[str]:
    """Returns the images in quarantine that have no fault, for example because they were repaired."""
    left_out = sorted(quarantined(annotations.path))
    return [image.path for image in inspect_images(annotations.images, left_out, workers=1) if not image.fault]


def check_overlap(
    annotations: Annotations, images: Sequence[Inspected], other: Annotations, others: Sequence[Inspected], name: str
) -> tuple[list[str], list[Finding]]:
    """Finds images that look like one of another dataset: a model trained on one must not be tested on the other.

    name: the other dataset's, for the lines. Returns lines to print, and the faults. A file that both datasets name is
    not compared with itself.
    """
    theirs = {_real(other, image): image.path for image in others}
    same = {image.path: theirs[file] for image in images if (file := _real(annotations, image)) in theirs}
    lines = [f"{len(same):,} files belong to both datasets and are not compared with themselves"] if same else []
    near = [
        (our, their)
        for our, their in near_duplicates(images, others, same)
        if look_alike(annotations.images / our, other.images / their)
    ]
    pairs = [f"{our} = {their}" for our, their in near]
    return lines, _findings(False, f"pairs of images look the same here and in {name}", pairs)


def describe_run(records: Sequence[Record], images: Sequence[Inspected]) -> str:
    """Returns lines about person ids, image sizes, and the steps and hours of the released recipe."""
    ids = sorted({record.person_id for record in records})
    persons = np.array([r.person_id for r in records if r.split == "train" for _ in r.captions])
    try:
        starts = EpochPlans(persons, _BATCH, "identity", _INSTANCES).epoch_starts(1)
        steps = int(starts[1]) * _EPOCHS
        hours = steps * _BATCH / 100 / 3600
        run = (
            f"about {starts[1]:,} steps an epoch in batches of {_BATCH}, {steps:,} in {_EPOCHS} epochs; "
            f"{f'{hours:,.0f} hours' if hours >= 1 else 'less than an hour'} at 100 pairs a second"
        )
    except UserError as error:
        run = str(error)
    names = sorted({record.person for record in records} - {""})
    persons_line = (
        f"persons: {printable(names[0])} to {printable(names[-1])}"
        if not all(map(str.isdecimal, names))
        else f"ids: {ids[0]} to {ids[-1]}, {ids[-1] - ids[0] + 1 - len(ids):,} of them in no record"
    )
    return f"{persons_line}\nimages: {_sizes(images)}\na run of the released recipe: {run}"


def _sizes(images: Sequence[Inspected]) -> str:
    whole = np.array([image.size for image in images if not image.fault])
    if not len(whole):
        return "none can be used"
    (low, least), (high, most), (height, width) = whole.min(0), whole.max(0), np.median(whole, axis=0)
    return (
        f"{sum(image.file_bytes for image in images) / 1e6:,.0f} MB; height {low} to {high}, median {int(height)}; "
        f"width {least} to {most}, median {int(width)}"
    )


def write_quarantine(annotations: Annotations, images: Sequence[Inspected]) -> Path:
    """Adds the images with a fault to quarantine.txt, whose images `read_annotations` leaves out. Returns its path.

    Raises DataError if a name has a line break.
    """
    path = annotations.path.parent / QUARANTINE
    paths = sorted({*quarantined(annotations.path), *(image.path for image in images if image.fault)})
    for name in paths:
        if lines_of(f"{name}\n") != [name]:
            raise DataError(f"{path} cannot list {printable(name)}, whose name has a line break: rename the image")
    write_text(path, "".join(f"{name}\n" for name in paths))
    return path


def _named(pairs: Sequence[Pair], names: Mapping[str, str]) -> list[str]:
    return [f"{names[path]} {path} = {names[other]} {other}" for path, other in pairs]


def _real(annotations: Annotations, image: Inspected) -> str:
    return os.path.realpath(annotations.images / image.path)


def _findings(severe: bool, kind: str, examples: Sequence[str]) -> list[Finding]:
    """Returns one finding of this kind, or none if there are no examples."""
    if not examples:
        return []
    if len(examples) == 1:
        plural = next(words for words in _SINGULAR if kind.startswith(f"{words} "))
        kind = f"{_SINGULAR[plural]}{kind.removeprefix(plural)}"
    return [Finding(severe, f"{len(examples):,} {kind}: {first_few(examples)}", tuple(examples))]


def _inspect(annotations: Annotations, workers: int) -> list[Inspected]:
    """Opens all images. Raises DataError if their folder is missing, as in a portable dataset."""
    if not annotations.images.is_dir():
        where = f"the images of {annotations.path.name} are expected in it"
        raise DataError(f"{annotations.images} not found: {where}; {SEE_DOCS}")
    paths = [record.image_path for record in annotations.records]
    return list(progress(inspect_images(annotations.images, paths, workers), len(paths)))


def _allowed(given: Sequence[str]) -> frozenset[str]:
    """Returns the names in all --allow flags. Raises UserError for an unknown name."""
    names = frozenset(name.strip() for names in given for name in names.split(",")) - {""}
    if unknown := sorted(names - {*ALLOWED}):
        raise UserError(f"--allow={','.join(given)}: {unknown[0]} is not one of {', '.join(ALLOWED)}")
    return names


def run(args: argparse.Namespace) -> int:
    """Checks the dataset, prints the findings and returns the exit code."""
    name, allowed = DATASETS[args.dataset], _allowed(args.allow)
    against, _, against_root = (args.against or "").partition(":")
    if args.against and (against not in DATASETS or not against_root):
        raise UserError(f"--against={args.against}: expected DATASET:DIR, such as rstp:data/RSTPReid")
    tokenizer = load_tokenizer(args.tokenizer)
    annotations = read_annotations(local_root(args.root), name)
    counts, published = split_counts(annotations.records), PUBLISHED[name]
    print(f"{annotations.path}\n{split_table(counts, published)}")
    images = _inspect(annotations, args.workers)
    print(describe_run(annotations.records, images))
    if sound := sound_in_quarantine(annotations):  # no fault: a line may have been added by hand
        count = counted(len(sound), "intact image")
        print(f"{count} left out by {QUARANTINE} (to use an image, remove its line): {first_few(sound)}")
    lines, findings = check_words(annotations.records, tokenizer, args.tokenizer or "the shipped vocabulary")
    print("\n".join(lines))
    findings = check_splits(counts, published) + check_persons(annotations.records, allowed) + findings
    findings += check_copies(annotations, images, allowed)
    findings += check_captions(annotations.records) + check_images(annotations, images)
    if args.against:
        other = read_annotations(local_root(against_root), DATASETS[against])
        lines, found = check_overlap(annotations, images, other, _inspect(other, args.workers), against_root)
        print("".join(f"{line}\n" for line in lines), end="")
        findings += found
    if args.fix_list and any(image.fault for image in images):
        print(f"images to leave out are listed in {write_quarantine(annotations, images)}")
    return _report(findings, args.all)


def _report(findings: Sequence[Finding], all_examples: bool) -> int:
    """Prints a line for each kind of fault, with all its examples if asked; returns the exit code."""
    for finding in findings:
        print(f"{'error' if finding.severe else 'warning'}: {finding.line}")
        if all_examples:
            print("".join(f"    {printable(example)}\n" for example in finding.examples), end="")
    print(f"{counted(len(findings), 'kind')} of fault" if findings else "clean")
    return 2 if any(finding.severe for finding in findings) else 1 if findings else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.doctor",
        description="Check a dataset folder before training.",
        epilog="exit code: 0 clean; 1 usable, with warnings; 2 unusable",
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--root", required=True, type=filled, help="the dataset's folder, annotation file or table")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FAULTS",
        help=f"faults that count as warnings, separated by commas: {', '.join(ALLOWED)}",
    )
    parser.add_argument(
        "--tokenizer",
        default="",
        help="as config.text.tokenizer; default: the shipped vocabulary",
    )
    parser.add_argument("--against", type=filled, help="DATASET:DIR, also look for images that this other dataset has")
    parser.add_argument(
        "--fix_list", action="store_true", help=f"list faulty images in {QUARANTINE}, to leave them out"
    )
    parser.add_argument("--all", action="store_true", help=f"print every example of a fault, not only {SHOWN}")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes that open images")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
