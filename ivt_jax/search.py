"""Search a folder of pictures by a sentence, with the model of a run.

    python -m ivt_jax.search --workdir=runs/demo --images=FOLDER "a woman in a red coat with a black backpack"

It prints rank, cosine similarity and path of the best; `--html` writes them as a page of pictures.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import printable, write_text
from input_pipeline.inspection import SUFFIXES
from input_pipeline.progress import progress
from ivt_jax.arguments import positive
from ivt_jax.startup import keep_compiled

BATCH = 64

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped folder answer at once.


def search(workdir: Path | str, folder: Path | str, query: str) -> tuple[list[tuple[float, Path]], list[str]]:
    """Ranks all pictures below `folder` by the cosine similarity of their embedding with that of the sentence.

    Returns (score, path) from the best to the worst, ties by path, and one line for each picture that cannot be read.
    Raises UserError where the sentence is empty, the folder has no readable picture, or the workdir no checkpoint.
    """
    if not query.strip():
        raise UserError("the sentence is empty: describe a person")
    if any("\ud800" <= character <= "\udfff" for character in query):  # bytes of the command line that are no UTF-8
        raise UserError("the sentence is not UTF-8 text: set the terminal to UTF-8")
    paths = find_images(Path(folder))

    from ivt_jax.evaluation.embedding import embed_texts
    from ivt_jax.gallery.crops import load_batches
    from ivt_jax.gallery.encoder import ImageEncoder
    from ivt_jax.workdir import folder_tokenizer

    encoder = ImageEncoder(workdir)
    config = encoder.config
    ids = folder_tokenizer(Path(workdir), config).encode([query], config.text.length["sentence"])
    if np.count_nonzero(ids) <= 2:  # [CLS] and [SEP]
        raise UserError("the sentence has no word that can be read: describe a person")
    readable: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    told = progress(((path, path) for path in paths), len(paths), noun="pictures", brief=True)
    images = encoder.embed(load_batches(told, encoder.size, BATCH, readable, unreadable))
    problems = [f"{path}: {reason}" for path, reason in unreadable]
    if not readable:
        raise UserError(f"none of the {len(paths)} pictures can be read; the first: {problems[0]}")
    scores = images @ embed_texts(encoder.model, encoder.params, ids, batch_size=1)[0]
    order = np.argsort(-scores, kind="stable")
    return [(float(scores[i]), readable[i]) for i in order], problems


def find_images(folder: Path) -> list[Path]:
    """All picture files in `folder` and below, sorted; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a folder of pictures with --images")
    paths = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file())
    if not paths:
        raise UserError(f"{folder} has no pictures ({' '.join(SUFFIXES)})")
    return paths


def verdict(workdir: Path | str, best: float) -> str:
    """What the run's validation says of a best score; empty where there was no validation."""
    from ivt_jax.evaluation.calibration import Calibration, probability
    from ivt_jax.report import read_json

    # A run has what validation told in a file of its own, an export in config.json.
    exported = read_json(Path(workdir) / "config.json").get("scores", {})
    summary = read_json(Path(workdir) / "val/summary.json") or exported.get("val", {})
    if "calibration" not in summary:
        return ""
    calibration = Calibration(**summary["calibration"])
    learned = f"from validation, with {calibration.gallery:,} pictures"
    if best < calibration.threshold:
        return f"probably not in this folder: the best score lies below {calibration.threshold:.4f} ({learned})"
    return f"if the person is in this folder, the first is right with {probability(calibration, best):.0%} ({learned})"


def write_strip(path: Path, query: str, folder: Path | str, results: list[tuple[float, Path]], searched: int) -> None:
    """Writes one self-contained HTML page: the sentence and the pictures found, in order."""
    from ivt_jax.report import crop, render

    crops = [crop(image, score) for score, image in results]
    page = render(strips=[{"caption": query, "crops": crops}], folder=printable(folder), searched=searched)
    write_text(path, page)


def run(args: argparse.Namespace) -> int:
    """Searches, prints, writes the strip; the exit code is 1 where pictures had to be skipped."""
    if args.html and (args.html.is_dir() or not os.access(args.html.absolute().parent, os.W_OK)):
        raise UserError(f"--html: {args.html} cannot be written: it is a folder, or its folder is closed or missing")
    results, problems = search(args.workdir, args.images, args.query)
    for rank, (score, path) in enumerate(results[: args.top], start=1):
        print(f"{rank:3}  {score:+.4f}  {printable(path)}")
    if told := verdict(args.workdir, results[0][0]):
        print(told)
    if args.html:
        write_strip(args.html, args.query, args.images, results[: args.top], len(results))
    for problem in problems:
        print(f"skipped {printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.search",
        description="Rank a folder of pictures by a sentence. Prints rank, cosine similarity and path.",
        epilog="exit code: 0; 1 where pictures were skipped as unreadable; 2 on a mistake in the call",
    )
    parser.add_argument("query", help='the description, such as "a woman in a red coat with a black backpack"')
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a trained run")
    parser.add_argument("--images", required=True, type=Path, help="folder of crops, searched with its subfolders")
    parser.add_argument("--top", type=positive, default=10, help="how many to show (default 10)")
    parser.add_argument("--html", type=Path, help="write a page with the pictures found, self-contained")
    args = parser.parse_args(argv)
    keep_compiled()
    try:
        return run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
