"""Builds or updates an index of a gallery, for `ivt_jax.search` and `ivt_jax.serve`.

    python -m ivt_jax.index --workdir=RUN --images=FOLDER --index=DIR
    python -m ivt_jax.index --workdir=RUN --images=FOLDER --index=DIR --path_fields='{camera}/{date}_{track}.jpg'
    python -m ivt_jax.index --workdir=RUN --list=CAMERAS.csv --index=DIR
    python -m ivt_jax.index --index=DIR

A list holds metadata such as camera and time (`ivt_jax.retrieval.indexing.lists`); --path_fields reads them from the
paths (`ivt_jax.retrieval.indexing.path_fields`). The last command updates an index, also after an interruption: the
index stores the folder or list of its pictures, its model and its options. docs/search.md describes which pictures are
embedded, skipped or deleted.
"""

import argparse
import collections
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ivt_jax.common.command import filled, filled_path, positive
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote, printable, write_bytes
from ivt_jax.common.messages import counted, list_counts
from ivt_jax.common.startup import run_command

if TYPE_CHECKING:
    from ivt_jax.retrieval.indexing.build import Built
    from ivt_jax.retrieval.indexing.sources import Source
    from ivt_jax.retrieval.stores.store import About

_SHOWN = 20  # lines of each kind that are printed, if a file lists all
_REASONS = 8  # that are counted separately

# JAX, Flax and the stores are imported in functions, so that `--help` and a mistyped folder answer at once.


def run(args: argparse.Namespace) -> int:
    """Builds the index, copies it, prints the counts. Returns 1 if pictures are unreadable or rows kept, else 0."""
    source = read_source(args)
    for note in source.notes:
        print(f"{args.list or '--path_fields'}: {printable(note)}", file=sys.stderr, flush=True)

    from ivt_jax.retrieval.indexing.build import BATCH, Options, build
    from ivt_jax.retrieval.stores.places import open_store, refuse_taken, snapshot

    if args.snapshot:
        refuse_taken(args.snapshot)
    options = {name: getattr(args, name) for name in ("workdir", "dtype", "vectors", "moved", "prune")}
    built = build(args.index, source, Options(**options, batch=args.batch or BATCH))
    report(args, source, built)
    if args.snapshot:
        snapshot(open_store(args.index), args.snapshot)
        print(f"{args.snapshot}: a copy")
    return 1 if built.unreadable or built.kept else 0


def report(args: argparse.Namespace, source: "Source", built: "Built") -> None:
    """Prints the problems of a build on stderr and the counts on stdout; lists the problems in the index's folder."""
    from ivt_jax.gallery.walk import describe_passed
    from ivt_jax.retrieval.indexing.missing import describe_kept

    passed = describe_passed(source.passed)
    file = None if is_remote(args.index) else Path(args.index, "unreadable.txt")
    skipped, odd = ([*map(": ".join, pairs)] for pairs in (built.unreadable, built.odd))
    kinds = {"skipped": skipped, "kept": describe_kept(built.kept), "odd": odd, "unmatched": source.unmatched}
    _print_problems(kinds, passed, file)
    if passed:
        print(f"{args.index}: passed over: {passed}")
    if built.unreadable:
        print(f"{args.index}: {_count_reasons(built.unreadable, 'skipped')}", file=sys.stderr)
    if built.odd:
        remedy = "indexed all the same, but models learn from crops of one person: docs/search.md, Full frames"
        print(f"{args.index}: {_count_reasons(built.odd, 'odd')}; {remedy}", file=sys.stderr)
    if source.unmatched:
        unmatched = f"{counted(len(source.unmatched), 'path')} without fields, because --path_fields={args.path_fields}"
        print(f"{args.index}: {printable(unmatched)} does not fit", file=sys.stderr)
    if built.note:
        print(f"{args.index}: {built.note}")
    if source.fields:
        fields = ", ".join(f"{name} ({kind})" for name, kind in source.fields.items())
        print(f"{args.index}: fields: {printable(fields)}")
    print(f"{args.index}: {built}", flush=True)


def read_source(args: argparse.Namespace) -> "Source":
    """Finds the pictures that the command line names, or else those of the index's last build.

    Sets the options that the command line leaves out to those of the last build. Raises UserError for mistakes.
    """
    from ivt_jax.retrieval.indexing.path_fields import add_fields, parse_pattern
    from ivt_jax.retrieval.indexing.sources import read_folder, read_list

    if args.path_fields:
        parse_pattern(args.path_fields)  # before any work

    def read() -> "Source":
        return read_list(args.list, args.images) if args.list else read_folder(args.images)

    named = bool(args.images or args.list)
    source = read() if named else None  # a mistyped folder is an error before the index is opened
    about = _recall(args, named)
    source = source or read()
    if about and not args.moved:  # before its paths are compared with those of another folder
        about.refuse_other_root(args.index, source.root)
    if args.path_fields:
        return add_fields(source, parse_pattern(args.path_fields))
    return source


def _recall(args: argparse.Namespace, named: bool) -> "About | None":
    """Sets options that the command line leaves out to those of the index; returns its description, None without one.

    named: whether the command line names the pictures.
    """
    from ivt_jax.retrieval.stores.places import open_store
    from ivt_jax.retrieval.stores.store import NoIndexError

    try:
        about = open_store(args.index).about
    except NoIndexError as error:
        if named:
            return None
        raise UserError(f"{error} --workdir=RUN --images=FOLDER or --list=FILE") from None
    known = about.source
    if not named:
        if not known:
            reason = f"{args.index} was made by an older version or another program, and does not know its pictures"
            raise UserError(f"{reason}: name them once more with --images or --list")
        args.images, args.list = Path(known["images"]), Path(known["list"]) if "list" in known else None
        _refuse_gone(args)
    if not args.list and args.path_fields is None:
        args.path_fields = known.get("path_fields")
    args.batch = args.batch or known.get("batch")
    if not args.vectors and "vectors" in known:
        args.vectors = Path(known["vectors"])
        if not args.vectors.is_dir():
            print(f"{args.index}: {printable(args.vectors)} of --vectors is gone: not used", file=sys.stderr)
            args.vectors = None
    return about


def _refuse_gone(args: argparse.Namespace) -> None:
    """Raises UserError if the folder or the list of the index is gone, or if a list has its own fields."""
    if not args.images.is_dir():
        remedy = "mount it, or, if the pictures were moved, name their folder with --images and --moved"
        raise UserError(f"{args.index} is an index of the pictures in {args.images}, which is no folder now: {remedy}")
    if args.list and not args.list.is_file():
        remedy = "put it back, or name another list with --list"
        raise UserError(f"{args.index} was made from the list {args.list}, which is gone: {remedy}")
    if args.list and args.path_fields:
        raise UserError(f"{args.index} was made from the list {args.list}, which has its own fields: no --path_fields")


def _print_problems(found: Mapping[str, Sequence[str]], passed: str, file: Path | None) -> None:
    """Prints the lines of each kind, such as "skipped", on stderr. If there is a file, all and `passed` are in it."""
    for kind, lines in found.items():
        for line in lines[:_SHOWN] if file else lines:
            print(f"{kind} {printable(line)}", file=sys.stderr)
        if file and len(lines) > _SHOWN:
            print(f"{kind} {len(lines) - _SHOWN:,} more, listed in {file}", file=sys.stderr)
    if file:
        prefix = {"skipped": ""}
        everything = [prefix.get(kind, f"{kind} ") + line for kind, lines in found.items() for line in lines]
        everything += [f"passed over: {passed}"] if passed else []
        write_bytes(file, "".join(f"{printable(line)}\n" for line in everything).encode())


def _count_reasons(pairs: Sequence[tuple[str, str]], kind: str) -> str:
    """Returns a text such as "3 skipped: missing (2), not a readable image (1)". pairs: (path, reason)."""
    reasons = collections.Counter(reason for _, reason in pairs).most_common()
    shown = dict(reasons[:_REASONS])
    if others := sum(count for _, count in reasons[_REASONS:]):
        shown["other reasons"] = others
    return f"{len(pairs):,} {kind}: {printable(list_counts(shown))}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.index",
        description="Build an index of a folder or a list of pictures, or update it. An index knows its pictures, "
        "model and options: --index=DIR alone updates it.",
        epilog="exit code: 0; 1 if pictures cannot be read, lines of a list are skipped, or rows stay without "
        "their pictures (DIR/unreadable.txt lists all); 2 on a mistake",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--index", type=filled, required=True, metavar="DIR", help="the index: a folder, s3://..., gs://..., http://..."
    )
    add("--images", type=filled_path, help="folder of the pictures, with subfolders; with --list, folder of its paths")
    fields = "fields to filter by, of paths such as '{camera}/{date}_{track}.jpg'; * is any text, ** any folders"
    add("--path_fields", metavar="PATTERN", help=fields)
    add(
        "--list",
        type=filled_path,
        metavar="FILE",
        help=".csv or .jsonl of pictures and their metadata (docs/datasets.md)",
    )
    add(
        "--workdir",
        type=filled_path,
        help="folder of the model: a run, an export or converted weights; required for a new index",
    )
    add(
        "--vectors",
        type=filled_path,
        metavar="FOLDER",
        help="embeddings of python -m ivt_jax.embed to use where they fit",
    )
    add("--dtype", choices=("float32", "float16"), help="of the vectors of a new index (float32)")
    add("--batch", type=positive, help="pictures of a batch on each device (64)")
    add("--moved", action="store_true", help="the pictures of the index are in another folder now")
    prune = "delete all rows whose pictures are missing or cannot be read; by default a row stays if its folder is "
    prune += "missing, empty or unreadable, and all rows stay if more than a tenth of 100 or more rows would be deleted"
    add("--prune", action="store_true", help=prune)
    add("--snapshot", type=filled, metavar="PLACE", help="copy the finished index to this new place, of any kind")
    args = parser.parse_args(argv)
    if args.list and args.path_fields:
        parser.error("--path_fields is for a folder; a list has its own fields: leave one of them out")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
