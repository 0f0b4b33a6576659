"""Checkpoints by Orbax: the latest two and the best by validation.

Restoring checks that files have the bytes written, that arrays are those of the config, and that values are finite.
"""

import collections
import contextlib
import functools
import logging
import math
import operator
import re
import time
from collections.abc import Iterator, Mapping
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
from ivt_jax.losses.heads import without_heads
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run import digests, watchdog
from ivt_jax.run.parameter_file import NAME as PARAMETER_FILE
from ivt_jax.run.parameter_file import read_parameter_file
from ivt_jax.run.workdir import is_at_work, load_record

Shapes = Mapping[str, tuple[int, ...]]  # by the path of the parameter, such as "blocks/attn/qkv/kernel"
SELECTION = "t2i/R1"  # the score that chooses the best checkpoint, on the split `train.select_on`
_TRIES, _MOMENT = 10, 1.0  # attempts to read parameters while a run deletes checkpoints; seconds between two attempts
# A reference to a part of a file, as tensorstore.ocdbt.dump prints it: kind, folder, name, offset, length.
_REFERENCE = re.compile(r"'(btreenode|versionnode|value):([^':]*):([^':]*):(\d+):(\d+)'")
# Drops logs of errors that Orbax raises too, and asyncio's warnings about further errors of the same save.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())


class Checkpoints:
    """The checkpoints of a workdir: the latest two, and the best of those saved with scores.

    select_on: the split whose scores choose the best; of equal ones the latest. With several processes, all must call
    every method. Raises UserError if the scores of any step, or the arrays of a step to restore, are damaged.
    """

    def __init__(self, workdir: Path, select_on: str = "val"):
        refuse_path(workdir, UNREADABLE)
        self._folder = workdir
        self._saving: int | None = None
        self._shapes: Shapes = {}
        for path in (workdir / "checkpoints").glob("*"):
            if path.name.isdecimal():
                self._refuse_damaged(int(path.name), "metrics/")
        score = operator.itemgetter(f"{select_on}/{SELECTION}")
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
        self._metadata = functools.cache(lambda step: self._manager.item_metadata(step)["state"].tree)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step with the best scores, or the latest if none has scores."""
        return self._manager.best_step() or self.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Saves asynchronously. metrics: scores by "SPLIT/WAY/NAME", which make the step a candidate for the best.

        Raises UserError if the disk failed while this step or the one before was saved, or if the saved step cannot be
        read again. Such a step is left unfinished.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()
        self._saving, self._shapes = step, shapes_of(state)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
        with self._disk_errors():
            self._manager.save(step, args=args, metrics=metrics, custom_metadata=digests.MARK)

    def restore(self, step: int, target: Any) -> Any:
        """Returns the state of a step. target: a tree of jax.ShapeDtypeStruct with shardings, on any mesh.

        Raises UserError, naming folder, step and parameter, if the checkpoint is damaged, has other arrays (checked
        before any is read) or values that are not finite. Only the first process compares digests.
        """
        where = self.describe(step)
        if jax.process_index() == 0:
            self._refuse_damaged(step)
        refuse_other_shapes(where, shapes_of(self._metadata(step)), shapes_of(target))
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=restore_args)
        state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(state)
        refuse_not_finite(where, jax.device_get(finite))  # computed on the devices: the same in every process
        return state

    def restore_params(self, step: int, shapes_alone: bool = False) -> Any:
        """Returns the model's parameters (their average, if the run keeps one) as NumPy arrays; reads nothing else.

        shapes_alone: reads no array; the leaves have a `shape`.
        """
        self._refuse_damaged(step)
        tree = self._metadata(step)
        name = "ema" if tree.get("ema") else "params"
        target = {name: without_heads(tree[name])}
        if shapes_alone:
            return target[name]
        args = ocp.args.PyTreeRestore(target, restore_args=_as_numpy(target), partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"][name]

    def describe(self, step: int) -> "Where":
        """Returns how errors name this step."""
        path = f"{self._folder}/checkpoints/{step}"
        return Where(f"{self._folder}, step {step}", f"remove {path} to use the checkpoint before it")

    def close(self) -> None:
        """Waits for the save in progress. Raises UserError as `save` does."""
        with self._disk_errors():
            self._manager.close()

    def _complete(self) -> None:
        """Checks that the step can be read again and writes its digests.

        Orbax calls it in a thread of the first process, after all files are written and before it renames the folder.
        """
        step = self._folder / "checkpoints" / f"{self._saving}{digests.UNFINISHED}"
        try:
            with self._disk_errors():
                if fault := find_fault(step / "state", self._shapes):
                    raise self._not_saved(fault)
                digests.write_digests(step)
        except UserError as error:
            if jax.process_count() > 1:  # Orbax would wait for the other processes, which wait for this one
                watchdog.end(MISTAKE, f"error: {printable(error)}")
            raise

    def _refuse_damaged(self, step: int, within: str = "") -> None:
        where, fault = self.describe(step), digests.find_damage(self._folder / "checkpoints" / str(step), within)
        if fault:
            raise UserError(f"{where.name} is damaged: {fault}; {where.remedy}")

    def _not_saved(self, reason: str, remedy: str = "") -> UserError:
        again = "run the same command again to resume from the last whole checkpoint"
        step = f"{self._folder}/checkpoints: step {self._saving}"
        return UserError(f"{step} could not be saved: {reason}; {remedy}{again}")

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raises an error of the disk, however Orbax wraps it, as a UserError."""
        try:
            yield
        except Exception as error:
            if (reason := disk_fault(error)) is None:
                raise
            raise self._not_saved(reason, "correct this and ") from None


class Where(NamedTuple):
    """The beginning and the end of an error about parameters: which ones, and what to do."""

    name: str
    remedy: str


class Restored(NamedTuple):
    """Parameters of a run as NumPy arrays, without the optimiser's state."""

    config: ConfigDict
    params: Any
    step: int


def restore_params(
    workdir: Path | str, best: bool = True, shapes_alone: bool = False, optional: tuple[str, ...] = ()
) -> Restored:
    """Returns the parameters of a run's best checkpoint (the latest if none has scores), or of its latest.

    workdir: may also be a folder of exported or converted parameters; their step is the recorded one, or 0.
    shapes_alone: reads no array; the leaves have a `shape`. optional: prefixes of parameters that may be missing.
    Raises UserError if the folder holds no run or no checkpoint, or, naming folder, step and parameter, if parameters
    are not those of the model in the folder's config, or not finite.
    """
    folder, attempts = Path(workdir), 0
    while True:
        steps = set(folder.glob("checkpoints/*"))
        try:
            return _restore_params(folder, best, shapes_alone, optional)
        except Exception:  # of many types, if a running training deletes this checkpoint meanwhile
            attempts += 1
            if attempts == _TRIES or not is_at_work(folder):
                raise
            time.sleep(_MOMENT)
            if set(folder.glob("checkpoints/*")) == steps:
                raise


def _restore_params(folder: Path, best: bool, shapes_alone: bool, optional: tuple[str, ...]) -> Restored:
    record = load_record(folder)
    config = ConfigDict(record["config"])
    with contextlib.ExitStack() as stack:
        if holds_params_alone(folder):
            step = record.get("step", 0)
            where = Where(f"{folder}, step {step}", "export or convert again")
            read: Any = functools.partial(read_params, folder / "params")
            if not (folder / "params").is_dir():
                read = functools.partial(read_parameter_file, folder / PARAMETER_FILE, config)
        else:
            step = None
            if (folder / "checkpoints").is_dir():
                checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, config.train.select_on)))
                step = checkpoints.best_step() if best else checkpoints.latest_step()
            if step is None:
                raise UserError(f"{folder}: no checkpoint yet; train first")
            where, read = checkpoints.describe(step), functools.partial(checkpoints.restore_params, step)
        shapes, wanted = read(shapes_alone=True), parameter_shapes(IVTConfig.from_config(config.model))
        refuse_other_shapes(where, shapes_of(shapes), wanted, optional)
        params = shapes if shapes_alone else read()
    if not shapes_alone:
        refuse_not_finite(where, jax.tree.map(lambda x: np.isfinite(x).all(), params))
    return Restored(config, params, step)


def shapes_of(tree: Any) -> Shapes:
    """Returns the shape of every leaf by its path; None counts as no leaf."""
    return {path: tuple(leaf.shape) for path, leaf in _by_path(tree).items()}


def refuse_other_shapes(where: Where, found: Shapes, wanted: Shapes, optional: tuple[str, ...] = ()) -> None:
    """Raises UserError for the first parameter that is unexpected, missing (unless optional) or of another shape."""
    for path in {**wanted, **found}:
        if found.get(path) == wanted.get(path) or (path not in found and path.startswith(optional)):
            continue
        if path not in wanted:
            fault = f"has shape {found[path]}, and the model of its config has no such parameter"
        elif path not in found:
            fault = "is missing"
        else:
            fault = f"has shape {found[path]}, the model of its config has {wanted[path]}"
        raise UserError(f"{where.name}: {path} {fault}; {where.remedy}")


def refuse_not_finite(where: Where, finite: Any) -> None:
    """Raises UserError for the first parameter with values that are not finite. finite: a tree with a bool for each."""
    for path, is_finite in _by_path(finite).items():
        if not is_finite:
            raise UserError(f"{where.name}: {path} has values that are not finite; {where.remedy}")


def holds_params_alone(workdir: Path) -> bool:
    """Returns whether a folder holds exported or converted weights, not a run."""
    has = (workdir / "params").is_dir() or (workdir / PARAMETER_FILE).is_file()
    return has and not (workdir / "checkpoints").is_dir()


def read_params(path: Path | str, shapes_alone: bool = False) -> Any:
    """Returns what `export_params` wrote, as NumPy arrays or leaves with a `shape`. Raises UserError if damaged."""
    refuse_path(path, UNREADABLE)
    target = epath.Path(path).absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(target).item_metadata
        if found is None:
            raise UserError(f"{target} is damaged: it holds no parameters; export or convert again")
        return found.tree if shapes_alone else checkpointer.restore(target, restore_args=_as_numpy(found.tree))


def export_params(path: Path | str, params: Any) -> None:
    """Writes parameters as an Orbax checkpoint, which `ocp.StandardCheckpointer().restore(path)` reads.

    Raises UserError if they cannot be read again.
    """
    refuse_path(path, UNREADABLE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(path).absolute(), params)
    if fault := find_fault(Path(path), shapes_of(params)):
        raise UserError(f"{path}: the parameters could not be written: {fault}")


def find_fault(folder: Path, shapes: Shapes) -> str:
    """Returns what is wrong with the arrays that Orbax wrote into a folder, as a clause; "" if nothing is.

    Reads metadata and no values: every array must have its shape in `shapes` and all its chunks, and every file of
    chunks must have its full length.
    """
    try:
        files = tensorstore.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()
        lengths = dict(sorted(_file_lengths(files)))  # the last reference to each file decides
        arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": files.spec().to_json()}).result()
        parts = [key.decode().rpartition("/") for key in arrays.list().result()]  # of ARRAY/CHUNK
        found = _by_path(ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder).absolute()).tree)
    except Exception as error:  # of many types
        return f"its arrays cannot be read again ({' '.join(str(error).split())[:200]})"
    stored = collections.Counter(array for array, _, chunk in parts if chunk != ".zarray")
    for path, shape in shapes.items():
        if path not in found or tuple(found[path].shape) != shape:
            return f"{path} is missing, or has another shape than {shape}"
        storage = found[path].storage  # None for a plain number, which has one chunk
        chunks = storage.chunk_shape if storage else shape
        wanted = math.prod(-(-n // chunk) for n, chunk in zip(shape, chunks, strict=True))
        if stored[found[path].name] != wanted:
            return f"{path} has {stored[found[path].name]} of {wanted} chunks"
    short = (name for name, n in lengths.items() if not (folder / name).is_file() or (folder / name).stat().st_size < n)
    return next((f"{name} is missing or cut short" for name in short), "")


def _file_lengths(files: Any, node: str | None = None) -> Iterator[tuple[str, int]]:
    """Yields file and end, in bytes, of each reference in an OCDBT database, below `node` (default: its manifest)."""
    for kind, base, name, offset, length in _REFERENCE.findall(str(tensorstore.ocdbt.dump(files, node).result())):
        yield base + name, int(offset) + int(length)
        if kind != "value":
            yield from _file_lengths(files, f"{kind}:{base}:{name}:{offset}:{length}")


def _as_numpy(tree: Any) -> Any:
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
