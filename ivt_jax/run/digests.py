"""Digests of a checkpoint's files: written at the end of a save, compared before the checkpoint is read.

A checkpoint is a folder named after its step, with a folder for each item (state, metrics). Nothing here needs Orbax.
"""

import concurrent.futures
import contextlib
import functools
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import digest
from ivt_jax.run.watchdog import coordination_client
from ivt_jax.run.workdir import write_json

FILE = "digests.json"
MARK = {"digests": FILE}  # in the DESCRIPTION of checkpoints that must have FILE; older ones have neither
DESCRIPTION = "_CHECKPOINT_METADATA"  # Orbax writes it last, and reads no checkpoint without it
UNFINISHED = ".orbax-checkpoint-tmp"  # suffix of a step that is not complete
ON_DAMAGE = ("previous", "stop")
PATIENCE = 3.0  # seconds; longer comparisons print a line


class DamagedError(Exception):
    """What is wrong with a checkpoint: a clause that begins with the file."""


def write_digests(step: Path) -> None:
    """Writes FILE: the size and SHA-256 of every file of a checkpoint, before Orbax gives the folder its final name."""
    files = {path.relative_to(step).as_posix(): path for path in sorted(step.glob("*/**/*")) if path.is_file()}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        entries = pool.map(lambda path: {"bytes": path.stat().st_size, "sha256": digest(path)}, files.values())
    write_json(step / FILE, dict(zip(files, entries, strict=True)))


def find_damage(step: Path, within: str = "") -> str:
    """Returns what is wrong with a checkpoint, a clause that begins with the file; "" if intact or without digests.

    within: compares only files whose names begin with this, such as "metrics/". A file that this process has compared
    is read again only if it changed.
    """
    line = f"comparing {step} with its digests"
    clock = threading.Timer(PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
    clock.daemon = True
    clock.start()
    try:
        entries = {name: entry for name, entry in _read_digests(step).items() if name.startswith(within)}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda item: _compare(step, *item), entries.items()))
        return ""
    except DamagedError as error:
        return str(error)
    finally:
        clock.cancel()


def set_damaged_aside(workdir: Path, on_damage: str, say: Callable[[str], None]) -> None:
    """Moves damaged checkpoints to WORKDIR/damaged, removes unfinished ones, and logs each one.

    Every process calls it. The first one acts; the others wait, without using a device because it may take long. Raises
    UserError and moves nothing if no checkpoint is valid, or if one is damaged and `on_damage` is "stop".
    """
    client, key = coordination_client(), f"ivt_jax: damage in {workdir}"
    if jax.process_index() == 0:
        error = _set_damaged_aside(workdir, on_damage, say)
        if client:
            client.key_value_set(key, f"found: {error}", allow_overwrite=True)
    else:
        error = client.blocking_key_value_get(key, 3_600_000).removeprefix("found: ")  # milliseconds: an hour
    if error:
        raise UserError(error)


def _set_damaged_aside(workdir: Path, on_damage: str, say: Callable[[str], None]) -> str:
    """Does the work of the first process. Returns the message of its error, or ""."""
    folder = workdir / "checkpoints"
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())
    faults = {step: fault for step in steps if (fault := find_damage(folder / str(step)))}
    newest = max((step for step in steps if step not in faults), default=None)
    if faults:
        worst = f"{workdir}, step {max(faults)} is damaged: {faults[max(faults)]}"
        if newest is None:
            return f"{worst}; no valid one is left: restore one from a backup, or choose another --workdir"
        if on_damage == "stop":
            remedy = f"use --config.runtime.on_damage=previous to continue from step {newest}, the newest valid one"
            return f"{worst}; restore it from a backup, or {remedy}"
    for step, fault in faults.items():
        aside, number = workdir / "damaged" / str(step), 2
        while aside.exists():
            aside, number = aside.with_name(f"{step}-{number}"), number + 1
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        say(f"warning: step {step} is damaged: {fault}; it is moved to {aside}, the newest valid one is {newest}")
    for path in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path)
        say(f"step {path.name.partition('.')[0]}: an unfinished save is removed")
    if newest is not None and not (folder / str(newest) / FILE).exists():
        say(f"warning: step {newest} was saved by an older ivt_jax without digests: damage would not be found")
    return ""


def _read_digests(step: Path) -> dict[str, tuple[int, str]]:
    """Returns size and SHA-256 by file; {} for an older checkpoint. Raises DamagedError if the digests are lost."""
    with _damage_in(DESCRIPTION):
        metadata = json.loads((step / DESCRIPTION).read_bytes())["custom_metadata"] or {}
        if not ((step / FILE).exists() or MARK.items() <= metadata.items()):
            return {}
    with _damage_in(FILE):
        entries = json.loads((step / FILE).read_bytes())
        return {name: (entry["bytes"], entry["sha256"]) for name, entry in entries.items()}


def _compare(step: Path, name: str, written: tuple[int, str]) -> None:
    """Raises DamagedError if a file differs from the size and digest written."""
    with _damage_in(name):
        status = (step / name).stat()
        if status.st_size != written[0]:
            raise DamagedError(f"{name} has {status.st_size:,} bytes instead of {written[0]:,}")
        if _digest_once(step / name, (status.st_size, status.st_mtime_ns, status.st_ctime_ns)) != written[1]:
            raise DamagedError(f"{name} has other bytes than were written")


@functools.cache
def _digest_once(path: Path, _state: tuple[int, ...]) -> str:
    return digest(path)


@contextlib.contextmanager
def _damage_in(name: str) -> Iterator[None]:
    """Raises errors of reading a file as DamagedError. Missing permission is raised as it is: it is no damage."""
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
