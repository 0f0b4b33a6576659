"""Digests of a checkpoint's files: written into it before it counts, compared before it is read.

A checkpoint is a folder with its step for a name, and each part of it is a folder therein. None of this needs Orbax.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from ivt_jax.common.errors import UserError
from ivt_jax.run.workdir import digest, write_json

FILE = "digests.json"
MARK = {"digests": FILE}  # in DESCRIPTION, where FILE has to be there: what is older has none
DESCRIPTION = "_CHECKPOINT_METADATA"  # Orbax's own, which it writes last of all, and without which nothing is read
UNFINISHED = ".orbax-checkpoint-tmp"  # how the name of a step goes on until it is whole
ON_DAMAGE = ("previous", "stop")
PATIENCE = 3.0  # seconds of comparing until it is told


class DamagedError(Exception):
    """What is wrong with a checkpoint: a clause that begins with the file."""


def write_digests(step: Path) -> None:
    """Lists the size and the SHA-256 of every file of a checkpoint that is whole and does not count yet."""
    paths = [path for path in sorted(step.glob("*/**/*")) if path.is_file()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, paths))
    listed = {
        path.relative_to(step).as_posix(): {"bytes": path.stat().st_size, "sha256": value}
        for path, value in zip(paths, digests, strict=True)
    }
    write_json(step / FILE, listed)


def has_digests(step: Path) -> bool:
    """Whether a checkpoint can be compared; those of an older ivt_jax cannot."""
    return (step / FILE).exists()


def find_damage(step: Path, within: str = "") -> str:
    """What is wrong with a checkpoint, beginning with the file; empty where nothing is, or nothing is known.

    within: what the names of the files to compare begin with, such as "metrics/". A file that this process has
    compared is not read again unless it changed.
    """
    told = f"comparing {step} with its digests"
    clock = threading.Timer(PATIENCE, functools.partial(print, told, file=sys.stderr, flush=True))
    clock.daemon = True
    clock.start()
    try:
        listed = {name: entry for name, entry in _listed(step).items() if name.startswith(within)}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda item: _compare(step, *item), listed.items()))
        return ""
    except DamagedError as error:
        return str(error)
    finally:
        clock.cancel()


def set_damaged_aside(workdir: Path, on_damage: str, say: Callable[[str], None]) -> None:
    """Leaves a run that is to go on with valid checkpoints alone; the others are moved to WORKDIR/damaged, and told.

    All processes call it; the first acts. Raises UserError, and moves nothing, where none would be left, or where one
    is damaged and `on_damage` is "stop".
    """
    fault = _told_by_first(str(workdir), lambda: _set_aside(workdir, on_damage, say))
    if fault:
        raise UserError(fault)


def _set_aside(workdir: Path, on_damage: str, say: Callable[[str], None]) -> str:
    """What `set_damaged_aside` does in the first process; its error, or nothing."""
    folder = workdir / "checkpoints"
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
    faults = {number: fault for number in numbers if (fault := find_damage(folder / str(number)))}
    valid = [number for number in numbers if number not in faults]
    if faults:
        worst = f"{workdir}, step {max(faults)} is damaged: {faults[max(faults)]}"
        if not valid:
            return f"{worst}; no valid one is left: bring one back from a backup, or choose another --workdir"
        if on_damage == "stop":
            remedy = "--config.runtime.on_damage=previous uses the valid ones"
            return f"{worst}; bring it back from a backup, or {remedy}, of which step {valid[-1]} is the newest"
    for number, fault in faults.items():
        aside = _new_name(workdir / "damaged" / str(number))
        aside.parent.mkdir(exist_ok=True)
        (folder / str(number)).rename(aside)
        say(f"warning: step {number} is damaged: {fault}; it is kept as {aside}, the newest valid one is {valid[-1]}")
    for path in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path)
        say(f"step {path.name.partition('.')[0]}: a save that was cut short is removed")
    if valid and not has_digests(folder / str(valid[-1])):
        say(f"warning: step {valid[-1]} has no digests, an older ivt_jax saved it: whether it is damaged is not known")
    return ""


def _told_by_first(key: str, find: Callable[[], str]) -> str:
    """What the first process of the run finds. The others wait for it, without a device: it may take long."""
    from jax._src.distributed import global_state  # multihost_utils would wait on the devices

    if global_state.client is None:
        return find()
    if jax.process_index() == 0:
        global_state.client.key_value_set(f"ivt_jax: damage in {key}", f"found: {find()}", allow_overwrite=True)
    hour = 3_600_000
    return global_state.client.blocking_key_value_get(f"ivt_jax: damage in {key}", hour).removeprefix("found: ")


def _listed(step: Path) -> dict[str, tuple[int, str]]:
    """File -> size and SHA-256; empty where there are no digests. Raises DamagedError where they were lost."""
    with _named(DESCRIPTION):
        said = json.loads((step / DESCRIPTION).read_bytes())["custom_metadata"] or {}
        if not (has_digests(step) or MARK.items() <= said.items()):
            return {}
    with _named(FILE):
        return {
            name: (entry["bytes"], entry["sha256"]) for name, entry in json.loads((step / FILE).read_bytes()).items()
        }


def _compare(step: Path, name: str, written: tuple[int, str]) -> None:
    """Raises DamagedError where a file is not as it was written."""
    with _named(name):
        status = (step / name).stat()
        if status.st_size != written[0]:
            raise DamagedError(f"{name} has {status.st_size:,} bytes instead of {written[0]:,}")
        if _digest_once(step / name, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)) != written[1]:
            raise DamagedError(f"{name} has other bytes than were written")


@functools.cache
def _digest_once(path: Path, _state: tuple[int, ...]) -> str:
    return digest(path)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What a file cannot be read for, as a DamagedError; but that it may not be read says nothing of it."""
    try:
        yield
    except PermissionError:
        raise
    except FileNotFoundError:
        raise DamagedError(f"{name} is missing") from None
    except OSError as error:
        raise DamagedError(f"{name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{name} is not what was written") from None


def _new_name(path: Path) -> Path:
    """The path, or the first of PATH-2, PATH-3, ... that does not exist."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())
