"""What commands share: the exit code, one line for a user's mistake, and the kinds of numbers that flags take."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable

from ivt_jax.common.errors import UserError, disk_fault
from ivt_jax.common.files import printable

MISTAKE, INTERRUPTED, UNREAD = 2, 130, 141  # the last two as shells have them


def exit_code(work: Callable[[], int | None]) -> int:
    """Does a command's work and returns its exit code: what `work` returns, 0 for None.

    2 after a UserError, or an error of a file or the disk, told in one line; 130 after Ctrl-C; 141 where nobody reads
    the output any more, as behind `| head`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no letters but ASCII's
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


# Kinds of numbers, for argparse's `type`.


def positive(text: str) -> int:
    """Returns a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """Returns a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def seconds(text: str) -> float:
    """Returns a finite number from 0 on."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return value


def share(text: str) -> float:
    """Returns a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def _number(text: str) -> float:
    """Returns the number that `text` is, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
