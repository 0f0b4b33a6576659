"""Prepares a dataset before training, also for machines without its images; indexes image-text pairs.

    python -m input_pipeline.prepare --dataset=cuhk --root=data/CUHK-PEDES
    python -m input_pipeline.prepare --dataset=cuhk --root=data/CUHK-PEDES --out=gs://bucket/cuhk
    python -m input_pipeline.prepare --pairs 'SHARDS/*.tar' LIST.csv

Training prepares a dataset by itself if necessary; this command does so in advance. It prints the splits beside the
published counts, a warning if they differ, and the folder of the prepared data. --out also makes a portable folder
(input_pipeline/portable.py), local or in a bucket; train on it with `--config.data.root=gs://bucket/cuhk`.

--pairs makes an index (input_pipeline/pairs/index.py) of image-text pairs where they are: shards, and lists with the
columns image and caption. Exit code: 0; 2 for a user's mistake.
"""

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from input_pipeline.annotations import DATASETS, local_root, read_annotations
from input_pipeline.pairs import store
from input_pipeline.pairs.index import index_pairs, refuse_other_files
from input_pipeline.pairs.rows import ABOUT, ASIDE
from input_pipeline.portable import SUMS, make_portable
from input_pipeline.statistics import PUBLISHED, say_deviation, split_counts, split_table
from ivt_jax.common.command import exit_code, filled, filled_path, not_negative, positive, share
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import cache_folder, is_remote, lines_of, lock_file, refuse_path
from ivt_jax.common.messages import counted


def prepare_dataset(args: argparse.Namespace) -> int:
    """Prepares the dataset, prints its counts and folder, and returns the exit code."""
    root, name = local_root(args.root), DATASETS[args.dataset]
    annotations = read_annotations(root, name)
    out = args.out and (args.out if is_remote(args.out) else str(Path(args.out).resolve()))
    if out and not is_remote(out):
        refuse_path(out)
    if out == str(annotations.path.parent.resolve()):
        raise UserError(f"--out={args.out} is the dataset's own folder: choose another")
    print(f"{annotations.path}\n{split_table(split_counts(annotations.records), PUBLISHED[name])}", flush=True)

    from input_pipeline import prepared  # imports TensorFlow, which takes seconds

    start = time.monotonic()
    builder = prepared.prepare(root, name, args.prepared, args.max_damaged, renew=True)
    if not builder.fresh:
        say_deviation(annotations, name)  # otherwise `prepare` did
    if damaged := list(builder.info.metadata["damaged"]):
        count = counted(len(damaged), "damaged training image")
        print(f"warning: {count}, the first is {damaged[0]}", file=sys.stderr)
    took = f"prepared in {time.monotonic() - start:.1f} s" if builder.fresh else "already prepared"
    data = Path(builder.data_path)  # from TFDS's own path type
    shards = list(data.glob("*.array_record*"))
    size = sum(shard.stat().st_size for shard in shards)
    print(f"{data}: {took}, {len(shards)} shards, {size / 1e6:,.1f} MB", flush=True)
    if out:
        make_portable(annotations.path, data, out)
        print(f"train on it anywhere with --config.data.root={args.out}")
    return 0


def prepare_pairs(args: argparse.Namespace) -> None:
    """Makes the index of pairs, copies it to a bucket if --out is one, and prints its counts. Raises UserError."""
    folder, out = _folders(args.pairs, args.out or "")
    refuse_other_files(folder)  # before a lock is left in it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / "lock")
    except BlockingIOError:
        raise UserError(f"{folder}: another process makes this index; wait for it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder with --out") from None
    with lock:
        about = index_pairs(args.pairs, folder, args.longest, args.val_pairs, args.workers)
        if is_remote(out):
            _upload(folder, out)
    _print_counts(about, out)


def _folders(patterns: list[str], out: str) -> tuple[Path, str]:
    """Returns the local folder to make the index in, and the folder or URL where it is wanted."""
    if not out:
        if any(map(is_remote, patterns)):
            raise UserError("--out is missing: shards in a bucket need it, such as --out=gs://BUCKET/pairs")
        out = os.path.join(os.path.dirname(store.find(patterns[0])[0]), "pairs")
    if not is_remote(out):
        return Path(out).absolute(), out
    url = out.rstrip("/")
    return cache_folder("pairs") / hashlib.sha256(url.encode()).hexdigest()[:16], url


def _upload(folder: Path, url: str) -> None:
    store.remove(f"{url}/{SUMS}")
    names = [line.partition("  ")[2] for line in lines_of((folder / SUMS).read_text())]
    for number, name in enumerate([*names, SUMS], 1):
        print(f"writing {url}/{name} ({number} of {len(names) + 1})", file=sys.stderr)
        store.upload(str(folder / name), f"{url}/{name}")


def _print_counts(about: dict[str, Any], out: str) -> None:
    shards = counted(about["shards"], "shard")
    print(f"{out}/{ABOUT}: {counted(about['train'], 'pair')} to train, {about['val']:,} to validate, in {shards}")
    if repeated := about["repeated_images"]:
        print(f"{counted(repeated, 'repeated image')}: all pairs of an image are in the same split")
    for reason, count in about["set_aside"].items():
        print(f"set aside: {count:,} x {reason}")
    if about["set_aside"]:
        print(f"{out}/{ASIDE} lists them")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare",
        description="Prepare a dataset for training and make it portable, or index image-text pairs.",
    )
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--root", type=filled, help="the dataset's folder, annotation file or table")
    parser.add_argument(
        "--out", type=filled, help="DIR or gs://BUCKET/DIR: also a portable folder; of --pairs, the index"
    )
    parser.add_argument(
        "--pairs",
        type=filled,
        nargs="+",
        metavar="PATTERN",
        help="instead of --dataset, index image-text pairs: .tar, .csv, .jsonl",
    )
    parser.add_argument("--longest", type=positive, default=1000, help="characters of a caption of --pairs (1,000)")
    parser.add_argument(
        "--val_pairs", type=not_negative, default=2000, help="of --pairs, to hold out (2,000; at most 5%%)"
    )
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, help="processes that index --pairs (all cores)"
    )
    parser.add_argument(
        "--prepared", type=filled_path, help="folder of the prepared data; default: `prepared` in --root"
    )
    parser.add_argument(
        "--max_damaged", type=share, default=0.005, help="share of training images that may be damaged (0.005)"
    )
    args = parser.parse_args(argv)
    if args.pairs and (args.dataset or args.root):
        parser.error("--pairs indexes pairs of any source: leave --dataset and --root out")
    if not args.pairs and not (args.dataset and args.root):
        parser.error("--dataset and --root are missing, or --pairs")
    of_dataset, of_pairs = ("prepared", "max_damaged"), ("longest", "val_pairs", "workers")
    for name in of_dataset if args.pairs else of_pairs:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} is for {'--dataset' if args.pairs else '--pairs'} alone: leave it out")
    return exit_code(lambda: prepare_pairs(args) if args.pairs else prepare_dataset(args))


if __name__ == "__main__":
    sys.exit(main())
