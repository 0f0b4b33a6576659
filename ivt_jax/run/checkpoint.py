"""Checkpoints by Orbax: the latest two and the best by validation, the run's config beside them.

What is restored must have the bytes that were written and the arrays that the config describes, and be finite.
"""

import collections
import contextlib
import functools
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ivt_jax.common.command import MISTAKE
from ivt_jax.common.errors import UserError, disk_fault
from ivt_jax.common.files import UNREADABLE, printable, refuse_path
from ivt_jax.models.ivt import IVTConfig, parameter_shapes
from ivt_jax.run import digests, watchdog
from ivt_jax.run.parameter_file import NAME as PARAMETER_FILE
from ivt_jax.run.parameter_file import read_parameter_file
from ivt_jax.run.workdir import is_at_work, load_record

SELECTION = "t2i/R1"  # the measure that chooses, on the split that the config's train.select_on names
_TRIES, _MOMENT = 10, 1.0  # how often parameters are read that a run at work deletes, and seconds in between
# A reference to a part of a file, as tensorstore.ocdbt.dump prints it: kind, folder, name, offset, length.
_REFERENCE = re.compile(r"'(btreenode|versionnode|value):([^':]*):([^':]*):(\d+):(\d+)'")
# Orbax logs what it raises, with a traceback, and drops further errors of the same save, of which asyncio tells.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


class Checkpoints:
    """The checkpoints of a workdir; `metrics`, where given at a save, make it a candidate for the best.

    select_on: the split whose scores choose. Of equally good ones the latest is the best. With several processes all
    must call every method. Raises UserError where a step that is to be read is damaged, or the scores of any are.
    """

    def __init__(self, workdir: Path, select_on: str = "val"):
        refuse_path(workdir, UNREADABLE)
        self._folder = workdir
        self._saving: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in (workdir / "checkpoints").glob("*"):
            if path.name.isdecimal():
                self._refuse_damaged(int(path.name), "metrics/")

        def score(metrics: dict[str, float]) -> float:
            return metrics[f"{select_on}/{SELECTION}"]

        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
            best_fn=score,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._complete),
        )
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).absolute() / "checkpoints",
            options=options,
            item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step that did best on validation, or the latest where none was validated."""
        return self._manager.best_step() or self.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Saves asynchronously.

        Raises UserError if this step or the one before could not be saved, because the disk did not take it or its
        arrays cannot be read again. Such a step does not count.
        """
        with self._disk_told():
            self._manager.wait_until_finished()
        self._saving, self._shapes = step, shapes_of(state)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
        with self._disk_told():
            self._manager.save(step, args=args, metrics=metrics, custom_metadata=digests.MARK)

    def restore(self, step: int, target: Any) -> Any:
        """`target`: a tree of jax.ShapeDtypeStruct with shardings, on whatever mesh.

        Raises UserError, naming folder, step and parameter, where the checkpoint has other arrays, before any is read,
        or values that are not finite. The first process compares the digests.
        """
        where = self.describe(step)
        if jax.process_index() == 0:
            self._refuse_damaged(step)
        refuse_other_shapes(where, shapes_of(self._manager.item_metadata(step)["state"].tree), shapes_of(target))
        how = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=how)
        state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        refuse_not_finite(where, jax.device_get(jax.jit(_finite)(state)))  # on the devices: every process sees the same
        return state

    def restore_params(self, step: int) -> Any:
        """The parameters alone (their average, where the run keeps one), as NumPy arrays; no more is read."""
        name, shapes = self._learned(step)
        target = {name: shapes}
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        args = ocp.args.PyTreeRestore(target, restore_args=how, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"][name]

    def params_shapes(self, step: int) -> Any:
        """What `restore_params` would give, as leaves that tell their `shape`; no array is read."""
        return self._learned(step)[1]

    def _learned(self, step: int) -> tuple[str, Any]:
        """Which part of the state holds the parameters to use, and its shapes."""
        self._refuse_damaged(step)
        tree = self._manager.item_metadata(step)["state"].tree
        name = "ema" if tree.get("ema") else "params"
        return name, tree[name]

    def describe(self, step: int) -> "Where":
        """A step of this workdir, for errors."""
        path = f"{self._folder}/checkpoints/{step}"
        return Where(f"{self._folder}, step {step}", f"remove {path} to use the checkpoint before it")

    def close(self) -> None:
        """Waits for the save under way. Raises UserError as `save` does."""
        with self._disk_told():
            self._manager.close()

    def _complete(self) -> None:
        """Checks the step and writes its digests.

        Orbax calls it in its own thread, in the first process, when all files are written, before it renames
        the folder.
        """
        try:
            with self._disk_told():
                self._seal()
        except UserError as error:
            if jax.process_count() > 1:  # here Orbax would wait for the others, which wait for this process
                watchdog.end(MISTAKE, f"error: {printable(error)}")
            raise

    def _seal(self) -> None:
        """Writes the digests of the step that is being saved. Raises UserError if it cannot be read again."""
        step = self._folder / "checkpoints" / f"{self._saving}{digests.UNFINISHED}"
        fault = find_fault(step / "state", self._shapes)
        if fault:
            where = f"{self._folder}/checkpoints: step {self._saving} could not be saved"
            raise UserError(f"{where}: {fault}; run the same command again to resume from the last whole checkpoint")
        digests.write_digests(step)

    def _refuse_damaged(self, step: int, within: str = "") -> None:
        where, fault = self.describe(step), digests.find_damage(self._folder / "checkpoints" / str(step), within)
        if fault:
            raise UserError(f"{where.name} is damaged: {fault}; {where.remedy}")

    @contextlib.contextmanager
    def _disk_told(self) -> Iterator[None]:
        """One line for what the disk says, however Orbax wraps it."""
        try:
            yield
        except Exception as error:
            reason = disk_fault(error)
            if reason is None:
                raise
            where = f"{self._folder}/checkpoints: step {self._saving} could not be saved"
            remedy = "correct this and run the same command again to resume from the last whole checkpoint"
            raise UserError(f"{where}: {reason}; {remedy}") from None


class Where(NamedTuple):
    """Which parameters are meant, and what helps where they are at fault: the ends of a line."""

    name: str
    remedy: str


class Restored(NamedTuple):
    """What a run learned, for use without its optimiser: parameters as NumPy arrays."""

    config: ConfigDict
    params: Any
    step: int


def restore_params(
    workdir: Path | str, best: bool = True, shapes_alone: bool = False, may_lack: tuple[str, ...] = ()
) -> Restored:
    """The best checkpoint of a run (the latest where none was validated), or with `best` False the latest.

    A folder of exported or converted parameters has those alone; their step is the one recorded, or 0. shapes_alone:
    leaves that tell their `shape`, and no array is read. may_lack: what parameters that may be missing begin with.
    Raises UserError where the folder holds no run, or no checkpoint yet; and, naming folder, step and parameter, where
    the parameters are not those of the model that the folder's config describes, or not finite.
    """
    folder, tried = Path(workdir), 0
    while True:
        steps = _steps(folder)
        try:
            return _restore_params(folder, best, shapes_alone, may_lack)
        except Exception:  # of many kinds, where a run at work deletes the step that is just being read
            tried += 1
            if tried == _TRIES or not is_at_work(folder):
                raise
            time.sleep(_MOMENT)
            if _steps(folder) == steps:
                raise


def _steps(folder: Path) -> set[str]:
    """The names of what lies there as checkpoints, whole or not."""
    return {path.name for path in (folder / "checkpoints").glob("*")}


def _restore_params(folder: Path, best: bool, shapes_alone: bool, may_lack: tuple[str, ...]) -> Restored:
    record = load_record(folder)
    config = ConfigDict(record["config"])
    with _open(folder, record, config, best) as found:
        wanted = parameter_shapes(IVTConfig.from_config(config.model))
        refuse_other_shapes(found.where, shapes_of(found.shapes), wanted, may_lack)
        params = found.shapes if shapes_alone else found.read()
    if not shapes_alone:
        refuse_not_finite(found.where, jax.tree.map(lambda x: np.isfinite(x).all(), params))
    return Restored(config, params, found.step)


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every leaf, such as "blocks/attn/qkv/kernel"; what a checkpoint keeps as None is left out."""
    return {path: tuple(leaf.shape) for path, leaf in _by_path(tree).items()}


def refuse_other_shapes(
    where: Where,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    may_lack: tuple[str, ...] = (),
) -> None:
    """Raises UserError for the first parameter that is missing, unexpected or of another shape than wanted."""
    for path in (*wanted, *(path for path in found if path not in wanted)):
        if path not in wanted:
            fault = f"has shape {found[path]}, and the model of its config has no such parameter"
        elif path not in found:
            fault = "is missing"
        else:
            fault = f"has shape {found[path]}, the model of its config has {wanted[path]}"
        if found.get(path) != wanted.get(path) and not (path not in found and path.startswith(may_lack)):
            raise UserError(f"{where.name}: {path} {fault}; {where.remedy}")


def refuse_not_finite(where: Where, finite: Any) -> None:
    """finite: a tree with a truth value for each parameter. Raises UserError for the first that is false."""
    for path, well in _by_path(finite).items():
        if not well:
            raise UserError(f"{where.name}: {path} has values that are not finite; {where.remedy}")


def holds_params_alone(workdir: Path) -> bool:
    """Whether a folder is an export or converted weights, not the workdir of a run."""
    has = (workdir / "params").is_dir() or (workdir / PARAMETER_FILE).is_file()
    return has and not (workdir / "checkpoints").is_dir()


def read_params(path: Path | str, shapes_alone: bool = False) -> Any:
    """What `export_params` wrote, as NumPy arrays, or its shapes. Raises UserError where it is no such checkpoint."""
    refuse_path(path, UNREADABLE)
    target = epath.Path(path).absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(target).item_metadata
        if found is None:
            raise UserError(f"{target} is damaged: it holds no parameters; export or convert again")
        if shapes_alone:
            return found.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.tree)
        return checkpointer.restore(target, restore_args=how)


def export_params(path: Path | str, params: Any) -> None:
    """Writes the parameters alone as an Orbax checkpoint; `ocp.StandardCheckpointer().restore(path)` reads them.

    Raises UserError if they cannot be read again.
    """
    refuse_path(path, UNREADABLE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(path).absolute(), params)
    fault = find_fault(Path(path), shapes_of(params))
    if fault:
        raise UserError(f"{path}: the parameters could not be written: {fault}")


def find_fault(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns what is wrong with the arrays that Orbax wrote into a folder, as a clause; "" if nothing is.

    shapes: path -> shape of every array written. Reads all metadata and no values: every array must have its shape and
    all its chunks, and every file of chunks must exist in its full length.
    """
    try:
        files = tensorstore.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()
        lengths = _file_lengths(files)
        arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": files.spec().to_json()}).result()
        keys = arrays.list().result()
        tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder).absolute()).tree
    except Exception as error:  # of many types
        return f"its arrays cannot be read again ({' '.join(str(error).split())[:200]})"
    return _find_missing_chunks(tree, keys, shapes) or _find_short_file(folder, lengths)


def _find_missing_chunks(tree: Any, keys: Iterable[bytes], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns which array is missing, has another shape or lacks chunks, as a clause; "" if none.

    keys: of the database, "ARRAY/CHUNK".
    """
    found, parts = _by_path(tree), [key.rpartition(b"/") for key in keys]
    stored = collections.Counter(array.decode() for array, _, chunk in parts if chunk != b".zarray")
    for path, shape in shapes.items():
        if path not in found or tuple(found[path].shape) != shape:
            return f"{path} is missing, or has another shape than {shape}"
        storage = found[path].storage  # None for a plain number, which has one chunk
        chunks = storage.chunk_shape if storage else shape
        wanted = math.prod(-(-n // chunk) for n, chunk in zip(shape, chunks, strict=True))
        if stored[found[path].name] != wanted:
            return f"{path} has {stored[found[path].name]} of {wanted} chunks"
    return ""


def _find_short_file(folder: Path, lengths: Mapping[str, int]) -> str:
    """Returns which file is missing or shorter than its length in bytes, as a clause; "" if none."""
    for name, length in lengths.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size < length:
            return f"{name} is missing or cut short"
    return ""


def _file_lengths(files: Any, node: str | None = None) -> dict[str, int]:
    """Returns, by file, how many bytes of it an OCDBT database refers to, from `node` (default: its manifest) on."""
    lengths: dict[str, int] = {}
    dumped = str(tensorstore.ocdbt.dump(files, node).result())
    for kind, base, name, offset, length in _REFERENCE.findall(dumped):
        end = int(offset) + int(length)
        deeper = _file_lengths(files, f"{kind}:{base}:{name}:{offset}:{length}") if kind != "value" else {}
        for file, size in [(base + name, end), *deeper.items()]:
            lengths[file] = max(lengths.get(file, 0), size)
    return lengths


class _Found(NamedTuple):
    """Parameters that can be read: their step, how errors name them, leaves that tell their `shape`, and how to."""

    step: int
    where: Where
    shapes: Any
    read: Callable[[], Any]


@contextlib.contextmanager
def _open(folder: Path, record: Mapping[str, Any], config: ConfigDict, best: bool) -> Iterator[_Found]:
    """The parameters of a folder, whichever kind it is."""
    if holds_params_alone(folder):
        step = record.get("step", 0)
        where = Where(f"{folder}, step {step}", "export or convert again")
        read: Callable[..., Any] = functools.partial(read_params, folder / "params")
        if not (folder / "params").is_dir():
            read = functools.partial(read_parameter_file, folder / PARAMETER_FILE, config)
        yield _Found(step, where, read(shapes_alone=True), read)
        return
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}: no checkpoint yet; train first")
    with contextlib.closing(Checkpoints(folder, config.train.select_on)) as checkpoints:
        step = checkpoints.best_step() if best else checkpoints.latest_step()
        if step is None:
            raise UserError(f"{folder}: no checkpoint yet; train first")
        read = functools.partial(checkpoints.restore_params, step)
        yield _Found(step, checkpoints.describe(step), checkpoints.params_shapes(step), read)


def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
