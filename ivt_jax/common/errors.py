"""The exceptions for a user's mistake: commands print its single line and exit with 2, without a traceback."""

import errno
import os

# Of a disk, to be mended by hand; whoever met them says so in these words: Python, TensorFlow, Orbax, array_record.
DISK = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)))


def disk_fault(error: BaseException) -> str | None:
    """What is wrong with the disk, where that is what an error tells."""
    return next((reason for reason in DISK if reason in str(error)), None)


class UserError(ValueError):
    """A mistake the user can mend. The message is one line: the file, the record, the remedy."""


class DataError(UserError):
    """A dataset, or a file that goes with it, is not as it should be."""
