"""How fast this machine trains, encodes, ranks and searches, beside how fast it multiplies matrices.

    python -m ivt_jax.bench                                       # ViT-B, ours and as released: minutes on a GPU
    python -m ivt_jax.bench --models=demo --pieces=train,images,texts --variants=full,baseline
    python -m ivt_jax.bench --pieces=train --batches=28,56,112 --config.model.unroll=12 --json=bench.json
    python -m ivt_jax.bench --pieces=evaluation,search            # on the host

A row of a step or an encoder is one compiled program: the median of many calls after a warm-up and their quartiles, the
rate, matrix products by formula and as compiled, their share of the machine's own rate (MFU), memory, time to compile.
Inputs are random; no data is read, and TensorFlow is not needed.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import configs
from configs import default, synth
from input_pipeline.errors import UserError
from input_pipeline.files import write_text
from ivt_jax.arguments import positive
from ivt_jax.compiled import analyse
from ivt_jax.config_check import check_config
from ivt_jax.config_flag import read_config
from ivt_jax.evaluation.benchmark import draw_split
from ivt_jax.evaluation.embedding import encode_images, encode_texts
from ivt_jax.evaluation.protocols import standard
from ivt_jax.flops import BYTES, num_patches, tower_flops
from ivt_jax.gallery.nearest import nearest
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.plan import device_flops
from ivt_jax.program import build_program
from ivt_jax.sharding import global_batch
from ivt_jax.workdir import environment

PROGRAMS = ("train", "images", "texts")
MODELS: dict[str, dict[str, int]] = {"base": {}, "small": {"width": 384, "num_heads": 6}, "demo": {}}
VARIANTS = ("full", "release", *synth.TERMS[:-1])
SPLITS = {"CUHK-PEDES": (6156, 3074), "ICFG-PEDES": (19848, 19848)}  # captions and images of test
GALLERIES = (100_000, 1_000_000)  # vectors of 768 numbers
WARM_UP, LEAST = 3, 5  # calls


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement. seconds: of a call, median and quartiles; items: pairs, images, texts, queries or vectors of it.

    Of compiled programs alone: tflops, matrix products of a call on one device by formula, and compiled_tflops, as
    XLA's program has them (0 where its text does not tell); mfu, the share of the machine's measured rate; memory, GB
    on a device with state and batch; compile_seconds, lowering and compiling.
    """

    piece: str
    name: str
    dtype: str
    items: int
    seconds: float
    low: float
    high: float
    calls: int
    tflops: float = 0.0
    compiled_tflops: float = 0.0
    mfu: float = 0.0
    memory: float = 0.0
    compile_seconds: float = 0.0


def make_config(model: str, variant: str, batch: int, dtype: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The config of a row; batch 0 is the config's own, `changes` are flags such as --config.model.unroll=12.

    Raises UserError where there is none such.
    """
    file = Path(configs.__file__).with_name("synth.py" if model == "demo" else "cuhk.py")
    config = read_config(str(file), [f"--config.model.dtype={dtype}", *changes])
    config.model.update(MODELS[model])
    if variant == "release":
        config = default.released(config)
    elif variant != "full":
        config = synth.without_terms(config, variant)
    share = config.bmm.rows / config.data.batch_size
    config.data.batch_size = batch or config.data.batch_size
    config.bmm.rows = int(share * config.data.batch_size)
    check_config(config, jax.device_count())
    return config


def rows_of(options: argparse.Namespace, changes: Sequence[str]) -> Iterator[Row]:
    """All rows that the command line asks for, as they are measured."""
    rates = {dtype: matmul_rate(dtype, options.seconds) for dtype in options.dtypes if {*options.pieces} & {*PROGRAMS}}
    for dtype, rate in rates.items():
        print(f"matrix products of this machine, {dtype}: {rate:.3f} TFLOP/s a device", file=sys.stderr)
    for model in options.models:
        for dtype in options.dtypes:
            for batch in options.batches:
                for piece in filter(PROGRAMS.__contains__, options.pieces):
                    for variant in options.variants if piece == "train" else ["full"]:
                        config = make_config(model, variant, batch, dtype, changes)
                        name = f"{model}, {variant}" if piece == "train" else model
                        yield program_row(piece, name, config, rates[dtype], options.seconds)
    if "evaluation" in options.pieces:
        yield from map(functools.partial(evaluation_row, seconds=options.seconds), SPLITS)
    if "search" in options.pieces:
        yield from map(functools.partial(search_row, seconds=options.seconds), GALLERIES)


def program_row(piece: str, name: str, config: ConfigDict, rate: float, seconds: float) -> Row:
    """A training step of all devices, or an encoder's batch on the first one."""
    start = time.perf_counter()
    call, compiled, formula = train_program(config) if piece == "train" else encoder_program(config, piece)
    compile_seconds = time.perf_counter() - start
    told = analyse(compiled)
    median, low, high, calls = time_calls(call, seconds)
    return Row(
        piece=piece, name=name, dtype=config.model.dtype, items=config.data.batch_size, seconds=median, low=low,
        high=high, calls=calls, tflops=formula / 1e12, compiled_tflops=told.products / 1e12,
        mfu=formula / 1e12 / median / rate, memory=told.total / 1e9, compile_seconds=compile_seconds,
    )  # fmt: skip


def train_program(config: ConfigDict) -> tuple[Callable[[], Any], Any, int]:
    """A step on random data: a call that takes it, the compiled program, FLOPs of a device by formula."""
    program = build_program(config, np.array([0, 10**6]), 10**6, mask_id=4)
    state, batch = program.init(), global_batch(program.mesh, random_batch(config))
    step = program.step.lower(state, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return call, step, device_flops(config, program.mesh.size)


def encoder_program(config: ConfigDict, piece: str) -> tuple[Callable[[], Any], Any, int]:
    """An encoder with random parameters on random data, as `train_program`."""
    model = IVT(IVTConfig.from_config(config.model))
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    c, length, rng = model.config, config.text.length["sentence"], np.random.default_rng(0)
    if piece == "images":
        given: Any = rng.integers(0, 256, (config.data.batch_size, *c.image_size, 3), np.uint8)
        tokens, embedding = 1 + num_patches(config.model), 2 * c.num_patches * 3 * c.patch_size**2 * c.width
    else:
        given = rng.integers(5, c.vocab_size, (config.data.batch_size, length), np.int32)
        tokens, embedding = length, 0
    given = jax.device_put(given)
    compiled = (encode_images if piece == "images" else encode_texts).lower(model, params, given).compile()
    flops = config.data.batch_size * (embedding + tower_flops(tokens, c.width, c.depth, c.mlp_ratio))
    return lambda: compiled(params, given), compiled, flops


def random_batch(config: ConfigDict) -> dict[str, Any]:
    """A global batch of noise, as input_pipeline/pipeline.py has it: two pairs a person, texts without padding."""
    rng, batch, length = np.random.default_rng(0), config.data.batch_size, config.text.length
    levels = dict.fromkeys((*config.mla.levels, "sentence"))
    return {
        "images": rng.integers(0, 256, (batch, config.mla.views, *config.model.image_size, 3), np.uint8),
        "erase": np.zeros((batch, config.mla.views, 4), np.int32),
        "text": {level: rng.integers(5, config.model.vocab_size, (batch, length[level]), np.int32) for level in levels},
        "words": np.tile(np.arange(length["sentence"], dtype=np.int32), (batch, 1)),
        "person_ids": np.arange(batch, dtype=np.int32) // 2,
        "pair_ids": np.arange(batch, dtype=np.int32),
    }


def evaluation_row(dataset: str, seconds: float) -> Row:
    """Ranking both ways by the standard protocol, once everything is embedded."""
    queries, gallery = SPLITS[dataset]
    embeddings = draw_split(queries, gallery, persons=1000, width=768)
    median, low, high, calls = time_calls(lambda: standard(embeddings), seconds)
    name = f"{dataset}: {queries:,} captions, {gallery:,} images"
    return Row("evaluation", name, "float32", queries, median, low, high, calls)


def search_row(count: int, seconds: float) -> Row:
    """The ten nearest of a gallery for one sentence, on the host."""
    rng = np.random.default_rng(0)
    vectors, query = (rng.standard_normal((n, 768), np.float32) for n in (count, 1))
    median, low, high, calls = time_calls(lambda: nearest(query, vectors, 10), seconds)
    return Row("search", f"{count:,} vectors of 768", "float32", count, median, low, high, calls)


def matmul_rate(dtype: str, seconds: float) -> float:
    """TFLOPs a second of the best of some large square products on one device: what MFU compares with."""
    best = 0.0
    for size in (1024, 2048, 4096, 8192, 16384):
        if best and 2 * size**3 * LEAST > seconds * best * 1e12:
            break
        x, y = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
        median, *_ = time_calls(functools.partial(jax.jit(jnp.matmul), x, y), seconds / 4)
        best = max(best, 2 * size**3 / median / 1e12)
    return best


def time_calls(call: Callable[[], Any], seconds: float) -> tuple[float, float, float, int]:
    """Median and quartiles of calls, each waited for, for about so many seconds, at least LEAST; and their number."""
    start = time.perf_counter()
    for _ in range(WARM_UP):
        jax.block_until_ready(call())
        if time.perf_counter() - start > seconds / 2:
            break
    taken: list[float] = []
    while len(taken) < LEAST or sum(taken) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    low, median, high = np.quantile(taken, (0.25, 0.5, 0.75))
    return float(median), float(low), float(high), len(taken)


HEADER = (
    "| piece | | dtype | items | ms, median (quartiles) | calls | items/s | TFLOPs, formula | compiled | MFU | GB "
    "| compiled in |"
)


def line(row: Row) -> str:
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


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ivt_jax.bench",
        description=__doc__.splitlines()[0],
        epilog="flags such as --config.model.unroll=12 change the config of every row",
        allow_abbrev=False,
    )

    def several(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            values = text.split(",")
            if unknown := [value for value in values if value not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
            return values

        return parse

    pieces = (*PROGRAMS, "evaluation", "search")
    parser.add_argument("--pieces", type=several(pieces), default=list(PROGRAMS), help=", ".join(pieces))
    parser.add_argument("--models", type=several(tuple(MODELS)), default=["base"], help=", ".join(MODELS))
    parser.add_argument("--variants", type=several(VARIANTS), default=["full", "release"], help=", ".join(VARIANTS))
    parser.add_argument("--batches", type=lambda text: [positive(x) for x in text.split(",")], default=[0],
                        help="pairs, images or texts at once, several with commas (the config's own)")  # fmt: skip
    parser.add_argument("--dtypes", type=several(tuple(BYTES)), default=["bfloat16"], help=", ".join(BYTES))
    parser.add_argument("--seconds", type=float, default=10.0, help="of calls for each row, at least (10)")
    parser.add_argument("--json", type=Path, help="write the rows and what they were measured on")
    options, changes = parser.parse_known_args(argv)
    rows: list[Row] = []
    try:
        for row in rows_of(options, changes):
            if not rows:
                print(HEADER, "|" + " --- |" * HEADER.count("|", 1), sep="\n")
            print(line(row), flush=True)
            rows.append(row)
        if options.json:
            measured = {"environment": environment(), "rows": [dataclasses.asdict(row) for row in rows]}
            write_text(options.json, json.dumps(measured, indent=2) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
