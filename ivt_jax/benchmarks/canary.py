"""Check plain arithmetic on this device against NumPy, before any other measurement on it.

    python -m ivt_jax.benchmarks.canary --json=canary.json

On an RTX A6000, JAX 0.11 returned wrong values from small operations outside of jit, such as 513 for ones(4) + 1, and
right ones from whole programs (jax-ml/jax#40633). So the same formulas run operation by operation, under jit, in a
scan, under vmap and with donated arguments, in float32 and bfloat16, at odd sizes. Integers and random bits must be
exact.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ivt_jax.common.command import filled_path
from ivt_jax.common.files import write_text
from ivt_jax.common.messages import counted
from ivt_jax.common.startup import run_command

LIMITS = {"float32": 2e-5, "bfloat16": 3e-2}  # of an error / the largest right value
EXACT = ("largest", "gather", "sort", "where", "bits", "uniform")
WRONG = 1  # the exit code if anything is wrong
INFINITE = 1e30  # JSON has no infinity
SHOWN = 20  # wrong values printed at most
STACK = 3  # rows under vmap, and turns of the scan
KEY, DRAWS = 1234, 1000
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry-2x32 (Salmon et al., 2011)


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison. error: relative to the largest right value; INFINITE if a value is not finite."""

    mode: str
    formula: str
    dtype: str
    error: float
    limit: float

    @property
    def right(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


def softmax(xp: Any, x: Any) -> Any:
    """Returns the softmax of each row; xp: jax.numpy or numpy."""
    weights = xp.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def scatter(xp: Any, x: Any, index: Any) -> Any:
    """Returns, for each row of x, the sums of the values with the same index modulo 16: (rows, 16)."""
    sums, place = xp.zeros((len(x), 16), x.dtype), (xp.arange(len(x))[:, None], index % 16)
    if xp is np:
        np.add.at(sums, place, x)
        return sums
    return sums.at[place].add(x)


def heads(x: Any) -> Any:
    """Returns (37, 129) as four matrices of odd sizes, (4, 9, 129)."""
    return x[:36].reshape(4, 9, 129)


# (xp, x, y, index) -> value: x and y (37, 129) float, index (37, 129) int32 below 129. At odd sizes the last block of a
# kernel is partly filled.
FORMULAS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "add": lambda xp, x, y, index: x + y,
    "add a constant": lambda xp, x, y, index: x + 1,
    "multiply and subtract": lambda xp, x, y, index: x * 3 - y,
    "divide": lambda xp, x, y, index: x / (2 + y * y),
    "square root": lambda xp, x, y, index: xp.sqrt(xp.abs(x)),
    "exponential": lambda xp, x, y, index: xp.exp(x),
    "tanh": lambda xp, x, y, index: xp.tanh(x),
    "sum of rows": lambda xp, x, y, index: x.sum(-1),
    "sum of columns": lambda xp, x, y, index: x.sum(0),
    "largest": lambda xp, x, y, index: x.max(-1),
    "running sum": lambda xp, x, y, index: xp.cumsum(x, -1),
    "softmax": lambda xp, x, y, index: softmax(xp, x),
    "product": lambda xp, x, y, index: x @ y.T,
    "product of columns": lambda xp, x, y, index: x.T @ y,
    "batch of products": lambda xp, x, y, index: heads(x) @ heads(y).swapaxes(1, 2),
    "gather": lambda xp, x, y, index: xp.take_along_axis(x, index, -1),
    "scatter": lambda xp, x, y, index: scatter(xp, x, index),
    "sort": lambda xp, x, y, index: xp.sort(x, -1),
    "where": lambda xp, x, y, index: xp.where(index % 3 == 0, x, -y),
    "integers": lambda xp, x, y, index: (index * 7919 + 13) % 1009,
    "order of integers": lambda xp, x, y, index: xp.argsort(index * 1031 % 37, axis=-1, stable=True),
}


def draw_inputs(dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x, y (37, 129) of `dtype` and index (37, 129) int32."""
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 37, 129)).astype(jnp.dtype(dtype))
    return x, y, rng.integers(0, 129, (37, 129), np.int32)


def in_numpy(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the right value of each formula: float64 or int64."""
    wide = x.astype(np.float64), y.astype(np.float64), index.astype(np.int64)
    return {name: formula(np, *wide) for name, formula in FORMULAS.items()}


def in_jax(x: Any, y: Any, index: Any) -> dict[str, Any]:
    """Computes each formula with JAX."""
    import jax.numpy as jnp

    return {name: formula(jnp, x, y, index) for name, formula in FORMULAS.items()}


def compare(mode: str, dtype: str, found: Mapping[str, Any], right: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Compares values by the names of their formulas."""
    for name, value in found.items():
        exact = name in EXACT or np.issubdtype(np.asarray(value).dtype, np.integer)
        value, wanted = np.asarray(value).astype(np.float64), right[name].astype(np.float64)
        error = float(np.abs(value - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        yield Check(mode, name, dtype, error if math.isfinite(error) else INFINITE, 0.0 if exact else LIMITS[dtype])


def scalars(count: int = 50) -> Iterator[Check]:
    """Adds, multiplies and takes roots with the numbers from 1 to `count`, operation by operation.

    In jax-ml/jax#40633 a kernel used an operand of the operation before it.
    """
    import jax.numpy as jnp

    for n in range(1, count + 1):
        root, sums, products = jnp.sqrt(jnp.float32(n * n)), jnp.ones(4) + n, jnp.full(5, 3.0) * n
        found = {"root of n * n": root, "ones + n": sums, "3 * n": products}
        right = {"root of n * n": np.array(n), "ones + n": np.full(4, n + 1), "3 * n": np.full(5, 3 * n)}
        yield from compare(f"by operation, n = {n}", "float32", found, right)


def by_operation(dtype: str) -> Iterator[Check]:
    """Computes each formula outside of jit: a small program for each operation."""
    import jax

    given = draw_inputs(dtype, 0)
    yield from compare("by operation", dtype, in_jax(*map(jax.device_put, given)), in_numpy(*given))


def in_programs(dtype: str) -> Iterator[Check]:
    """Computes all formulas in one program: under jit, with donated arguments, in a scan, under vmap."""
    import jax

    drawn = [draw_inputs(dtype, seed) for seed in range(STACK)]
    right = [in_numpy(*given) for given in drawn]
    compute, donate = jax.jit(in_jax), jax.jit(in_jax, donate_argnums=(0, 1, 2))
    for given, wanted in zip(drawn, right, strict=True):
        yield from compare("jit", dtype, compute(*map(jax.device_put, given)), wanted)
        yield from compare("donated", dtype, donate(*map(jax.device_put, given)), wanted)
    stacked = tuple(jax.device_put(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
    turns = jax.jit(lambda *rows: jax.lax.scan(lambda turn, row: (turn + 1, in_jax(*row)), 0, rows)[1])
    for mode, found in (("scan", turns(*stacked)), ("vmap", jax.jit(jax.vmap(in_jax))(*stacked))):
        for row, wanted in enumerate(right):
            yield from compare(mode, dtype, {name: value[row] for name, value in found.items()}, wanted)


def large_products(dtype: str) -> Iterator[Check]:
    """Multiplies matrices of odd sizes that take many blocks of a kernel, as in a layer and as in its gradients."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    x, y, z = (rng.standard_normal(shape).astype(jnp.dtype(dtype)) for shape in ((1031, 517), (517, 389), (1031, 389)))
    wide = [array.astype(np.float64) for array in (x, y, z)]

    def products(x: Any, y: Any, z: Any) -> dict[str, Any]:
        return {"layer": x @ y, "gradient of weights": x.T @ z, "gradient of inputs": z @ y.T}

    yield from compare("large products", dtype, jax.jit(products)(x, y, z), products(*wide))


def threefry(key: tuple[int, int], count: int) -> np.ndarray:
    """Returns the 32 random bits of each of the numbers below `count`, as JAX draws them: (count,) uint32."""
    high, low = np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)
    keys = [np.uint32(k) for k in (*key, key[0] ^ key[1] ^ 0x1BD11BDA)]
    high, low = high + keys[0], low + keys[1]
    for turn in range(5):
        for rotation in ROTATIONS[turn % 2]:
            high = high + low
            low = (low << np.uint32(rotation) | low >> np.uint32(32 - rotation)) ^ high
        high = high + keys[(turn + 1) % 3]
        low = low + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return high ^ low


def random_draws() -> Iterator[Check]:
    """Draws bits, uniform and normal numbers; the probability of each normal number is known from its bits."""
    import jax

    key = jax.random.key(KEY)
    bits, uniform, normal = (draw(key, (DRAWS,)) for draw in (jax.random.bits, jax.random.uniform, jax.random.normal))
    words = threefry((0, KEY), DRAWS)
    shares = (words >> 9) / 2.0**23  # the leading 23 bits are a float's fraction
    probability = np.array([math.erf(x / math.sqrt(2)) for x in np.asarray(normal, np.float64)])
    found = {"bits": bits, "uniform": uniform, "normal": probability}
    yield from compare("random", "float32", found, {"bits": words, "uniform": shares, "normal": 2 * shares - 1})


def all_checks() -> Iterator[Check]:
    """Yields every check, the small operations first."""
    yield from scalars()
    yield from random_draws()
    for dtype in LIMITS:
        yield from by_operation(dtype)
        yield from in_programs(dtype)
        yield from large_products(dtype)


def run(file: Path | None) -> int:
    """Prints each wrong value and a summary, writes all checks; returns the exit code."""
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # or a GPU computes float32 products in TF32
    import jax

    from ivt_jax.run.workdir import environment

    jax.config.update("jax_enable_compilation_cache", False)  # checks what this compiler writes now
    about = environment()
    print(f"{about['device']}, jaxlib {about['versions'].get('jaxlib', '?')}, {jax.default_backend()}", flush=True)
    checks, failure = list[Check](), ""
    try:
        for check in all_checks():
            checks.append(check)
    except jax.errors.JaxRuntimeError as error:  # a device may fail instead of returning wrong values
        failure = str(error).strip().partition("\n")[0]
        print(f"failed after {counted(len(checks), 'check')}: {failure}")
    wrong = [check for check in checks if not check.right]
    for check in wrong[:SHOWN]:
        print(f"wrong: {check.formula}, {check.mode}, {check.dtype}: error {check.error:.2g}, limit {check.limit:.2g}")
    if file:
        rows = [{**dataclasses.asdict(check), "right": check.right} for check in checks]
        found = {"environment": about, "wrong": len(wrong), "failure": failure, "checks": rows}
        write_text(file, json.dumps(found, indent=2) + "\n")
    if not wrong and not failure:
        print(f"{len(checks)} checks, all right")
        return 0
    print(f"{len(wrong)} of {len(checks)} checks are wrong: no figure of this device counts; see jax-ml/jax#40633")
    return WRONG


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    name, description = "python -m ivt_jax.benchmarks.canary", __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    parser.add_argument("--json", type=filled_path, help="file for all checks")
    options = parser.parse_args(argv)
    return run_command(lambda: run(options.json))


if __name__ == "__main__":
    sys.exit(main())
