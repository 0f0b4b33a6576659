"""Writes PEDES-Synth in the layout of CUHK-PEDES; equal version, seed and arguments give equal bytes."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from input_pipeline.synthetic.captioner import describe
from input_pipeline.synthetic.oracle import oracle_r1
from input_pipeline.synthetic.persons import Attributes, draw_crowd
from input_pipeline.synthetic.renderer import Build, render
from input_pipeline.synthetic.scenery import CAMERAS, Scene, draw_scene
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import whole_name, write_text
from ivt_jax.common.processes import map_in_processes

VERSION = "1"
QUALITY = 92
_OURS = {"imgs", "attributes.json", "reid_raw.json"}
_CAPTIONS_PER_IMAGE = 2


@dataclass(frozen=True)
class Arguments:
    """Determines the dataset, together with VERSION. size: (height, width) in pixels."""

    persons: int = 4300
    seed: int = 0
    images_per_person: int = 4
    size: tuple[int, int] = (384, 128)
    val_persons: int = 100
    test_persons: int = 200

    def splits(self) -> dict[str, int]:
        """Returns split -> number of persons, in the order of the person ids."""
        train = self.persons - self.val_persons - self.test_persons
        return {"train": train, "val": self.val_persons, "test": self.test_persons}


@dataclass(frozen=True)
class Job:
    """One person to draw and describe, the unit of work of a process."""

    root: Path
    arguments: Arguments
    split: str
    index: int
    person_id: int
    who: Attributes


class Shot(NamedTuple):
    """An image to draw. path: relative to imgs/; captions: (text, what it states) each; the others are for `render`."""

    path: str
    build: Build
    scene: Scene
    paint: random.Random
    captions: list[tuple[str, dict[str, str]]]


def generate(out: Path, arguments: Arguments, workers: int, report: Callable[[int, int], None]) -> bool:
    """Writes the dataset to the folder `out`, whole or not at all. Returns False if `out` already has this dataset.

    workers: number of processes, which does not change the data. report: called with (persons done, all persons).
    Raises UserError if the arguments are impossible or `out` has other contents.
    """
    _check(arguments, workers)
    if _is_complete(out, arguments):
        return False
    partial = _clear_partial(out)
    jobs = list_jobs(partial, arguments)
    for camera in CAMERAS:
        (partial / "imgs" / camera).mkdir(parents=True)
    records, stated = [], {}
    made = map_in_processes(_make_person, jobs, workers=workers, chunk=16)
    for done, (person_records, person_stated) in enumerate(made, start=1):
        records.extend(person_records)
        stated.update(person_stated)
        report(done, len(jobs))
    persons = {job.person_id: job.who.as_dict() for job in jobs}
    attributes = {
        "version": VERSION,
        "seed": arguments.seed,
        "arguments": _plain(arguments),
        "persons": persons,
        "captions": stated,
        "oracle": {split: {"R1": _oracle(split, records, stated, persons)} for split in ("val", "test")},
    }
    write_text(partial / "attributes.json", json.dumps(attributes))
    write_text(partial / "reid_raw.json", json.dumps(records))
    os.replace(partial, out)
    return True


def read_oracle(root: Path) -> dict[str, float]:
    """Returns split -> R@1 in percent of a perfect attribute reader, as stored with the dataset."""
    attributes = json.loads((root / "attributes.json").read_text(encoding="utf-8"))
    return {split: figures["R1"] for split, figures in attributes["oracle"].items()}


def draw_splits(arguments: Arguments) -> dict[str, list[Attributes]]:
    """Draws the persons of each split. Those of val and test do not depend on the number of training persons."""
    taken: set[Attributes] = set()
    crowds = {}
    for split in ("test", "val", "train"):
        crowds[split] = draw_crowd(arguments.splits()[split], _rng(arguments.seed, split), taken)
    return crowds


def _rng(seed: int, *path: object) -> random.Random:
    """Returns a generator for each person, so that results do not depend on the processes."""
    return random.Random("/".join(str(part) for part in ("pedes-synth", VERSION, seed, *path)))


def list_jobs(root: Path, arguments: Arguments) -> list[Job]:
    """Returns all persons of the dataset, in the order of their ids."""
    crowds = draw_splits(arguments)
    ordered = [(split, index, who) for split in arguments.splits() for index, who in enumerate(crowds[split])]
    return [Job(root, arguments, split, index, i, who) for i, (split, index, who) in enumerate(ordered, start=1)]


def shots(job: Job) -> Iterator[Shot]:
    """Yields a person's images in order; they share one generator."""
    rng = _rng(job.arguments.seed, job.split, job.index)
    build = Build.draw(rng)
    for number in range(job.arguments.images_per_person):
        scene = draw_scene(rng)
        path = f"{CAMERAS[scene.camera]}/{job.person_id:05d}_{number}.jpg"
        paint = _rng(job.arguments.seed, job.split, job.index, number)  # so that captions do not depend on the size
        captions = [describe(job.who, scene, rng) for _ in range(_CAPTIONS_PER_IMAGE)]
        yield Shot(path, build, scene, paint, captions)


def _make_person(job: Job) -> tuple[list[dict], dict[str, list[dict[str, str]]]]:
    """Draws a person's images; returns their raw records, and file path -> what each caption states."""
    records, stated = [], {}
    for path, build, scene, paint, captions in shots(job):
        image = render(job.who, build, scene, job.arguments.size, paint)
        image.save(job.root / "imgs" / path, quality=QUALITY)
        stated[path] = [facts for _, facts in captions]
        records.append(
            {
                "split": job.split,
                "captions": [text for text, _ in captions],
                "file_path": path,
                "processed_tokens": [re.findall(r"[a-z0-9]+", text.lower()) for text, _ in captions],
                "id": job.person_id,
            }
        )
    return records, stated


def _oracle(split: str, records: list[dict], stated: dict[str, list[dict]], persons: dict[int, dict]) -> float:
    gallery = [record for record in records if record["split"] == split]
    queries = [facts for record in gallery for facts in stated[record["file_path"]]]
    ids = [record["id"] for record in gallery]
    return round(oracle_r1(persons, queries, [i for i in ids for _ in range(_CAPTIONS_PER_IMAGE)], ids), 2)


def _check(arguments: Arguments, workers: int) -> None:
    positive = {**arguments.splits(), "images_per_person": arguments.images_per_person, "workers": workers}
    for name, value in positive.items():
        if value < 1:
            if name == "train":
                raise UserError(
                    f"--persons={arguments.persons} must be more than --val_persons={arguments.val_persons} and "
                    f"--test_persons={arguments.test_persons} together: the rest is for training"
                )
            raise UserError(f"{name} must be at least 1, not {value}")
    height, width = arguments.size
    if not (32 <= height <= 1024 and 16 <= width <= 512):
        raise UserError(f"--size={height}x{width} is outside 32x16 to 1024x512; 384x128 is usual")


def _plain(arguments: Arguments) -> dict:
    return {**asdict(arguments), "size": list(arguments.size)}


def _is_complete(out: Path, arguments: Arguments) -> bool:
    """Whether `out` has this dataset. Raises UserError if it has other contents."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    hint = "choose another --out, or remove it first"
    if not (out / "reid_raw.json").is_file() or not (out / "attributes.json").is_file():
        raise UserError(f"{out} exists and is not a PEDES-Synth dataset: {hint}")
    try:
        found = json.loads((out / "attributes.json").read_text(encoding="utf-8"))
        same = (found["version"], found["arguments"]) == (VERSION, _plain(arguments))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / 'attributes.json'} is not readable as PEDES-Synth: {hint}") from error
    if not same:
        raise UserError(f"{out} holds PEDES-Synth made with other arguments (see its attributes.json): {hint}")
    return True


def _clear_partial(out: Path) -> Path:
    """Returns the folder beside `out` to write to, after removing the files of an interrupted run."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        names = partial.iterdir() if partial.is_dir() else [partial]
        if not {whole_name(path.name) for path in names} <= _OURS:
            raise UserError(f"{partial} has files that are not of PEDES-Synth: remove it first")
        shutil.rmtree(partial)
    return partial
