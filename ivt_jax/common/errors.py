"""Exceptions for a user's mistake: commands print their one line and exit with 2, without a traceback."""

import errno
import os

# Faults of a disk that a user can mend, in the words in which Python, TensorFlow, Orbax and array_record report them.
DISK = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)))


def disk_fault(error: BaseException) -> str | None:
    """Returns which of DISK an error reports, None for any other error."""
    return next((reason for reason in DISK if reason in str(error)), None)


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: the file, the record, the remedy."""


class DataError(UserError):
    """A fault of a dataset or of one of its files."""
