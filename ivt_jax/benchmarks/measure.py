"""What the benchmark measures: compiled programs of a config, ranking, search, and the rate of matrix products."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ivt_jax.benchmarks.ranking import draw_split
from ivt_jax.cost.compiled import analyse
from ivt_jax.cost.flops import tower_flops
from ivt_jax.cost.plan import device_flops
from ivt_jax.encoding.embedding import encode_images, encode_texts
from ivt_jax.evaluation.protocols import standard
from ivt_jax.gallery.nearest import nearest, nearest_on_devices, place_rows
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import global_batch

SPLITS = {"CUHK-PEDES": (6156, 3074), "ICFG-PEDES": (19848, 19848)}  # captions and images of test
GALLERIES = (100_000, 1_000_000)  # vectors of 768 numbers
RECALLS = (1.0, 0.95)  # of the search on devices: exact, and what approx_max_k is asked for
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
    """An encoder with random parameters on random data, as `train_program`."""
    model = IVT(IVTConfig.from_config(config.model))
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    c, length, rng = model.config, config.text.length["sentence"], np.random.default_rng(0)
    if piece == "images":
        given: Any = rng.integers(0, 256, (config.data.batch_size, *c.image_size, 3), np.uint8)
        tokens, embedding = 1 + c.num_patches, 2 * c.num_patches * 3 * c.patch_size**2 * c.width
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


@functools.lru_cache(maxsize=1)  # a million take seconds to draw, and up to three rows are of the same
def _draw_gallery(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (count, 768) and queries (64, 768) float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 768), np.float32), rng.standard_normal((64, 768), np.float32)


def search_row(count: int, seconds: float) -> Row:
    """The ten nearest of a gallery for one sentence, on the host."""
    vectors, queries = _draw_gallery(count)
    median, low, high, calls = time_calls(lambda: nearest(queries[:1], vectors, 10), seconds)
    return Row("search", f"{count:,} vectors of 768", "float32", count, median, low, high, calls)


def device_search_row(count: int, recall: float, seconds: float) -> Row:
    """`search_row` by `nearest_on_devices`, all devices sharing the vectors; the name has the recall of 64 queries."""
    (vectors, queries), mesh = _draw_gallery(count), Mesh(np.array(jax.devices()), ("data",))
    placed = place_rows(vectors[: count - count % mesh.size], mesh)
    search = functools.partial(nearest_on_devices, placed=placed, k=10, mesh=mesh)
    exact, found = (np.asarray(search(queries, recall=wanted)[1]) for wanted in (1.0, recall))
    share = np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(exact, found, strict=True)])
    median, low, high, calls = time_calls(functools.partial(search, queries[:1], recall=recall), seconds)
    method = "exact" if recall == 1.0 else f"approx_max_k {recall}, recall {share:.3f}"
    return Row("search", f"{count:,} vectors of 768, {method}", "float32", count, median, low, high, calls)


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
