"""Output of a run: TensorBoard and JSONL scalars, the parameter table, progress lines with throughput and time left.

clu is imported inside functions: its writers import TensorFlow, which takes seconds.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from flax.traverse_util import flatten_dict

from ivt_jax.common.files import lines_of, write_text


class ScalarLog:
    """Writes scalars to `metrics.jsonl`, one object a line, and as TensorBoard events through clu.

    start_step: the step from which the run resumes; later lines of an earlier start are dropped. enabled: False in all
    processes but the first, which write nothing.
    """

    def __init__(self, workdir: Path, start_step: int, enabled: bool):
        self._enabled = enabled
        if not enabled:
            return
        from clu import metric_writers

        self._path = workdir / "metrics.jsonl"
        _drop_after(self._path, start_step)
        self._writer = metric_writers.SummaryWriter(str(workdir))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._writer.write_scalars(step, scalars)
        self._writer.flush()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines up to `step`, without a last line that a crash cut short."""
    if not path.exists():
        return
    kept = []
    for line in lines_of(path.read_bytes().decode()):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_text(path, "".join(kept))


def parameter_table(params: Any, notes: Mapping[str, str] | None = None) -> str:
    """Returns a table with name, shape and size of all parameters, and the total. params: arrays or their shapes.

    notes: entries of a last column, "Rate", by the path of the parameter (`freezing.rate_notes`). With them, the last
    line has the number of trained values, too.
    """
    from clu import parameter_overview

    if not notes:
        return parameter_overview.get_parameter_overview(params, include_stats=False)
    flat = flatten_dict(params, sep="/")
    rows = [ParameterRow(path, x.shape, str(x.dtype), math.prod(x.shape), notes[path]) for path, x in flat.items()]
    total, size = sum(row.size for row in rows), sum(math.prod(x.shape) * x.dtype.itemsize for x in flat.values())
    trained = sum(row.size for row in rows if row.rate != "frozen")
    table = parameter_overview.make_table(sorted(rows, key=lambda row: row.name))
    return f"{table}\nTotal: {total:,} -- {size:,} bytes; trained: {trained:,}"


@dataclasses.dataclass
class ParameterRow:
    """A row of the parameter table; the columns are named after the fields."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    rate: str


class Progress:
    """Steps done, throughput and time left: one line rewritten in place on a terminal, plain lines in a log.

    Throughput counts only steps; the time left includes validations, at their frequency so far.
    """

    def __init__(self, total_steps: int, pairs_per_step: int, stream: TextIO | None = None):
        self._total, self._pairs, self._stream = total_steps, pairs_per_step, stream or sys.stderr
        self._began = self._resumed = (0.0, 0)
        self._waited = 0.0

    def start(self, step: int) -> None:
        """Starts the clocks at `step`, after compilation."""
        self.resume(step)
        self._began = self._resumed

    def resume(self, step: int) -> None:
        """Restarts the clock of the throughput at `step`, for example after a validation."""
        self._resumed, self._waited = (time.perf_counter(), step), 0.0

    def timed(self, batches: Iterator[Any], computes: Callable[[], bool]) -> Iterator[Any]:
        """Yields the batches and measures how long the device waits for them.

        computes: returns whether the previous step is still running. If it is when a batch arrives, nothing waited.
        """
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if not computes():
                self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def measure(self, step: int) -> dict[str, float]:
        """Returns the throughput since the last call of measure, start or resume.

        pairs_per_second: (image, caption) pairs, with the time of waiting for input. input_wait: the share of the time,
        0 to 1, in which the device waited for a batch; an upper bound, since a step may end during the wait.
        """
        (then, last), waited = self._resumed, self._waited
        self.resume(step)
        seconds = max(self._resumed[0] - then, 1e-9)
        return {"pairs_per_second": (step - last) * self._pairs / seconds, "input_wait": waited / seconds}

    def show(self, step: int, scalars: Mapping[str, float], rate: float, input_wait: float) -> None:
        """Writes a line with the step, the scalars, the throughput, the share of waiting and the time left."""
        then, first = self._began
        left = (time.perf_counter() - then) / (step - first) * (self._total - step)
        terms = "  ".join(f"{name} {value:.3f}" for name, value in scalars.items())
        speed = f"{rate:.{0 if rate >= 10 else 2}f} pairs/s  input {input_wait:.0%}"
        self.say(f"step {step}/{self._total}  {terms}  {speed}  {format_seconds(left)} left", transient=True)

    def say(self, line: str, transient: bool = False) -> None:
        """Writes a line; on a terminal, the next line replaces a transient one."""
        start, end = ("\r\x1b[2K", "" if transient else "\n") if self._stream.isatty() else ("", "\n")
        self._stream.write(f"{start}{line}{end}")  # at once: another thread may write too
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """Returns 75 as "1:15", 7384 as "2:03:04"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
