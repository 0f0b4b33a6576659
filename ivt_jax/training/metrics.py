"""What a run tells the world: TensorBoard and JSONL scalars, the parameter table, progress with throughput and ETA.

clu is imported where it is used: its writers import TensorFlow, which takes seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ivt_jax.common.files import lines_of, write_text

Batch = TypeVar("Batch")


class ScalarLog:
    """Scalars of a run: `metrics.jsonl`, one object a line, and TensorBoard events through clu.

    Opened at the step a run resumes from, it drops the lines that the run is about to write again. A process that is
    not the first writes nothing.
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
    """Keeps the lines up to `step`; a last line cut short by a crash goes too."""
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


def parameter_table(params: Any) -> str:
    """Name, shape, size and total of all parameters; `params` may be shapes alone."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(params, include_stats=False)


class Progress:
    """Steps done, throughput and time left: one line that is rewritten on a terminal, plain lines in a log.

    Throughput is that of the steps alone; the time left reckons with validations too, as often as there were so far.
    """

    def __init__(self, total_steps: int, pairs_per_step: int, stream: TextIO | None = None):
        self._total, self._pairs, self._stream = total_steps, pairs_per_step, stream or sys.stderr
        self._began = self._resumed = (0.0, 0)
        self._waited = 0.0

    def start(self, step: int) -> None:
        """Starts the clocks at `step`, once everything is compiled."""
        self.resume(step)
        self._began = self._resumed

    def resume(self, step: int) -> None:
        """After something that is not a step, such as a validation: its time does not count as throughput."""
        self._resumed, self._waited = (time.perf_counter(), step), 0.0

    def timed(self, batches: Iterator[Batch], computes: Callable[[], bool]) -> Iterator[Batch]:
        """The batches, as they come; `measure` tells how long the device had to wait for them.

        computes: whether the step before is still at work. Where it is, when a batch has come, nobody waited for it.
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
        """What the clocks tell since the last call, start or resume.

        pairs_per_second: (image, caption) pairs, waiting for input included. input_wait: the share of the time, 0 to 1,
        in which the device waited for a batch: at most that, for the step before may have ended meanwhile.
        """
        then, last = self._resumed
        waited = self._waited
        self.resume(step)
        seconds = max(self._resumed[0] - then, 1e-9)
        return {"pairs_per_second": (step - last) * self._pairs / seconds, "input_wait": waited / seconds}

    def show(self, step: int, scalars: Mapping[str, float], rate: float, input_wait: float) -> None:
        """One line with the step, the scalars, the throughput, the share of waiting and the time left."""
        then, first = self._began
        left = (time.perf_counter() - then) / (step - first) * (self._total - step)
        terms = "  ".join(f"{name} {value:.3f}" for name, value in scalars.items())
        digits = 0 if rate >= 10 else 2
        speed = f"{rate:.{digits}f} pairs/s  input {input_wait:.0%}"
        self.say(f"step {step}/{self._total}  {terms}  {speed}  {format_seconds(left)} left", transient=True)

    def say(self, line: str, transient: bool = False) -> None:
        """Writes a line; on a terminal, the next one takes the place of a transient one."""
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[2K{line}" + ("" if transient else "\n"))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """75 -> "1:15", 7384 -> "2:03:04"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
