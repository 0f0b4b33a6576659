"""Make an index of a gallery, for `ivt_jax.search` and `ivt_jax.serve`, and keep it up to date.

    python -m ivt_jax.index --workdir=RUN --images=FOLDER --index=DIR
    python -m ivt_jax.index --list=CAMERAS.csv --index=DIR

A folder is walked; a list, CSV or JSONL, names the pictures and what is known of them, such as camera and time
(`ivt_jax.retrieval.sources`). The index then holds what the folder or the list does, and nothing else. Given again, the
command goes on where it was, whatever stopped it, and does no more than has changed: what is unchanged is not embedded
again, what was renamed keeps its vector, what was deleted goes. What cannot be read is printed and listed in
DIR/unreadable.txt, and so is a bad line of a list. Hidden files and those that are no pictures are passed over: counted
by reason, on the terminal and there. Until all new pictures are in, searches say that the index is unfinished.

The row of a picture out of reach is kept, and its folder is printed: the folder is missing, empty or unreadable (a
dropped share), or the file cannot be read. Rows are also kept if more than a tenth of an index of 100 or more rows
would be deleted. --prune deletes them.

Where one machine is too slow, many embed the gallery first, each its shards (`ivt_jax.embed`), and --vectors names what
they made: a picture whose content is among it is read for its thumbnail, and not embedded again.

In a folder of this machine one indexer is at work at a time. The other places that `ivt_jax.retrieval.places` knows,
buckets and servers, have no such lock: see to it that no two are at work there at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ivt_jax.common.command import positive
from ivt_jax.common.files import is_remote, printable, write_bytes
from ivt_jax.common.startup import run_command

_SHOWN = 20  # lines of each kind that are printed, if a file lists all
_REASONS = 8  # that are counted by themselves

# JAX, Flax and the stores are imported where they are used: `--help` and a mistyped folder answer at once.


def run(args: argparse.Namespace) -> int:
    """Indexes, copies, prints the counts; returns 1 if anything is unreadable or rows stay without pictures, or 0."""
    from ivt_jax.gallery.walk import describe_passed
    from ivt_jax.retrieval.sources import read_folder, read_list

    source = read_list(args.list, args.images) if args.list else read_folder(args.images)
    for note in source.notes:
        print(f"{args.list}: {printable(note)}", file=sys.stderr, flush=True)

    from ivt_jax.retrieval.build import build
    from ivt_jax.retrieval.places import open_store, refuse_taken, snapshot

    if args.snapshot:
        refuse_taken(args.snapshot)
    built = build(
        args.index, source, args.workdir, args.dtype, args.batch, args.moved, vectors=args.vectors, prune=args.prune
    )
    passed = describe_passed(source.passed)
    _print_problems(
        built.unreadable,
        list(map(str, built.kept)),
        passed,
        None if is_remote(args.index) else Path(args.index, "unreadable.txt"),
    )
    if passed:
        print(f"{args.index}: passed over: {passed}")
    if built.reasons:
        print(f"{args.index}: {_count_reasons(built.reasons)}", file=sys.stderr)
    if built.note:
        print(f"{args.index}: {built.note}")
    if source.fields:
        fields = ", ".join(f"{name} ({kind})" for name, kind in source.fields.items())
        print(f"{args.index}: fields: {printable(fields)}")
    print(f"{args.index}: {built}", flush=True)
    if args.snapshot:
        snapshot(open_store(args.index), args.snapshot)
        print(f"{args.snapshot}: a copy")
    return 1 if built.unreadable or built.kept else 0


def _print_problems(skipped: Sequence[str], kept: Sequence[str], passed: str, file: Path | None) -> None:
    """Prints the lines on stderr. Given a file, writes all of them into it, and `passed`, and prints the first only."""
    for kind, lines in (("skipped", skipped), ("kept", kept)):
        shown = lines[:_SHOWN] if file else lines
        for line in shown:
            print(f"{kind} {printable(line)}", file=sys.stderr)
        if len(lines) > len(shown):
            print(f"{kind} {len(lines) - len(shown):,} more, listed in {file}", file=sys.stderr)
    if file:
        lines = [*skipped, *(f"kept {line}" for line in kept), *([f"passed over: {passed}"] if passed else [])]
        write_bytes(file, "".join(f"{printable(line)}\n" for line in lines).encode())


def _count_reasons(reasons: Sequence[tuple[str, int]]) -> str:
    """Returns the counts as text: 3 skipped: missing (2), not a readable image (1)."""
    shown = [f"{printable(reason)} ({count:,})" for reason, count in reasons[:_REASONS]]
    if others := sum(count for _, count in reasons[_REASONS:]):
        shown.append(f"other reasons ({others:,})")
    return f"{sum(count for _, count in reasons):,} skipped: {', '.join(shown)}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.index",
        description="Make an index of a folder or a list of pictures, or bring it up to date.",
        epilog="exit code: 0; 1 if pictures cannot be read, lines of a list are skipped, or rows stay without "
        "their pictures (DIR/unreadable.txt lists all); 2 on a mistake",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--index", required=True, metavar="DIR", help="the index: a folder, s3://..., gs://..., http://..."
    )
    parser.add_argument(
        "--images", type=Path, help="folder of pictures, with its subfolders; with --list, of its paths"
    )
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help=".csv or .jsonl of pictures and what is known of each (docs/datasets.md)",
    )
    parser.add_argument(
        "--workdir", type=Path, help="folder of a trained run, or of an export; later the index knows it"
    )
    parser.add_argument(
        "--vectors", type=Path, metavar="FOLDER", help="of python -m ivt_jax.embed: what is in it is not embedded again"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of the vectors of a new index (float32)")
    parser.add_argument("--batch", type=positive, default=64, help="pictures that a device takes at once (64)")
    parser.add_argument("--moved", action="store_true", help="the pictures of the index are in another folder now")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="delete the rows of all pictures that are missing or cannot be read; by default a row stays if its folder "
        "is missing, empty or unreadable, and all rows stay if more than a tenth of an index of 100 or more rows would "
        "be deleted",
    )
    parser.add_argument(
        "--snapshot", metavar="PLACE", help="copy the index there when it is done, to a place of any kind"
    )
    args = parser.parse_args(argv)
    if not (args.images or args.list):
        parser.error("name the pictures with --images or --list")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
