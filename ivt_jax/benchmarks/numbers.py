"""Run training steps of a small tower on recorded batches, and compare them with the recorded numbers of a CPU.

    python -m ivt_jax.benchmarks.numbers --json=numbers.json      # on the device to check
    python -m ivt_jax.benchmarks.numbers --record                 # on a CPU: writes numbers.npz anew

Each run has a process of its own: `float32` gives the losses of STEPS steps and the gradients of the first, `bfloat16`
the first loss, `deterministic` and `again` the same losses and parameters to the bit. JAX draws initial parameters,
masks and dropout from the config's seed, the same on all devices.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from configs import default
from ivt_jax.common.command import exit_code, filled_path
from ivt_jax.common.files import write_text
from ivt_jax.common.startup import on_platform, set_environment

RECORDED = Path(__file__).with_name("numbers.npz")
STEPS, BATCHES, PAIRS = 50, 3, 8
CLS_ID, MASK_ID, FIRST_WORD, WORDS = 2, 4, 5, 300
INFINITE = 1e30  # JSON has no infinity
RUNS = {  # dtype, runtime.deterministic, steps
    "float32": ("float32", False, STEPS),
    "bfloat16": ("bfloat16", False, 1),
    "deterministic": ("bfloat16", True, STEPS),
    "again": ("bfloat16", True, STEPS),
}
OTHER_NUMBERS = 1  # the exit code if a number is not as recorded


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run computed. about: of `environment`; digest: SHA-256 of all losses and of the last parameters."""

    losses: list[float]
    digest: str
    about: dict[str, Any]
    gradients: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A number beside the recorded one; `error` is relative."""

    name: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


def make_config(dtype: str = "float32", deterministic: bool = False) -> ConfigDict:
    """Returns the default objective, with all its terms and draws, on a tower that compiles in seconds."""
    config = default.get_config()
    config.data.batch_size, config.data.instances = PAIRS, 2
    config.text.length.update({"sentence": 24, "phrase": 12, "word": 10})
    config.model.update(
        {"image_size": (48, 24), "patch_size": 12, "stride": 12, "width": 48, "depth": 2, "num_heads": 3,
         "vocab_size": FIRST_WORD + WORDS, "max_text_length": 24, "init_std": 0.09, "dtype": dtype}
    )  # fmt: skip
    # Training must not amplify rounding: at this rate, parameters changed by 1e-5 change the loss of step 50 by 1e-5
    # too; at 0.001, by a quarter. Without weight decay SGD's momentum after the first step is the gradient.
    rate = 0.0003
    config.optimizer.update(
        {"learning_rate": rate, "bias_learning_rate": rate, "warmup_epochs": 0.0, "weight_decay": 0.0}
    )
    config.runtime.deterministic = deterministic
    return config


def draw_batch(rng: np.random.Generator) -> dict[str, Any]:
    """Draws a batch (input_pipeline/pipeline.py) without masks: two pairs of each person, in its colours and words."""
    config = make_config()
    persons = np.repeat(rng.permutation(100)[: PAIRS // 2], 2).astype(np.int32)
    shape = PAIRS, config.mla.views
    colours = (persons[:, None] * (37, 59, 83) % 200)[:, None, None, None]
    boxes = rng.integers(3, 12, (*shape, 4), np.int32)
    boxes[::2] = 0
    text = {}
    for level, length in config.text.length.items():
        ids = FIRST_WORD + (persons[:, None] * 3 + rng.integers(0, 30, (PAIRS, length))) % WORDS
        ids[:, 0] = CLS_ID
        used = rng.integers(length // 2, length + 1, (PAIRS, 1))
        text[level] = np.where(np.arange(length) < used, ids, 0).astype(np.int32)
    return {
        "images": (colours + rng.integers(0, 56, (*shape, *config.model.image_size, 3))).astype(np.uint8),
        "erase": boxes,
        "text": text,
        "words": np.where(text["sentence"] > 0, np.arange(text["sentence"].shape[1], dtype=np.int32), 0),
        "person_ids": persons,
        "pair_ids": np.arange(PAIRS, dtype=np.int32),
    }


def compute(batches: list[dict[str, Any]], dtype: str, deterministic: bool, steps: int) -> Result:
    """Takes training steps on one device, with the batches in turn."""
    config = make_config(dtype, deterministic)
    set_environment(config)  # before JAX starts
    import jax

    from ivt_jax.run.workdir import environment
    from ivt_jax.training.program import build_program
    from ivt_jax.training.sharding import global_batch

    program = build_program(config, np.array([0, 10**6]), 1000, MASK_ID, devices=jax.local_devices()[:1])
    state, hyperparameters = program.init(), program.hyperparameters()
    losses, gradients = [], {}
    for step in range(steps):
        state, metrics = program.step(state, global_batch(program.mesh, batches[step % len(batches)]), hyperparameters)
        losses.append(float(metrics["loss"]))
        if not step:  # the momentum is the gradient: weight decay is off
            (momentum,) = (s.trace for s in state.opt_state if hasattr(s, "trace"))
            gradients = {name: np.asarray(x) for name, x in flatten_dict(momentum, sep="/").items()}
    digest = hashlib.sha256(np.array(losses).tobytes())
    for leaf in jax.tree.leaves(state.params):
        digest.update(np.asarray(leaf).tobytes())
    return Result(losses, digest.hexdigest(), environment(), gradients)


def read() -> tuple[list[dict[str, Any]], np.ndarray, dict[str, np.ndarray]]:
    """Returns the recorded batches, losses (STEPS,) and gradients by path."""
    with np.load(RECORDED) as file:
        arrays = {name: file[name] for name in file.files}
    batches = unflatten_dict({n[8:]: x for n, x in arrays.items() if n.startswith("batches/")}, sep="/")
    gradients = {n[10:]: x for n, x in arrays.items() if n.startswith("gradients/")}
    return [with_mask(batches[str(number)]) for number in range(BATCHES)], arrays["losses"], gradients


def with_mask(batch: dict[str, Any]) -> dict[str, Any]:
    """Adds the masks of texts that are padded with 0."""
    return {**batch, "mask": {level: ids > 0 for level, ids in batch["text"].items()}}


def distance(found: Any, recorded: np.ndarray) -> float:
    """Returns |found - recorded| / |recorded|, INFINITE if it is not finite."""
    difference, size = np.subtract(found, recorded, dtype=np.float64), float(np.linalg.norm(recorded))
    error = float(np.linalg.norm(difference)) / max(size, 1e-30)
    return error if math.isfinite(error) else INFINITE


def comparisons(
    results: Mapping[str, Result], losses: np.ndarray, gradients: Mapping[str, np.ndarray]
) -> Iterator[Comparison]:
    """Compares the results of the runs that did not fail, by their names in RUNS."""
    if exact := results.get("float32"):
        yield Comparison("float32, first loss", distance(exact.losses[:1], losses[:1]), 1e-5)
        for name, recorded in gradients.items():
            yield Comparison(f"float32, gradient of {name}", distance(exact.gradients[name], recorded), 1e-4)
        yield Comparison(f"float32, loss of step {STEPS}", distance(exact.losses[-1:], losses[-1:]), 1e-3)
    for name in ("bfloat16", "deterministic"):
        if coarse := results.get(name):
            yield Comparison(f"{name}, first loss", distance(coarse.losses[:1], losses[:1]), 1e-2)
    if "deterministic" in results and "again" in results:
        differs = results["deterministic"].digest != results["again"].digest
        yield Comparison(f"deterministic, {STEPS} steps twice, to the bit", float(differs), 0.0)


def record() -> None:
    """Writes new batches and this machine's numbers to RECORDED."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    rng = np.random.default_rng(0)
    batches = [draw_batch(rng) for _ in range(BATCHES)]
    result = dict(in_processes(list(map(with_mask, batches)), ["float32"]))["float32"]
    arrays = flatten_dict({"batches": {str(i): batch for i, batch in enumerate(batches)}}, sep="/")
    arrays |= {f"gradients/{name}": gradient for name, gradient in result.gradients.items()}
    np.savez_compressed(RECORDED, losses=result.losses, **arrays)
    first, *_, last = result.losses
    print(f"{RECORDED}: {RECORDED.stat().st_size / 1e6:.2f} MB; losses {first:.6f} to {last:.6f}")


def in_processes(batches: list[dict[str, Any]], names: list[str]) -> Iterator[tuple[str, Result]]:
    """Computes the runs side by side, each in a process; yields those that do not fail, prints why one failed."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share a GPU
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in names}
        futures = {
            name: pool.submit(on_platform, functools.partial(compute, batches, *RUNS[name]))
            for name, pool in pools.items()
        }
        for name, future in futures.items():
            try:
                yield name, future.result()
            except Exception as error:  # whatever stopped it, the other runs count
                print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)


def run(file: Path | None) -> int:
    """Prints the comparisons, writes them after each run; returns the exit code."""
    batches, losses, gradients = read()
    results: dict[str, Result] = {}
    found: list[Comparison] = []
    print(f"{len(RUNS)} runs of {STEPS} steps side by side: {', '.join(RUNS)}", flush=True)
    for name, result in in_processes(batches, list(RUNS)):
        results[name] = result
        found = list(comparisons(results, losses, gradients))
        if file:
            write_text(file, json.dumps(report(results, found), indent=2) + "\n")
    differing = [comparison for comparison in found if not comparison.holds]
    for comparison in differing:
        print(f"differs: {comparison.name}: error {comparison.error:.2g}, limit {comparison.limit:.2g}")
    for limit in sorted({comparison.limit for comparison in found}):
        largest = max(comparison.error for comparison in found if comparison.limit == limit)
        print(f"largest error, of those with the limit {limit:g}: {largest:.1e}")
    failed, runs = len(RUNS) - len(results), len(RUNS)
    print(f"{len(found)} comparisons with recorded numbers, {len(differing)} differ; {failed} of {runs} runs failed")
    return OTHER_NUMBERS if differing or failed else 0


def report(results: Mapping[str, Result], found: list[Comparison]) -> dict[str, Any]:
    """Returns the contents of --json."""
    runs = {name: {"losses": result.losses, "digest": result.digest} for name, result in results.items()}
    rows = [{**dataclasses.asdict(comparison), "holds": comparison.holds} for comparison in found]
    about = next((result.about for result in results.values()), {})
    return {"environment": about, "comparisons": rows, "runs": runs}


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    name, description = "python -m ivt_jax.benchmarks.numbers", __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name} anew, with this CPU's numbers")
    parser.add_argument("--json", type=filled_path, help="file for the comparisons and all losses")
    options = parser.parse_args(argv)
    return exit_code(record if options.record else lambda: run(options.json))


if __name__ == "__main__":
    sys.exit(main())
