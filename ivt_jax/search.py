"""Search an index of pictures by sentences, by an image, or by both.

    python -m ivt_jax.search --index=INDEX "a man in a red hoodie" --and "2: blue backpack" --not "glasses"
    python -m ivt_jax.search --index=INDEX --image=crop.jpg --where "camera = 3 and time > '2024-05-01'" --group=track
    python -m ivt_jax.search --workdir=runs/demo --images=FOLDER "a woman in a red coat with a black backpack"

`ivt_jax.index` makes an index; of a folder (--images) one is made for the time of the search. It prints rank, score,
the score of each phrase of the query, and path, for the best; then what the model's validation says of the best score:
how likely the first is right, or "no good match"; or that the index is unfinished. `ivt_jax.retrieval.searcher` says
what the scores are, and is the way to search from Python.
"""

import argparse
import contextlib
import csv
import datetime
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ivt_jax.common.command import positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable, whole_folder, write_bytes
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command
from ivt_jax.pages.render import TEMPLATES, data_uri, render
from ivt_jax.retrieval.places import open_store
from ivt_jax.retrieval.query import Query, Term, check, parse_term, phrases_of
from ivt_jax.retrieval.sources import read_folder

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Answer, Phrase, Result, Searcher

_LONGEST_NAME = 255  # bytes of a file's name
_SHOWN = (208, 416)  # width and height of a picture on the page, at most

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistake in the query answer at once.


def run(args: argparse.Namespace) -> int:
    """Searches and writes what is asked for; the exit code is 1 where pictures were skipped, or are gone."""
    _refuse_places(args)
    query = read_query(args)
    with open_searcher(args, query) as (searcher, problems):
        answer = searcher.search(query, args.top, args.group, args.distinct, args.exact)
        args.form(searcher, query, answer)
        files = dict(enumerate((searcher.file(result.path) for result in answer.results), start=1))
        readable = {rank: file for rank, file in files.items() if os.access(file, os.R_OK)}
        if args.html:
            page = render_page(searcher, query, answer, args.images or args.index, args.explain)
            write_bytes(args.html, page.encode())
        if args.copy_to and readable:
            copy_files(readable, args.copy_to)
    gone = [f"{file}: cannot be read any more" for rank, file in files.items() if rank not in readable]
    for problem in (*problems, *gone):
        print(f"skipped {printable(problem)}", file=sys.stderr)
    if args.index and gone and not readable:
        remedy = f"python -m ivt_jax.index --index={args.index} --moved --images=FOLDER"
        print(f"where the pictures have moved: {printable(remedy)}", file=sys.stderr)
    return 1 if problems or gone else 0


def read_query(args: argparse.Namespace) -> Query:
    """The query that the command line tells."""
    sentence = [] if args.sentence is None else [args.sentence]
    wanted = [parse_term(text) for text in (*sentence, *args.wanted)]
    unwanted = [Term(text, -weight) for text, weight in map(parse_term, args.unwanted)]
    filters = [text for text in args.where if text.strip()]
    where = filters[0] if len(filters) == 1 else " and ".join(f"({text})" for text in filters)
    return Query((*wanted, *unwanted), args.image, where=where)


def open_searcher(
    args: argparse.Namespace, query: Query
) -> "contextlib.AbstractContextManager[tuple[Searcher, list[str]]]":
    """The index, or one of the folder, with a line for each picture that could not be read.

    Raises UserError where the query cannot be asked of it, before the model is read, which takes seconds.
    """
    if args.images:
        check(query, {}, args.group, args.distinct)
        return index_folder(args.images, args.workdir)
    store = open_store(args.index)
    check(query, store.about.fields, args.group, args.distinct)
    from ivt_jax.retrieval.searcher import Searcher

    return contextlib.nullcontext((Searcher(store, args.workdir), []))


@contextlib.contextmanager
def index_folder(folder: Path, workdir: Path) -> "Iterator[tuple[Searcher, list[str]]]":
    """An index of all pictures in a folder and below, as long as it is in use, and a line for each that is unreadable.

    Raises UserError where none can be read, or the workdir holds no model.
    """
    source = read_folder(folder)
    from ivt_jax.encoding.encoder import ImageEncoder
    from ivt_jax.retrieval.build import build
    from ivt_jax.retrieval.searcher import Searcher

    encoder = ImageEncoder(workdir)
    with tempfile.TemporaryDirectory(prefix="ivt_jax-search-") as temporary:
        place = Path(temporary) / "index"
        built = build(place, source, workdir, encoder=encoder)
        unreadable = [f"{folder}/{problem}" for problem in built.unreadable]
        yield Searcher(open_store(place), workdir, encoder), unreadable


def print_table(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """A line for each result; the phrases come before the path, so that their scores stand below each other."""
    for rank, result in enumerate(answer.results, start=1):
        cells = [f"{rank:3}", f"{result.score:+.4f}", describe(result.phrases), str(searcher.file(result.path))]
        print("  ".join(printable(cell) for cell in cells if cell))
    _tell(answer, sys.stdout)


def describe(phrases: "Sequence[Phrase]") -> str:
    """red hoodie 0.91 · blue backpack 0.34 · not glasses 0.20"""
    return " · ".join(f"{'' if wanted else 'not '}{text} {score:.2f}" for text, score, wanted in phrases)


def print_json(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """One object: the query, and the answer, each result with its rank and its file."""
    results = [
        {
            "rank": rank,
            "file": str(searcher.file(result.path)),
            **result._asdict(),
            "phrases": [phrase._asdict() for phrase in result.phrases],
        }
        for rank, result in enumerate(answer.results, start=1)
    ]
    asked = {**query._asdict(), "terms": [term._asdict() for term in query.terms]}
    known = {name: getattr(answer, name) for name in ("searched", "verdict", "good", "unread", "unfinished")}
    print(json.dumps({"query": asked, **known, "results": results}, indent=2, default=_plain))


def print_csv(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """A header, and a row for each result, with a column for each phrase and each field of metadata."""
    writer, fields = csv.writer(sys.stdout), [*searcher.about.fields]
    columns = [f"phrase.{'' if wanted else 'not '}{text}" for text, wanted in phrases_of(query).items()]
    columns += [f"metadata.{name}" for name in fields]
    writer.writerow(["rank", "id", "score", "probability", "path", "file", *columns])
    for rank, result in enumerate(answer.results, start=1):
        row = [rank, result.id, result.score, result.probability, result.path, searcher.file(result.path)]
        values = [result.metadata[name] for name in fields]
        writer.writerow(map(_cell, [*row, *(phrase.score for phrase in result.phrases), *values]))
    _tell(answer, sys.stderr)


def print_paths(searcher: "Searcher", query: Query, answer: "Answer", end: str = "\n") -> None:
    """The file of each result and nothing else."""
    for result in answer.results:
        print(searcher.file(result.path), end=end)
    _tell(answer, sys.stderr)


def render_page(searcher: "Searcher", query: Query, answer: "Answer", place: Path | str, explained: bool) -> str:
    """One self-contained HTML page: the query and the pictures found, in order, with heat-maps where `explained`."""
    from ivt_jax.encoding.images import open_image

    asked = open_image("the image", query.image) if query.image else None
    if asked:
        asked.thumbnail(_SHOWN)
    results = list(enumerate(answer.results, start=1))
    counted = progress(results, len(results), "explaining: ", "pictures", brief=True) if explained else results
    return render(
        TEMPLATES / "search.html",
        terms=query.terms,
        image=asked and data_uri(asked),
        where=query.where,
        verdict=answer.verdict,
        good=answer.good,
        unread=answer.unread,
        searched=answer.searched,
        folder=printable(place),
        explained=explained,
        results=[draw(searcher, result, rank, explained) for rank, result in counted],
    )


def draw(searcher: "Searcher", result: "Result", rank: int, explained: bool) -> dict[str, Any]:
    """A result as the page has it. The picture is the index's thumbnail, which is there though the file be gone."""
    from ivt_jax.retrieval.explain import overlay

    phrases: list[dict[str, Any]] = [phrase._asdict() for phrase in result.phrases]
    if explained and phrases:
        image, heats = searcher.heat_maps(result.id, [phrase.text for phrase in result.phrases])
        image.thumbnail(_SHOWN)
        for phrase, heat in zip(phrases, heats, strict=True):
            phrase["heat"] = data_uri(overlay(image, heat))
    small = searcher.thumbnail(result.id)
    return {
        "rank": rank,
        "score": result.score,
        "image": small and data_uri(small),
        "name": printable(result.path),
        "phrases": phrases,
    }


def copy_files(files: Mapping[int, Path], folder: Path) -> None:
    """Copies the file of each rank as 01_NAME, 02_NAME ..., all or none, into a new folder."""
    digits = max(2, len(str(max(files, default=0))))
    with whole_folder(folder) as partial:
        for rank, file in files.items():
            stem = file.stem
            while len(os.fsencode(name := f"{rank:0{digits}}_{stem}{file.suffix}")) > _LONGEST_NAME:
                stem = stem[:-1]
            shutil.copyfile(file, partial / name)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = _parse(argv)
    return run_command(lambda: run(args))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.search",
        description="Search an index, or a folder, by sentences, by an image, or by both. Prints rank, score, the "
        "score of each phrase (the share of the pictures that fit it less well), and path.",
        epilog='exit code: 0, also where it says "no good match"; 1 where a picture could not be read, or is gone '
        "since it was indexed; 2 on a mistake in the call",
        allow_abbrev=False,
    )
    parser.add_argument("sentence", nargs="?", help='the description, such as "a woman with a black backpack"')
    add = parser.add_argument_group("the query").add_argument
    add("--and", dest="wanted", action="append", default=[], metavar="TEXT", help='one more; "2: TEXT" counts twice')
    add("--not", dest="unwanted", action="append", default=[], metavar="TEXT", help="what it should not look like")
    add("--image", type=Path, action="append", help="a picture of the person, alone or with sentences")
    add(
        "--where", action="append", default=[], metavar="FILTER",
        help="by the index's fields: \"camera = 3 and time > '2024-05-01'\"; of several, all are to hold",
    )  # fmt: skip
    place = parser.add_argument_group("where to search").add_mutually_exclusive_group(required=True)
    place.add_argument("--index", help="what ivt_jax.index made: a folder, or the http://HOST:6333/NAME of Qdrant")
    place.add_argument("--images", type=Path, help="folder of crops, searched with its subfolders")
    parser.add_argument("--workdir", type=Path, help="folder of a trained run or an export; an index knows its own")
    add = parser.add_argument_group("what to show").add_argument
    add("--top", type=positive, default=10, help="how many (default 10)")
    add("--group", default="", metavar="FIELD", help="the best picture alone of each value, such as of each track")
    add("--distinct", type=float, metavar="COSINE", help="no picture more similar to a better one than this: 0.98")
    add("--exact", action="store_const", const=True, help="all pictures one by one, though the index be approximate")
    output = parser.add_argument_group("how to show it (a table, where nothing else is chosen)")
    form = output.add_mutually_exclusive_group()
    choice = functools.partial(form.add_argument, dest="form", action="store_const", default=print_table)
    choice("--json", const=print_json, help="one object")
    choice("--csv", const=print_csv, help="a header, and a row for each; a text like a formula gets a ' before it")
    choice("--paths", const=print_paths, help="the files alone, a line for each")
    output.add_argument("-0", "--null", action="store_true", help="with --paths: NUL ends each, as for xargs -0")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures, self-contained")
    output.add_argument("--explain", action="store_true", help="with --html: draw where each phrase is seen")
    output.add_argument("--copy-to", type=Path, metavar="DIR", help="copy the files into a new folder, by rank")
    args = parser.parse_args(argv)
    if args.images and not args.workdir:
        parser.error("--images needs --workdir, the folder of a model")
    if args.image and len(args.image) > 1:
        parser.error("--image is given twice: one picture can be asked for")
    args.image = args.image[0] if args.image else None
    if args.explain and not args.html:
        parser.error("--explain needs --html, the page to draw on")
    if args.null:
        if args.form is not print_paths:
            parser.error("--null needs --paths")
        args.form = functools.partial(print_paths, end="\0")
    return args


def _refuse_places(args: argparse.Namespace) -> None:
    """What cannot be written is told before the search."""
    if args.html and args.html.is_dir():
        raise UserError(f"--html: {args.html} is a folder: name a file")
    if args.copy_to and args.copy_to.exists():
        raise UserError(f"--copy-to: {args.copy_to} exists: name a new folder")
    if args.html and args.copy_to and args.html.absolute() == args.copy_to.absolute():
        raise UserError(f"--html and --copy-to are both {args.html}: name a file and a folder")
    for flag, path in (("--html", args.html), ("--copy-to", args.copy_to)):
        if path and not os.access(path.absolute().parent, os.W_OK):
            raise UserError(f"{flag}: {path} cannot be written: its folder is closed or missing")


def _tell(answer: "Answer", file: TextIO) -> None:
    """What is to be known of an answer: on stderr where stdout is for programs."""
    for line in (answer.verdict, answer.unread):
        if line:
            print(printable(line), file=file)


def _cell(value: Any) -> Any:
    """A value for CSV. A spreadsheet would run a text that begins like a formula."""
    plain = _plain(value)
    return f"'{plain}" if isinstance(plain, str) and plain.startswith(("=", "+", "-", "@", "\t", "\r")) else plain


def _plain(value: Any) -> Any:
    """What JSON and CSV have no form for, as text: a time by ISO 8601, a path. All else as it is."""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
