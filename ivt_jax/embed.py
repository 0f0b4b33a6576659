"""Embed a gallery, shard by shard, on one machine or on many.

    python -m ivt_jax.embed --workdir=runs/demo --shards='GALLERY/*.tar' --out=VECTORS
    python -m ivt_jax.embed --workdir=RUN --shards='GALLERY/*.tar' --out=VECTORS --task=$SLURM_ARRAY_TASK_ID/64

A shard is a .tar of crops, a .txt list of their paths, or a folder (`ivt_jax.gallery.crops`); its vectors, with names
and what could not be read, become OUT/NAME.safetensors (`ivt_jax.gallery.vectors`), whole or not at all. What is done
is skipped, unless its crops have changed, so the same command goes on where it was, and every machine does every N-th
shard. Tasks know nothing of each other, and two that take the same shard write the same.

With --beam the shards run as a pipeline of Apache Beam, whose own flags are then taken too (--runner=..., and so on).
"""

import argparse
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ivt_jax.common.command import positive
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.messages import install
from ivt_jax.common.startup import run_command

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped pattern answer at once.


def embed_here(args: argparse.Namespace, shards: Sequence[Path]) -> collections.Counter[str]:
    """Embeds the shards one after the other, says how far it is, and counts. A shard that cannot be read is told."""
    from ivt_jax.encoding.encoder import ImageEncoder
    from ivt_jax.gallery.shard import embed_shard
    from ivt_jax.training.metrics import format_seconds

    encoder, counts, spent = ImageEncoder(args.workdir), collections.Counter[str](), 0.0
    for number, shard in enumerate(shards, start=1):
        start = time.monotonic()
        try:
            done = embed_shard(encoder, shard, args.out, args.dtype, args.batch)
            counts.update(
                {"before" if done.before else "shards": 1, "crops": done.crops, "unreadable": done.unreadable}
            )
            spent += 0 if done.before else time.monotonic() - start
            line = str(done)
        except DataError as error:
            counts["failed"] += 1
            line = f"error: {error}"
        pace = spent / counts["shards"] if counts["shards"] else 0.0
        left = f", about {format_seconds(pace * (len(shards) - number))} left" if number < len(shards) and pace else ""
        print(f"{line}; {number} of {len(shards)} shards{left}", file=sys.stderr, flush=True)
    return counts


def embed_by_beam(args: argparse.Namespace, shards: Sequence[Path], flags: Sequence[str]) -> collections.Counter[str]:
    """Has the pipeline do it. Raises UserError where Beam is not installed."""
    try:
        from ivt_jax.gallery.beam import embed_shards
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        remedy = f"{install('beam')}, best in an environment of its own, or leave --beam out"
        raise UserError(f"--beam: Apache Beam is not installed: {remedy}") from None
    return embed_shards(shards, args.workdir.resolve(), args.out.resolve(), args.dtype, args.batch, flags)


def run(args: argparse.Namespace, flags: Sequence[str]) -> int:
    """Embeds this task's shards and prints the sum; the exit code is 2 where a shard could not be read."""
    from ivt_jax.gallery.crops import find_shards

    task, tasks = args.task
    shards = [path.absolute() if args.beam else path for path in find_shards(args.shards)][task::tasks]
    counts = embed_by_beam(args, shards, flags) if args.beam else embed_here(args, shards)
    before = f", {counts['before']:,} shards were done before" if counts["before"] else ""
    unreadable = (
        f", {counts['unreadable']:,} more cannot be read, which the shards name" if counts["unreadable"] else ""
    )
    print(f"{args.out}: {counts['shards']:,} shards of {counts['crops']:,} crops{unreadable}{before}")
    if counts["failed"]:
        raise UserError(f"shards not embedded, for the reasons above: {counts['failed']:,}; the others are done")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.embed",
        description="Embed the crops of a gallery, shard by shard.",
        epilog="exit code: 0 all shards are done, whether or not each of their crops could be read; 2 on a mistake, or "
        "where a whole shard cannot be read. A crop that cannot be read is named in its shard, with the reason.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a trained run, or of an export")
    parser.add_argument("--shards", required=True, help="pattern in quotes: .tar files, .txt lists, folders of crops")
    parser.add_argument("--out", required=True, type=Path, help="folder for the vectors, a file for each shard")
    parser.add_argument("--task", type=_task, default=(0, 1), help="I/N: every N-th shard from number I, from 0 (0/1)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the vectors (float32)")
    parser.add_argument("--batch", type=positive, default=64, help="crops that a device takes at once (64)")
    parser.add_argument("--beam", action="store_true", help="run as a pipeline of Apache Beam; takes its flags as well")
    args, flags = parser.parse_known_args(argv)
    if flags and not args.beam:
        parser.error(f"unknown: {' '.join(flags[:3])}; the pattern of --shards stands in quotes")
    return run_command(lambda: run(args, flags))


def _task(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


if __name__ == "__main__":
    sys.exit(main())
