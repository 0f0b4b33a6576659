"""How a command ends: an exit code, and one line for whatever is no fault of the program."""

import io
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
