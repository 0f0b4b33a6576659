"""Keeps JAX's cache of compiled programs usable after a kill, a full disk or a power cut.

JAX writes an entry as KEY-cache and then KEY-atime, under a lock (jax/_src/lru_cache.py of JAX 0.10). While any entry
has no KEY-atime, a cache with a size limit takes no new entries (jax-ml/jax#39880). An entry that cannot be
decompressed or loaded is never replaced: JAX warns of it at every start and compiles again.
"""

import contextlib
import fcntl
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOCK = ".lockfile"  # JAX's own
_TRIES, _MOMENT = 20, 0.05  # how often the lock is tried, and seconds in between
# JAX's warning. It names the program, not the entry; the keys of the program's entries begin with that name.
_WARNING = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(.+?)': (\w*)")
_NOT_LOADED = "JaxRuntimeError"  # the error by which XLA refuses what JAX has decompressed


def remove_unusable(cache: Path, program: str = "", loads: bool = True) -> None:
    """Removes incomplete entries, and entries of `program` that cannot be used; JAX writes them again.

    program: prefix of the keys of the entries to read. By default none is read, which costs the listing of one folder.
    loads: False if XLA refused one of them, whichever; then all of them are removed.
    Does nothing if the cache cannot be written, or if another process holds its lock for a second.
    """
    with contextlib.suppress(OSError), _locked(cache):
        halves: dict[str, set[str]] = {}
        for name in os.listdir(cache):
            key, _, kind = name.rpartition("-")
            if kind in ("cache", "atime"):
                halves.setdefault(key, set()).add(kind)
        for key, kinds in halves.items():
            named = program and key.startswith(program)
            if len(kinds) == 1 or (named and not (loads and _is_usable(cache, key))):
                for kind in kinds:
                    (cache / f"{key}-{kind}").unlink()


def remove_on_warning(cache: Path) -> None:
    """Replaces warnings.showwarning: a JAX warning about an entry first removes its program's unusable entries.

    JAX warns before it writes the program that it compiled instead. So the new entry replaces the one removed.
    """
    show = warnings.showwarning

    def show_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
        warned = _WARNING.match(str(message))
        if warned:
            remove_unusable(cache, warned[1], loads=warned[2] != _NOT_LOADED)
        show(message, *rest, **more)

    warnings.showwarning = show_warning
    warnings.filterwarnings("always", _WARNING.pattern)  # also under PYTHONWARNINGS=ignore or =error


def _is_usable(cache: Path, key: str) -> bool:
    """Whether an entry can be decompressed and marked as used; another user, such as root, may have written it."""
    from jax._src.compilation_cache import decompress_executable  # already imported: JAX has warned

    try:
        decompress_executable((cache / f"{key}-cache").read_bytes())
        return os.access(cache / f"{key}-atime", os.W_OK)
    except Exception:  # its type depends on the library that decompresses
        return False


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Holds JAX's lock of the cache, which the system releases when a process ends. Raises OSError if it cannot."""
    with (cache / _LOCK).open("a") as file:
        for number in range(_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if number == _TRIES - 1:
                    raise
                time.sleep(_MOMENT)
        yield
