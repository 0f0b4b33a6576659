"""Parts of messages: counts, lists of names, how to install an extra; and lines that are printed once."""

import functools
import sys
from collections.abc import Mapping, Sequence

from ivt_jax.common.files import printable

SHOWN = 3  # names in a message, of many


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun, such as "1 image" or "1,234 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def first_few(names: Sequence[str]) -> str:
    """Returns the first names, printable, and dots for the others, such as "a.jpg, b.jpg, c.jpg, ..."."""
    return printable(", ".join(names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def install(extra: str) -> str:
    """Returns the command that installs an extra of pyproject.toml; the project is on no package index."""
    return f"pip install -e '.[{extra}]' in the clone of this project"


@functools.cache
def say_once(line: str) -> None:
    """Prints a line on stderr, once per process."""
    print(line, file=sys.stderr)


def list_counts(counts: Mapping[str, int]) -> str:
    """Returns a text such as "missing (2), hidden (1)"."""
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
