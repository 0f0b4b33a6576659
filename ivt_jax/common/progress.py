"""Progress of long work on stderr: one line that is overwritten on a terminal, separate lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, what: str = "", noun: str = "images", brief: bool = False) -> Iterator[T]:
    """Yields the items and prints how many of `total` are done, the time left and, at the end, the time taken.

    what: start of each line, such as "preparing train: ". brief: leaves out the line at the end.
    """
    live = sys.stderr.isatty()
    every, wipe, end = (0.5, "\r\x1b[2K", "") if live else (10.0, "", "\n")  # every: seconds between lines
    start = shown = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown > every:
            shown, left = now, (now - start) / number * (total - number)
            line = f"{what}{number:,} of {total:,} {noun}, about {left:.0f} s left"
            print(f"{wipe}{line}", end=end, file=sys.stderr, flush=True)
    last = "" if brief else f"{what}{total:,} {noun} in {time.monotonic() - start:.1f} s\n"
    print(f"{wipe}{last}", end="", file=sys.stderr, flush=True)
