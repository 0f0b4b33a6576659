"""Generates PEDES-Synth: `python -m input_pipeline.synthetic --out=DIR [--persons=N --seed=S]`."""

import argparse
import os
import sys
import time
from pathlib import Path

from input_pipeline.synthetic.contact_sheet import contact_sheet
from input_pipeline.synthetic.writer import VERSION, Arguments, generate, read_oracle
from ivt_jax.common.command import exit_code, filled, not_negative, positive


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parse(argv)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Writes the dataset and prints its oracle."""
    out = Path(options.out)
    arguments = Arguments(
        persons=options.persons,
        seed=options.seed,
        images_per_person=options.images_per_person,
        size=options.size,
        val_persons=options.val_persons,
        test_persons=options.test_persons,
    )
    made = generate(out, arguments, options.workers, _Progress())
    images = arguments.persons * arguments.images_per_person
    state = "written" if made else "exists already"
    size = f"{arguments.persons} persons, {images} images"
    print(f"PEDES-Synth {VERSION}, seed {arguments.seed}: {size}: {state}: {out}")
    oracle = ", ".join(f"{split} {r1:.1f}%" for split, r1 in read_oracle(out).items())
    print(f"R@1 of a perfect attribute reader: {oracle}")
    if options.contact_sheet:
        contact_sheet(out, count=12, seed=arguments.seed).save(options.contact_sheet, format="PNG")
        print(f"contact sheet: {options.contact_sheet}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    default = Arguments()
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthetic", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", type=filled, required=True, help="folder to write: new, empty, or with the same dataset"
    )
    parser.add_argument("--persons", type=int, default=default.persons, help="persons in all splits together")
    parser.add_argument("--val_persons", type=int, default=default.val_persons, help="number of them in val")
    parser.add_argument("--test_persons", type=int, default=default.test_persons, help="number of them in test")
    parser.add_argument("--images_per_person", type=int, default=default.images_per_person)
    parser.add_argument("--size", type=_size, default=default.size, help="HEIGHTxWIDTH in pixels, such as 384x128")
    parser.add_argument("--seed", type=not_negative, default=default.seed)
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, help="processes; does not change the data"
    )
    parser.add_argument(
        "--contact_sheet", type=filled, metavar="FILE.png", help="also write an image of crops with their captions"
    )
    return parser.parse_args(argv)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 384x128")
    return int(height), int(width)


class _Progress:
    """Prints persons done and time left: one changing line on a terminal, a line every tenth in a log."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = 0.0
        self._live = sys.stdout.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        due = now - self._shown > 0.2 if self._live else done * 10 // total > (done - 1) * 10 // total
        if not due and done < total:
            return
        self._shown = now
        left = (now - self._start) / done * (total - done)
        line = f"{done}/{total} persons drawn, about {left:.0f} s left"
        print(f"\r{line:<60}" if self._live else line, end="\n" if done == total or not self._live else "", flush=True)


if __name__ == "__main__":
    sys.exit(main())
