"""The measurements of `ivt_jax.bench`: compiled programs of a config, ranking, search, and matrix products."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ivt_jax.benchmarks.kernels import Kernel, profile
from ivt_jax.benchmarks.ranking import draw_split
from ivt_jax.cost.compiled import analyse
from ivt_jax.cost.flops import Pass, image_tokens, row_flops
from ivt_jax.cost.plan import device_flops
from ivt_jax.encoding.embedding import encode_images, encode_texts
from ivt_jax.evaluation.protocols import standard
from ivt_jax.gallery.nearest import nearest
from ivt_jax.models.build import model_of
from ivt_jax.models.config import IVTConfig
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import global_batch

SPLITS = {"CUHK-PEDES": (6156, 3074), "ICFG-PEDES": (19848, 19848)}  # captions and images of the test splits
GALLERIES = (100_000, 1_000_000)  # vectors of 768 numbers
WARM_UP, LEAST = 3, 5  # calls before the measurement at most, and calls measured at least


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row of the benchmark. Fields with a default are set for compiled programs only; they are per device."""

    piece: str
    name: str
    dtype: str
    items: int  # pairs, images, texts, queries or vectors in a call
    seconds: float  # of a call, median
    low: float  # quartiles
    high: float
    calls: int
    tflops: float = 0.0  # matrix products of a call, by formula
    compiled_tflops: float = 0.0  # the same in XLA's program; 0 if its text does not list them
    mfu: float = 0.0  # share of the machine's rate of matrix products
    memory: float = 0.0  # GB, with state and batch
    compile_seconds: float = 0.0  # lowering and compiling
    kernels: list[Kernel] = dataclasses.field(default_factory=list)  # of one call, if asked for


def program_row(
    piece: str, name: str, config: ConfigDict, rate: float, seconds: float, kernels: bool = False
) -> Measurement:
    """Measures a training step on all devices, or an encoder on the first.

    rate: from `matmul_rate`; kernels: whether to trace one more call for its kernels.
    """
    start = time.perf_counter()
    call, compiled, flops = train_program(config) if piece == "train" else encoder_program(config, piece)
    compile_seconds = time.perf_counter() - start
    cost = analyse(compiled)
    times = time_calls(call, seconds)
    return Measurement(
        piece, name, config.model.dtype, config.data.batch_size, *times, tflops=flops / 1e12,
        compiled_tflops=cost.products / 1e12, mfu=flops / 1e12 / times[0] / rate, memory=cost.total / 1e9,
        compile_seconds=compile_seconds, kernels=profile(call) if kernels else [],
    )  # fmt: skip


def train_program(config: ConfigDict) -> tuple[Callable[[], Any], Any, int]:
    """Compiles a training step on random data; returns (call, compiled program, FLOPs per device by formula)."""
    program = build_program(config, np.array([0, 10**6]), 1000, mask_id=4)
    state, batch = program.init(), global_batch(program.mesh, random_batch(config))
    hyperparameters = program.hyperparameters()
    step = program.step.lower(state, batch, hyperparameters).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch, hyperparameters)
        return state, metrics

    return call, step, device_flops(config, program.mesh.size)


def encoder_program(config: ConfigDict, piece: str) -> tuple[Callable[[], Any], Any, int]:
    """Compiles an encoder with random parameters on random data; returns the same as `train_program`."""
    model_config, batch, length = IVTConfig.from_config(config.model), config.data.batch_size, config.text.length
    model, rng = model_of(model_config), np.random.default_rng(0)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    if piece == "images":
        encode: Any = encode_images
        inputs = jax.device_put([rng.integers(0, 256, (batch, *model_config.image_size, 3), np.uint8)])
        each = Pass("image", batch, image_tokens(config.model))
    else:
        encode, tokens = encode_texts, length["sentence"]
        each = Pass("text", batch, tokens)
        ids = rng.integers(5, model_config.vocab_size, (batch, tokens), np.int32)
        inputs = jax.device_put([ids, np.ones(ids.shape, bool)])
    compiled = encode.lower(model, params, *inputs).compile()
    return lambda: compiled(params, *inputs), compiled, each.rows * row_flops(config.model, each)


def random_batch(config: ConfigDict) -> dict[str, Any]:
    """Draws a global batch in the format of input_pipeline/pipeline.py: two pairs per person, texts without padding."""
    rng, batch, length = np.random.default_rng(0), config.data.batch_size, config.text.length
    levels = dict.fromkeys((*config.mla.levels, "sentence"))
    return {
        "images": rng.integers(0, 256, (batch, config.mla.views, *config.model.image_size, 3), np.uint8),
        "erase": np.zeros((batch, config.mla.views, 4), np.int32),
        "text": {level: rng.integers(5, config.model.vocab_size, (batch, length[level]), np.int32) for level in levels},
        "mask": {level: np.ones((batch, length[level]), bool) for level in levels},
        "words": np.tile(np.arange(length["sentence"], dtype=np.int32), (batch, 1)),
        "person_ids": np.arange(batch, dtype=np.int32) // 2,
        "pair_ids": np.arange(batch, dtype=np.int32),
    }


def evaluation_row(dataset: str, seconds: float) -> Measurement:
    """Measures ranking in both directions by the protocol `standard`, without the embedding."""
    queries, gallery = SPLITS[dataset]
    embeddings = draw_split(queries, gallery, persons=1000, width=768)
    name = f"{dataset}: {queries:,} captions, {gallery:,} images"
    return Measurement("evaluation", name, "float32", queries, *time_calls(lambda: standard(embeddings), seconds))


def search_row(count: int, seconds: float) -> Measurement:
    """Measures the search for the ten nearest of `count` vectors, on the host."""
    rng = np.random.default_rng(0)
    vectors, query = rng.standard_normal((count, 768), np.float32), rng.standard_normal((1, 768), np.float32)
    times = time_calls(lambda: nearest(query, vectors, 10), seconds)
    return Measurement("search", f"{count:,} vectors of 768", "float32", count, *times)


def matmul_rate(dtype: str, seconds: float) -> float:
    """Returns the TFLOP/s of one device: the best of some large square matrix products."""
    best = 0.0
    for size in (1024, 2048, 4096, 8192, 16384):
        if best and 2 * size**3 * LEAST > seconds * best * 1e12:
            break
        x, y = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
        median, *_ = time_calls(functools.partial(jax.jit(jnp.matmul), x, y), seconds / 4)
        best = max(best, 2 * size**3 / median / 1e12)
    return best


def time_calls(call: Callable[[], Any], seconds: float) -> tuple[float, float, float, int]:
    """Times calls for about `seconds`, at least LEAST of them; returns (median, lower and upper quartile, number)."""
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
