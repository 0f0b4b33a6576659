"""The run: set up, train, select on validation, report test once. Readable from top to bottom."""

import collections
import concurrent.futures
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import pipeline
from input_pipeline.sampling import EpochPlans
from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, refuse_path, write_text
from ivt_jax.evaluation.protocols import standard
from ivt_jax.evaluation.run import evaluate
from ivt_jax.evaluation.split import both_scores, embed_split
from ivt_jax.pages.report import write_report
from ivt_jax.run import preemption
from ivt_jax.run.checkpoint import Checkpoints, holds_params_alone
from ivt_jax.run.digests import set_damaged_aside
from ivt_jax.run.watchdog import Watchdog
from ivt_jax.run.workdir import (
    folder_tokenizer,
    hold_workdir,
    load_config,
    make_workdir,
    read_json,
    record_config,
    recorded_pictures,
    refuse_other_config,
    refuse_other_data,
)
from ivt_jax.training.config_check import check_config, edge_notice
from ivt_jax.training.init_from import NOTHING, given_params
from ivt_jax.training.metrics import Progress, ScalarLog, format_seconds, parameter_table
from ivt_jax.training.optimizer import make_schedules
from ivt_jax.training.program import Program, batch_shapes, build_program
from ivt_jax.training.sharding import global_batch, local_copy, sharding_table
from ivt_jax.training.train_step import TrainState


def train_and_evaluate(config: ConfigDict, workdir: Path) -> None:
    """Trains (or resumes) the run of `workdir`, evaluates its best checkpoint on test, writes report.html.

    A run that is complete is left as it is; one that is preempted saves its step and exits with 75.
    """
    check_config(config, jax.device_count(), resumed=(workdir / "config.json").exists())
    refuse_path(workdir, UNWRITABLE)
    if holds_params_alone(workdir):
        raise UserError(f"{workdir} holds parameters alone; to train from them, name it with --config.train.init_from")
    first = jax.process_index() == 0
    refuse_other_config(workdir, config)
    source = pipeline.open_split(config, "train", recorded_pictures(workdir))
    refuse_other_data(workdir, source.annotations)
    tokenizer = folder_tokenizer(workdir, config)
    plans = EpochPlans(
        source.person_ids[source.pairs[0]], config.data.batch_size, config.data.sampling, config.data.instances,
        config.seed,
    )  # fmt: skip
    epoch_starts = plans.epoch_starts(config.train.epochs + 1 - config.train.first_epoch)
    total_steps = config.train.steps or int(epoch_starts[-1])
    program = build_program(config, epoch_starts, total_steps, tokenizer.mask_id)

    progress = Progress(total_steps, config.data.batch_size)
    # Before the workdir is made: a fault leaves none. A run that has checkpoints no longer needs what it started from.
    given = NOTHING if (workdir / "checkpoints").exists() else given_params(config)
    make_workdir(workdir)
    if first:
        hold_workdir(workdir)
    set_damaged_aside(workdir, config.runtime.on_damage, progress.say)
    checkpoints = Checkpoints(workdir, config.train.select_on)
    start = checkpoints.latest_step() or 0
    refuse_other_length(workdir, config, epoch_starts, start)
    if start == total_steps and is_reported(workdir, start):
        return progress.say(f"complete: {total_steps} steps, tested; report: {workdir / 'report.html'}")
    progress.say(f"{'resuming at' if start else 'training from'} step {start} of {total_steps}: {workdir}")
    if notice := edge_notice(config):
        progress.say(notice)
    if config.train.select_on == "test":
        progress.say("warning: train.select_on is test: the best checkpoint's test figures will be too good")
    if not start and given is NOTHING:
        given = given_params(config)
    if given.told:
        progress.say(given.told)
    compiling: Any = None
    if start < total_steps:  # the step's program is made while the state and the first batch are
        compiling = concurrent.futures.ThreadPoolExecutor(1).submit(compile_step, program, config, progress)
    hyperparameters = program.hyperparameters()  # on the devices once: a step waits for no transfer
    state = checkpoints.restore(start, program.target) if start else start_state(program, given.params)
    if first:
        record_config(workdir, config, source.annotations, tokenizer, source.pictures)
        write_text(workdir / "parameters.txt", parameter_table(program.target.params) + "\n")
        write_text(workdir / "sharding.txt", sharding_table(program.mesh.shape, program.target) + "\n")
    log = ScalarLog(workdir, start, enabled=first)
    validate = make_validation(config, program, tokenizer, source.pictures)
    due = functools.partial(is_due, every=config.train.eval_every, starts=epoch_starts, last=total_steps)
    rows = pipeline.train_batches(config, source, tokenizer, plans, start, jax.process_index(), jax.process_count())
    run_step = None
    # Metrics are read one step late, so that the device never waits for the host.
    pending: collections.deque[tuple[int, Any]] = collections.deque()
    # `rows` end before Python does: TensorFlow's threads could not be stopped any more.
    with contextlib.closing(rows), Watchdog(config.runtime.watchdog) as watchdog:
        timed = progress.timed(rows, lambda: bool(pending) and not pending[-1][1]["loss"].is_ready())
        for step, batch in zip(range(start + 1, total_steps + 1), timed, strict=False):
            batch = global_batch(program.mesh, batch)
            if not run_step:
                run_step = compiling.result()
                progress.start(step - 1)
            state, metrics = run_step(state, batch, hyperparameters)
            watchdog.feed()
            pending.append((step, metrics))
            validates, preempted = due(step), preemption.reached(step)
            saves = validates or preempted or step % config.runtime.checkpoint_every == 0
            while len(pending) > (0 if saves else 1):  # what precedes a checkpoint is logged before it
                report_step(pending.popleft(), config, log, progress)
            if saves:
                with watchdog.resting():
                    scores = validate(state) if validates else {}
                if scores:
                    log.write(step, scores)
                    split = config.train.select_on
                    shown = "  ".join(f"{name.removeprefix(split + '/')} {v:.1f}" for name, v in scores.items())
                    progress.say(f"step {step}: {split} {shown}")
                checkpoints.save(step, state, scores or None)
                progress.resume(step)
            if preempted:
                checkpoints.close()
                progress.say(f"preempted: step {step} is saved; the same command resumes")
                sys.exit(preemption.EXIT_CODE)
        checkpoints.close()
    preemption.over()

    if first:
        (workdir / "report.html").unlink(missing_ok=True)  # of an earlier end of the run, with other test figures
    test = evaluate(workdir, config, write=first, images_digest=source.pictures)["test"]
    progress.say(f"test, step {test['step']}: " + "  ".join(f"t2i/{k} {v:.1f}" for k, v in test["t2i"].items()))
    if first:
        progress.say(f"report: {write_report(workdir)}")


def refuse_other_length(workdir: Path, config: ConfigDict, epoch_starts: np.ndarray, taken: int) -> None:
    """Raises UserError where `train.steps` differs from the run's and the run cannot go on to it from step `taken`.

    It can if the schedules give the steps already taken the rates that they had: then the run continues as if it had
    begun with this `train.steps`.
    """
    if not taken or not (workdir / "config.json").exists():
        return
    before, now = load_config(workdir).train.steps, config.train.steps
    if before == now:  # without a comparison of rates, which every resumed run would wait for
        return
    last = [steps or int(epoch_starts[-1]) for steps in (before, now)]
    if last[1] < taken:
        raise UserError(f"{workdir} is at step {taken} already, train.steps is {last[1]}: set {taken} or more")
    schedules = [make_schedules(config, epoch_starts, steps) for steps in last]
    steps = np.arange(taken)
    if any(not np.array_equal(schedules[0][group](steps), schedules[1][group](steps)) for group in schedules[0]):
        raise UserError(
            f"{workdir} belongs to another config: train.steps was {before}, is {now}. With optimizer.schedule "
            f"{config.optimizer.schedule} this changes the learning rates of the {taken} steps already taken. "
            "Choose another --workdir"
        )


def is_reported(workdir: Path, last: int) -> bool:
    """Whether the run was tested when `last` was its last step, and has its report."""
    summary = workdir / "test/summary.json"
    tested = summary.exists() and read_json(summary).get("last", {}).get("step") == last
    return tested and (workdir / "report.html").exists()


def start_state(program: Program, params: Mapping[str, np.ndarray]) -> TrainState:
    """A fresh state, in which `params`, by their path, take the place of the random ones."""
    state = program.init()
    if not params:
        return state

    def place(path, random):
        value = params.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if value is None:
            return random
        return jax.make_array_from_callback(random.shape, random.sharding, lambda index: value[index])

    params = jax.tree_util.tree_map_with_path(place, state.params)
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params) if state.ema else {})


def compile_step(program: Program, config: ConfigDict, progress: Progress) -> Callable:
    """The step's compiled program; says so, for it takes a while."""
    progress.say("compiling the training step")
    began = time.perf_counter()
    shapes = program.target, batch_shapes(config, program.mesh), program.hyperparameter_shapes
    compiled = program.step.lower(*shapes).compile()
    progress.say(f"compiled in {format_seconds(time.perf_counter() - began)}")
    return compiled


def report_step(numbered: tuple[int, Any], config: ConfigDict, log: ScalarLog, progress: Progress) -> None:
    """Logs (step, metrics) where it is due; ends the run where too many steps in a row were not finite."""
    step, metrics = numbered
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = int(scalars.pop("bad_steps"))
    if bad >= config.train.max_bad_steps:
        names = ", ".join(name for name, value in scalars.items() if not np.isfinite(value))
        raise UserError(
            f"step {step}: not finite: {names}; {bad} such steps in a row (train.max_bad_steps), their updates were "
            "withheld. In another --workdir, lower the learning rate or use model.dtype float32"
        )
    if step % config.runtime.log_every == 0:
        clocked = progress.measure(step)
        log.write(step, {**scalars, **clocked})
        scalars.pop("learning_rate")
        progress.show(step, scalars, clocked["pairs_per_second"], clocked["input_wait"])


def is_due(step: int, *, every: int, starts: np.ndarray, last: int) -> bool:
    """Whether a validation follows this step: every `every` steps, or at the end of each epoch; always at the last."""
    return step == last or (step % every == 0 if every else step in starts)


def make_validation(
    config: ConfigDict, program: Program, tokenizer: Tokenizer, pictures: str = ""
) -> Callable[[TrainState], dict[str, float]]:
    """Returns a function that scores a state on the split `train.select_on`; it gives no scores if that is empty.

    pictures: the digest of the images that the run trains on; "" takes them as they are now.
    """
    split = config.train.select_on
    source = pipeline.open_split(config, split, pictures)
    if not len(source.person_ids):
        return lambda state: {}

    def validate(state: TrainState) -> dict[str, float]:
        params = local_copy(program.mesh, state.learned)
        scores = both_scores(standard(embed_split(program.model, params, source, tokenizer, config)))
        return {f"{split}/{way}/{name}": value for way, values in scores.items() for name, value in values.items()}

    return validate
