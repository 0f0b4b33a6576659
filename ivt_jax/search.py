"""Search an index of pictures by sentences, by an image, or by both.

    python -m ivt_jax.search --index=INDEX "a man in a red hoodie" --and "2: blue backpack" --not "glasses"
    python -m ivt_jax.search --index=INDEX --image=crop.jpg --where "camera = 3 and time > '2024-05-01'" --group=track
    python -m ivt_jax.search --workdir=runs/demo --images=FOLDER "a woman in a red coat with a black backpack"

`ivt_jax.index` builds an index; with --images the command builds a temporary one. It prints rank, score, fit of each
phrase and path of the best pictures. The lines below say what the best score means, by the model's validation: how
likely the first picture is right, or "no good match"; and what the model did not read or cannot tell.
`ivt_jax.retrieval.searcher` defines scores and fits and searches from Python.
"""

import argparse
import csv
import datetime
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ivt_jax.common.command import filled, filled_path, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import printable, whole_folder, write_bytes
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command
from ivt_jax.gallery.archives import find_slice
from ivt_jax.pages.render import TEMPLATES, data_uri, render
from ivt_jax.retrieval.indexing.sources import read_folder
from ivt_jax.retrieval.queries.query import Query, Term, check, parse_term, phrases_of
from ivt_jax.retrieval.stores.places import open_store

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Answer, Result, Searcher

_LONGEST_NAME = 255  # bytes of a file name
_LONGEST_SUFFIX = 16  # characters; a longer one is cut as the rest of the name is
_SHOWN = (208, 416)  # largest width and height of a picture on the page

# JAX, Flax and Orbax are imported where they are used, so that `--help` and mistakes in the query answer at once.


def run(args: argparse.Namespace) -> int:
    """Searches, prints and writes the results; returns exit code 1 if pictures are unreadable or gone, or else 0."""
    _check_outputs(args)
    query = read_query(args)
    with open_searcher(args, query) as (searcher, problems):
        answer = searcher.search(query, args.top, args.group, args.distinct, args.exact)
        args.form(searcher, query, answer)
        files = dict(enumerate((searcher.file(result.path) for result in answer.results), start=1))
        readable = {rank: file for rank, file in files.items() if _is_readable(file)}
        problems += [f"{file}: cannot be read any more" for rank, file in files.items() if rank not in readable]
        if args.html:
            page = render_page(searcher, query, answer, args.images or args.index, args.explain)
            write_bytes(args.html, page.encode())
        if args.copy_to and not files:
            print(f"{args.copy_to}: not made, because there is no picture to copy", file=sys.stderr)
        elif args.copy_to and readable:
            problems += copy_files(searcher, {rank: answer.results[rank - 1] for rank in readable}, args.copy_to)
    for problem in problems:
        print(f"skipped {printable(problem)}", file=sys.stderr)
    if args.index and files and not readable:
        remedy = f"python -m ivt_jax.index --index={args.index} --moved --images=FOLDER"
        print(f"if the pictures have moved: {printable(remedy)}", file=sys.stderr)
    return 1 if problems else 0


def read_query(args: argparse.Namespace) -> Query:
    """Makes the query of a command line; several filters are joined by `and`."""
    sentence = [] if args.sentence is None else [args.sentence]
    wanted = [parse_term(text) for text in (*sentence, *args.wanted)]
    unwanted = [Term(text, -weight) for text, weight in map(parse_term, args.unwanted)]
    filters = [text for text in args.where if text.strip()]
    where = filters[0] if len(filters) == 1 else " and ".join(f"({text})" for text in filters)
    return Query((*wanted, *unwanted), args.image, image_weight=args.image_weight, where=where)


def open_searcher(args: argparse.Namespace, query: Query) -> "AbstractContextManager[tuple[Searcher, list[str]]]":
    """Gives a searcher and a line per unreadable picture. Raises UserError for a wrong query before loading a model."""
    store = None if args.images else open_store(args.index)
    fields = store.about.fields if store else {}
    for text in args.where:  # each alone, so that no two join into another filter
        check(query._replace(where=text), fields)
    check(query, fields, args.group, args.distinct)
    if not store:
        return index_folder(args.images, args.workdir)
    from ivt_jax.retrieval.searcher import Searcher

    return nullcontext((Searcher(store, args.workdir), []))


@contextmanager
def index_folder(folder: Path, workdir: Path) -> "Iterator[tuple[Searcher, list[str]]]":
    """Gives a searcher of a temporary index of all pictures in and below a folder, and a line for each unreadable one.

    Raises UserError if no picture can be read, or the workdir has no model.
    """
    source = read_folder(folder)
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.retrieval.indexing.build import Options, build
    from ivt_jax.retrieval.searcher import Searcher

    encoder = Encoder(workdir)
    with tempfile.TemporaryDirectory(prefix="ivt_jax-search-") as temporary:
        place = Path(temporary) / "index"
        built = build(place, source, Options(workdir, encoder))
        unreadable = [f"{folder}/{path}: {reason}" for path, reason in built.unreadable]
        yield Searcher(open_store(place), workdir, encoder), unreadable


def print_table(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """Prints a line per result, such as "  1  +0.4310  red hoodie 0.91 · not glasses ?  PATH"."""
    for rank, result in enumerate(answer.results, start=1):
        phrases = (f"{'' if wanted else 'not '}{text} {_fit(score)}" for text, score, wanted in result.phrases)
        cells = [f"{rank:3}", f"{result.score:+.4f}", " · ".join(phrases), str(searcher.file(result.path))]
        cells += [f"odd: {result.odd}"] if result.odd else []
        print("  ".join(printable(cell) for cell in cells if cell))
    _print_verdict(answer, sys.stdout)
    _print_basis(answer, sys.stdout)


def print_json(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """Prints one object: the query and the answer, each result with its rank and file."""
    results = []
    for rank, result in enumerate(answer.results, start=1):
        phrases = [phrase._asdict() for phrase in result.phrases]
        file = searcher.file(result.path)
        results.append({"rank": rank, "file": file, **result._asdict(), "phrases": phrases})
    asked = {**query._asdict(), "terms": [term._asdict() for term in query.terms]}
    answered = {**answer._asdict(), "terms": [term._asdict() for term in answer.terms], "basis": answer.basis._asdict()}
    answered["results"] = results
    print(json.dumps({"query": asked, **answered}, indent=2, default=_text))


def print_csv(searcher: "Searcher", query: Query, answer: "Answer") -> None:
    """Prints a header and a row per result, with a column per phrase and per field of metadata."""
    writer, fields = csv.writer(sys.stdout), [*searcher.about.fields]
    asked = phrases_of(answer.terms)
    columns = [f"phrase.{'' if wanted else 'not '}{text}" for text, wanted in asked.items()]
    columns += [f"metadata.{name}" for name in fields]
    writer.writerow(["rank", "id", "score", "probability", "path", "file", *columns])
    for rank, result in enumerate(answer.results, start=1):
        row = [rank, result.id, result.score, result.probability, result.path, searcher.file(result.path)]
        values = [result.metadata[name] for name in fields]
        writer.writerow(map(_cell, [*row, *(phrase.score for phrase in result.phrases), *values]))
    _print_verdict(answer, sys.stderr)
    _print_basis(answer, sys.stderr)


def print_paths(searcher: "Searcher", query: Query, answer: "Answer", end: str = "\n") -> None:
    """Prints the file of each result."""
    for result in answer.results:
        print(searcher.file(result.path), end=end)
    _print_verdict(answer, sys.stderr)


def render_page(searcher: "Searcher", query: Query, answer: "Answer", place: Path | str, explained: bool) -> str:
    """Returns a self-contained HTML page with the query and the results; with heat maps if `explained`."""
    from ivt_jax.encoding.images import open_image

    image = open_image("the image", query.image) if query.image else None
    if image:
        image.thumbnail(_SHOWN)
    results = answer.results
    counted = progress(results, len(results), "explaining: ", "pictures", brief=True) if explained else results
    drawn = [draw(searcher, result, explained) for result in counted]
    values = {"image": image and data_uri(image), "answer": answer, "results": drawn, "explained": explained}
    return render(TEMPLATES / "search.html", query=query, folder=printable(place), **values)


def draw(searcher: "Searcher", result: "Result", explained: bool) -> dict[str, Any]:
    """Returns a result with its pictures as data URIs; the first is the index's thumbnail, so the file may be gone.

    heats: (phrase, picture) for the phrases that the model can tell, or for all if that is known of none.
    """
    from ivt_jax.retrieval.explain import overlay

    heats = []
    located = [phrase for phrase in result.phrases if phrase.score is not None] or result.phrases
    if explained and located:
        image, maps = searcher.heat_maps(result.id, [phrase.text for phrase in located])
        image.thumbnail(_SHOWN)
        heats = [(phrase, data_uri(overlay(image, heat))) for phrase, heat in zip(located, maps, strict=True)]
    small = searcher.thumbnail(result.id)
    return {**result._asdict(), "name": printable(result.path), "image": small and data_uri(small), "heats": heats}


def copy_files(searcher: "Searcher", results: "Mapping[int, Result]", folder: Path) -> list[str]:
    """Copies the file of each rank as 01_NAME, 02_NAME, ... into a new folder.

    Returns a line for each file that has changed since it was indexed, which is not copied.
    """
    digits, changed = max(2, len(str(max(results)))), []
    rows = {row.id: row for row in searcher.rows([result.id for result in results.values()])}
    with whole_folder(folder) as partial:
        for rank, result in results.items():
            file, row = searcher.file(result.path), rows.get(result.id)  # None: an update has just replaced it
            content = row and searcher.read(row)
            if content is None:
                changed.append(f"{file}: has changed since it was indexed: update the index")
                continue
            suffix = file.suffix if len(file.suffix) <= _LONGEST_SUFFIX else ""
            stem = file.name.removesuffix(suffix)
            while len(os.fsencode(name := f"{rank:0{digits}}_{stem}{suffix}")) > _LONGEST_NAME:
                stem = stem[:-1]
            (partial / name).write_bytes(content)
    return changed


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parse(argv)
    return run_command(lambda: run(args))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses a command line; ends the process with exit code 2 if its flags are wrong or do not fit together."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.images and not args.workdir:
        parser.error("--images needs --workdir, the folder of a model")
    if args.image and len(args.image) > 1:
        parser.error("--image is given twice; choose one picture")
    args.image = args.image[0] if args.image else None
    if args.explain and not args.html:
        parser.error("--explain needs --html, the page to draw on")
    if args.null:
        if args.form is not print_paths:
            parser.error("--null needs --paths")
        args.form = functools.partial(print_paths, end="\0")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.search",
        description="Search an index, or a folder, by sentences, by an image, or by both. Prints rank, score, the "
        "fit of each phrase (the share of the pictures that fit it less well; ? if the model cannot tell), and path.",
        epilog='exit code: 0, also with "no good match"; 1 if a picture cannot be read, or is gone since the index was '
        "built; 2 after a mistake in the call",
        allow_abbrev=False,
    )
    parser.add_argument("sentence", nargs="?", help='the description, such as "a woman with a black backpack"')
    add = parser.add_argument_group("query").add_argument
    add("--and", dest="wanted", action="append", default=[], metavar="TEXT", help='another phrase; "2: TEXT": weight 2')
    add("--not", dest="unwanted", action="append", default=[], metavar="TEXT", help="an unwanted phrase")
    add("--image", type=filled_path, action="append", help="a picture of the person, alone or with sentences")
    add("--image_weight", type=float, default=1.0, metavar="W", help="of the picture; 1: two thirds of the sentences'")
    where = (
        "filter by fields: \"camera = 3 and time between '2024-05-01' and '2024-05-02'\", \"path contains 'gate'\"; if "
        "given several times, all must be true"
    )
    add("--where", action="append", default=[], metavar="FILTER", help=where)
    place = parser.add_argument_group("place").add_mutually_exclusive_group(required=True)
    built = "what ivt_jax.index built: a folder, s3://..., gs://..., http://HOST:6333/NAME"
    place.add_argument("--index", type=filled, help=built)
    place.add_argument("--images", type=filled_path, help="folder of crops, searched with its subfolders")
    parser.add_argument(
        "--workdir",
        type=filled_path,
        help="folder of the model: a run, an export or converted weights; by default the one of the index",
    )
    add = parser.add_argument_group("results").add_argument
    add("--top", type=positive, default=10, help="number of results (10)")
    add("--group", default="", metavar="FIELD", help="only the best picture of each value, such as of each track")
    add(
        "--distinct",
        type=float,
        metavar="COSINE",
        help="drop a result whose similarity to a better one exceeds this, such as 0.98",
    )
    add("--exact", action="store_const", const=True, help="score all pictures, even if the index is approximate")
    output = parser.add_argument_group("output (by default a table)")
    form = output.add_mutually_exclusive_group()
    choice = functools.partial(form.add_argument, dest="form", action="store_const", default=print_table)
    choice("--json", const=print_json, help="one object")
    choice("--csv", const=print_csv, help="a header and a row per result; a ' before text that looks like a formula")
    choice("--paths", const=print_paths, help="only the files, one per line")
    output.add_argument("-0", "--null", action="store_true", help="with --paths: end each with NUL, for xargs -0")
    output.add_argument(
        "--html", type=filled_path, metavar="FILE", help="write a self-contained page with the pictures"
    )
    output.add_argument("--explain", action="store_true", help="with --html: draw where each phrase is seen")
    output.add_argument(
        "--copy_to", type=filled_path, metavar="DIR", help="copy the files into a new folder, named by rank"
    )
    parser.add_argument("--copy-to", dest="copy_to", type=filled_path, help=argparse.SUPPRESS)  # its former name
    return parser


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError if --html or --copy_to cannot be written."""
    if args.html and args.html.is_dir():
        raise UserError(f"--html: {args.html} is a folder: name a file")
    if args.copy_to and args.copy_to.exists():
        raise UserError(f"--copy_to: {args.copy_to} exists: name a new folder")
    if args.html and args.copy_to and args.html.absolute() == args.copy_to.absolute():
        raise UserError(f"--html and --copy_to are both {args.html}: name a file and a folder")
    for flag, path in (("--html", args.html), ("--copy_to", args.copy_to)):
        if path and not os.access(path.absolute().parent, os.W_OK):
            raise UserError(f"{flag}: {path} cannot be written: its folder is missing or read-only")


def _is_readable(file: Path) -> bool:
    try:
        return find_slice(file) is not None or os.access(file, os.R_OK)
    except OSError:  # its archive is gone, or has no such picture
        return False


def _print_verdict(answer: "Answer", file: TextIO) -> None:
    """Prints the verdict, what was not read and what may be misspelt; on stderr if stdout is for programs."""
    suggestions = [f"did you mean: {text}" for text in answer.suggestions.values()]
    for line in (answer.verdict, answer.odd, answer.unread, *suggestions):
        if line:
            print(printable(line), file=file)


def _print_basis(answer: "Answer", file: TextIO) -> None:
    for line in (answer.without_fit, *answer.basis.lines(answer.searched)):
        if line:
            print(printable(line), file=file)


def _fit(score: float | None) -> str:
    return "?" if score is None else f"{score:.2f}"


def _cell(value: Any) -> Any:
    """Returns a value for CSV; a text that a spreadsheet would run as a formula gets a quote in front."""
    plain = _text(value) if isinstance(value, datetime.datetime | Path) else value
    return f"'{plain}" if isinstance(plain, str) and plain.startswith(("=", "+", "-", "@", "\t", "\r")) else plain


def _text(value: datetime.datetime | Path) -> str:
    return str(value) if isinstance(value, Path) else value.isoformat()


if __name__ == "__main__":
    sys.exit(main())
