"""Measure training steps, encoders, evaluation and search on this machine.

    python -m ivt_jax.bench                                       # ViT-B, ours and as released: minutes on a GPU
    python -m ivt_jax.bench --models=demo --pieces=train,images,texts --variants=full,baseline --dtype=float32
    python -m ivt_jax.bench --pieces=train --batches=28,56,112 --config.model.unroll=True --json=bench.json
    python -m ivt_jax.bench --pieces=train --variants=full --kernels=10           # and the step's ten longest kernels
    python -m ivt_jax.bench --pieces=evaluation,search            # on the host

Each row has the median and quartiles of many calls after a warm-up, and items a second. Training steps and encoders are
compiled programs: their rows have the FLOPs of the matrix products, by formula and as compiled, their share of the
machine's own rate (MFU), memory and compile time. Inputs are random; neither data nor TensorFlow is needed.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

import configs
from configs import default, synth
from ivt_jax.common.command import filled_path, not_negative, positive, seconds
from ivt_jax.common.config_flag import read_config
from ivt_jax.common.files import write_text
from ivt_jax.common.startup import run_command, set_environment
from ivt_jax.cost.flops import BYTES

if TYPE_CHECKING:
    from ivt_jax.benchmarks.measure import Measurement

# JAX is imported where it is used, after the environment is set: `--help` and a mistyped flag answer at once.

PROGRAMS = ("train", "images", "texts")
PIECES = (*PROGRAMS, "evaluation", "search")
MODELS: dict[str, dict[str, int]] = {"base": {}, "small": {"width": 384, "num_heads": 6}, "demo": {}}
VARIANTS = ("full", "release", *synth.TERMS[:-1], *synth.CHOICES)
HEADER = (
    "| piece | | dtype | items | ms, median (quartiles) | calls | items/s | TFLOPs, formula | compiled | MFU | GB "
    "| compiled in |"
)


def make_config(model: str, variant: str, batch: int, dtype: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Returns the config of a row. batch: 0 for the config's own; changes: flags, as --config.model.unroll=True.

    Raises UserError if a flag is unknown or its value is not valid.
    """
    file = Path(configs.__file__).with_name("synth.py" if model == "demo" else "cuhk.py")
    config = read_config(str(file), [f"--config.model.dtype={dtype}", *changes])
    config.model.update(MODELS[model])
    if variant == "release":
        config = default.released(config)
    elif variant != "full":
        config = synth.changed(config, variant)
    share = config.bmm.rows / max(config.data.batch_size, 1)  # check_config refuses 0 later
    config.data.batch_size = batch or config.data.batch_size
    config.bmm.rows = int(share * config.data.batch_size)
    return config


def measurements(options: argparse.Namespace, changes: Sequence[str]) -> Iterator["Measurement"]:
    """Measures and yields one row after the other."""
    programs = [
        (piece, f"{model}, {variant}" if piece == "train" else model,
         make_config(model, variant, batch, options.dtype, changes))
        for model in options.models
        for batch in options.batches
        for piece in PROGRAMS if piece in options.pieces
        for variant in (options.variants if piece == "train" else ["full"])
    ]  # fmt: skip
    if programs:
        set_environment(programs[0][-1])  # reads only keys in which the configs agree
    import jax

    from ivt_jax.benchmarks import measure
    from ivt_jax.training.config_check import check_config

    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured
    for _, _, config in programs:
        check_config(config, jax.device_count())
    if programs:
        rate = measure.matmul_rate(options.dtype, options.seconds)
        print(f"matrix products of this machine, {options.dtype}: {rate:.3f} TFLOP/s a device", file=sys.stderr)
    for piece, name, config in programs:
        yield measure.program_row(piece, name, config, rate, options.seconds, bool(options.kernels))
    for dataset in measure.SPLITS if "evaluation" in options.pieces else ():
        yield measure.evaluation_row(dataset, options.seconds)
    for count in measure.GALLERIES if "search" in options.pieces else ():
        yield measure.search_row(count, options.seconds)


def line(row: "Measurement") -> str:
    """Formats a line of the Markdown table below HEADER."""
    times = f"{1e3 * row.seconds:,.1f} ({1e3 * row.low:,.1f} to {1e3 * row.high:,.1f})"
    cells = [row.piece, row.name, row.dtype, f"{row.items:,}", times, f"{row.calls}", f"{row.items / row.seconds:,.4g}"]
    compiled = f"{row.compiled_tflops:.4f}" if row.compiled_tflops else ""
    program = [f"{row.tflops:.4f}", compiled, f"{row.mfu:.1%}", f"{row.memory:.2f}", f"{row.compile_seconds:.1f} s"]
    cells += program if row.tflops else [""] * len(program)
    return f"| {' | '.join(cells)} |"


def run(options: argparse.Namespace, changes: Sequence[str]) -> None:
    """Prints each measurement when it is done, and writes those so far to --json; at the end, the longest kernels."""
    rows: list[Measurement] = []
    for row in measurements(options, changes):
        if not rows:
            print(HEADER, "|" + " --- |" * HEADER.count("|", 1), sep="\n")
        print(line(row), flush=True)
        rows.append(row)
        if options.json:
            write_rows(options.json, rows, options.kernels)
    for row in rows:
        if options.kernels and row.piece in PROGRAMS:
            print_kernels(row, options.kernels)


def write_rows(file: Path, rows: Sequence["Measurement"], kernels: int) -> None:
    """Writes the environment and the rows, each with its longest kernels."""
    from ivt_jax.run.workdir import environment

    written = [
        {**dataclasses.asdict(row), "kernels": [kernel._asdict() for kernel in row.kernels[:kernels]]} for row in rows
    ]
    write_text(file, json.dumps({"environment": environment(), "rows": written}, indent=2) + "\n")


def print_kernels(row: "Measurement", most: int) -> None:
    """Prints the longest kernels of a row."""
    from ivt_jax.benchmarks.kernels import table

    print(f"\n{row.piece}, {row.name}, {row.dtype}, {row.items}:", table(row.kernels, most), sep="\n")


def several(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns a parser, for argparse's `type`, of values from `known` separated by commas."""

    def parse(text: str) -> list[str]:
        values = text.split(",")
        if unknown := [value for value in values if value not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return values

    return parse


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.bench",
        description=__doc__.splitlines()[0],
        epilog="flags such as --config.model.unroll=True change the config of every row",
        allow_abbrev=False,
    )
    parser.add_argument("--pieces", type=several(PIECES), default=list(PROGRAMS), help=", ".join(PIECES))
    parser.add_argument("--models", type=several(tuple(MODELS)), default=["base"], help=", ".join(MODELS))
    parser.add_argument("--variants", type=several(VARIANTS), default=["full", "release"], help=", ".join(VARIANTS))
    parser.add_argument("--batches", type=lambda text: [positive(x) for x in text.split(",")], default=[0],
                        help="batch sizes, separated by commas (the config's own)")  # fmt: skip
    parser.add_argument("--dtype", choices=tuple(BYTES), default="bfloat16", help="of the tower (bfloat16)")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="measuring time of a row, at least (10)")
    parser.add_argument("--kernels", type=not_negative, default=0, metavar="N",
                        help="trace a call of each program and list its N longest kernels (0)")  # fmt: skip
    parser.add_argument("--json", type=filled_path, help="file for the measurements and the environment")
    options, changes = parser.parse_known_args(argv)
    return run_command(lambda: run(options, changes))


if __name__ == "__main__":
    sys.exit(main())
