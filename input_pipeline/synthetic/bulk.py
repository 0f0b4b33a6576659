"""Generates a dataset with CUHK-PEDES' layout, folders and counts, to measure speed; there is nothing to learn in it.

    python -m input_pipeline.synthetic.bulk --out=data/bulk                  # 34,054 images for training, as published
    python -m input_pipeline.synthetic.bulk --out=data/bulk --format=png --train=50x500x1000

Every image shows one of 32 drawn persons with random size, tint and noise; captions describe random persons. Decoding,
resizing and tokenising cost as much as with real data, and writing takes minutes.
"""

import argparse
import functools
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.statistics import PUBLISHED
from input_pipeline.synthetic.captioner import describe
from input_pipeline.synthetic.persons import draw_crowd
from input_pipeline.synthetic.renderer import Build, render
from input_pipeline.synthetic.scenery import draw_scene
from ivt_jax.common.command import exit_code, filled_path, not_negative, positive
from ivt_jax.common.files import whole_folder, write_text
from ivt_jax.common.processes import map_in_processes
from ivt_jax.common.progress import progress

FOLDERS = ("CUHK01", "CUHK03", "Market", "cam_a", "cam_b", "test_query", "train_query")
FORMATS = {"jpeg": ".jpg", "png": ".png", "bmp": ".bmp"}
QUALITY = 90  # of JPEG
DRAWN = 32  # persons
HEIGHTS, ASPECTS = (160, 460), (2.2, 3.2)  # pixels; height / width, about as in CUHK-PEDES


class Counts(NamedTuple):
    """Size of a split, as in the published tables."""

    persons: int
    images: int
    captions: int


DEFAULT = {split: Counts(*published) for split, published in PUBLISHED["cuhk_pedes"].items()}


def records(splits: dict[str, Counts], suffix: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the raw records of all splits. Persons get images in turn; the last images get the remaining captions."""
    person = 0
    for split, counts in splits.items():
        rng = random.Random(f"bulk/{seed}/{split}")
        looks = draw_crowd(min(counts.persons, 2000), rng, set())
        share, extra = divmod(counts.captions, counts.images)
        for image in range(counts.images):
            own = image % counts.persons
            number = share + (image >= counts.images - extra)
            captions = [describe(looks[own % len(looks)], draw_scene(rng), rng)[0] for _ in range(number)]
            path = f"{FOLDERS[image % len(FOLDERS)]}/{split}_{image:05d}{suffix}"
            yield {"split": split, "captions": captions, "file_path": path, "id": person + own + 1}
        person += counts.persons


@functools.lru_cache(maxsize=1)
def drawings(seed: int) -> list[Image.Image]:
    """Draws the persons that all images show."""
    rng = random.Random(f"bulk/{seed}")
    looks = draw_crowd(DRAWN, rng, set())
    return [render(who, Build.draw(rng), draw_scene(rng), (HEIGHTS[1], 180), rng) for who in looks]


def write_image(folder: Path, seed: int, path: str) -> None:
    """Writes one image, a function of (seed, path)."""
    rng = np.random.default_rng(list(f"{seed}/{path}".encode()))
    height = int(rng.integers(*HEIGHTS))
    width = int(height / rng.uniform(*ASPECTS))
    drawn = drawings(seed)[rng.integers(DRAWN)].resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(drawn, np.float32) * rng.uniform(0.7, 1.2, 3) + rng.normal(0, 5, (height, width, 1))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(folder / path, quality=QUALITY)  # PNG and BMP ignore quality


def write(out: Path, splits: dict[str, Counts], format: str = "jpeg", seed: int = 0, workers: int = 1) -> None:
    """Writes the dataset to the folder `out`, whole or not at all. Raises UserError if `out` exists."""
    with whole_folder(out) as partial:
        made = list(records(splits, FORMATS[format], seed))
        paths = [record["file_path"] for record in made]
        for folder in FOLDERS:
            (partial / "imgs" / folder).mkdir(parents=True)
        task = functools.partial(write_image, partial / "imgs", seed)
        for _ in progress(map_in_processes(task, paths, workers=workers, chunk=64), len(paths)):
            pass
        write_text(partial / "reid_raw.json", json.dumps(made))


def _counts(text: str) -> Counts:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not PERSONSxIMAGESxCAPTIONS, such as 1000x3074x6156")
    counts = Counts(*map(int, parts))
    if not counts.persons <= counts.images <= counts.captions:
        raise argparse.ArgumentTypeError(f"{text!r}: every person needs an image, every image a caption")
    return counts


def run(options: argparse.Namespace) -> None:
    """Writes the dataset."""
    splits = {split: getattr(options, split) for split in DEFAULT}
    write(options.out, splits, options.format, options.seed, options.workers)
    print(f"{sum(counts.images for counts in splits.values()):,} images: {options.out}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthetic.bulk", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=filled_path)
    for split, counts in DEFAULT.items():
        shown = "x".join(map(str, counts))
        parser.add_argument(f"--{split}", type=_counts, default=counts, help=f"PERSONSxIMAGESxCAPTIONS, {shown}")
    parser.add_argument("--format", choices=FORMATS, default="jpeg")
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, help="processes; does not change the data"
    )
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
