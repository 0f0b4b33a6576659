"""The longest kernels of one call, from a trace of JAX's profiler."""

import collections
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

NOTHING = "the profiler recorded no kernels"


class Kernel(NamedTuple):
    """All runs of one kernel in a call."""

    name: str  # of the kernel on a GPU, of the operation elsewhere
    operation: str  # one HLO operation that it runs for, "" if the trace does not say
    runs: int
    milliseconds: float
    share: float  # of the time of all kernels


def profile(call: Callable[[], Any]) -> list[Kernel]:
    """Traces one call, already compiled; returns its kernels, longest first, or [] if the trace has none."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(call())
        return [kernel for file in Path(folder).rglob("*.trace.json.gz") for kernel in read_trace(file)]


def read_trace(file: Path) -> list[Kernel]:
    """Returns the kernels of a gzipped trace in Chrome's format, longest first."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return sum_kernels(json.load(opened)["traceEvents"])


def sum_kernels(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """Sums the events of each kernel, longest first. A loop's time is without that of the kernels inside it."""
    times: dict[str, float] = collections.defaultdict(float)  # microseconds
    runs, operations = collections.Counter[str](), dict[str, str]()
    for event, own in own_times(kernel_events(events)):
        name = event["name"]
        times[name] += own
        runs[name] += 1
        operations.setdefault(name, event.get("args", {}).get("hlo_op", ""))
    total = sum(times.values()) or 1.0
    longest = sorted(times, key=times.__getitem__, reverse=True)
    return [Kernel(name, operations[name], runs[name], times[name] / 1e3, times[name] / total) for name in longest]


def kernel_events(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the events of kernels.

    On a GPU they are on the threads "Stream #..."; the device's other threads show the same time again, by operation.
    On a TPU they are on "XLA Ops"; on a CPU they are on any thread and name an HLO operation.
    """
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    timed = [event for event in events if event.get("ph") == "X"]
    for kind in ("Stream #", "XLA Ops"):
        if found := [event for event in timed if threads.get((event["pid"], event["tid"]), "").startswith(kind)]:
            return found
    return [event for event in timed if "hlo_op" in event.get("args", {})]


def own_times(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yields each event and its microseconds without those of the events inside it on the same thread."""
    ordered = sorted(events, key=lambda event: (event["pid"], event["tid"], event["ts"], -event["dur"]))
    own, around = [event["dur"] for event in ordered], list[int]()
    for number, event in enumerate(ordered):
        while around and not _within(event, ordered[around[-1]]):
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
        around.append(number)
    yield from zip(ordered, own, strict=True)


def _within(event: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = (event["pid"], event["tid"]) == (other["pid"], other["tid"])
    return same and event["ts"] + event["dur"] <= other["ts"] + other["dur"]


def table(kernels: Sequence[Kernel], most: int) -> str:
    """Returns a Markdown table of the first `most` kernels."""
    if not kernels:
        return NOTHING
    whole = sum(kernel.milliseconds for kernel in kernels)
    lines = [f"{len(kernels)} kernels, {whole:,.1f} ms in all", "| kernel | operation | runs | ms | share |"]
    lines.append("|" + " --- |" * 5)
    for name, operation, runs, milliseconds, share in kernels[:most]:
        lines.append(f"| {name} | {operation} | {runs} | {milliseconds:,.2f} | {share:.1%} |")
    return "\n".join(lines)
