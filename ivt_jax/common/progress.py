"""How far long work has come: a line that renews itself on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_ON_TERMINAL, _IN_LOG = 0.5, 10.0  # seconds between lines


def progress(items: Iterable[T], total: int, what: str = "", noun: str = "images", brief: bool = False) -> Iterator[T]:
    """The items, `total` of them; stderr tells how many are done, how long the rest takes, and at the end how long all.

    what: begins each line, such as "preparing train: ". brief: without the line at the end.
    """
    live = sys.stderr.isatty()
    every, wipe, end = (_ON_TERMINAL, "\r\x1b[2K", "") if live else (_IN_LOG, "", "\n")
    start = shown = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown > every:
            shown, left = now, (now - start) / number * (total - number)
            line = f"{what}{number:,} of {total:,} {noun}, about {left:.0f} s left"
            print(f"{wipe}{line}", end=end, file=sys.stderr, flush=True)
    if brief:
        print(wipe, end="", file=sys.stderr, flush=True)
        return
    print(f"{wipe}{what}{total:,} {noun} in {time.monotonic() - start:.1f} s", file=sys.stderr)
