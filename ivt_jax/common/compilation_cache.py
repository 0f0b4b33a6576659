"""JAX's cache of compiled programs: where it is, and how it stays usable after a kill, a full disk or a power cut.

JAX writes an entry as KEY-cache and then KEY-atime, under a lock (jax/_src/lru_cache.py of JAX 0.10). While any entry
has no KEY-atime, a cache with a size limit takes no new entries (jax-ml/jax#39880). An entry that cannot be
decompressed or loaded is never replaced: JAX warns of it at every start and compiles again.
"""

import contextlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

from ivt_jax.common.files import UNWRITABLE, cache_folder

COMPILED_BYTES = 4 << 30  # size of the cache; the entries used longest ago go first
KEPT_SECONDS = 0.2  # programs that take less to compile are not kept; JAX's own limit of 1 leaves out a query's
_LOCK_SECONDS = 1.0  # to wait for another process that holds JAX's lock
# JAX's warning. It names the program, not the entry; the keys of the program's entries begin with that name.
_WARNING = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '(.+?)': (\w*)")


def keep_compiled() -> None:
    """Keeps compiled programs in a folder of the user's own, unless JAX_COMPILATION_CACHE_DIR names another.

    Removes entries that would keep JAX from writing or replacing others, now and when JAX warns about them.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = cache_folder("compiled")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # JAX executes what it finds there
    except (OSError, RuntimeError):  # no home, or it cannot be written: every start compiles
        return
    if not os.access(cache, os.W_OK) or any(part in f"{cache}/" for part in UNWRITABLE):  # JAX finds no entries there
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(KEPT_SECONDS))
    limit = os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(COMPILED_BYTES))
    if limit != "-1":  # without a limit JAX writes no -atime
        remove_unusable(cache)
        remove_on_warning(cache)


def remove_unusable(cache: Path, program: str = "", loads: bool = True) -> None:
    """Removes incomplete entries, and entries of `program` that cannot be used; JAX writes them again.

    program: prefix of the keys of the entries to read; by default none is read.
    loads: False if XLA refused one of these entries; then all of them are removed.
    Does nothing if the cache cannot be written, or if another process holds its lock for _LOCK_SECONDS.
    """
    from filelock import FileLock  # as JAX locks the cache; slow to import

    with contextlib.suppress(OSError), FileLock(cache / ".lockfile", timeout=_LOCK_SECONDS):
        names = {name for name in os.listdir(cache) if name.endswith(("-cache", "-atime"))}
        for key in {name[: -len("-cache")] for name in names}:
            halves = names & {f"{key}-cache", f"{key}-atime"}
            named = program and key.startswith(program)
            if len(halves) == 1 or (named and not (loads and _is_usable(cache, key))):
                for half in halves:
                    (cache / half).unlink()


def remove_on_warning(cache: Path) -> None:
    """Replaces warnings.showwarning: a JAX warning about an entry first removes its program's unusable entries.

    JAX warns before it writes the newly compiled program, so the new entry replaces the removed one.
    """
    show = warnings.showwarning

    def show_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
        if warned := _WARNING.match(str(message)):
            remove_unusable(cache, warned[1], loads=warned[2] != "JaxRuntimeError")  # XLA's, for what JAX decompressed
        show(message, *rest, **more)

    warnings.showwarning = show_warning
    warnings.filterwarnings("always", _WARNING.pattern)  # also under PYTHONWARNINGS=ignore or =error


def _is_usable(cache: Path, key: str) -> bool:
    """Whether an entry can be decompressed and marked as used; another user, such as root, may have written it."""
    # JAX has no public way to read an entry, and chooses the compression by what is installed.
    from jax._src.compilation_cache import decompress_executable

    try:
        decompress_executable((cache / f"{key}-cache").read_bytes())
        return os.access(cache / f"{key}-atime", os.W_OK)
    except Exception:  # its type depends on the library that decompresses
        return False
