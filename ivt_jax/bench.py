"""How fast this machine trains, encodes, ranks and searches, beside how fast it multiplies matrices.

    python -m ivt_jax.bench                                       # ViT-B, ours and as released: minutes on a GPU
    python -m ivt_jax.bench --models=demo --pieces=train,images,texts --variants=full,baseline --dtype=float32
    python -m ivt_jax.bench --pieces=train --batches=28,56,112 --config.model.unroll=True --json=bench.json
    python -m ivt_jax.bench --pieces=evaluation,search            # on the host; search on accelerators as well

A row of a step or an encoder is one compiled program: the median of many calls after a warm-up and their quartiles, the
rate, matrix products by formula and as compiled, their share of the machine's own rate (MFU), memory, time to compile.
Inputs are random; no data is read, and TensorFlow is not needed.
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
from ivt_jax.common.command import positive, seconds
from ivt_jax.common.config_flag import read_config
from ivt_jax.common.files import write_text
from ivt_jax.common.startup import run_command, set_environment
from ivt_jax.cost.flops import BYTES

if TYPE_CHECKING:
    from ivt_jax.benchmarks.measure import Row

# JAX is imported where it is used, after the environment is set: `--help` and a mistyped flag answer at once.

PROGRAMS = ("train", "images", "texts")
PIECES = (*PROGRAMS, "evaluation", "search")
MODELS: dict[str, dict[str, int]] = {"base": {}, "small": {"width": 384, "num_heads": 6}, "demo": {}}
VARIANTS = ("full", "release", *synth.TERMS[:-1], *synth.CHOICES)


def make_config(model: str, variant: str, batch: int, dtype: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The config of a row; batch 0 is the config's own, `changes` are flags such as --config.model.unroll=True.

    Raises UserError where there is none such.
    """
    file = Path(configs.__file__).with_name("synth.py" if model == "demo" else "cuhk.py")
    config = read_config(str(file), [f"--config.model.dtype={dtype}", *changes])
    config.model.update(MODELS[model])
    if variant == "release":
        config = default.released(config)
    elif variant != "full":
        config = synth.changed(config, variant)
    share = config.bmm.rows / max(config.data.batch_size, 1)  # 0 is refused with the other faults of the config
    config.data.batch_size = batch or config.data.batch_size
    config.bmm.rows = int(share * config.data.batch_size)
    return config


def programs_of(options: argparse.Namespace, changes: Sequence[str]) -> Iterator[tuple[str, str, ConfigDict]]:
    """Piece, name and config of every compiled program that the command line asks for."""
    for model in options.models:
        for batch in options.batches:
            for piece in filter(options.pieces.__contains__, PROGRAMS):
                for variant in options.variants if piece == "train" else ["full"]:
                    name = f"{model}, {variant}" if piece == "train" else model
                    yield piece, name, make_config(model, variant, batch, options.dtype, changes)


def rows_of(options: argparse.Namespace, changes: Sequence[str]) -> Iterator["Row"]:
    """All rows that the command line asks for, as they are measured."""
    wanted = list(programs_of(options, changes))
    if wanted:
        set_environment(wanted[0][-1])  # which asks for nothing in which they differ
    import jax

    from ivt_jax.benchmarks import measure
    from ivt_jax.training.config_check import check_config

    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is one of the figures
    for _, _, config in wanted:
        check_config(config, jax.device_count())
    if wanted:
        rate = measure.matmul_rate(options.dtype, options.seconds)
        print(f"matrix products of this machine, {options.dtype}: {rate:.3f} TFLOP/s a device", file=sys.stderr)
    for piece, name, config in wanted:
        yield measure.program_row(piece, name, config, rate, options.seconds)
    if "evaluation" in options.pieces:
        for dataset in measure.SPLITS:
            yield measure.evaluation_row(dataset, options.seconds)
    if "search" in options.pieces:
        for count in measure.GALLERIES:
            yield measure.search_row(count, options.seconds)
            if jax.default_backend() != "cpu":
                for recall in measure.RECALLS:
                    yield measure.device_search_row(count, recall, options.seconds)


HEADER = (
    "| piece | | dtype | items | ms, median (quartiles) | calls | items/s | TFLOPs, formula | compiled | MFU | GB "
    "| compiled in |"
)


def line(row: "Row") -> str:
    """One line of the Markdown table below HEADER."""
    times = f"{1e3 * row.seconds:,.1f} ({1e3 * row.low:,.1f} to {1e3 * row.high:,.1f})"
    cells = [row.piece, row.name, row.dtype, f"{row.items:,}", times, str(row.calls)]
    cells.append(f"{row.items / row.seconds:,.4g}")
    if row.tflops:
        compiled = f"{row.compiled_tflops:.4f}" if row.compiled_tflops else ""
        cells += [f"{row.tflops:.4f}", compiled, f"{row.mfu:.1%}", f"{row.memory:.2f}", f"{row.compile_seconds:.1f} s"]
    else:
        cells += [""] * 5
    return f"| {' | '.join(cells)} |"


def run(options: argparse.Namespace, changes: Sequence[str]) -> None:
    """Measures, prints each row as it comes, and writes them where that is asked for."""
    rows: list[Row] = []
    for row in rows_of(options, changes):
        if not rows:
            print(HEADER, "|" + " --- |" * HEADER.count("|", 1), sep="\n")
        print(line(row), flush=True)
        rows.append(row)
    if options.json:
        from ivt_jax.run.workdir import environment

        measured = {"environment": environment(), "rows": [dataclasses.asdict(row) for row in rows]}
        write_text(options.json, json.dumps(measured, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.bench",
        description=__doc__.splitlines()[0],
        epilog="flags such as --config.model.unroll=True change the config of every row",
        allow_abbrev=False,
    )

    def several(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            values = text.split(",")
            if unknown := [value for value in values if value not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
            return values

        return parse

    parser.add_argument("--pieces", type=several(PIECES), default=list(PROGRAMS), help=", ".join(PIECES))
    parser.add_argument("--models", type=several(tuple(MODELS)), default=["base"], help=", ".join(MODELS))
    parser.add_argument("--variants", type=several(VARIANTS), default=["full", "release"], help=", ".join(VARIANTS))
    parser.add_argument("--batches", type=lambda text: [positive(x) for x in text.split(",")], default=[0],
                        help="pairs, images or texts at once, several with commas (the config's own)")  # fmt: skip
    parser.add_argument("--dtype", choices=tuple(BYTES), default="bfloat16", help="of the tower (bfloat16)")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="of calls for each row, at least (10)")
    parser.add_argument("--json", type=Path, help="write the rows and what they were measured on")
    options, changes = parser.parse_known_args(argv)
    return run_command(lambda: run(options, changes))


if __name__ == "__main__":
    sys.exit(main())
