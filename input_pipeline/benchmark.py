"""Measures the records per second of the input pipeline on one core, beside a floor of one decode and one resize.

    python -m input_pipeline.benchmark                      # JPEG, PNG and BMP sources, a few minutes
    python -m input_pipeline.benchmark --json=bench.json --formats=jpeg

The floor only decodes and resizes each record once, through the same reader. Both sides alternate in one process on one
core, and the medians of their turns are compared. Memory is that of the process before and after the last half of the
turns.
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import cuhk
from input_pipeline.synthetic.bulk import FORMATS, Counts, write
from ivt_jax.common.command import exit_code, filled_path, positive

_SPLITS = {"train": Counts(300, 900, 1800), "val": Counts(2, 4, 8), "test": Counts(2, 4, 8)}
_WARM_UP = 10  # batches of each side


class Result(NamedTuple):
    """Figures of one source format, in records per second and core; share = pipeline / floor; memory in MB."""

    format: str
    kilobytes: float  # mean size of a prepared image
    floor: float
    one_view: float
    pipeline: float
    share: float
    memory: float
    growth: float


def measure(root: Path, format: str, batches: int, turns: int) -> Result:
    """Measures `turns` turns of `batches` batches with configs/cuhk.py: 28 records, three views, three texts."""
    from input_pipeline import opening, pipeline
    from input_pipeline.joint import JointSource
    from input_pipeline.tokenizer import load_tokenizer

    config = cuhk.get_config()
    config.data.root, config.text.tokenizer = str(root), ""
    source = opening.open_split(config, "train")
    joint = JointSource({"": source})
    plans, tokenizer = pipeline.plan_epochs(config, joint), load_tokenizer("")

    def train(views: int) -> Any:
        config.mla.views = views
        return pipeline.train_batches(ConfigDict(config.to_dict()), joint, tokenizer, plans)

    sides = {"floor": floor_batches(config, source, plans), "one_view": train(1), "pipeline": train(3)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    memory = 0.0
    with contextlib.ExitStack() as stack:
        for rows in sides.values():
            stack.enter_context(contextlib.closing(rows))
            next(itertools.islice(rows, _WARM_UP, None))
        for turn in range(turns):
            memory = memory if turn > turns // 2 else resident()
            for name, rows in sides.items():
                start = time.perf_counter()
                next(itertools.islice(rows, batches - 1, None))
                rates[name].append(batches * config.data.batch_size / (time.perf_counter() - start))
    floor, one_view, three = (float(np.median(rates[name])) for name in sides)
    size = np.mean([len(image) for image in source.read(range(len(source.paths)))]) / 1e3
    return Result(format, float(size), floor, one_view, three, three / floor, memory, resident() - memory)


def floor_batches(config: ConfigDict, source: Any, plans: Any) -> Iterator[Any]:
    """Yields the same records in the same order, each decoded and resized once; nothing is drawn or tokenised."""
    import tensorflow as tf

    from input_pipeline import augment, pipeline

    def load(step: np.ndarray) -> tuple[np.ndarray]:
        _, _, pairs = plans.rows(int(step))
        return (np.array(source.read(source.pairs[0][pairs]), object),)

    @tf.autograph.experimental.do_not_convert
    def assemble(encoded: tf.Tensor) -> tf.Tensor:
        size = tuple(config.model.image_size)
        return tf.map_fn(
            lambda row: augment.resize(augment.decode(row), size, "bicubic"), encoded, fn_output_signature=tf.uint8
        )

    steps = tf.data.Dataset.range(np.iinfo(np.int64).max)
    specs = [tf.TensorSpec((config.data.batch_size,), tf.string)]
    loaded = steps.map(pipeline.numpy_function(load, specs))
    yield from pipeline.run_dataset(loaded.map(assemble, num_parallel_calls=1))


def resident() -> float:
    """Returns the resident memory of the process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def table(results: list[Result]) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        "| source | KB | floor, records/s | one view | three views | three views / floor | memory, MB | growth, MB |",
        "|---" * 8 + "|",
    ]
    for r in results:
        lines.append(
            f"| {r.format} | {r.kilobytes:.1f} | {r.floor:.0f} | {r.one_view:.0f} | {r.pipeline:.0f} | {r.share:.2f} "
            f"| {r.memory:.0f} | {r.growth:+.0f} |"
        )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Measures each format and prints the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for format in options.formats:
            root = Path(folder) / format
            write(root, _SPLITS, format)
            results.append(measure(root, format, options.batches, options.turns))
    if options.json:
        options.json.write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n")
    print(table(results))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="of the source images")
    parser.add_argument("--batches", type=positive, default=20, help="batches of 28 records in a turn")
    parser.add_argument("--turns", type=positive, default=11)
    parser.add_argument("--json", type=filled_path, help="write the results to this file, too")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
