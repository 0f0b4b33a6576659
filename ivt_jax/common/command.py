"""What commands share: exit codes, one line for a user's mistake, and the types of flags."""

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ivt_jax.common.errors import UserError, disk_fault
from ivt_jax.common.files import printable

Number = TypeVar("Number", int, float)

MISTAKE, INTERRUPTED, UNREAD = 2, 130, 141  # the last two are those of shells


def exit_code(work: Callable[[], int | None]) -> int:
    """Does a command's work and returns its exit code: what `work` returns, 0 for None.

    2 after a UserError, or an error of a file or the disk, which is printed in one line; 130 after Ctrl-C; 141 if
    nothing reads the output any more, as behind `| head`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that has only ASCII
    try:
        code = work() or 0
        print(end="", flush=True)
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails when it flushes at the end
        return UNREAD
    except (UserError, OSError) as error:
        if not (isinstance(error, UserError) or error.filename or disk_fault(error)):
            raise
        print(f"error: {printable(error)}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def number(kind: Callable[[str], Number], low: float, high: float, name: str) -> Callable[[str], Number]:
    """Returns a parser of numbers from `low` to `high`, for argparse's `type`. name: as in "a share from 0 to 1"."""

    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {name}")

    return parse


def filled_path(text: str) -> Path:
    """Returns the path, for argparse's `type`. Raises ArgumentTypeError as `filled`."""
    return Path(filled(text))


def filled(text: str) -> str:
    """Returns a path or an address as it is, for argparse's `type`.

    Raises ArgumentTypeError if it is empty, as from an unset variable: it would be read as the working directory, or as
    if the flag were not given.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


positive = number(int, 1, math.inf, "a whole number above 0")
not_negative = number(int, 0, math.inf, "a whole number from 0 on")
seconds = number(float, 0, sys.float_info.max, "a number of seconds from 0 on")
share = number(float, 0, 1, "a share from 0 to 1")
