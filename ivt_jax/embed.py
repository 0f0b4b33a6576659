"""Embed a gallery, shard by shard, on one machine or on many.

    python -m ivt_jax.embed --workdir=runs/demo --shards='GALLERY/*.tar' --out=VECTORS
    python -m ivt_jax.embed --workdir=RUN --shards='GALLERY/*.tar' --out=VECTORS --task=$SLURM_ARRAY_TASK_ID/64

A shard is a .tar of crops, a .txt list of their paths, or a folder (`ivt_jax.gallery.crops`). Its vectors are written
to OUT/NAME.safetensors (`ivt_jax.gallery.vectors`), whole or not at all. A shard that is done and whose crops have not
changed is skipped, so the same command resumes. With --task each machine embeds every N-th shard; tasks need not
communicate, and two that embed the same shard write the same file.

With --beam the shards run as a pipeline of Apache Beam, and the command also takes Beam's flags (--runner=..., etc.).
"""

import argparse
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ivt_jax.common.command import filled, filled_path, positive
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.messages import counted, install
from ivt_jax.common.startup import run_command

# JAX, Flax and Orbax are imported where they are used, so that `--help` and a mistyped pattern answer at once.


def embed_here(args: argparse.Namespace, shards: Sequence[Path]) -> collections.Counter[str]:
    """Embeds the shards one by one and prints a line on each; returns the sum of `Embedded.counts`, and `failed`."""
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.gallery.shard import embed_shard
    from ivt_jax.training.metrics import format_seconds

    encoder, counts, spent = Encoder(args.workdir), collections.Counter[str](), 0.0
    for number, shard in enumerate(shards, start=1):
        start = time.monotonic()
        try:
            done = embed_shard(encoder, shard, args.out, args.dtype, args.batch)
            counts.update(done.counts())
            spent += 0 if done.before else time.monotonic() - start
            line = done.line
        except DataError as error:
            counts["failed"] += 1
            line = f"error: {error}"
        pace = spent / counts["shards"] if counts["shards"] else 0.0
        left = f", about {format_seconds(pace * (len(shards) - number))} left" if number < len(shards) and pace else ""
        print(f"{line}; {number} of {len(shards)} shards{left}", file=sys.stderr, flush=True)
    return counts


def embed_by_beam(args: argparse.Namespace, shards: Sequence[Path], flags: Sequence[str]) -> collections.Counter[str]:
    """Embeds the shards in a pipeline; returns counts as `embed_here`. Raises UserError if Beam is not installed."""
    try:
        from ivt_jax.gallery.beam import embed_shards
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        remedy = f"{install('beam')}, best in an environment of its own, or leave --beam out"
        raise UserError(f"--beam: Apache Beam is not installed: {remedy}") from None
    return embed_shards(shards, args.workdir.resolve(), args.out.resolve(), args.dtype, args.batch, flags)


def run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Embeds the shards of this task and prints the sum.

    Raises UserError if a shard could not be read, or none of the crops.
    """
    from ivt_jax.gallery.crops import find_shards

    task, tasks = args.task
    shards = [path.absolute() if args.beam else path for path in find_shards(args.shards)][task::tasks]
    counts = embed_by_beam(args, shards, flags) if args.beam else embed_here(args, shards)
    line = f"{counted(counts['shards'], 'shard')} of {counted(counts['crops'], 'crop')}"
    if counts["unreadable"]:
        line += f", {counted(counts['unreadable'], 'unreadable crop')} (listed in the shards)"
    if counts["before"]:
        line += f", {counted(counts['before'], 'shard')} done before"
    print(f"{args.out}: {line}")
    if counts["failed"]:
        failed = counted(counts["failed"], "shard")
        raise UserError(f"{failed} not embedded, for the reasons above; the others are done")
    if counts["unreadable"] and not counts["crops"]:
        none = "no crop can be read, for the reasons listed in the shards"
        raise UserError(f"{none}; the paths of a .txt list are relative to the working directory")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.embed",
        description="Embed the crops of a gallery, shard by shard.",
        epilog="exit code: 0 if all shards are done, even if some of their crops cannot be read; 2 after a mistake, if "
        "a shard cannot be read at all, or if no crop can be. A shard lists its unreadable crops with the reasons.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workdir", required=True, type=filled_path, help="folder of the model: a run, an export or converted weights")
    add("--shards", required=True, type=filled, help="pattern in quotes: .tar files, .txt lists, folders of crops")
    add("--out", required=True, type=filled_path, help="folder for the vectors, a file per shard")
    add("--task", type=_task, default=(0, 1), help="I/N: every N-th shard from number I, from 0 (0/1)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the vectors (float32)")
    add("--batch", type=positive, default=64, help="crops per device (64)")
    add("--beam", action="store_true", help="run as a pipeline of Apache Beam; also takes Beam's flags")
    args, flags = parser.parse_known_args(argv)
    if flags and not args.beam:
        parser.error(f"unknown: {' '.join(flags[:3])}; put the pattern of --shards in quotes")
    return run_command(lambda: run(args, flags))


def _task(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


if __name__ == "__main__":
    sys.exit(main())
