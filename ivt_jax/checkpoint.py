"""Checkpoints by Orbax: the latest two and the best by validation, the run's config beside them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from input_pipeline.errors import UserError
from ivt_jax.workdir import load_config

SELECTION = "t2i/R1"  # the measure that chooses, on the split that the config's train.select_on names


class Checkpoints:
    """The checkpoints of a workdir; `metrics`, where given at a save, make it a candidate for the best.

    select_on: the split whose scores choose. Of equally good ones the latest is the best. With several processes all
    must call every method.
    """

    def __init__(self, workdir: Path, select_on: str = "val"):
        def score(metrics: dict[str, float]) -> float:
            return metrics[f"{select_on}/{SELECTION}"]

        best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
            best_fn=score,
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
        """Saves asynchronously."""
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), metrics=metrics)

    def restore(self, step: int, target: Any) -> Any:
        """`target`: a tree of jax.ShapeDtypeStruct with shardings, on whatever mesh."""
        how = ocp.checkpoint_utils.construct_restore_args(target)
        args = ocp.args.PyTreeRestore(target, restore_args=how)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

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
        tree = self._manager.item_metadata(step)["state"].tree
        name = "ema" if tree.get("ema") else "params"
        return name, tree[name]

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()


class Restored(NamedTuple):
    """What a run learned, for use without its optimiser: parameters as NumPy arrays."""

    config: ConfigDict
    params: Any
    step: int


def restore_params(workdir: Path | str, best: bool = True, shapes_alone: bool = False) -> Restored:
    """The best checkpoint of a run (the latest where none was validated), or with `best` False the latest.

    A folder of exported or converted parameters has those alone; their step is 0. shapes_alone: leaves that tell their
    `shape`, and no array is read. Raises UserError where the folder holds no run, or no checkpoint yet.
    """
    config = load_config(workdir)
    if holds_params_alone(Path(workdir)):
        return Restored(config, read_params(Path(workdir) / "params", shapes_alone), 0)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir}: no checkpoint yet; train first")
    checkpoints = Checkpoints(Path(workdir), config.train.select_on)
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{workdir}: no checkpoint yet; train first")
    params = checkpoints.params_shapes(step) if shapes_alone else checkpoints.restore_params(step)
    checkpoints.close()
    return Restored(config, params, step)


def holds_params_alone(workdir: Path) -> bool:
    """Whether a folder is an export or converted weights, not the workdir of a run."""
    return (workdir / "params").is_dir() and not (workdir / "checkpoints").is_dir()


def read_params(path: Path | str, shapes_alone: bool = False) -> Any:
    """What `export_params` wrote, as NumPy arrays, or its shapes. Raises UserError where it is no such checkpoint."""
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
    """Writes the parameters alone as an Orbax checkpoint; `ocp.StandardCheckpointer().restore(path)` reads them."""
    target = epath.Path(path).absolute()
    if target.exists():
        raise UserError(f"{target} exists already; remove it to export again")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, params)
